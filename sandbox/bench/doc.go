// Package bench measures what the project promises on real clusters of the
// sandbox, each figure beside its target: medians and worst of repeated runs
// whose faults strike at fixed phases of the renewal period, against keepalived
// on the same bridges, with the machine and the noise floor of the measurement.
//
// A part brings up the cluster that it needs; parts that need the same one share
// it, and there is one at a time, so that nothing is measured beside something
// else. A figure that misses its target is told as such and ends nothing; a part
// that cannot be carried out, or a broken invariant, is an error.
package bench
