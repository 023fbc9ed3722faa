// Command pvcnoded is the node daemon.
//
//	pvcnoded -c FILE                the agent: keepalive, primary role, failover
//	pvcnoded guard -c FILE          the guard: holds the role's effects and ends them in time
//	pvcnoded guard sweep -c FILE    ends what a guard that died left behind, then exits
//	pvcnoded config check -c FILE   loads the settings and says what is wrong with them
//
// Here and only here the packages meet: wire.go fits the adapters to the
// interfaces that the agent declares.
package main
