// Package plan decides where the shards of a cluster belong and what is done next to bring them there. It keeps the
// cluster as the stores report it (View), and from that alone, the settings (Config) and the operators that run already,
// it proposes operators. It does no I/O, starts no goroutine, reads no clock and draws no chance: the same input gives the
// same output, so every decision can be run again with a trace to say why it came out as it did.
//
// It does not carry operators out, and never assumes that one was: whether a step is done is read off the reports.
//
//	reports -> View.Report -> View: stores, shards, indexes, shards whose checks must run again
//	                            |
//	Config, running ops ->  Planner.Round: checkers (shard by shard), then schedulers (store by store)
//	                            |
//	                        []Operator, journal
//
// Nothing here is safe for concurrent use: whoever owns a View and its Planner holds one lock over both. All times are
// durations on the owner's boot clock.
package plan
