package shard

import (
	"errors"
	"fmt"

	"go.etcd.io/etcd/raft/v3"
	"go.etcd.io/etcd/raft/v3/raftpb"

	"github.com/shardd/shardd/engine"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
	"github.com/shardd/shardd/shard/apply"
)

// Creation of first replicas. Check: marks and overlaps, and the range is reserved. Commit: one synced batch with the
// whole first state. Publish: the replica is found by requests and messages. A crash between Commit and Publish: boot
// finds the replica, and the repeated Create finds it done.

// initialStamp is the version of a shard's first data: the same on every replica.
const initialStamp = 1

// creation reserves a shard and its range while its first state is being synced.
type creation struct {
	desc *base.Descriptor
	done chan struct{}
}

// Create makes this store's replica of a new shard, with data as its first rows (routing keys inside the range), on
// stable storage. It is idempotent: a replica that exists under the id that d gives this store is left as it is,
// whatever has become of it. With campaign, the replica stands for election at once. Errors: *MarkError,
// *OverlapError, ErrStopping, a descriptor that does not list this store, or the engine's.
func (s *Store) Create(d *base.Descriptor, data []engine.KV, campaign bool) error {
	if err := d.Validate(); err != nil {
		return fmt.Errorf("create replica: %w", err)
	}
	self, ok := d.ReplicaOn(s.cfg.Store)
	if !ok {
		return fmt.Errorf("create replica: %s does not list store %s", d, s.cfg.Store)
	}
	for i := range data {
		if !d.Contains(data[i].Key) {
			return fmt.Errorf("create %s: first key %x is outside the range", d, data[i].Key)
		}
	}
	d = d.Clone()
	if err := s.loadDeadMark(d.Shard); err != nil {
		return fmt.Errorf("create replica: %w", err)
	}
	for {
		c, wait, err := s.reserve(d, self.Replica)
		if err != nil || (c == nil && wait == nil) {
			return err
		}
		if wait != nil {
			<-wait // another Create of the shard; then its outcome decides
			continue
		}
		return s.create(c, self.Replica, data, campaign)
	}
}

