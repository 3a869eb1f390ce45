package shard

import (
	"fmt"

	"go.etcd.io/etcd/raft/v3"
	"go.etcd.io/etcd/raft/v3/raftpb"

	"github.com/shardd/shardd/engine"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
	"github.com/shardd/shardd/shard/apply"
)

// Creation of first replicas. Reserve: mark, overlaps, and the range is taken. Park: a message of a store that was
// quicker may have created the replica already, uninitialised; then it stands still, and what it has promised is kept.
// Commit: one synced batch with the whole first state. Publish: the replica is found by requests and messages. A crash
// between Commit and Publish: boot finds the replica, and the repeated Create finds it done.

// initialStamp is the version of a shard's first data: the same on every replica.
const initialStamp = 1

// Create makes this store's replica of a new shard, with data as its first rows (routing keys inside the range), on
// stable storage. It is idempotent: a replica that exists under the id that d gives this store is left as it is,
// whatever has become of it, unless it is uninitialised. With campaign, the replica stands for election at once.
// Errors: *MarkError, *OverlapError, ErrStopping, a descriptor that does not list this store, or the engine's.
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
	c := &creation{desc: d.Clone(), id: self.Replica, data: data, campaign: campaign}
	for {
		ch := make(chan error, 1)
		wait, err := s.create(c, func(err error) { ch <- err })
		switch {
		case err != nil:
			return err
		case wait == nil:
			return <-ch
		}
		<-wait // another step of the shard; then its outcome decides
	}
}

// creation is a first replica on its way.
type creation struct {
	op       *boundary
	desc     *base.Descriptor
	id       base.ReplicaID
	data     []engine.KV
	campaign bool
	over     *replica // uninitialised, takes its place
}

// create starts a creation; done is called once, unless there is an error or another step of the shard to wait for.
func (s *Store) create(c *creation, done func(error)) (wait <-chan struct{}, err error) {
	c.op = newBoundary(done, c.desc, c.desc.Shard)
	wait, exists, err := s.reserveCreation(c)
	switch {
	case err != nil || wait != nil:
		return wait, err
	case exists:
		s.finish(c.op, nil)
		return nil, nil
	}
	if err := s.checkMark(c.desc.Shard, c.id, c.over != nil); err != nil {
		s.finish(c.op, err)
		return nil, nil
	}
	if c.over == nil {
		// On the caller's goroutine: there is nothing to park, and no worker that could meet a half-made replica.
		s.commitCreation(c)
		return nil, nil
	}
	s.parkAll(c.op, []*replica{c.over}, func(ok bool) {
		s.life.post(func() {
			if !ok {
				s.finish(c.op, &NotFoundError{Shard: c.desc.Shard}) // removed on proof just now
			} else if s.begin(c.op) {
				s.commitCreation(c)
			}
		})
	})
	return nil, nil
}

// reserveCreation checks a creation against what is here, and reserves its shard and range.
func (s *Store) reserveCreation(c *creation) (wait <-chan struct{}, exists bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.stopped {
		return nil, false, ErrStopping
	}
	d := c.desc
	c.over = nil
	if o := s.mu.busy[d.Shard]; o != nil {
		return o.ended, false, nil
	}
	if r := s.mu.replicas[d.Shard]; r != nil {
		switch {
		case r.id != c.id:
			return nil, false, &MarkError{Shard: d.Shard, Replica: c.id, Have: r.id, Next: r.id + 1}
		case !r.uninitialised():
			return nil, true, nil
		}
		c.over = r
	}
	var old *base.Descriptor
	s.mu.ranges.overlapping(d.Start, d.End, func(o *base.Descriptor) bool {
		old = o
		return false
	})
	if old != nil {
		return nil, false, &OverlapError{New: d, Old: old}
	}
	if o := s.inTheWayLocked(c.op); o != nil {
		return nil, false, &OverlapError{New: d, Old: o.desc}
	}
	s.reserveLocked(c.op)
	return nil, false, nil
}

// commitCreation writes the first state. Terms and votes that an uninitialised replica has seen stay.
func (s *Store) commitCreation(c *creation) {
	name := base.ReplicaName(c.desc.Shard, c.id)
	st := firstState(c.desc, c.id)
	b := s.engine.NewBatch()
	b.CreateReplica(c.desc, c.id, initialStamp, c.data)
	if c.over != nil {
		if c.over.worker.rn == nil {
			b.Close()
			s.finish(c.op, &FaultedError{Shard: c.desc.Shard, Replica: c.id, Reason: "it has to be removed first"})
			return
		}
		if have := c.over.worker.rn.BasicStatus().HardState; have.Term >= st.Hard.Term {
			st.Hard.Term, st.Hard.Vote = have.Term, have.Vote
			b.SetHardState(c.desc.Shard, st.Hard)
		}
		err := s.commitBoundary(b, func() { s.publishCreated(c, st) })
		if err != nil {
			s.finish(c.op, fmt.Errorf("create replica %s: %w", name, err))
		}
		return
	}
	err := s.engine.Commit(b, true)
	b.Close()
	if err != nil {
		s.finish(c.op, fmt.Errorf("create replica %s: %w", name, err))
		return
	}
	s.publishCreated(c, st)
}

