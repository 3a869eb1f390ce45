package shard

import (
	"cmp"
	"fmt"
	"slices"
	"sync"
	"time"

	"go.etcd.io/etcd/raft/v3/raftpb"

	"github.com/shardd/shardd/engine"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
)

// Uninitialised replicas. A message of a leader or candidate for a replica that this store does not have, and may have,
// creates one that knows nothing but its id. It votes, refuses appends (so that the leader sends a snapshot), and never
// campaigns: its configuration lists nobody. Check: mark, no live replica of the shard. Commit: the mark, synced before
// anything is stepped, since a vote is a promise; messages until then are dropped. A crash after it: boot loads it as
// it is. A replica that nobody ever sends a snapshot is found by Orphans.

// newcomer is a replica that a message asks for.
type newcomer struct {
	shard base.ShardID
	id    base.ReplicaID
}

const (
	// maxNewcomers is how many creations may be queued; past it messages are dropped, and come again.
	maxNewcomers = 1024
	// maxDeadMarks is how many marks of removed replicas are kept in memory, so that late messages cost no look-up.
	maxDeadMarks = 4096
)

// creates reports whether a message may create its receiver: those that a leader or candidate begins with.
func creates(t raftpb.MessageType) bool {
	switch t {
	case raftpb.MsgApp, raftpb.MsgHeartbeat, raftpb.MsgVote, raftpb.MsgPreVote:
		return true
	}
	return false
}

// welcomeLocked looks at a message for a shard without a replica here, queues the creation of one if it may exist, and
// returns under which reason the message is dropped. Store.mu is read-locked.
func (s *Store) welcomeLocked(m *wire.RaftMessage) string {
	switch {
	case !creates(m.Msg.Type):
		return "unknown-shard"
	case m.ToStore != s.cfg.Store || m.FromStore == s.cfg.Store || m.Shard == 0,
		m.To == 0 || m.From == 0 || m.From == m.To,
		m.Msg.To != uint64(m.To) || m.Msg.From != uint64(m.From):
		return "address"
	case m.Msg.Term == 0:
		return "term"
	case m.To < s.mu.dead[m.Shard].NextReplicaID:
		return "removed-replica"
	}
	l := &s.life
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.mu.closed {
		return "creations-full"
	}
	l.keepLocked(m, s.clock.Boot())
	if s.mu.busy[m.Shard] != nil {
		return "creating"
	}
	if _, asked := l.mu.asked[m.Shard]; asked {
		return "creating"
	}
	if len(l.mu.wanted) >= maxNewcomers {
		return "creations-full"
	}
	l.mu.asked[m.Shard] = struct{}{}
	l.mu.wanted = append(l.mu.wanted, newcomer{m.Shard, m.To})
	l.signal()
	return "creating"
}

// createUninitialised makes the replicas that may exist, in one synced batch.
func (s *Store) createUninitialised(all []newcomer) {
	b := s.engine.NewBatch()
	made := make(map[*boundary]newcomer, len(all))
	for _, n := range all {
		op := newBoundary(nil, nil, n.shard)
		if !s.reserveNewcomer(op, n) {
			s.finish(op, nil)
			continue
		}
		b.CreateUninitialised(n.shard, n.id, raftpb.HardState{})
		made[op] = n
	}
	if len(made) == 0 {
		b.Close()
		return
	}
	err := s.commitBoundary(b, func() {
		for op, n := range made {
			s.welcome(op, n)
		}
	})
	if err == nil {
		return
	}
	s.log.Error("uninitialised replicas cannot be created", "error", err)
	for op := range made {
		s.finish(op, err)
	}
}

