package node

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	pb "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/placement/recovery"
)

// gathered is what all nodes but the failed ones have, asked for one by one: the address books lead from node to node,
// so that nothing depends on the meta shard.
type gathered struct {
	in    recovery.Input
	nodes map[base.StoreID]*pb.InventoryResponse
	addrs map[base.StoreID]string // of everyone that any of them knows, the failed ones included
	// problems say who did not answer, and which of the failed ones did.
	problems []string
}

// probeTimeout bounds the question to a failed node whether it lives.
const probeTimeout = time.Second

// gather asks the survivors of a recovery, or, without such a list, everyone that is known; the failed ones are then asked
// whether they live after all.
func (m *member) gather(ctx context.Context, failed, survivors []base.StoreID, recoveryID uint64) *gathered {
	g := &gathered{nodes: make(map[base.StoreID]*pb.InventoryResponse), addrs: m.book.all()}
	g.addrs[m.self] = m.n.addr
	for _, r := range m.metaDesc().Replicas { // their addresses may be those that nobody is told any more
		if addr, ok := m.book.last(r.Store); ok && g.addrs[r.Store] == "" {
			g.addrs[r.Store] = addr
		}
	}
	for _, f := range failed {
		if addr, ok := m.book.last(f); ok {
			g.addrs[f] = addr
		}
	}
	fenced := make(map[base.StoreID]bool)
	silent := make(map[base.StoreID]error)
	for {
		var ask []base.StoreID
		for id := range g.addrs {
			_, have := g.nodes[id]
			_, tried := silent[id]
			switch {
			case have || tried || fenced[id] || slices.Contains(failed, id):
			case survivors != nil && !slices.Contains(survivors, id):
			default:
				ask = append(ask, id)
			}
		}
		if len(ask) == 0 {
			break
		}
		m.gatherRound(ctx, g, ask, recoveryID, fenced, silent)
	}
	for id, err := range silent {
		if !fenced[id] { // somebody knows that it was removed
			g.problems = append(g.problems, fmt.Sprintf(
				"%s at %s does not answer (%v): start it, or name it as failed too", id, g.addrs[id], err))
		}
	}
	for _, s := range survivors {
		if g.nodes[s] == nil && silent[s] == nil {
			g.problems = append(g.problems, fmt.Sprintf("%s cannot be asked: its address is unknown", s))
		}
	}
	if survivors == nil {
		m.probe(ctx, g, failed)
	}
	slices.Sort(g.problems)
	g.in.Failed = failed
	for id, inv := range g.nodes {
		rs, err := planReplicas(inv)
		if err != nil {
			g.problems = append(g.problems, err.Error())
		}
		g.in.Survivors = append(g.in.Survivors, id)
		g.in.Replicas = append(g.in.Replicas, rs...)
	}
	slices.Sort(g.in.Survivors)
	return g
}

// gatherRound asks some nodes at the same time and takes their answers in.
func (m *member) gatherRound(ctx context.Context, g *gathered, ask []base.StoreID, recoveryID uint64,
	fenced map[base.StoreID]bool, silent map[base.StoreID]error) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, id := range ask {
		addr := g.addrs[id]
		wg.Go(func() {
			inv, err := m.askInventory(ctx, place{id, addr}, recoveryID)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				silent[id] = err
				return
			}
			g.nodes[id] = inv
		})
	}
	wg.Wait()
	for _, id := range ask {
		inv := g.nodes[id]
		if inv == nil {
			continue
		}
		for _, f := range inv.Fenced {
			fenced[base.StoreID(f)] = true
		}
		for s, addr := range inv.Addresses {
			if g.addrs[base.StoreID(s)] == "" {
				g.addrs[base.StoreID(s)] = addr
			}
		}
	}
}

// probe asks the failed nodes whether they live.
func (m *member) probe(ctx context.Context, g *gathered, failed []base.StoreID) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	add := func(format string, args ...any) {
		mu.Lock()
		defer mu.Unlock()
		g.problems = append(g.problems, fmt.Sprintf(format, args...))
	}
	for _, f := range failed {
		addr := g.addrs[f]
		switch {
		case f == m.self:
			add("%s is alive, it is the one that was asked: it is not lost", f)
			continue
		case addr == "":
			add("%s is not known to any node that answers", f)
			continue
		}
		wg.Go(func() {
			ask, cancel := context.WithTimeout(ctx, probeTimeout)
			defer cancel()
			st, err := m.n.askStatus(ask, addr)
			if err == nil && st.ClusterId == m.cluster.String() && base.StoreID(st.NodeId) == f {
				add("%s is alive, it answers at %s: stop it first if what it has is to be given up", f, addr)
			}
		})
	}
	wg.Wait()
}
