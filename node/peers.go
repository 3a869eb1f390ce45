package node

import (
	"fmt"
	"log/slog"
	"sync"

	"google.golang.org/grpc"

	"github.com/shardd/shardd/engine"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/transport"
)

// book is the address book of a member: where the other stores are and the highest incarnation seen of each. It starts
// from the ident and is written through to it, so that a restart of all nodes finds everyone again. It implements
// transport.Peers.
type book struct {
	eng *engine.Engine
	log *slog.Logger

	mu struct {
		sync.Mutex
		peers  map[base.StoreID]engine.PeerRecord
		fenced map[base.StoreID]bool // gone for good; see fences.go
	}
}

func newBook(eng *engine.Engine, log *slog.Logger, id engine.Ident) *book {
	b := &book{eng: eng, log: log}
	b.mu.peers = make(map[base.StoreID]engine.PeerRecord)
	for _, p := range id.Peers {
		b.mu.peers[p.Store] = p
	}
	b.refreshFences()
	return b
}

// Addr implements transport.Peers.
func (b *book) Addr(id base.StoreID) (string, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	p, ok := b.mu.peers[id]
	return p.Addr, ok && p.Addr != "" && !b.mu.fenced[id]
}

// Hello implements transport.Peers: the incarnation is on disk before the connection is accepted, so that no older life
// of that store is ever accepted after it.
func (b *book) Hello(id base.StoreID, addr string, incarnation uint64) error {
	if b.isFenced(id) {
		return fmt.Errorf("%s: %w", id, transport.ErrRemoved)
	}
	return b.record(engine.PeerRecord{Store: id, Addr: addr, Incarnation: incarnation})
}

// learn takes addresses from someone else's word; the stores themselves say more in their Hello.
func (b *book) learn(addrs map[base.StoreID]string) {
	for id, addr := range addrs {
		b.mu.Lock()
		p, ok := b.mu.peers[id]
		fenced := b.mu.fenced[id]
		b.mu.Unlock()
		if fenced || addr == "" || ok && p.Addr == addr {
			continue
		}
		p.Store, p.Addr = id, addr
		if err := b.record(p); err != nil {
			b.log.Warn("cannot record address", "node", id.String(), "addr", addr, "err", err)
		}
	}
}

func (b *book) record(p engine.PeerRecord) error {
	b.mu.Lock()
	old, ok := b.mu.peers[p.Store]
	b.mu.Unlock()
	switch {
	case p.Incarnation < old.Incarnation:
		return fmt.Errorf("%s incarnation %d, seen %d: %w", p.Store, p.Incarnation, old.Incarnation, transport.ErrStale)
	case ok && old == p:
		return nil
	}
	// Not under the lock: this syncs. The engine keeps the highest incarnation of concurrent calls.
	if err := b.eng.RecordPeer(p); err != nil {
		return fmt.Errorf("record %s: %w", p.Store, err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if p.Incarnation >= b.mu.peers[p.Store].Incarnation {
		b.mu.peers[p.Store] = p
	}
	return nil
}

// all returns every known address by store, but for those of stores that are gone for good.
func (b *book) all() map[base.StoreID]string {
	b.mu.Lock()
	defer b.mu.Unlock()
	out := make(map[base.StoreID]string, len(b.mu.peers))
	for id, p := range b.mu.peers {
		if !b.mu.fenced[id] {
			out[id] = p.Addr
		}
	}
	return out
}

// conns keeps one connection per address; they redial by themselves. A node has one of these for calls and operation
// streams to other nodes and one for snapshots.
type conns struct {
	options []grpc.DialOption

	mu     sync.Mutex
	open   map[string]*grpc.ClientConn
	closed bool
}

func newConns(options []grpc.DialOption) *conns {
	return &conns{options: options, open: make(map[string]*grpc.ClientConn)}
}

// to returns the connection to an address, without waiting for it to be up.
func (c *conns) to(addr string) (*grpc.ClientConn, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, fmt.Errorf("connect to %s: the node is stopping", addr)
	}
	if cc, ok := c.open[addr]; ok {
		return cc, nil
	}
	cc, err := grpc.NewClient("passthrough:///"+addr, c.options...)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", addr, err)
	}
	c.open[addr] = cc
	return cc, nil
}

func (c *conns) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	for _, cc := range c.open {
		cc.Close() // fails only on a second close
	}
	clear(c.open)
}
