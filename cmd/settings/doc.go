// Package settings loads the YAML files of the programs, fills in the
// defaults, and refuses whatever cannot work: an unknown key, a value of the
// wrong type, a broken relation between two intervals. Every refusal names the
// file, the line where it is known, the key, and what to write instead; all
// refusals of a file are reported together.
package settings
