package engine

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2"
	"github.com/shardd/shardd/internal/base"
)

// Session records: one per client session and shard, under 0x01 'c' shard session. They are part of the state machine:
// apply writes them in the batch of the effects, a split copies them, a merge moves them, a snapshot carries them. What
// a record holds is the state machine's business; the engine looks at the sequence alone, since of one session's records
// in two shards that become one, the later has to stay:
//
//	u8 version | u64 sequence | bytes

// Session is one stored record.
type Session struct {
	ID       uint64
	Sequence uint64 // rises with each request of the session that is recorded
	Data     []byte
}

const (
	sessionKeyLen   = shardKeyLen + 8
	sessionFixedLen = 1 + 8
)

func putSessionKey(dst []byte, shard base.ShardID, id uint64) {
	putShardKey(dst, spanSession, shard)
	binary.BigEndian.PutUint64(dst[shardKeyLen:], id)
}

// PutSession stores a client's session record in a shard.
func (b *Batch) PutSession(shard base.ShardID, s Session) {
	k, v := b.set(sessionKeyLen, sessionFixedLen+len(s.Data))
	putSessionKey(k, shard, s.ID)
	putSession(v, s)
}

// putSession fills dst, which has sessionFixedLen bytes and those of the data.
func putSession(dst []byte, s Session) {
	dst[0] = layoutV1
	binary.BigEndian.PutUint64(dst[1:], s.Sequence)
	copy(dst[sessionFixedLen:], s.Data)
}

// decodeSession reads a record; its Data points into value.
func decodeSession(key, value []byte) (Session, error) {
	if len(key) != sessionKeyLen {
		return Session{}, fmt.Errorf("key %x: %w", key, ErrCorrupt)
	}
	if err := checkLayout("session", value, sessionFixedLen, false); err != nil {
		return Session{}, fmt.Errorf("key %x: %w", key, err)
	}
	return Session{ID: u64at(key, shardKeyLen), Sequence: u64at(value, 1), Data: value[sessionFixedLen:]}, nil
}

// Sessions reads the session records of a shard, by id.
func (e *Engine) Sessions(shard base.ShardID) (out []Session, err error) {
	err = e.eachSession(shard, func(key, value []byte) error {
		s, err := decodeSession(key, value)
		if err != nil {
			return err
		}
		s.Data = bytes.Clone(s.Data)
		out = append(out, s)
		return nil
	})
	return out, err
}

// CopySessions copies the committed session records of one shard to another one, as they are. Nobody may write either
// span meanwhile. The copies belong in the boundary step that makes the other shard, or makes it wider.
func (b *Batch) CopySessions(from, to base.ShardID) {
	err := b.e.eachSession(from, func(key, value []byte) error {
		k, v := b.set(len(key), len(value))
		copy(k, key)
		putShardKey(k, spanSession, to)
		copy(v, value)
		return b.err
	})
	if err != nil {
		b.invalid(fmt.Errorf("copy sessions to %s: %w", to, err))
	}
}

// eachSession calls f for every record of a shard; f must not keep its arguments.
func (e *Engine) eachSession(shard base.ShardID, f func(key, value []byte) error) (err error) {
	lo, hi := shardSpan(spanSession, shard)
	it, err := e.db.NewIter(&pebble.IterOptions{LowerBound: lo, UpperBound: hi})
	if err == nil {
		defer func() { err = errors.Join(err, readError(it.Close())) }()
		for ok := it.First(); ok && err == nil; ok = it.Next() {
			var v []byte
			if v, err = it.ValueAndErr(); err == nil {
				err = f(it.Key(), v)
			}
		}
		if err == nil {
			err = it.Error()
		}
	}
	if err != nil {
		return fmt.Errorf("sessions of %s: %w", shard, readError(err))
	}
	return nil
}
