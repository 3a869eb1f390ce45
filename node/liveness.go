package node

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	pb "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/clock"
	"github.com/shardd/shardd/shard/liveness"
)

// Store liveness: what this node and the others promise each other, and when each was last heard. The
// protocol is package shard/liveness; here it gets its clock, its disk, its network and its peers.

// newLiveness makes the Monitor of this life. What it may promise is on disk before it promises anything, and what
// earlier lives may have promised it keeps (V7), with leases or without.
func (m *member) newLiveness(log *slog.Logger) error {
	n, s := m.n, &m.n.cfg.Settings
	promise := s.LeaseSupport
	if s.NoLeases {
		promise = 0
	}
	recorded, err := n.eng.RaisePromise(promise)
	if err != nil {
		return fmt.Errorf("raise lease promise: %w", err)
	}
	m.liveness = liveness.New(liveness.Config{
		Store: m.self, Incarnation: m.incarnation, Promise: promise, Recorded: recorded, Margin: s.ClockMargin,
		Clock: m.clock, Healthy: func() bool { return n.eng.SyncAge() <= syncLimit },
		Send: func(to base.StoreID, payload []byte) { m.transport.SendLiveness(to, payload) },
		// The store is made after the Monitor, and before either runs.
		OnLapse:    func(s base.StoreID, epoch uint64) { m.store.OnLapse(s, epoch) },
		OnSupport:  func(s base.StoreID, epoch uint64, fresh bool) { m.store.OnSupport(s, epoch, fresh) },
		OnReleased: func(s base.StoreID, gs []liveness.Group) { m.store.OnReleased(s, gs) },
		Leads:      func(g liveness.Group) bool { return m.store.Leads(g) },
		Follows:    func(s base.StoreID) []liveness.Group { return m.store.Follows(s) },
		Logger:     log, Registerer: n.reg,
	})
	m.peersWake = make(chan struct{}, 1)
	return nil
}

// settlePromise takes down the record of a longer promise than this life gives, once its time is over: else one wrong
// setting would delay elections after every start for ever. It reports whether there is nothing left to do.
func (m *member) settlePromise() bool {
	if m.liveness.QuietUntil() > m.clock.Boot() {
		return false
	}
	if err := m.n.eng.LowerPromise(m.liveness.Promise()); err != nil {
		m.log.Warn("cannot lower the recorded lease promise", "err", err)
	}
	return true
}

// Which stores share a shard with this one is looked up each second, and soon after a local replica has learned of a
// leader: that is when a promise is wanted.
const (
	peersPoll = time.Second
	peersGap  = 100 * time.Millisecond
)

// peersLoop keeps the Monitor's list of peers.
func (m *member) peersLoop(ctx context.Context) {
	t := time.NewTimer(0)
	defer t.Stop()
	for settled := false; ; settled = settled || m.settlePromise() {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		case <-m.peersWake:
			pause(ctx, peersGap) // many shards elect at the same time
		}
		m.liveness.SetPeers(m.store.PeerStores())
		t.Reset(clock.UntilAligned(peersPoll))
	}
}

// wakePeers has the list of peers looked up soon. It never blocks.
func (m *member) wakePeers() { poke(m.peersWake) }

// Liveness implements AdminService.
func (s *adminService) Liveness(context.Context, *pb.LivenessRequest) (*pb.LivenessResponse, error) {
	m, err := s.n.needMember()
	if err != nil {
		return nil, err
	}
	now := m.clock.Boot()
	out := &pb.LivenessResponse{
		NodeId: uint64(m.self), Incarnation: m.incarnation, SupportMs: uint64(m.liveness.Promise().Milliseconds()),
		QuietMs: uint64(max(m.liveness.QuietUntil()-now, 0).Milliseconds()),
	}
	for _, p := range m.liveness.Status(now) {
		v := &pb.PeerLiveness{
			NodeId: uint64(p.Store), Incarnation: p.Incarnation, SharesShards: p.Listed, PendingHints: uint64(p.Pending),
			Gives: toSupport(p.Epoch, p.Left), Has: toSupport(p.HeldEpoch, p.HeldLeft),
		}
		if p.Heard >= 0 {
			ms := uint64(p.Heard.Milliseconds())
			v.HeardMsAgo = &ms
		}
		out.Peers = append(out.Peers, v)
	}
	return out, nil
}

func toSupport(epoch uint64, left time.Duration) *pb.Support {
	if epoch == 0 {
		return nil
	}
	incarnation, counter := liveness.SplitEpoch(epoch)
	return &pb.Support{Incarnation: incarnation, Epoch: counter, LeftMs: uint64(left.Milliseconds())}
}
