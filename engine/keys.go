package engine

import (
	"encoding/binary"

	"github.com/shardd/shardd/internal/base"
)

// First and second byte of every key below the data families; see the key map in doc.go.
const (
	spaceLocal byte = 0x01

	spanApplied byte = 'a'
	spanSession byte = 'c'
	spanDesc    byte = 'd'
	spanMark    byte = 'm'
	spanRaft    byte = 'r'
	spanStore   byte = 's'

	raftHard      byte = 'h'
	raftLog       byte = 'l'
	raftTruncated byte = 't'

	storeFence    byte = 'f'
	storeIdent    byte = 'i'
	storeMeta     byte = 'm'
	storePeer     byte = 'p'
	storeRecovery byte = 'q'
)

const (
	shardKeyLen = 2 + 8          // 0x01 span shard
	stateKeyLen = 2 + 8 + 1      // 0x01 'r' shard 'h' | 't'
	logKeyLen   = 2 + 8 + 1 + 8  // 0x01 'r' shard 'l' index
	peerKeyLen  = 3 + 8          // 0x01 's' 'p' | 'f' store
	dataStart   = base.SpaceUser // first byte of the lowest data family
	dataEnd     = base.SpaceSystem + 1
)

// putShardKey writes the key of a shard in one of the small spans; dst has shardKeyLen bytes.
func putShardKey(dst []byte, span byte, shard base.ShardID) {
	_ = dst[shardKeyLen-1]
	dst[0], dst[1] = spaceLocal, span
	binary.BigEndian.PutUint64(dst[2:], uint64(shard))
}

// putStateKey writes the key of a shard's HardState or TruncatedState; dst has stateKeyLen bytes.
func putStateKey(dst []byte, shard base.ShardID, kind byte) {
	putShardKey(dst, spanRaft, shard)
	dst[shardKeyLen] = kind
}

// putLogKey writes the key of a raft log entry; dst has logKeyLen bytes.
func putLogKey(dst []byte, shard base.ShardID, index uint64) {
	putStateKey(dst, shard, raftLog)
	binary.BigEndian.PutUint64(dst[stateKeyLen:], index)
}

func shardKey(span byte, shard base.ShardID) []byte {
	k := make([]byte, shardKeyLen)
	putShardKey(k, span, shard)
	return k
}

func stateKey(shard base.ShardID, kind byte) []byte {
	k := make([]byte, stateKeyLen)
	putStateKey(k, shard, kind)
	return k
}

func logKey(shard base.ShardID, index uint64) []byte {
	k := make([]byte, logKeyLen)
	putLogKey(k, shard, index)
	return k
}

func peerKey(store base.StoreID) []byte {
	return storeKey(storePeer, store)
}

func fenceKey(store base.StoreID) []byte { return storeKey(storeFence, store) }

func storeKey(kind byte, store base.StoreID) []byte {
	k := append(make([]byte, 0, peerKeyLen), spaceLocal, spanStore, kind)
	return binary.BigEndian.AppendUint64(k, uint64(store))
}

func identKey() []byte    { return []byte{spaceLocal, spanStore, storeIdent} }
func metaKey() []byte     { return []byte{spaceLocal, spanStore, storeMeta} }
func recoveryKey() []byte { return []byte{spaceLocal, spanStore, storeRecovery} }

// spanBounds returns the bounds of one span of the local space.
func spanBounds(span byte) (lo, hi []byte) {
	return []byte{spaceLocal, span}, []byte{spaceLocal, span + 1}
}

// shardSpan returns the bounds of everything that one shard has in a span of the local space.
func shardSpan(span byte, shard base.ShardID) (lo, hi []byte) {
	lo, hi = shardKey(span, shard), shardKey(span, shard+1)
	if shard+1 == 0 {
		_, hi = spanBounds(span)
	}
	return lo, hi
}

// isDataKey reports whether the key belongs to a data family, that is, to shards rather than to the engine.
func isDataKey(k []byte) bool {
	return len(k) > 0 && k[0] >= dataStart && k[0] < dataEnd
}
