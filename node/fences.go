package node

import (
	"context"
	"errors"
	"math"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/engine"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/placement"
	"github.com/shardd/shardd/shard"
	"github.com/shardd/shardd/transport"
)

// Fences. A store that was removed from the cluster, or given up in a recovery, must never be listened to again: it may
// come back with votes and acknowledged writes that the others have long done without. Every node keeps the fences on its
// disk, and has them there before it says so. They come from the meta shard, where a removed node is marked as such,
// with the answers to reports, and from a recovery directly. Handshakes, reports and snapshots of a fenced store are
// refused with a reason on which it ends itself, with the exit code of a store that does not belong here (12).

// refreshFences takes over what the engine has on disk.
func (b *book) refreshFences() {
	id, _ := b.eng.Ident()
	fenced := make(map[base.StoreID]bool, len(id.Fences))
	for _, f := range id.Fences {
		fenced[f.Store] = true
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.mu.fenced = fenced
}

func (b *book) isFenced(id base.StoreID) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.mu.fenced[id]
}

// last returns the last known address of a store, whether or not it is fenced.
func (b *book) last(id base.StoreID) (string, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	p, ok := b.mu.peers[id]
	return p.Addr, ok && p.Addr != ""
}

// changeFences makes a change of the fences durable, then has everything obey it.
func (m *member) changeFences(c engine.FenceChange) error {
	if err := m.n.eng.ChangeFences(c); err != nil {
		return err
	}
	m.book.refreshFences()
	for _, f := range c.Add {
		m.transport.Fence(f.Store)
	}
	for _, s := range c.Lift {
		m.transport.Unfence(s)
	}
	return nil
}

// learnFences keeps what the meta leader says of nodes that are gone for good.
func (m *member) learnFences(ids []uint64) {
	var add []engine.Fence
	for _, id := range ids {
		if s := base.StoreID(id); s != m.self && !m.book.isFenced(s) {
			add = append(add, engine.Fence{Store: s})
		}
	}
	if len(add) == 0 {
		return
	}
	if err := m.changeFences(engine.FenceChange{Add: add}); err != nil {
		m.log.Warn("cannot fence removed nodes; will be repeated", "err", err)
	}
}

// removedNodes lists the nodes that the meta shard has as removed, for the answers to reports.
func (m *member) removedNodes(ctx context.Context) (out []uint64) {
	marks, err := m.jobs.marks.all(ctx, m.dir, m.clock.Boot())
	if err != nil {
		return nil // the next report asks again
	}
	for id, c := range marks.commissions {
		if c == placement.Removed {
			out = append(out, uint64(id))
		}
	}
	slices.Sort(out)
	return out
}

// removedStatus is what a node is told that is gone for good. Nothing else answers with this code.
func removedStatus(id base.StoreID) error {
	return status.Errorf(codes.PermissionDenied, "%s: %v (exit code %d)", id, transport.ErrRemoved, engine.ExitOtherStore)
}

// ifRemoved ends this node if an answer says that it was removed. The word of one is enough: a node fences only what a
// person has given up.
func (m *member) ifRemoved(err error) {
	if status.Code(err) == codes.PermissionDenied {
		m.n.failWith(m.n.refused(engine.ExitOtherStore, errors.New(status.Convert(err).Message())))
	}
}

// removedTries is how often a starting node asks a peer that does not answer whether it still belongs here.
const removedTries = 10

// checkRemoved asks every known peer, at the start of a node, whether it still belongs here: one that was given up may
// share no shard with those that know.
func (m *member) checkRemoved(ctx context.Context) {
	open := m.book.all()
	delete(open, m.self)
	for range removedTries {
		for id, addr := range open {
			c, err := m.internalAt(place{id, addr})
			if err != nil {
				continue
			}
			ask, cancel := context.WithTimeout(ctx, time.Second)
			_, err = c.Inventory(ask, &pb.InventoryRequest{
				ClusterId: m.cluster[:], AfterShardId: math.MaxUint64, AskingNode: uint64(m.self),
			})
			cancel()
			m.ifRemoved(err)
			if err == nil {
				delete(open, id)
			}
		}
		if len(open) == 0 || ctx.Err() != nil {
			return
		}
		pause(ctx, m.n.cfg.Settings.ReportInterval)
	}
}

// fencedTarget takes no snapshot from a fenced store.
type fencedTarget struct {
	*shard.Store
	book *book
}

// AcceptSnapshot implements snapshotter.Target.
func (t fencedTarget) AcceptSnapshot(meta *engine.SnapshotMeta) error {
	if t.book.isFenced(meta.FromStore) {
		return &shard.DeclinedError{Shard: meta.Shard, Replica: meta.To, Reason: "the sender was removed from the cluster"}
	}
	return t.Store.AcceptSnapshot(meta)
}

// FenceStores implements InternalService.
func (s *internalService) FenceStores(ctx context.Context, req *pb.FenceStoresRequest) (*pb.FenceStoresResponse, error) {
	m, err := s.member(ctx, req.ClusterId)
	if err != nil {
		return nil, err
	}
	c, err := fenceChange(req)
	if err == nil && slices.Contains(req.Nodes, uint64(m.self)) && c.Recovery == nil {
		err = removedStatus(m.self)
	}
	if err == nil {
		err = m.takeFences(c)
	}
	if err != nil {
		return nil, err
	}
	if len(req.MetaDescriptor) > 0 {
		d, _, err := base.DecodeDescriptor(req.MetaDescriptor)
		if err != nil {
			return nil, status.Errorf(codes.InvalidArgument, "fence: meta descriptor: %v", err)
		}
		m.learnMeta(d)
	}
	return &pb.FenceStoresResponse{}, nil
}

// takeFences makes a change, once no step of an earlier recovery is under way here.
func (m *member) takeFences(c engine.FenceChange) error {
	m.recoverer.here.Lock()
	defer m.recoverer.here.Unlock()
	var stale *engine.StaleRecoveryError
	switch err := m.changeFences(c); {
	case errors.As(err, &stale):
		return status.Error(codes.Aborted, err.Error())
	case err != nil:
		return status.Errorf(codes.FailedPrecondition, "%v", err)
	}
	return nil
}

// fenceChange reads a request.
func fenceChange(req *pb.FenceStoresRequest) (c engine.FenceChange, err error) {
	stores := func(ids []uint64) (out []base.StoreID) {
		for _, id := range ids {
			out = append(out, base.StoreID(id))
		}
		slices.Sort(out)
		return out
	}
	failed := stores(req.Nodes)
	if req.RecoveryId != 0 {
		r := &engine.Recovery{
			ID: req.RecoveryId, Coordinator: base.StoreID(req.Coordinator), Failed: failed, Survivors: stores(req.Survivors),
		}
		if len(req.PlanToken) != len(r.Token) {
			return c, status.Errorf(codes.InvalidArgument, "fence: token of %d bytes", len(req.PlanToken))
		}
		copy(r.Token[:], req.PlanToken)
		for s := engine.RecoveryFence; s <= engine.RecoveryStopped; s++ {
			if s.String() == req.Stage {
				r.Stage = s
			}
		}
		c.Recovery = r
	}
	if c.Recovery != nil && c.Recovery.Stage == engine.RecoveryCancelled {
		c.Lift = failed
		return c, nil
	}
	for _, s := range failed {
		c.Add = append(c.Add, engine.Fence{Store: s, Recovery: req.RecoveryId})
	}
	return c, nil
}
