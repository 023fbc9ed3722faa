// Package janitor decides where the copies of replicated workloads belong, from
// where they are found to be: a pure step, without clock, goroutine or I/O. It
// never brings an empty copy online while another of the chain still has one
// (protocol §9).
package janitor
