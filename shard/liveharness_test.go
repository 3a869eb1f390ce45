package shard

import (
	"flag"
	"testing"
	"time"

	"go.etcd.io/etcd/raft/v3/raftpb"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
	"github.com/shardd/shardd/shard/liveness"
	"github.com/shardd/shardd/transport/simnet"
)

var allLive = flag.Bool("shard.live", false, "the stores of all tests have store liveness")

// newLiveCluster is newCluster with store liveness, so that there are leases and sleep.
func newLiveCluster(t *testing.T, stores int, tune func(*Config)) *cluster {
	t.Helper()
	c := makeCluster(t, stores, tune, true)
	c.until("the stores support each other", func() bool {
		all := true
		c.each(func(n *testNode) {
			for _, id := range c.ids() {
				s := n.live.Held(id)
				all = all && (id == n.id || s != nil && s.Until > n.Boot())
			}
		})
		return all
	})
	return c
}

const testPromise = 800 * time.Millisecond

// newMonitor makes the Monitor of a store that is about to start.
func (c *cluster) newMonitor(n *testNode) *liveness.Monitor {
	cfg := liveness.Config{
		Store: n.id, Incarnation: n.life, Promise: testPromise, Margin: 0.05, Interval: 100 * time.Millisecond, Clock: n,
		Healthy: func() bool { return n.eng.SyncAge() <= maxSyncAge },
		Send: func(to base.StoreID, payload []byte) {
			if !n.mute {
				n.sender.(*lateSender).to.(*simnet.Node).SendLiveness(to, payload)
			}
		},
		OnLapse:   func(s base.StoreID, epoch uint64) { n.store.OnLapse(s, epoch) },
		OnSupport: func(s base.StoreID, epoch uint64, fresh bool) { n.store.OnSupport(s, epoch, fresh) },
		OnReleased: func(s base.StoreID, items []liveness.Group) {
			if !n.deaf {
				n.store.OnReleased(s, items)
			}
		},
		Leads:   func(g liveness.Group) bool { return n.store.Leads(g) },
		Follows: func(s base.StoreID) []liveness.Group { return n.store.Follows(s) },
	}
	if n.life > 1 {
		cfg.Recorded = max(testPromise, n.recorded)
	}
	if n.promise != 0 {
		cfg.Promise = max(n.promise, 0)
	}
	m := liveness.New(cfg)
	m.SetPeers(c.ids())
	return m
}

// checkLeases is rule V4: nothing of a later term, and no order to campaign, leaves a store that still holds a lease.
func (l *lateSender) checkLeases(msgs []wire.RaftMessage) {
	if l.from == nil || !l.from.c.live {
		return
	}
	for i := range msgs {
		m := &msgs[i]
		r := l.from.store.lookup(m.Shard)
		if r == nil || r.id != m.From {
			continue
		}
		lease := r.lease.Load()
		if m.Msg.Type == raftpb.MsgPreVoteResp {
			continue // of the term asked for; it promises nothing
		}
		if lease != nil && (m.Msg.Term > lease.term || m.Msg.Type == raftpb.MsgTimeoutNow) {
			l.from.c.t.Errorf("%s sends %s of term %d with its lease of term %d published", r, m.Msg.Type, m.Msg.Term, lease.term)
		}
	}
}

// checkHolders is what leases are for: at one moment only one replica of a group holds one, and none of a lower term than
// another leader's.
func (c *cluster) checkHolders() {
	type holder struct {
		store base.StoreID
		term  uint64
	}
	held, led := map[base.ShardID]holder{}, map[base.ShardID]holder{}
	c.eachStore(func(n *testNode) {
		for _, r := range n.store.all() {
			if l := r.leaseAt(n.Boot()); l != nil {
				if old, ok := held[r.shard]; ok {
					c.t.Errorf("%s and %s hold a lease of %s at once", old.store, n.id, r.shard)
				}
				held[r.shard] = holder{n.id, l.term}
			}
			if l := r.lead.Load(); l.leads && l.term > led[r.shard].term {
				led[r.shard] = holder{n.id, l.term}
			}
		}
	})
	for shard, h := range held {
		if l := led[shard]; l.term > h.term {
			c.t.Errorf("%s holds a lease of %s of term %d while %s leads in term %d", h.store, shard, h.term, l.store, l.term)
		}
	}
}

// beat gives every Monitor its turn, and what they say is heard.
func (c *cluster) beat() {
	if !c.live {
		return
	}
	for range 3 { // question, answer, and what an answer makes urgent
		c.each(func(n *testNode) { n.live.Tick(n.Boot()) })
		for c.net.Step() {
		}
	}
}

// drift moves the clocks of all stores apart, as their rates say; those that are paused and those that are down too.
func (c *cluster) drift(d time.Duration) {
	for _, n := range c.nodes {
		n.skew += time.Duration(n.rate * float64(d))
	}
}
