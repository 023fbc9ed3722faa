package agent

// Waiting is what is to be shipped next.
func (l *NodeLog) Waiting() []string { return l.parcel().lines }
