package placement

import (
	"encoding/binary"

	"github.com/shardd/shardd/internal/base"
)

// MaxSplitKey bounds a user key at which shards are divided, in bytes: it must fit into a key of the descriptor index,
// and a probe just above it too.
const MaxSplitKey = base.MaxKeySize - 3

// maxIndexEnd bounds the routing key that ends a shard.
const maxIndexEnd = MaxSplitKey + 1

const (
	tagCluster    = 'c'
	tagIndex      = 'd'
	tagFounding   = 'f'
	tagCounter    = 'i'
	tagNonce      = 'j'
	tagNode       = 'n'
	tagLock       = 'l'
	tagDrain      = 'x'
	tagJob        = 'w'
	tagEnded      = 'z'
	tagBalance    = 'b'
	tagLife       = 'e'
	tagDriver     = 'g'
	tagCommission = 'o'
	tagRules      = 'r'
)

func tagKey(tag byte, rest ...byte) []byte {
	return append([]byte{base.SpaceSystem, tag}, rest...)
}

// FoundingKey is the routing key of the founding record.
func FoundingKey() []byte { return tagKey(tagFounding) }

// ClusterKey is the routing key of the cluster record.
func ClusterKey() []byte { return tagKey(tagCluster) }

// NodeKey is the routing key of a node's record.
func NodeKey(id base.StoreID) []byte {
	return binary.BigEndian.AppendUint64(tagKey(tagNode), uint64(id))
}

func drainKey(id base.StoreID) []byte {
	return binary.BigEndian.AppendUint64(tagKey(tagDrain), uint64(id))
}
func commissionKey(id base.StoreID) []byte {
	return binary.BigEndian.AppendUint64(tagKey(tagCommission), uint64(id))
}
func lifeKey(id base.ShardID) []byte {
	return binary.BigEndian.AppendUint64(tagKey(tagLife), uint64(id))
}
func jobKey(id JobID) []byte   { return binary.BigEndian.AppendUint64(tagKey(tagJob), uint64(id)) }
func endedKey(id JobID) []byte { return binary.BigEndian.AppendUint64(tagKey(tagEnded), uint64(id)) }
func shardLock(id base.ShardID) []byte {
	return binary.BigEndian.AppendUint64(tagKey(tagLock, 's'), uint64(id))
}
func nodeLock(id base.StoreID) []byte {
	return binary.BigEndian.AppendUint64(tagKey(tagLock, 'n'), uint64(id))
}

func balanceKey() []byte               { return tagKey(tagBalance) }
func driverKey() []byte                { return tagKey(tagDriver) }
func rulesKey() []byte                 { return tagKey(tagRules) }
func counterKey(k IDKind) []byte       { return tagKey(tagCounter, byte(k)) }
func nonceKey(nonce []byte) []byte     { return tagKey(tagNonce, nonce...) }
func indexKey(end []byte) []byte       { return tagKey(tagIndex, end...) }
func tagSpan(tag byte) (lo, hi []byte) { return tagKey(tag), tagKey(tag + 1) }

// indexAbove returns the smallest index key whose end is above key, whatever the length of key: no end is longer than
// maxIndexEnd, so a longer key compares as its first maxIndexEnd bytes do.
func indexAbove(key []byte) []byte {
	if len(key) > maxIndexEnd {
		key = key[:maxIndexEnd]
	}
	return append(indexKey(key), 0)
}

// indexFrom returns the smallest index key whose end is key or above it.
func indexFrom(key []byte) []byte {
	if len(key) > maxIndexEnd {
		return indexAbove(key)
	}
	return indexKey(key)
}
