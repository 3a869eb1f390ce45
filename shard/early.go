package shard

import (
	"slices"
	"time"

	"go.etcd.io/etcd/raft/v3/raftpb"

	"github.com/shardd/shardd/engine"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
)

// Messages that come before their replica. A shard that has just been split off is led, within milliseconds, from the
// store that was quickest; the others hear of it while they still make their own replica. What raft would send again
// only with its next heartbeat, or at the next election, is kept here, the latest of each kind from each sender, and
// stepped when the replica is there. So the new shard takes writes once a quorum has applied the split. Losing what is
// kept costs time and nothing else.

// splitPending is for how long an uninitialised replica leaves the first appends of its shard to a split that is about
// to be applied here (rule I4). After that it answers them like any other, and is sent a snapshot.
const splitPending = 10 * time.Second

const (
	// maxEarlyShards and maxEarlyBytes (of entries, per message) bound what is kept; an append is cut down to it.
	maxEarlyShards = 1024
	maxEarlyBytes  = 128 << 10
	// maxEarlyMessages is the kinds of messages of the few senders that a shard has.
	maxEarlyMessages = 16
)

// early is what is kept for one shard.
type early struct {
	since time.Duration
	msgs  []wire.RaftMessage
}

// keepLocked keeps a message. life.mu is held.
func (l *life) keepLocked(m *wire.RaftMessage, now time.Duration) {
	e := l.mu.early[m.Shard]
	if e == nil {
		for shard, old := range l.mu.early { // few, unless many replicas are being made at once
			if now-old.since > splitPending {
				delete(l.mu.early, shard)
			}
		}
		if len(l.mu.early) >= maxEarlyShards {
			return
		}
		e = &early{since: now}
		l.mu.early[m.Shard] = e
	}
	kept := *m
	bytes := 0
	for i := range kept.Msg.Entries {
		if bytes += len(kept.Msg.Entries[i].Data); bytes > maxEarlyBytes {
			kept.Msg.Entries = kept.Msg.Entries[:i]
			break
		}
	}
	same := func(o wire.RaftMessage) bool {
		return o.From == m.From && o.FromStore == m.FromStore && o.To == m.To && o.Msg.Type == m.Msg.Type
	}
	if at := slices.IndexFunc(e.msgs, same); at >= 0 {
		e.msgs = slices.Delete(e.msgs, at, at+1)
	} else if len(e.msgs) >= maxEarlyMessages {
		return
	}
	e.msgs = append(e.msgs, kept) // in the order of arrival
}

// stepEarly steps what came before the replica of a shard. No lock is held.
func (s *Store) stepEarly(shard base.ShardID) {
	l := &s.life
	l.mu.Lock()
	e := l.mu.early[shard]
	delete(l.mu.early, shard)
	l.mu.Unlock()
	if e != nil {
		s.Step(e.msgs)
	}
}

// dropEarly forgets what came for a replica that may not be.
func (s *Store) dropEarly(shard base.ShardID) {
	l := &s.life
	l.mu.Lock()
	delete(l.mu.early, shard)
	l.mu.Unlock()
}

// splitPendingLocked reports whether an append to an uninitialised replica is the first one to a newborn shard, whose
// other half may be undivided here still, and keeps it. Its log begins where the log of a new shard does; who sends it
// shares another shard with this store, as the stores of both sides of a split do. Store.mu is held.
func (r *replica) splitPendingLocked(m *wire.RaftMessage) bool {
	s := r.store
	now := s.clock.Boot()
	if m.Msg.Type != raftpb.MsgApp || m.Msg.Index != engine.InitialIndex || m.Msg.LogTerm != engine.InitialTerm ||
		now-r.born > splitPending {
		return false
	}
	shared := false
	for _, o := range s.mu.replicas {
		if d := o.desc.Load(); d != nil && listsStore(d, m.FromStore) {
			shared = true
			break
		}
	}
	if !shared {
		return false
	}
	s.life.mu.Lock()
	defer s.life.mu.Unlock()
	if !s.life.mu.closed {
		s.life.keepLocked(m, now)
	}
	return true
}

func listsStore(d *base.Descriptor, store base.StoreID) bool {
	_, ok := d.ReplicaOn(store)
	return ok
}

// takeInboxLocked takes what a replica was sent and has not stepped, before another object takes its place: a request for
// a vote that is lost costs an election timeout. Store.mu is held, so nothing is added any more; the replica stands still.
func (s *Store) takeInboxLocked(old *replica) []wire.RaftMessage {
	if old == nil {
		return nil
	}
	old.in.Lock()
	defer old.in.Unlock()
	msgs := make([]wire.RaftMessage, len(old.in.msgs))
	for i, m := range old.in.msgs {
		msgs[i] = wire.RaftMessage{
			Shard: old.shard, From: base.ReplicaID(m.msg.From), To: old.id, FromStore: m.store, ToStore: s.cfg.Store, Msg: m.msg,
			Stamp: m.stamp,
		}
	}
	s.used.inbox.Add(-old.in.msgBytes)
	old.in.msgs, old.in.msgBytes = nil, 0
	return msgs
}
