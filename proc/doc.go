// Package proc is the one way to run a child process.
//
// A child is started by argv only (never through a shell), in a session of its
// own and, where cgroup v2 is writable, in a control group of its own; what it
// leaves behind, a grandchild that called setsid included, dies with it. Where
// no control group can be made, the calling process becomes the reaper of its
// descendants and a walk over /proc takes the group's place.
//
// Run is for programs that end (fence agents, plugins, checks); Start is for
// those that run as long as a role, and Adopt finds one of them again after
// its parent was restarted. Act is for programs that bring something up and end,
// leaving it (an OCF agent's start), or do something to it later. BootClock is the clock of every daemon.
package proc
