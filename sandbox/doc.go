// Package sandbox builds whole clusters on one machine out of real parts: a
// network, PID, mount and UTS namespace per node, in it the node's own
// ZooKeeper server and the shipped daemons; a BMC per node outside it; two
// bridges and a client that asks every floating address, again and again, who
// answers.
//
// It injects faults as values, records what happened as a history on one clock
// (CLOCK_BOOTTIME, which all namespaces share) and checks that history against
// the protocol's invariants I1 to I10, as far as it shows them, afterwards.
//
// It may run workloads (Options.Workloads, StartWorkloads): programs whose processes
// tell it where they run, OCF agents, and a Redis that it fills with keys and counts
// them in again. Then the checker also judges that no movable one runs twice, that no
// copy runs on past its node's right, and that no acknowledged key is lost while
// auto-reprovision is armed.
//
// Nothing of it outlives its supervisor process: every node's PID 1 dies with
// it, a PID namespace dies with its PID 1, and network namespaces that no
// process and no descriptor refers to are destroyed by the kernel. What a
// killed supervisor leaves on disk (its folder and control groups) is swept by
// the next run.
package sandbox