// reserveNewcomer checks, for good this time, whether a replica may be created.
func (s *Store) reserveNewcomer(op *boundary, n newcomer) bool {
	s.mu.Lock()
	free := !s.mu.stopped && s.mu.replicas[n.shard] == nil && s.inTheWayLocked(op) == nil
	if free {
		s.reserveLocked(op)
		op.working = true
	}
	s.mu.Unlock()
	if !free {
		return false
	}
	switch err := s.checkMark(n.shard, n.id, false); err.(type) {
	case nil:
		return true
	case *MarkError:
		s.dropEarly(n.shard)
		s.metrics.dropped("removed-replica")
	default:
		s.log.Error("mark cannot be read", "shard", n.shard, "error", err)
	}
	return false
}

// welcome publishes an uninitialised replica that is on disk.
func (s *Store) welcome(op *boundary, n newcomer) {
	r, err := s.newReplica(engine.ReplicaState{
		Shard: n.shard, Mark: engine.ReplicaMark{ReplicaID: n.id, NextReplicaID: n.id + 1},
	})
	if err != nil {
		s.log.Error("uninitialised replica cannot be opened; a restart tries again", "error", err)
		s.finish(op, err)
		return
	}
	s.publish(r, nil, "")
	s.metrics.created.Inc()
	s.log.Info("replica created, waits for a snapshot", "replica", r.String())
	s.finish(op, nil)
	s.stepEarly(r.shard)
}

