package node

import (
	"context"
	"maps"
	"sync"

	pb "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/internal/base"
)

// labelBook is what a node knows of the labels of all nodes, so that clients can tell which replicas are near them: from
// the records, where it leads the meta shard, else from the answers of who does. It is a hint and may be old.
type labelBook struct {
	mu sync.Mutex
	of map[base.StoreID]map[string]string // the inner maps are never changed
}

// learn takes the labels of a node.
func (b *labelBook) learn(id base.StoreID, labels map[string]string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.of == nil {
		b.of = make(map[base.StoreID]map[string]string)
	}
	if !maps.Equal(b.of[id], labels) {
		b.of[id] = maps.Clone(labels)
	}
}

// all returns the labels of every node that has some.
func (b *labelBook) all() map[uint64]*pb.NodeLabels {
	b.mu.Lock()
	defer b.mu.Unlock()
	out := make(map[uint64]*pb.NodeLabels, len(b.of))
	for id, labels := range b.of {
		if len(labels) > 0 {
			out[uint64(id)] = &pb.NodeLabels{Labels: labels}
		}
	}
	return out
}

// at returns the labels of one node.
func (b *labelBook) at(id base.StoreID) map[string]string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.of[id]
}

// refreshLabels brings the book up to date where the records are at hand.
func (m *member) refreshLabels(ctx context.Context) {
	m.labels.learn(m.self, m.n.cfg.Labels)
	if _, leads := m.leadsMeta(); !leads {
		return
	}
	read, cancel := context.WithTimeout(ctx, forwardTimeout)
	defer cancel()
	nodes, err := m.nodes(read)
	if err != nil {
		return // what is known stays; it decides nothing but which replica is asked first
	}
	for _, n := range nodes {
		m.labels.learn(n.ID, n.Labels)
	}
}

// near ranks nodes for reads of this node's own router: itself, then by how many labels they share with it.
func (m *member) near(id base.StoreID) int {
	if id == m.self {
		return len(m.n.cfg.Labels) + 1
	}
	n := 0
	for k, v := range m.labels.at(id) {
		if own, ok := m.n.cfg.Labels[k]; ok && own == v {
			n++
		}
	}
	return n
}
