package transport

import (
	"encoding/binary"
	"errors"
	"fmt"

	"go.etcd.io/etcd/raft/v3/raftpb"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
)

// A frame is one gRPC message on a peer stream. All integers are big-endian.
//
//	header   0 u8 layout version | 1 u8 kind | 2 u8 flags | 3 u8 reserved (0) | 4 u32 count
//	         8 u32 length of records | 12 u32 length of body | 16 body
//	body     records | data             (as one snappy block if flagSnappy; the lengths are those before compression)
//
// Records are fixed headers, data is what they refer to, in the same order: so a sender writes all headers into one
// buffer and passes entry data by reference.
//
//	kindMessages    0 u8 type | 1 u8 flags | 2 u16 context | 4 u32 entries | 8 u64 shard | 16 u64 from | 24 u64 to
//	                32 u64 term | 40 u64 log term | 48 u64 index | 56 u64 commit | 64 u64 reject hint
//	                if msgStamped: u64 epoch | u64 commit
//	                then the context
//	                then per entry: 0 u64 term | 8 u64 index | 16 u32 length of data | 20 u8 type | 21 u24 reserved (0)
//	kindHeartbeats  0 u64 shard | 8 u64 from | 16 u64 to | 24 u64 term | 32 u64 commit | 40 u8 flags
//	                if beatStamped: 41 u64 epoch | 49 u64 commit
//	kindLiveness    no records; the body is one store's word to another, which package shard/liveness lays out; count is 0
//	kindHello       see hello.go
//	kindRefusal     see hello.go
//	kindPing        empty; kindPong: empty
//
// The stores of a message are those of the stream that carries it, as its two Hellos agreed.
const (
	frameVersion = 1
	headerSize   = 16
	messageSize  = 72
	entrySize    = 24
	beatSize     = 41
	stampSize    = 16

	// maxBody bounds the body of a frame, and so what one decompression may allocate. It holds the largest entry (a
	// full pass of proposals, 4 MiB of batch) several times.
	maxBody = 32 << 20
	// splitBody is the size past which a sender starts the next frame, so that acknowledgements keep coming.
	splitBody = 1 << 20
	// snappy cannot expand a block by more than 64 bytes per 3: a frame that claims more is refused unread.
	maxExpansion = 22
	// MaxLiveness bounds the body of a liveness frame, in bytes.
	MaxLiveness = 256 << 10
)

type kind uint8

const (
	kindMessages   kind = 1
	kindHeartbeats kind = 2
	kindHello      kind = 3
	kindRefusal    kind = 4
	kindPing       kind = 5
	kindPong       kind = 6
	kindLiveness   kind = 7
)

const (
	flagSnappy uint8 = 1 << 0

	msgReject  uint8 = 1 << 0
	msgStamped uint8 = 1 << 1

	beatResponse uint8 = 1 << 0
	beatStamped  uint8 = 1 << 1
)

// ErrFrame marks bytes that are not a frame of this protocol. The stream they came on is closed.
var ErrFrame = errors.New("malformed frame")

// frameHeader is the decoded fixed part of a frame.
type frameHeader struct {
	kind    kind
	flags   uint8
	count   uint32
	records uint32
	body    uint32
}

func putHeader(b []byte, h frameHeader) {
	b[0], b[1], b[2], b[3] = frameVersion, byte(h.kind), h.flags, 0
	binary.BigEndian.PutUint32(b[4:], h.count)
	binary.BigEndian.PutUint32(b[8:], h.records)
	binary.BigEndian.PutUint32(b[12:], h.body)
}

func parseHeader(b []byte) (frameHeader, error) {
	if len(b) < headerSize {
		return frameHeader{}, fmt.Errorf("%d bytes, a frame has at least %d: %w", len(b), headerSize, ErrFrame)
	}
	if b[0] != frameVersion {
		return frameHeader{}, fmt.Errorf("layout version %d, this binary knows %d: %w", b[0], frameVersion, ErrFrame)
	}
	h := frameHeader{
		kind: kind(b[1]), flags: b[2], count: binary.BigEndian.Uint32(b[4:]),
		records: binary.BigEndian.Uint32(b[8:]), body: binary.BigEndian.Uint32(b[12:]),
	}
	switch {
	case h.flags&^flagSnappy != 0 || b[3] != 0:
		return h, fmt.Errorf("unknown frame flags %#x: %w", h.flags, ErrFrame)
	case h.body > maxBody:
		return h, fmt.Errorf("body of %d bytes, at most %d: %w", h.body, maxBody, ErrFrame)
	case h.records > h.body:
		return h, fmt.Errorf("records of %d bytes in a body of %d: %w", h.records, h.body, ErrFrame)
	case h.flags&flagSnappy == 0 && uint64(len(b)) != headerSize+uint64(h.body):
		return h, fmt.Errorf("frame of %d bytes names a body of %d: %w", len(b), h.body, ErrFrame)
	}
	return h, nil
}

// Sendable reports whether a raft message of this type may travel between stores (R11). MsgSnap belongs to the
// snapshotter; proposals and transfer requests are never forwarded.
func Sendable(t raftpb.MessageType) bool {
	switch t {
	case raftpb.MsgApp, raftpb.MsgAppResp, raftpb.MsgVote, raftpb.MsgVoteResp, raftpb.MsgPreVote, raftpb.MsgPreVoteResp,
		raftpb.MsgHeartbeat, raftpb.MsgHeartbeatResp, raftpb.MsgTimeoutNow:
		return true
	}
	return false
}