// publishCreated publishes a replica whose first state is on disk.
func (s *Store) publishCreated(c *creation, st engine.ReplicaState) {
	r, err := s.newReplica(st)
	if err != nil {
		s.finish(c.op, err)
		return
	}
	r.in.campaign = c.campaign
	r.worker.over = c.over
	var inbox []wire.RaftMessage
	s.mu.Lock()
	stopped := s.mu.stopped
	if !stopped {
		inbox = s.takeInboxLocked(c.over)
		s.publishLocked(r, c.over, "the shard was created")
	}
	s.mu.Unlock()
	if stopped {
		s.finish(c.op, ErrStopping) // durable, but nobody runs it in this life
		return
	}
	s.metrics.created.Inc()
	s.log.Info("replica created", "replica", r.String(), "range", c.desc.String())
	s.pool.EnqueueMany([]uint64{s.workerOf(r.shard).control, uint64(r.shard)})
	s.finish(c.op, nil)
	s.Step(inbox)
	s.stepEarly(r.shard)
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
		Truncated: engine.TruncatedState{
			Index: engine.InitialIndex, Term: engine.InitialTerm, Conf: engine.ConfStateOf(d),
		},
		Hard: raftpb.HardState{Term: engine.InitialTerm, Commit: engine.InitialIndex},
	}
}

// newReplica builds the replica of a stored state, without a descriptor an uninitialised one; it is not published yet.
// A panic of raft faults it.
func (s *Store) newReplica(st engine.ReplicaState) (*replica, error) {
	r := &replica{store: s, shard: st.Shard, id: st.Mark.ReplicaID, born: s.clock.Boot()}
	r.load.begin(r.born)
	r.desc.Store(st.Desc)
	r.ruled.Store(st.Desc)
	r.applied.Store(st.Applied.Index)
	r.commit.Store(max(st.Hard.Commit, st.Applied.Index))
	r.state.applied = st.Applied
	r.frozen.Store(st.Applied.Freeze)
	rw := &r.worker
	rw.term, rw.vote = st.Hard.Term, st.Hard.Vote
	rw.lastStamp = st.Applied.Stamp
	conf := st.Applied.Conf // not all of st
	rw.conf = &conf
	rw.nonvoter = !votes(rw.conf, uint64(r.id))
	rw.history.reset(st.Applied.Index, rw.conf)
	if st.Desc != nil {
		r.machine = r.newMachine(st.Desc, st.Applied)
		rw.peers = make([]peer, 0, len(st.Desc.Replicas))
		for _, rep := range st.Desc.Replicas {
			rw.peers = append(rw.peers, peer{rep.Replica, rep.Store})
		}
	}
	r.lead.Store(&leadership{term: st.Hard.Term})
	log, err := s.engine.OpenLog(st)
	if err != nil {
		return nil, fmt.Errorf("load replica %s: %w", r, err)
	}
	log.SetSnapshot(r.offer)
	_, rw.confEntry = log.Bounds() // what an earlier life has appended nobody has looked at
	rw.keptCommit = st.Hard.Commit
	rw.log = log
	err = r.openRaft(st.Applied.Index)
	log.Started()
	if err != nil {
		s.fault(r, err.Error(), nil)
		r.dispose(wire.Failed, err.Error(), err)
	}
	return r, nil
}

func (r *replica) newMachine(d *base.Descriptor, st engine.AppliedState) *apply.Machine {
	m := apply.New(r.store.engine, d, st)
	m.Mismatch = func(op *wire.Op) []byte { return r.mismatchOf(op).Payload }
	return m
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
		Logger:                    raftLogger{r},
		DisableProposalForwarding: true, // R11: stamps are the leader's
	})
	return err
}

// maxCommittedPerReady bounds what one Ready reads from the log for apply, in bytes.
const maxCommittedPerReady = 2 << 20

// boot loads every replica that the marks say exists.
func (s *Store) boot() error {
	states, err := s.engine.LoadReplicas()
	if err != nil {
		return err
	}
	for _, st := range states {
		if st.Mark.ReplicaID == 0 {
			continue
		}
		r, err := s.newReplica(st) // without the lock: it may call Config.Fault
		if err != nil {
			return err
		}
		if r.worker.starting = r.sleepsAtStart(); !r.worker.starting {
			s.publish(r, nil, "")
			continue
		}
		s.mu.Lock()
		s.publishLocked(r, nil, "")
		s.mu.Unlock()
	}
	s.log.Info("store loaded", "store", s.cfg.Store, "replicas", len(states))
	for _, w := range s.workers {
		s.pool.Enqueue(w.control)
	}
	return nil
}
