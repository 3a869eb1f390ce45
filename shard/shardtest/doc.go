// Package shardtest tests package shard as a cluster: real stores over the real engine in memory, joined by
// transport/simnet, seen from outside only. It holds tests and nothing else.
//
// There are two ways to run a cluster, both inside a testing/synctest bubble, so that time is virtual and "nothing more
// happens until a tick" is something that a test can wait for:
//
//   - A sim moves by its methods only (Store.Poll, Net.Step). Everything in it follows from its seed, the election
//     jitter of raft included. The scripts in testdata, the crash clones and the hazards are written for it.
//   - A live cluster runs Store.Run and Net.Run with as many goroutines as in production, clients and faults beside
//     them. Its seed fixes the faults, the delays and the jitter, but not the order in which Go runs goroutines: a seed
//     that fails is likely, not certain, to fail again. Its disks never stall: while Pebble waits for a sync with a
//     lock held, whoever wants the lock is not durably blocked, and virtual time would stand still for ever. Stalls,
//     and crashes on either side of a sync, are the sim's.
//
// An observer watches both: it checks the published properties of raft on every message and on every log, over all
// restarts. Values of a live cluster go through a linearizability check besides.
//
// SHARDD_TORTURE=minutes runs the random tests for so long instead of a few seconds. SHARDD_SEED=n runs them with one
// seed.
package shardtest