// checkMark reads a shard's mark and returns a *MarkError if the id is one that never comes back (I1). Nobody may
// change the shard meanwhile. there says that the maps have a replica of the shard, which is then the caller's business.
// One that is on disk alone could not be opened: what it has promised must not be written over.
func (s *Store) checkMark(shard base.ShardID, id base.ReplicaID, there bool) error {
	m, ok, err := s.engine.Mark(shard)
	if err != nil {
		return fmt.Errorf("create replica %s: %w", base.ReplicaName(shard, id), err)
	}
	if ok && m.ReplicaID != 0 && !there {
		return fmt.Errorf("create replica %s: replica %s is on disk and could not be opened: restart the store",
			base.ReplicaName(shard, id), m.ReplicaID)
	}
	if !ok || m.ReplicaID != 0 {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.buryLocked(shard, m)
	if id < m.NextReplicaID {
		return &MarkError{Shard: shard, Replica: id, Next: m.NextReplicaID}
	}
	return nil
}

// buryLocked remembers the mark of a removed replica. The cache only saves look-ups: whatever falls out of it is found
// on disk before a replica is created.
func (s *Store) buryLocked(shard base.ShardID, m engine.ReplicaMark) {
	if len(s.mu.dead) >= maxDeadMarks {
		for any := range s.mu.dead {
			delete(s.mu.dead, any)
			break
		}
	}
	m.NextReplicaID = max(m.NextReplicaID, s.mu.dead[shard].NextReplicaID)
	s.mu.dead[shard] = m
}

// refuseUninitialised names the reason why a message cannot be meant for a replica with an empty log. A log begins
// above 0, so nothing can follow on nothing, and nothing can be committed in it: raft would take the one for a log and
// panic at the other. An append that a split is about to make room for is kept for that. Store.mu is held.
func (r *replica) refuseUninitialised(m *wire.RaftMessage) string {
	switch msg := &m.Msg; {
	case msg.Type == raftpb.MsgApp && msg.Index == 0, msg.Type == raftpb.MsgHeartbeat && msg.Commit > 0:
		return "entries"
	case msg.Type == raftpb.MsgTimeoutNow:
		return "uninitialised"
	case r.splitPendingLocked(m):
		return "split-pending"
	}
	return ""
}

// uninitialised reports whether the replica still waits for its first snapshot.
func (r *replica) uninitialised() bool { return r.desc.Load() == nil }

// serving is lookup that passes over uninitialised replicas: to clients they are not there.
func (s *Store) serving(id base.ShardID) *replica {
	if r := s.lookup(id); r != nil && !r.uninitialised() {
		return r
	}
	return nil
}

// orphanAge is for how long a replica may stay uninitialised before it asks whether it still should exist.
const orphanAge = 10 * time.Second

// Orphan is a replica that has reason to ask the shard's leader whether it still should exist (I5).
type Orphan struct {
	Shard   base.ShardID
	Replica base.ReplicaID
	Desc    *base.Descriptor // nil: uninitialised
	Reason  string
}

// Orphans lists the replicas that should ask, by shard: faulted, uninitialised for more than 10 s, without word from a
// leader for more than two election timeouts, frozen for a merge into a shard that is not here, or with a newer replica of the shard addressed on this store. What
// RemoveReplica then needs as proof comes from the leader.
func (s *Store) Orphans() []Orphan {
	var out []Orphan
	now := s.clock.Boot()
	for _, r := range s.doubtful() {
		if why := r.orphaned(now); why != "" {
			out = append(out, Orphan{Shard: r.shard, Replica: r.id, Desc: r.desc.Load(), Reason: why})
		}
	}
	return out
}

// doubts are the replicas that may be orphans: few, while most of a store's replicas sleep, and nothing makes an orphan of one
// that sleeps but what puts it here.
type doubts struct {
	sync.Mutex
	list   []*replica
	rounds int
}

// allDoubts is in how many calls of Orphans one looks at all replicas: should one have become an orphan unnoticed.
const allDoubts = 32

// silence is how many ticks without word from a leader are too many.
func (s *Store) silence() int64 { return 2 * int64(s.cfg.ElectionTick) }

// doubt has Orphans look at a replica. It is called behind what makes it doubtful, in whatever state the replica is.
func (s *Store) doubt(r *replica) {
	if r.doubted.Load() || r.doubted.Swap(true) {
		return
	}
	s.doubts.Lock()
	s.doubts.list = append(s.doubts.list, r)
	s.doubts.Unlock()
}

// doubtful reports whether a replica may be an orphan.
func (r *replica) doubtful(limit int64) bool {
	return r.silent.Load() > limit || r.faulted.Load() != nil || r.frozen.Load() != nil || r.newer.Load() || r.uninitialised()
}

// doubtful returns the replicas that may be orphans, by shard. They stay on the list.
func (s *Store) doubtful() (out []*replica) {
	limit := s.silence()
	d := &s.doubts
	d.Lock()
	list := d.list
	d.list = nil
	all := d.rounds%allDoubts == 0
	d.rounds++
	d.Unlock()
	for _, r := range list {
		r.doubted.Store(false) // before the look: what comes behind it puts it on the list again
	}
	s.mu.RLock()
	if all {
		list = list[:0]
		for _, r := range s.mu.replicas {
			list = append(list, r)
		}
	}
	for _, r := range list {
		if s.mu.replicas[r.shard] == r && r.doubtful(limit) {
			out = append(out, r)
		}
	}
	s.mu.RUnlock()
	for _, r := range out {
		s.doubt(r)
	}
	slices.SortFunc(out, func(a, b *replica) int { return cmp.Compare(a.shard, b.shard) })
	return out
}

// frozenElsewhere reports whether a replica has been frozen for a merge that its store cannot come to.
func (r *replica) frozenElsewhere(now time.Duration) bool {
	f := r.frozen.Load()
	return f != nil && now-r.born > orphanAge && r.store.lookup(f.Into) == nil
}

func (r *replica) orphaned(now time.Duration) string {
	cfg := &r.store.cfg
	silent := r.silent.Load()
	why, bad := r.faultReason()
	switch {
	case bad:
		return "faulted: " + why
	case r.newer.Load():
		return "a newer replica of the shard is addressed on this store"
	case r.uninitialised():
		if age := now - r.born; age > orphanAge {
			return fmt.Sprintf("uninitialised for %s", age.Round(time.Second))
		}
	case r.frozenElsewhere(now):
		return "frozen, and the shard that it was to be merged into is not on this store"
	case silent > 2*int64(cfg.ElectionTick) && !r.lead.Load().leads:
		return fmt.Sprintf("no word from a leader for %s", time.Duration(silent)*cfg.Tick)
	}
	return ""
}
