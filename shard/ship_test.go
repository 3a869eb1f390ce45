package shard

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/shardd/shardd/engine"
	"github.com/shardd/shardd/internal/base"
)

// shipper is the Snapshots of a harness store: it keeps what is asked for until the cluster moves, and then carries it
// to the other store in the same process, over the engine's views and stagings.
type shipper struct {
	c    *cluster
	from *testNode

	mu    sync.Mutex
	queue []SnapshotRequest

	hold    bool                                             // requests stay in the queue
	down    func() bool                                      // the stream breaks before the installation
	touch   func(m *engine.SnapshotMeta)                     // changes what is announced
	staged  func(m *engine.SnapshotMeta, st *engine.Staging) // before the installation
	done    []error                                          // outcomes, in order
	shipped int                                              // chunks
}

func (s *shipper) Send(req SnapshotRequest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.queue = append(s.queue, req)
}

func (s *shipper) waiting() []SnapshotRequest {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]SnapshotRequest(nil), s.queue...)
}

// ship carries what is queued; false if there was nothing.
func (s *shipper) ship() bool {
	if s.hold {
		return false
	}
	s.mu.Lock()
	queue := s.queue
	s.queue = nil
	s.mu.Unlock()
	for _, req := range queue {
		done := req.Done
		req.Done = func(err error) {
			s.mu.Lock()
			s.done = append(s.done, err)
			s.mu.Unlock()
			done(err)
		}
		if err := s.carry(req); err != nil {
			req.Done(err)
		}
	}
	return len(queue) > 0
}

var errStoreDown = errors.New("the store is down")

// carry starts one installation; an error means that it has not started, and Done was not called.
func (s *shipper) carry(req SnapshotRequest) error {
	to := s.c.nodes[req.ToStore]
	if to == nil || to.store == nil || s.from.store == nil {
		return errStoreDown
	}
	m, st, err := s.stage(req, to)
	if err != nil {
		return err
	}
	if s.staged != nil {
		s.staged(m, st)
	}
	if s.down != nil && s.down() {
		return errStoreDown
	}
	to.store.installSnapshot(m, st, req.Done)
	return nil
}

// stage reads a view and stages it at the receiver, if that accepts it.
func (s *shipper) stage(req SnapshotRequest, to *testNode) (*engine.SnapshotMeta, *engine.Staging, error) {
	v, err := s.from.eng.OpenView(req.Shard)
	if err != nil {
		return nil, nil, err
	}
	defer func() {
		if err := v.Close(); err != nil {
			s.c.t.Error(err)
		}
	}()
	m := &engine.SnapshotMeta{
		Shard: req.Shard, From: req.From, To: req.To, FromStore: s.from.id, ToStore: req.ToStore, RaftTerm: req.Term,
		Desc: v.Desc(), Applied: v.Applied(), ApproxBytes: v.ApproxBytes(),
	}
	if s.touch != nil {
		s.touch(m)
	}
	if m.Applied.Index < req.Index {
		return nil, nil, fmt.Errorf("the view is at %d, raft was told %d", m.Applied.Index, req.Index)
	}
	if err := to.store.AcceptSnapshot(m); err != nil {
		return nil, nil, err
	}
	st, err := stageView(v, m, to.eng, s.c.stagings())
	if err == nil {
		s.shipped += int(st.Chunks())
	}
	return m, st, err
}

// stageView copies a view into a staging of another engine.
func stageView(v *engine.View, m *engine.SnapshotMeta, to *engine.Engine, id uint64) (*engine.Staging, error) {
	var key [16]byte
	binary.BigEndian.PutUint64(key[:], id)
	st, err := to.NewStaging(m, key)
	if err != nil {
		return nil, err
	}
	for from, seq := []byte(nil), uint32(0); ; seq++ {
		c, next, err := v.Chunk(seq, from, 4<<10)
		if err == nil && c != nil { // nil: an empty shard
			err = st.Add(c)
		}
		if err != nil {
			return nil, errors.Join(err, st.Remove())
		}
		if next == nil {
			return st, nil
		}
		from = next
	}
}

func (c *cluster) stagings() uint64 {
	c.staged++
	return c.staged
}

// changed asks the leader for a change of replicas and waits until it is applied there.
func (c *cluster) changed(shard base.ShardID, changes ...ReplicaChange) *base.Descriptor {
	c.t.Helper()
	type result struct {
		d   *base.Descriptor
		err error
	}
	ch := make(chan result, 1)
	var res *result
	var n *testNode
	c.until(fmt.Sprint(changes), func() bool {
		select {
		case got := <-ch:
			var ce *ChangeError
			if n = nil; !errors.As(got.err, &ce) || !ce.Retry {
				res = &got
				return true
			}
		default:
		}
		if n == nil {
			if n = c.leader(shard); n != nil {
				req := &changeRequest{changes: changes, ticks: 3, done: func(d *base.Descriptor, err error) { ch <- result{d, err} }}
				n.store.call(n.store.lookup(shard), func(r *replica) { n.store.workerOf(shard).startChange(r, req) })
			}
		}
		return false
	})
	if res.err != nil {
		c.t.Fatalf("%v: %v", changes, res.err)
	}
	return res.d
}

// removed has the leader remove the learner on a store.
func (c *cluster) removed(shard base.ShardID, from base.StoreID) *base.Descriptor {
	c.t.Helper()
	return c.changed(shard, ReplicaChange{Op: Remove, Store: from})
}

// learner adds a learner and waits until it is initialised.
func (c *cluster) learner(shard base.ShardID, on base.StoreID) *replica {
	c.t.Helper()
	c.changed(shard, ReplicaChange{Op: AddLearner, Store: on})
	c.initialised(shard, on)
	return c.nodes[on].store.lookup(shard)
}

func (c *cluster) initialised(shard base.ShardID, on base.StoreID) {
	c.t.Helper()
	c.until(fmt.Sprintf("%s on %s", shard, on), func() bool { return c.nodes[on].store.serving(shard) != nil })
}

// pass lets time pass without a tick.
func (c *cluster) pass(d time.Duration) { c.clock.now.Add(int64(d)) }
