package shard

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"go.etcd.io/etcd/raft/v3"
	"go.etcd.io/etcd/raft/v3/raftpb"
	"go.etcd.io/etcd/raft/v3/tracker"

	"github.com/shardd/shardd/engine"
	"github.com/shardd/shardd/internal/base"
)

// Summary is what a store reports about one replica.
type Summary struct {
	Shard   base.ShardID
	Desc    *base.Descriptor // nil: uninitialised, it waits for a snapshot
	Replica base.ReplicaID
	Leads   bool
	Lease   bool         // it leads and holds a lease
	Asleep  bool         // it is not ticked
	Leader  base.StoreID // 0 if unknown
	Term    uint64
	Applied uint64
	Stats   engine.Stats
	Faulted string // reason, empty if healthy
	// Freeze is set while the shard is frozen for a merge.
	Freeze *engine.Freeze

	// SizeBytes is about what the shard's data takes here, on disk and in memtables, as measured SizeAge ago plus what
	// was written since.
	SizeBytes uint64
	SizeAge   time.Duration
	// Load is what the replica does. Reads are the leader's.
	Load Load
	// LoadSplitKey is where a split would divide the load, for a shard that this store leads and that does so much that
	// it should be split; nil if it need not, or if no key would. HotKey is set if the reason is that one key carries
	// HotShare of the load, at least half; also for shards that do less.
	LoadSplitKey []byte
	HotKey       []byte
	HotShare     float64
}

// Status is Summary with the state of the log and of the queues.
type Status struct {
	Summary
	Commit      uint64
	FirstIndex  uint64
	LastIndex   uint64
	LogBytes    uint64
	Stamp       uint64 // highest version stamp applied
	Conf        raftpb.ConfState
	QueuedBytes int64 // writes not proposed
	ApplyBytes  int64 // committed entries handed to apply
	Reads       int64 // waiting
}

// Progress is how far a leader knows another replica to be.
type Progress struct {
	Replica base.ReplicaID
	Store   base.StoreID
	Learner bool
	Active  bool // heard of within the last election timeout or so
	Match   uint64
	Next    uint64
	State   string // probe, replicate or snapshot
	// PendingSnapshot is the index of the snapshot that the replica waits for, 0 if none.
	PendingSnapshot uint64
}

func (r *replica) summary() Summary {
	l := r.lead.Load()
	why, _ := r.faultReason()
	out := Summary{
		Shard: r.shard, Desc: r.desc.Load(), Replica: r.id, Leads: l.leads, Leader: l.store, Term: l.term,
		Applied: r.applied.Load(), Stats: r.appliedState().Stats, Faulted: why, Freeze: r.frozen.Load(),
	}
	now := r.store.clock.Boot()
	if lease := r.leaseAt(now); lease != nil {
		out.Lease = out.Applied >= lease.first
	}
	out.Asleep = r.asleep.Load()
	out.SizeBytes, out.SizeAge = r.sizeNow(now)
	out.Load = r.foldLoad(now)
	if sm := r.load.sampler.Load(); sm != nil && l.leads {
		v := sm.divide(out.Desc, nil, now)
		out.HotKey, out.HotShare = v.HotKey, v.HotShare
		if r.store.splitLimits().busy(out.Load) {
			out.LoadSplitKey = v.Key
		}
	}
	return out
}

// Status returns the state of a shard's replica; false if there is none. It never waits for a worker.
func (s *Store) Status(shard base.ShardID) (Status, bool) {
	r := s.lookup(shard)
	if r == nil {
		return Status{}, false
	}
	st := r.appliedState()
	out := Status{
		Summary: r.summary(), Commit: r.commit.Load(), Stamp: st.Stamp, Conf: st.Conf,
		QueuedBytes: r.in.writeBytes.Load(), ApplyBytes: r.handed.bytes.Load(), Reads: r.in.readCount.Load(),
	}
	if r.worker.log != nil { // set once, before this object is published
		out.FirstIndex, out.LastIndex = r.worker.log.Bounds()
		out.LogBytes = r.worker.log.Bytes()
	}
	return out, true
}

// Progress asks a leader's worker how far the other replicas are; empty if this store does not lead the shard.
func (s *Store) Progress(ctx context.Context, shard base.ShardID) ([]Progress, error) {
	r, err := s.find(shard)
	if err != nil {
		return nil, err
	}
	ch := make(chan []Progress, 1)
	w := s.workerOf(shard)
	if !w.peek(func() { ch <- w.progress(r) }) {
		return nil, ErrStopping
	}
	select {
	case p := <-ch:
		return p, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("progress of %s: %w", shard, ctx.Err())
	}
}

// ProgressOf is Progress for many shards, with one question to each worker. It leaves out those of which nothing is known,
// and at the end of ctx those of the workers that have not answered.
func (s *Store) ProgressOf(ctx context.Context, shards []base.ShardID) map[base.ShardID][]Progress {
	parts := make([][]*replica, len(s.workers))
	for _, id := range shards {
		if r, err := s.find(id); err == nil {
			i := s.pool.Worker(uint64(id))
			parts[i] = append(parts[i], r)
		}
	}
	type answer struct {
		rs []*replica
		ps [][]Progress
	}
	ch := make(chan answer, len(parts))
	asked := 0
	for i, part := range parts {
		w := s.workers[i]
		if len(part) > 0 && w.peek(func() {
			a := answer{rs: part, ps: make([][]Progress, len(part))}
			for j, r := range part {
				a.ps[j] = w.progress(r)
			}
			ch <- a
		}) {
			asked++
		}
	}
	out := make(map[base.ShardID][]Progress, len(shards))
	for range asked {
		select {
		case a := <-ch:
			for j, r := range a.rs {
				out[r.shard] = a.ps[j]
			}
		case <-ctx.Done():
			return out
		}
	}
	return out
}

// progress is called by the worker, at any moment.
func (w *worker) progress(r *replica) []Progress {
	if r.worker.disposed || r.worker.rn == nil || r.worker.rn.BasicStatus().RaftState != raft.StateLeader {
		return nil
	}
	var out []Progress
	r.worker.rn.WithProgress(func(id uint64, typ raft.ProgressType, pr tracker.Progress) {
		rid := base.ReplicaID(id)
		p := Progress{
			Replica: rid, Store: r.storeOf(rid), Learner: typ == raft.ProgressTypeLearner,
			Active: w.isActive(r, id, &pr) || rid == r.id, Match: pr.Match, Next: pr.Next,
			PendingSnapshot: pr.PendingSnapshot,
		}
		switch pr.State {
		case tracker.StateProbe:
			p.State = "probe"
		case tracker.StateReplicate:
			p.State = "replicate"
		case tracker.StateSnapshot:
			p.State = "snapshot"
		}
		out = append(out, p)
	})
	slices.SortFunc(out, func(a, b Progress) int { return cmp.Compare(a.Replica, b.Replica) })
	return out
}

// Summaries returns one entry per replica, by shard.
func (s *Store) Summaries() []Summary {
	all := s.all()
	out := make([]Summary, len(all))
	for i, r := range all {
		out[i] = r.summary()
	}
	return out
}

// maxSyncAge is how long the oldest sync may take before the store counts as unhealthy (L2).
const maxSyncAge = time.Second

// SyncHealthy reports whether the disk takes syncs; detail says for how long it has not.
func (s *Store) SyncHealthy() (ok bool, detail string) {
	age := s.engine.SyncAge()
	if age > maxSyncAge {
		return false, fmt.Sprintf("a disk sync has been running for %s", age.Round(time.Millisecond))
	}
	return true, ""
}
