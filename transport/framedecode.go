package transport

import (
	"encoding/binary"
	"fmt"

	"github.com/golang/snappy"
	"go.etcd.io/etcd/raft/v3/raftpb"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
)

// AppendFrame encodes messages into one contiguous, uncompressed frame at the end of buf, as the transport would put
// them on the wire. For simulated networks and tools; the transport itself passes entry data by reference. It fails
// on message types that must not travel and on messages past the frame limit.
func AppendFrame(buf []byte, msgs []wire.RaftMessage) ([]byte, error) {
	at := len(buf)
	var header [headerSize]byte
	buf = append(buf, header[:]...)
	beats := len(msgs) > 0
	for i := range msgs {
		if err := checkMessage(&msgs[i]); err != nil {
			return nil, err
		}
		beats = beats && isBeat(&msgs[i].Msg)
	}
	h := frameHeader{kind: kindMessages, count: uint32(len(msgs))}
	if beats {
		h.kind = kindHeartbeats
		for i := range msgs {
			buf = appendBeat(buf, &msgs[i])
		}
		h.records = uint32(len(buf) - at - headerSize)
	} else {
		for i := range msgs {
			buf = appendRecord(buf, &msgs[i])
		}
		h.records = uint32(len(buf) - at - headerSize)
		for i := range msgs {
			for j := range msgs[i].Msg.Entries {
				buf = append(buf, msgs[i].Msg.Entries[j].Data...)
			}
		}
	}
	if n := len(buf) - at - headerSize; n > maxBody {
		return nil, fmt.Errorf("frame of %d messages has %d bytes, at most %d", len(msgs), n, maxBody)
	}
	h.body = uint32(len(buf) - at - headerSize)
	putHeader(buf[at:], h)
	return buf, nil
}

// DecodeFrame appends the messages of a frame to msgs, addressed from one store to another. Entry data and contexts
// point into the frame (or, if it was compressed, into one new buffer). Messages of a type that must not travel are
// left out and counted in refused. Anything else that is not as it should be is an error that wraps ErrFrame.
func DecodeFrame(frame []byte, from, to base.StoreID, msgs []wire.RaftMessage) (
	out []wire.RaftMessage, refused int, err error) {
	h, err := parseHeader(frame)
	if err != nil {
		return msgs, 0, err
	}
	body, err := frameBody(h, frame)
	if err != nil {
		return msgs, 0, err
	}
	return decodeBody(h, body, from, to, msgs)
}

// frameBody returns the body as it was before compression.
func frameBody(h frameHeader, frame []byte) ([]byte, error) {
	b := frame[headerSize:]
	if h.flags&flagSnappy == 0 {
		return b, nil
	}
	if uint64(h.body) > maxExpansion*uint64(len(b)) {
		return nil, fmt.Errorf("%d compressed bytes claim %d: %w", len(b), h.body, ErrFrame)
	}
	if n, err := snappy.DecodedLen(b); err != nil || n != int(h.body) {
		return nil, fmt.Errorf("compressed body of %d bytes (%v), header says %d: %w", n, err, h.body, ErrFrame)
	}
	body, err := snappy.Decode(make([]byte, h.body), b)
	if err != nil {
		return nil, fmt.Errorf("decompress body: %w: %w", err, ErrFrame)
	}
	return body, nil
}

func decodeBody(h frameHeader, body []byte, from, to base.StoreID, msgs []wire.RaftMessage) (
	[]wire.RaftMessage, int, error) {
	switch h.kind {
	case kindHeartbeats:
		out, err := decodeBeats(h, body, from, to, msgs)
		return out, 0, err
	case kindMessages:
		return decodeMessages(h, body, from, to, msgs)
	}
	return msgs, 0, fmt.Errorf("kind %d carries no raft messages: %w", h.kind, ErrFrame)
}

func decodeBeats(h frameHeader, body []byte, from, to base.StoreID, msgs []wire.RaftMessage) (
	[]wire.RaftMessage, error) {
	if uint64(h.count)*beatSize > uint64(len(body)) || h.records != h.body {
		return msgs, fmt.Errorf("%d heartbeats in %d bytes: %w", h.count, len(body), ErrFrame)
	}
	u64 := binary.BigEndian.Uint64
	for range h.count {
		if len(body) < beatSize {
			return msgs, fmt.Errorf("heartbeat of %d bytes: %w", len(body), ErrFrame)
		}
		size := beatSize
		var stamp wire.Stamp
		switch flags := body[40]; {
		case flags&^(beatResponse|beatStamped) != 0:
			return msgs, fmt.Errorf("unknown heartbeat flags %#x: %w", flags, ErrFrame)
		case flags&beatStamped != 0:
			if size += stampSize; len(body) < size {
				return msgs, fmt.Errorf("stamped heartbeat of %d bytes: %w", len(body), ErrFrame)
			}
			var err error
			if stamp, err = parseStamp(body[beatSize:]); err != nil {
				return msgs, err
			}
		}
		t := raftpb.MsgHeartbeat
		if body[40]&beatResponse != 0 {
			t = raftpb.MsgHeartbeatResp
		}
		msgs = append(msgs, wire.RaftMessage{
			Shard: base.ShardID(u64(body)), From: base.ReplicaID(u64(body[8:])), To: base.ReplicaID(u64(body[16:])),
			FromStore: from, ToStore: to,
			Msg: raftpb.Message{
				Type: t, From: u64(body[8:]), To: u64(body[16:]), Term: u64(body[24:]), Commit: u64(body[32:]),
			},
			Stamp: stamp,
		})
		body = body[size:]
	}
	if len(body) != 0 {
		return msgs, fmt.Errorf("%d bytes after the last heartbeat: %w", len(body), ErrFrame)
	}
	return msgs, nil
}

