// Package simnet is a network in memory between stores of one process, with seeded faults: messages are dropped,
// delayed, duplicated and reordered, links are cut in one direction, nodes crash. Every message passes through the real
// frame codec of package transport, so that nothing is shared between sender and receiver.
//
// A test that owns the schedule calls Step or Advance, which deliver on the caller's goroutine in virtual time: the
// same seed, calls and Sends give the same trace. Otherwise Run delivers in real time (or in the time of a testing/synctest
// bubble) on one goroutine. Do not mix the two.
//
// What it does not model: bandwidth, the coalescing of heartbeats, queue bounds.
package simnet