// recordSize is the length of a message's records, dataSize that of its entries' data, in bytes.
func recordSize(m *wire.RaftMessage) int {
	return messageSize + stampLen(m) + len(m.Msg.Context) + entrySize*len(m.Msg.Entries)
}

// beatLen is the length of a message's compact record; isBeat holds.
func beatLen(m *wire.RaftMessage) int { return beatSize + stampLen(m) }

func stampLen(m *wire.RaftMessage) int {
	if m.Stamp.Epoch != 0 {
		return stampSize
	}
	return 0
}

func appendStamp(b []byte, s wire.Stamp) []byte {
	if s.Epoch == 0 {
		return b
	}
	b = binary.BigEndian.AppendUint64(b, s.Epoch)
	return binary.BigEndian.AppendUint64(b, s.Commit)
}

// parseStamp reads a stamp that its flag announces; b has room for it.
func parseStamp(b []byte) (wire.Stamp, error) {
	s := wire.Stamp{Epoch: binary.BigEndian.Uint64(b), Commit: binary.BigEndian.Uint64(b[8:])}
	if s.Epoch == 0 {
		return s, fmt.Errorf("a stamp of epoch 0: %w", ErrFrame)
	}
	return s, nil
}

func dataSize(m *wire.RaftMessage) int {
	n := 0
	for i := range m.Msg.Entries {
		n += len(m.Msg.Entries[i].Data)
	}
	return n
}

// appendRecord encodes a message without its entries' data.
func appendRecord(b []byte, m *wire.RaftMessage) []byte {
	msg := &m.Msg
	var flags uint8
	if msg.Reject {
		flags |= msgReject
	}
	if m.Stamp.Epoch != 0 {
		flags |= msgStamped
	}
	b = append(b, byte(msg.Type), flags)
	b = binary.BigEndian.AppendUint16(b, uint16(len(msg.Context)))
	b = binary.BigEndian.AppendUint32(b, uint32(len(msg.Entries)))
	b = binary.BigEndian.AppendUint64(b, uint64(m.Shard))
	b = binary.BigEndian.AppendUint64(b, uint64(m.From))
	b = binary.BigEndian.AppendUint64(b, uint64(m.To))
	b = binary.BigEndian.AppendUint64(b, msg.Term)
	b = binary.BigEndian.AppendUint64(b, msg.LogTerm)
	b = binary.BigEndian.AppendUint64(b, msg.Index)
	b = binary.BigEndian.AppendUint64(b, msg.Commit)
	b = binary.BigEndian.AppendUint64(b, msg.RejectHint)
	b = appendStamp(b, m.Stamp)
	b = append(b, msg.Context...)
	for i := range msg.Entries {
		e := &msg.Entries[i]
		b = binary.BigEndian.AppendUint64(b, e.Term)
		b = binary.BigEndian.AppendUint64(b, e.Index)
		b = binary.BigEndian.AppendUint32(b, uint32(len(e.Data)))
		b = append(b, byte(e.Type), 0, 0, 0)
	}
	return b
}

// isBeat reports whether a message fits a compact heartbeat record: a heartbeat or its response without context.
func isBeat(m *raftpb.Message) bool {
	return (m.Type == raftpb.MsgHeartbeat || m.Type == raftpb.MsgHeartbeatResp) && len(m.Context) == 0 &&
		len(m.Entries) == 0 && m.Index == 0 && m.LogTerm == 0 && m.RejectHint == 0 && !m.Reject
}

// appendBeat encodes the compact form; isBeat holds.
func appendBeat(b []byte, m *wire.RaftMessage) []byte {
	b = binary.BigEndian.AppendUint64(b, uint64(m.Shard))
	b = binary.BigEndian.AppendUint64(b, uint64(m.From))
	b = binary.BigEndian.AppendUint64(b, uint64(m.To))
	b = binary.BigEndian.AppendUint64(b, m.Msg.Term)
	b = binary.BigEndian.AppendUint64(b, m.Msg.Commit)
	var flags uint8
	if m.Msg.Type == raftpb.MsgHeartbeatResp {
		flags |= beatResponse
	}
	if m.Stamp.Epoch != 0 {
		flags |= beatStamped
	}
	return appendStamp(append(b, flags), m.Stamp)
}

// checkMessage says why a message can not be encoded, or nil.
func checkMessage(m *wire.RaftMessage) error {
	switch {
	case !Sendable(m.Msg.Type):
		return fmt.Errorf("%s of %s must not travel between stores", m.Msg.Type, base.ReplicaName(m.Shard, m.From))
	case len(m.Msg.Context) > 1<<16-1:
		return fmt.Errorf("%s of %s: context of %d bytes, at most %d", m.Msg.Type, base.ReplicaName(m.Shard, m.From),
			len(m.Msg.Context), 1<<16-1)
	case recordSize(m)+dataSize(m) > maxBody:
		return fmt.Errorf("%s of %s: %d bytes, at most %d", m.Msg.Type, base.ReplicaName(m.Shard, m.From),
			recordSize(m)+dataSize(m), maxBody)
	}
	return nil
}