func decodeMessages(h frameHeader, body []byte, from, to base.StoreID, msgs []wire.RaftMessage) (
	[]wire.RaftMessage, int, error) {
	rec, data := body[:h.records], body[h.records:]
	entries, err := countEntries(h.count, rec)
	if err != nil {
		return msgs, 0, err
	}
	// One slab for the entries of all messages: an allocation per frame, not per message.
	var slab []raftpb.Entry
	if entries > 0 {
		slab = make([]raftpb.Entry, 0, entries)
	}
	refused := 0
	u64 := binary.BigEndian.Uint64
	for range h.count {
		ctx, n := int(binary.BigEndian.Uint16(rec[2:])), int(binary.BigEndian.Uint32(rec[4:]))
		m := wire.RaftMessage{
			Shard: base.ShardID(u64(rec[8:])), From: base.ReplicaID(u64(rec[16:])), To: base.ReplicaID(u64(rec[24:])),
			FromStore: from, ToStore: to,
			Msg: raftpb.Message{
				Type: raftpb.MessageType(rec[0]), From: u64(rec[16:]), To: u64(rec[24:]), Term: u64(rec[32:]),
				LogTerm: u64(rec[40:]), Index: u64(rec[48:]), Commit: u64(rec[56:]), RejectHint: u64(rec[64:]),
				Reject: rec[1]&msgReject != 0,
			},
		}
		if rec[1]&^(msgReject|msgStamped) != 0 {
			return msgs, refused, fmt.Errorf("unknown message flags %#x: %w", rec[1], ErrFrame)
		}
		at := messageSize
		if rec[1]&msgStamped != 0 {
			var err error
			if m.Stamp, err = parseStamp(rec[at:]); err != nil {
				return msgs, refused, err
			}
			at += stampSize
		}
		if ctx > 0 {
			m.Msg.Context = rec[at : at+ctx : at+ctx]
		}
		rec = rec[at+ctx:]
		first := len(slab)
		for range n {
			size := binary.BigEndian.Uint32(rec[16:])
			if uint64(size) > uint64(len(data)) {
				return msgs, refused, fmt.Errorf("entry of %d bytes, %d left: %w", size, len(data), ErrFrame)
			}
			if rec[20] > byte(raftpb.EntryConfChangeV2) || rec[21]|rec[22]|rec[23] != 0 {
				return msgs, refused, fmt.Errorf("unknown entry type %d: %w", rec[20], ErrFrame)
			}
			e := raftpb.Entry{Term: u64(rec), Index: u64(rec[8:]), Type: raftpb.EntryType(rec[20])}
			if size > 0 {
				e.Data = data[:size:size]
			}
			slab, rec, data = append(slab, e), rec[entrySize:], data[size:]
		}
		if n > 0 {
			m.Msg.Entries = slab[first:len(slab):len(slab)]
		}
		if !Sendable(m.Msg.Type) {
			refused++
			continue
		}
		msgs = append(msgs, m)
	}
	if len(data) != 0 {
		return msgs, refused, fmt.Errorf("%d bytes of data belong to no entry: %w", len(data), ErrFrame)
	}
	return msgs, refused, nil
}

// countEntries walks the records of count messages, checks that they fill rec exactly, and returns how many entries
// they name in all.
func countEntries(count uint32, rec []byte) (entries int, err error) {
	for i := range count {
		if len(rec) < messageSize {
			return 0, fmt.Errorf("message %d of %d: %d bytes left, want %d: %w", i, count, len(rec), messageSize, ErrFrame)
		}
		n := binary.BigEndian.Uint32(rec[4:])
		need := messageSize + uint64(binary.BigEndian.Uint16(rec[2:])) + entrySize*uint64(n)
		if rec[1]&msgStamped != 0 {
			need += stampSize
		}
		if need > uint64(len(rec)) {
			return 0, fmt.Errorf("message %d of %d: %d bytes left, want %d: %w", i, count, len(rec), need, ErrFrame)
		}
		entries += int(n)
		rec = rec[need:]
	}
	if len(rec) != 0 {
		return 0, fmt.Errorf("%d bytes after the last message: %w", len(rec), ErrFrame)
	}
	return entries, nil
}
