// Package placement keeps the directory of a cluster in the meta shard: who its nodes are, which ids were given out and
// which shard owns which keys; and, in memory, what the stores report of themselves.
//
// The directory reaches the meta shard only through KV, so it runs on any node and under any test's key-value store.
// All its writes are conditional on the versions it read: a lost race or a write whose outcome is unknown is repeated
// or reported, and never gives an id out twice. The index is a copy: the descriptors inside the shards are the truth,
// and a newer epoch wins.
//
// It knows neither engine nor shard, does no I/O of its own, and never decides from wall time.
//
// Keys, all in the system space (0x03):
//
//	'b'             settings of the placement driver
//	'c'             cluster record
//	'd' end key     descriptor index: the shard that holds k is the first record whose end is above k
//	'e' shard       life of the shard: splits, merges, replicas, leaders
//	'f'             founding record, present while the making of the cluster is not finished
//	'g'             term of the meta leader that drives
//	'i' kind        next free id
//	'j' nonce       node id given to a join, so that a repeated join gets the same
//	'l' 's' shard   id of the running job that may change the shard's replicas
//	'l' 'n' node    id of the running drain of the node
//	'n' node        node record
//	'o' node        commission of the node: leaving, gone for good
//	'r'             placement rules
//	'w' job         record of a job that has not ended
//	'x' node        what a drain keeps off the node
//	'z' job         record of a job that has ended
package placement
