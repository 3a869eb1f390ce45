package node

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/shardd/shardd/engine"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/transport"
)

// Fencing. What ends a member that must not go on: another life of its own store (12), or a cluster that it does not
// belong to (11). The word of one peer is enough for the first, since a peer records only what our store itself has
// said. It is not for the second: a stranger that happens to sit at a peer's address would end every healthy node.

// fenced is told by the transport that a peer refuses us for good.
func (m *member) fenced(err error) {
	if errors.Is(err, transport.ErrFenced) {
		m.n.failWith(m.n.refused(engine.ExitOtherStore, err))
		return
	}
	var ref *transport.RefusedError
	if !errors.As(err, &ref) || !errors.Is(err, transport.ErrOtherCluster) {
		return
	}
	peers := m.book.all()
	delete(peers, m.self)
	m.strangers.Lock()
	if m.strangers.seen == nil {
		m.strangers.seen = make(map[base.StoreID]bool)
	}
	m.strangers.seen[ref.Peer] = true
	count := len(m.strangers.seen)
	m.strangers.Unlock()
	if count*2 > len(peers) {
		m.n.failWith(m.n.refused(engine.ExitOtherCluster,
			fmt.Errorf("%d of %d known peers belong to another cluster: %w", count, len(peers), err)))
		return
	}
	m.log.Warn("a node of another cluster is at a peer's address", "peer", ref.Peer.String(), "addr", ref.Addr)
}

// checkJoin ends a member that was told to join a cluster other than its own: one of the two, the directory or the
// flag, is a mistake. It asks until one of the addresses has answered.
func (m *member) checkJoin(ctx context.Context) {
	t := time.NewTicker(time.Second)
	defer t.Stop()
	for len(m.n.cfg.Join) > 0 {
		for _, addr := range m.n.cfg.Join {
			if addr == m.n.addr {
				continue
			}
			st, err := m.n.askStatus(ctx, addr)
			if err != nil || st.ClusterId == "" {
				continue
			}
			if st.ClusterId != m.cluster.String() {
				m.n.failWith(m.n.refused(engine.ExitOtherCluster, fmt.Errorf(
					"told to join %s of cluster %s, but this directory belongs to cluster %s: "+
						"use an empty directory, or the addresses of its own cluster", addr, st.ClusterId, m.cluster)))
			}
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}
