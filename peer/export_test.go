package peer

// OwnSide is the look at this host's routes and interfaces.
var OwnSide = ownSide
