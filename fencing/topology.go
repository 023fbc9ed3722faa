package fencing

import "pvc.internal/cluster"

// Ladder walks a node's levels: in order, and within a level every device must
// confirm, because a machine with two power supplies runs on either. It is a
// value; Confirm and Fail return the next one.
type Ladder struct {
	levels [][]Device
	at     int
	proven bool
}

// NewLadder starts at the first level. Empty levels are passed over: a level
// without a device could not prove anything.
func NewLadder(levels [][]Device) Ladder {
	kept := make([][]Device, 0, len(levels))
	for _, level := range levels {
		if len(level) > 0 {
			kept = append(kept, level)
		}
	}
	return Ladder{levels: kept}
}

// Level is the devices to try now, all of them; nil when there is nothing left
// to try, because a level has proven off or because all have failed.
func (l Ladder) Level() []Device {
	if l.proven || l.at >= len(l.levels) {
		return nil
	}
	return l.levels[l.at]
}

// Proven reports whether every device of one level has confirmed.
func (l Ladder) Proven() bool { return l.proven }

// Report takes the results of the present level's attempts, one of each
// device, and moves on: proven when all read off, else to the next level. A
// missing result is not a confirmation.
func (l Ladder) Report(results []cluster.FenceAttempt) Ladder {
	level := l.Level()
	if level == nil {
		return l
	}
	if levelOff(level, results) {
		l.proven = true
		return l
	}
	l.at++
	return l
}

// levelOff reports whether every device of the level has a newest result of
// verified off; an unknown power state never is one (I5).
func levelOff(level []Device, results []cluster.FenceAttempt) bool {
	newest := make(map[string]string, len(level))
	for _, r := range results {
		newest[r.Device] = r.Result
	}
	for _, d := range level {
		if newest[d.Name] != ResultOff {
			return false
		}
	}
	return len(level) > 0
}

// Dark lists the devices, each once and in the order of the levels, whose
// newest known result is off: those by which the node is to be given power
// again. A level of which only one supply was cut proves nothing, and that
// supply would stay dark all the same.
func Dark(levels [][]Device, attempts []cluster.FenceAttempt) []Device {
	newest := make(map[string]string)
	for _, a := range attempts {
		if a.Result != ResultUnknown && a.Action != ActionSoft {
			newest[a.Device] = a.Result
		}
	}
	var dark []Device
	for _, level := range levels {
		for _, d := range level {
			if newest[d.Name] == ResultOff {
				dark = append(dark, d)
				delete(newest, d.Name)
			}
		}
	}
	return dark
}

// proving is the first level of which these attempts, of one try, read every
// device off; nil if none.
func proving(levels [][]Device, attempts []cluster.FenceAttempt) []Device {
	for _, level := range levels {
		if levelOff(level, attempts) {
			return level
		}
	}
	return nil
}
