// Package leasemodel is an executable model of the rules V1 to V13: who promises what to which leader, when a lease
// holds, and what a read has to do. It holds tests and nothing else, and shares no code with package shard, so that
// both can be wrong in their own ways only.
//
// A world is three to five stores in virtual time. Real are the raft groups (RawNodes) and the store-level protocol
// (package liveness); the model's own are a worker, a disk, apply, the network and the rules between them, in a few
// hundred lines. Each store has a clock of its own rate, within the margin. What happens follows from a seed: messages
// are late, lost, doubled and overtake each other, raft's apart from those of liveness; stores pause, with their clocks
// running, restart on what was synced, and are slow to sync or to apply; leaderships are handed over, members change
// through joint configurations, groups split and their right-hand sides are elected elsewhere.
//
//	world_test.go    time, events, stores       replica_test.go  the pass, sync and apply of a replica
//	network_test.go  links and what they do     lease_test.go    the rules on a shard's worker
//	support_test.go  the Monitor of a store     machine_test.go  keys, splits, conf changes
//	faults_test.go   what goes wrong, and when  oracle_test.go   reads, and what may not be
//	rules_test.go    what can be left out       model_test.go    the tests
//
// The oracle sees every entry at the moment at which the first replica knows that it is committed. So it needs no
// search: a read must return what was committed for its key when it came, or something later; no key is served by two
// stores at once; and no leader of a later term stands beside a lease. After the faults every group has to have a lease
// again.
//
// A rule that matters can be left out, and then the same worlds find what it is there for.
//
// SHARDD_TORTURE=minutes runs new seeds for so long, SHARDD_SEED=n runs one, SHARDD_TRACE=1 shows all of one that
// failed.
package leasemodel