// loadDeadMark finds the mark that a removed replica has left: boot loads those of existing replicas only.
func (s *Store) loadDeadMark(shard base.ShardID) error {
	m, ok, err := s.engine.Mark(shard)
	if err != nil || !ok || m.ReplicaID != 0 { // one that exists, or is being created, is known
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, known := s.mu.marks[shard]; !known {
		s.mu.marks[shard] = m
	}
	return nil
}

// reserve checks a creation: all nil means that the replica exists already, wait that the same shard is being created.
func (s *Store) reserve(d *base.Descriptor, id base.ReplicaID) (c *creation, wait <-chan struct{}, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.stopped {
		return nil, nil, ErrStopping
	}
	if m, ok := s.mu.marks[d.Shard]; ok {
		if m.ReplicaID == id {
			return nil, nil, nil
		}
		if m.ReplicaID != 0 || id < m.NextReplicaID {
			return nil, nil, &MarkError{Shard: d.Shard, Replica: id, Have: m.ReplicaID, Next: m.NextReplicaID}
		}
	}
	if other := s.mu.creating[d.Shard]; other != nil {
		return nil, other.done, nil
	}
	for _, r := range s.mu.replicas {
		if old := r.desc.Load(); old.Overlaps(d) {
			return nil, nil, &OverlapError{New: d, Old: old}
		}
	}
	for _, o := range s.mu.creating {
		if o.desc.Overlaps(d) {
			return nil, nil, &OverlapError{New: d, Old: o.desc}
		}
	}
	c = &creation{desc: d, done: make(chan struct{})}
	s.mu.creating[d.Shard] = c
	return c, nil, nil
}

func (s *Store) create(c *creation, id base.ReplicaID, data []engine.KV, campaign bool) (err error) {
	d := c.desc
	var r *replica
	defer func() {
		s.mu.Lock()
		delete(s.mu.creating, d.Shard)
		if err == nil && s.mu.stopped {
			err = ErrStopping // durable, but nobody runs it in this life
		}
		if err == nil {
			s.mu.marks[d.Shard] = engine.ReplicaMark{ReplicaID: id, NextReplicaID: d.NextReplicaID}
			s.publishReplicaLocked(r)
		}
		s.mu.Unlock()
		close(c.done)
		if err == nil {
			s.log.Info("replica created", "replica", r.String(), "range", d.String())
			s.pool.EnqueueMany([]uint64{s.workerOf(d.Shard).control, uint64(d.Shard)})
		}
	}()
	b := s.engine.NewBatch()
	defer b.Close()
	b.CreateReplica(d, id, initialStamp, data)
	if err := s.engine.Commit(b, true); err != nil {
		return fmt.Errorf("create replica %s: %w", base.ReplicaName(d.Shard, id), err)
	}
	r, err = s.newReplica(firstState(d, id))
	if err != nil {
		return err
	}
	r.in.campaign = campaign
	return nil
}

// firstState is what the engine's CreateReplica has written.
func firstState(d *base.Descriptor, id base.ReplicaID) engine.ReplicaState {
	return engine.ReplicaState{
		Shard: d.Shard,
		Mark:  engine.ReplicaMark{ReplicaID: id, NextReplicaID: d.NextReplicaID},
		Desc:  d,
		Applied: engine.AppliedState{
			Index: engine.InitialIndex, Term: engine.InitialTerm, Conf: engine.ConfStateOf(d), Stamp: initialStamp,
		},
		Truncated: engine.TruncatedState{Index: engine.InitialIndex, Term: engine.InitialTerm},
		Hard:      raftpb.HardState{Term: engine.InitialTerm, Commit: engine.InitialIndex},
	}
}

// newReplica builds the replica of a stored state; it is not published yet. A panic of raft faults it.
func (s *Store) newReplica(st engine.ReplicaState) (*replica, error) {
	if st.Desc == nil {
		return nil, fmt.Errorf("load replica %s: it has no descriptor",
			base.ReplicaName(st.Shard, st.Mark.ReplicaID))
	}
	r := &replica{store: s, shard: st.Shard, id: st.Mark.ReplicaID}
	r.desc.Store(st.Desc)
	r.applied.Store(st.Applied.Index)
	r.commit.Store(max(st.Hard.Commit, st.Applied.Index))
	r.state.applied = st.Applied
	r.machine = apply.New(s.engine, st.Desc, st.Applied)
	rw := &r.worker
	rw.term, rw.vote = st.Hard.Term, st.Hard.Vote
	rw.lastStamp = st.Applied.Stamp
	for _, rep := range st.Desc.Replicas {
		rw.peers = append(rw.peers, peer{rep.Replica, rep.Store})
	}
	r.lead.Store(&leadership{term: st.Hard.Term})
	log, err := s.engine.OpenLog(st)
	if err != nil {
		return nil, fmt.Errorf("load replica %s: %w", r, err)
	}
	rw.log = log
	if err := r.openRaft(st.Applied.Index); err != nil {
		s.fault(r, err.Error(), nil)
		r.dispose(wire.Failed, err.Error(), err)
	}
	return r, nil
}

// openRaft makes the RawNode, which panics on a state that cannot be.
func (r *replica) openRaft(applied uint64) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("load raft group: %v", v)
		}
	}()
	cfg := &r.store.cfg
	r.worker.rn, err = raft.NewRawNode(&raft.Config{
		ID:                       uint64(r.id),
		ElectionTick:             cfg.ElectionTick,
		HeartbeatTick:            cfg.HeartbeatTick,
		Storage:                  r.worker.log,
		Applied:                  applied,
		MaxSizePerMsg:            cfg.MaxSizePerMsg,
		MaxCommittedSizePerReady: maxCommittedPerReady,
		// A backstop: propose keeps below GroupUncommitted itself, and tells clients apart from raft's bare error.
		MaxUncommittedEntriesSize: uint64(cfg.Limits.GroupUncommitted) * 2,
		MaxInflightMsgs:           cfg.MaxInflightMsgs,
		CheckQuorum:               true,
		PreVote:                   true,
		ReadOnlyOption:            raft.ReadOnlySafe,
		Logger:                    raftLogger{log: r.store.log, name: r.String()},
		DisableProposalForwarding: true, // R11: stamps are the leader's
	})
	return err
}

// maxCommittedPerReady bounds what one Ready reads from the log for apply, in bytes.
const maxCommittedPerReady = 2 << 20

// publishReplicaLocked makes a replica visible to callers and to its worker.
func (s *Store) publishReplicaLocked(r *replica) {
	s.mu.replicas[r.shard] = r
	s.workerOf(r.shard).adopt(r)
}

// boot loads every replica that the marks say exists.
func (s *Store) boot() error {
	states, err := s.engine.LoadReplicas()
	if err != nil {
		return err
	}
	for _, st := range states { // newReplica is called without the lock: it may call Config.Fault
		s.mu.Lock()
		s.mu.marks[st.Shard] = st.Mark
		s.mu.Unlock()
		if st.Mark.ReplicaID == 0 {
			continue
		}
		if st.Desc == nil {
			return errors.New("load replica " + base.ReplicaName(st.Shard, st.Mark.ReplicaID) +
				": it waits for a snapshot, which this version cannot receive; start a newer one")
		}
		r, err := s.newReplica(st)
		if err != nil {
			return err
		}
		s.mu.Lock()
		s.publishReplicaLocked(r)
		s.mu.Unlock()
	}
	s.log.Info("store loaded", "store", s.cfg.Store, "replicas", len(states))
	for _, w := range s.workers {
		s.pool.Enqueue(w.control)
	}
	return nil
}
