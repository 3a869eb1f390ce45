package shard

import (
	"slices"
	"sync"

	"go.etcd.io/etcd/raft/v3/raftpb"

	"github.com/shardd/shardd/engine"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
)

// keyScratch holds the shards that one call from outside touches.
var keyScratch = sync.Pool{New: func() any { return new([]uint64) }}

// messageOverhead is what a buffered message costs beside its entries, in bytes.
const messageOverhead = 256

// allowed lists what may come from another replica (R11): no proposals or reads, which are served at the leader only,
// no snapshots, which are the snapshotter's, and nothing that raft sends to itself.
func allowed(t raftpb.MessageType) bool {
	switch t {
	case raftpb.MsgApp, raftpb.MsgAppResp, raftpb.MsgVote, raftpb.MsgVoteResp, raftpb.MsgPreVote, raftpb.MsgPreVoteResp,
		raftpb.MsgHeartbeat, raftpb.MsgHeartbeatResp, raftpb.MsgTimeoutNow:
		return true
	}
	return false
}

// Step takes messages from other stores. Those that this store must not act on are dropped: raft sends again what
// matters. The data of the entries may be retained. Messages for a shard that is not here are dropped too; some make
// the store create an uninitialised replica.
func (s *Store) Step(msgs []wire.RaftMessage) {
	scratch := keyScratch.Get().(*[]uint64)
	keys := (*scratch)[:0]
	s.mu.RLock()
	for i := range msgs {
		m := &msgs[i]
		r := s.mu.replicas[m.Shard]
		if r == nil {
			s.metrics.dropped(s.welcomeLocked(m))
			continue
		}
		if why := r.refuse(m); why != "" {
			s.metrics.dropped(why)
			continue
		}
		if !r.push(m) {
			s.metrics.dropped("inbox-full")
			continue
		}
		if n := len(keys); n == 0 || keys[n-1] != uint64(m.Shard) {
			keys = append(keys, uint64(m.Shard))
		}
	}
	s.mu.RUnlock()
	s.pool.EnqueueMany(keys)
	*scratch = keys
	keyScratch.Put(scratch)
}

// refuse names the reason why a message is not for this replica, or from nobody it should hear; empty if it is fine.
func (r *replica) refuse(m *wire.RaftMessage) string {
	switch {
	case m.To != r.id || m.ToStore != r.store.cfg.Store:
		if m.To > r.id && m.ToStore == r.store.cfg.Store && creates(m.Msg.Type) {
			r.newer.Store(true) // we have missed our removal, it seems
			r.store.doubt(r)
		}
		return "other-replica" // meant for an earlier or later replica of the shard on this store
	case m.Msg.To != uint64(m.To) || m.Msg.From != uint64(m.From) || m.From == 0 || m.From == r.id:
		return "address"
	case !allowed(m.Msg.Type):
		return "type"
	case m.Msg.Term == 0:
		return "term" // raft takes it for a message of its own and checks no term; no replica ever sends one
	case !wellFormed(&m.Msg):
		return "entries"
	case m.Msg.Type == raftpb.MsgApp && len(m.Msg.Entries) > 0 && r.store.spaceLevel() == engine.SpaceCritical:
		return "disk-full" // before it reaches the log; the leader feeds it again when there is room
	}
	d := r.desc.Load()
	if d == nil {
		return r.refuseUninitialised(m)
	}
	if from, ok := d.Replica(m.From); ok {
		if from.Store != m.FromStore {
			return "address"
		}
	} else if m.From < d.NextReplicaID {
		return "stale-replica" // removed: ids are never given out twice
	}
	// An id that our descriptor does not know yet is newer than it; raft decides.
	return ""
}

// wellFormed reports whether entries stand where the message says and in no later term. Raft trusts that blindly: a gap
// would end up as a hole in the log, under a group that never comes to rest.
func wellFormed(m *raftpb.Message) bool {
	for i := range m.Entries {
		if e := &m.Entries[i]; e.Index != m.Index+1+uint64(i) || e.Term == 0 || e.Term > m.Term {
			return false
		}
	}
	return true
}

// push adds a message to the inbox, unless that is full.
func (r *replica) push(m *wire.RaftMessage) bool {
	size := int64(messageOverhead)
	for i := range m.Msg.Entries {
		size += int64(len(m.Msg.Entries[i].Data)) + messageOverhead/4
	}
	s := r.store
	in := &r.in
	in.Lock()
	defer in.Unlock()
	if in.closed != wire.OK {
		return false
	}
	if len(in.msgs) > 0 &&
		(in.msgBytes+size > s.cfg.Limits.GroupInbox || s.used.inbox.Load()+size > s.cfg.Limits.StoreInbox) {
		return false
	}
	if len(in.watched) > 0 {
		r.acknowledgedLocked(&m.Msg)
	}
	in.msgBytes += size
	s.used.inbox.Add(size)
	in.msgs = append(in.msgs, inMessage{store: m.FromStore, stamp: m.Stamp, msg: m.Msg})
	return true
}

// Unreachable tells a local replica that an append to another one was lost.
func (s *Store) Unreachable(shard base.ShardID, from, to base.ReplicaID) {
	r := s.lookup(shard)
	if r == nil || r.id != from {
		return
	}
	r.in.Lock()
	add := r.in.closed == wire.OK && (r.in.seldom == nil || !slices.Contains(r.in.seldom.unreachable, to))
	if add {
		in := r.in.seldomLocked()
		in.unreachable = append(in.unreachable, to)
	}
	r.in.Unlock()
	if add {
		s.pool.Enqueue(uint64(shard))
	}
}

// call runs f on the replica's worker, between two Readys. f is dropped if the replica ends before.
func (s *Store) call(r *replica, f func(*replica)) bool {
	r.in.Lock()
	open := r.in.closed == wire.OK
	if open {
		in := r.in.seldomLocked()
		in.calls = append(in.calls, f)
	}
	r.in.Unlock()
	if open {
		s.pool.Enqueue(uint64(r.shard))
	}
	return open
}

// takeRequestsLocked moves writes and reads to the worker's queues; allowed while a Ready is in flight.
func (r *replica) takeRequestsLocked() {
	in, rw := &r.in, &r.worker
	if len(in.writes) > 0 {
		if len(rw.writes) == 0 {
			rw.writes, in.writes = in.writes, rw.writes[:0]
		} else {
			rw.writes = append(rw.writes, in.writes...)
			clear(in.writes)
			in.writes = in.writes[:0]
		}
	}
	if len(in.reads) > 0 {
		if len(rw.reads) == 0 {
			rw.reads, in.reads = in.reads, rw.reads[:0]
		} else {
			rw.reads = append(rw.reads, in.reads...)
			clear(in.reads)
			in.reads = in.reads[:0]
		}
	}
}

// send puts one of raft's messages into the outbox with its full address.
func (w *worker) send(r *replica, m *raftpb.Message) {
	if m.Type == raftpb.MsgSnap {
		w.sendSnapshot(r, m)
		return
	}
	if !allowed(m.Type) {
		return
	}
	if len(r.worker.notices) > 0 && (m.Type == raftpb.MsgApp || m.Type == raftpb.MsgHeartbeat) {
		r.dropNotice(m)
	}
	to := base.ReplicaID(m.To)
	store := r.storeOf(to)
	if store == 0 || store == w.store.cfg.Store {
		w.store.metrics.dropped("no-address")
		return
	}
	w.out.add(store, wire.RaftMessage{
		Shard: r.shard, From: r.id, To: to, FromStore: w.store.cfg.Store, ToStore: store, Msg: *m,
		Stamp: w.stamp(r, m, store),
	})
}
