package transport

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
)

// Handler takes what arrives. shard.Store satisfies it. The methods are called from the transport's goroutines, never
// from within Send, and must not block.
type Handler interface {
	// Step takes inbound messages. The slice is reused after the call; entries, their data and contexts may be kept.
	Step(msgs []wire.RaftMessage)
	// Unreachable says that an append of a local replica to another one was lost before it left this store.
	Unreachable(shard base.ShardID, from, to base.ReplicaID)
	// Liveness takes what another store says of itself, as it was given to its SendLiveness, and the incarnation that the
	// handshake proved. The payload may be kept.
	Liveness(from base.StoreID, incarnation uint64, payload []byte)
}

// Peers is the address book of the cluster, kept by the node. Its methods may write to disk; they are called from the
// transport's goroutines without a lock held.
type Peers interface {
	// Addr returns where a store can be dialled.
	Addr(base.StoreID) (string, bool)
	// Hello records address and incarnation of a store that has introduced itself. It fails with an error that wraps
	// ErrStale if a higher incarnation is on record, or ErrRemoved if the store is gone for good; any other error refuses
	// the connection for now.
	Hello(store base.StoreID, addr string, incarnation uint64) error
}

// Config says who we are and what to do with what arrives.
type Config struct {
	Cluster     base.ClusterID
	Store       base.StoreID
	Incarnation uint64 // raised and synced before the transport starts
	Address     string // advertised: where other stores can dial us
	Handler     Handler
	Peers       Peers

	// HeartbeatWindow is how long a heartbeat, or the answer to one, waits for others to be sent in one frame; default 10 ms,
	// a tenth of the raft tick. A follower that lacks something gets it only once it has answered one.
	HeartbeatWindow time.Duration
	// PingInterval is how often a silent link is probed; a link is given up after three unanswered probes (five on the
	// bulk lane). Default 1 s.
	PingInterval time.Duration
	// QueueBytes bounds the bulk queue of one peer, encoded bytes; default 64 MiB.
	QueueBytes int
	// ControlQueueBytes bounds the control queue of one peer; default 8 MiB.
	ControlQueueBytes int
	// CompressMin is the least body that is worth trying snappy on, in bytes; default 8 KiB, negative means never.
	CompressMin int

	Logger      *slog.Logger          // nil: discarded
	Registerer  prometheus.Registerer // nil: no metrics
	DialOptions []grpc.DialOption     // added to DialOptions()
	// Fenced is called, from a goroutine of the transport, when a peer refuses us for good: the error wraps
	// ErrOtherCluster, or ErrFenced if a newer or another process runs under our store id, or if our store was removed.
	// nil: only logged. It may be called more than once, by every peer that refuses.
	Fenced func(error)
}

func (c Config) withDefaults() Config {
	set := func(v *int, d int) {
		if *v == 0 {
			*v = d
		}
	}
	set(&c.QueueBytes, 64<<20)
	set(&c.ControlQueueBytes, 8<<20)
	set(&c.CompressMin, 8<<10)
	if c.HeartbeatWindow <= 0 {
		c.HeartbeatWindow = 10 * time.Millisecond
	}
	if c.PingInterval <= 0 {
		c.PingInterval = time.Second
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}

// Transport is one store's end of the network.
type Transport struct {
	cfg      Config
	log      *slog.Logger
	metrics  *metrics
	process  uint64 // random: tells this process from a copy of its data directory
	dial     []grpc.DialOption
	registry registry
	reports  reports
	beats    chan struct{} // capacity 1: a lane has heartbeats to send
	flushes  atomic.Uint64 // of beatLoop

	mu struct {
		sync.RWMutex
		peers   map[base.StoreID]*peer
		running context.Context // set while Run runs: lanes may start
		stopped bool
	}
	lanes    sync.WaitGroup // goroutines of lanes and their links
	inbounds sync.WaitGroup // goroutines of inbound streams
}

// peer is the two lanes to one store.
type peer [numLanes]*lane

// New returns a stopped transport. Handler and Peers must be set.
func New(cfg Config) *Transport {
	cfg = cfg.withDefaults()
	t := &Transport{
		cfg: cfg, log: cfg.Logger, metrics: newMetrics(cfg.Registerer), process: rand.Uint64(),
		dial:    slices.Concat(DialOptions(), []grpc.DialOption{keepaliveOf(linkPing)}, cfg.DialOptions),
		reports: reports{wake: make(chan struct{}, 1)},
		beats:   make(chan struct{}, 1),
	}
	t.registry.mu.stores = make(map[base.StoreID]*identity)
	t.registry.mu.fenced = make(map[base.StoreID]bool)
	t.mu.peers = make(map[base.StoreID]*peer)
	return t
}

// Send queues messages for a store. It never blocks, may drop, and does not keep msgs; entry data is kept until it has
// left and must not change. Safe for any number of goroutines; appends of one group that are sent in order by one
// goroutine arrive in order, or with gaps.
func (t *Transport) Send(to base.StoreID, msgs []wire.RaftMessage) {
	var want [numLanes]bool
	for i := range msgs {
		typ := msgs[i].Msg.Type
		if to == t.cfg.Store || !Sendable(typ) {
			reason := dropRefused
			if to == t.cfg.Store {
				reason = dropInternal
			}
			t.metrics.drops.WithLabelValues(laneOf(typ).String(), reason).Inc()
			continue
		}
		want[laneOf(typ)] = true
	}
	if !want[bulkLane] && !want[controlLane] {
		return
	}
	p := t.peerOf(to)
	for k, l := range p {
		if want[k] {
			l.send(msgs)
		}
	}
}

// SendLiveness has a store's word to another leave at once, on the control lane and before whatever waits there. It never
// blocks, may drop, and keeps payload, which must not change and has at most MaxLiveness bytes. What has not left yet when
// the next payload to the same store comes is replaced by it: each must say everything.
func (t *Transport) SendLiveness(to base.StoreID, payload []byte) {
	if to == t.cfg.Store || len(payload) > MaxLiveness {
		t.metrics.livenessDrops.WithLabelValues(dropRefused).Inc()
		return
	}
	t.peerOf(to)[controlLane].sendLiveness(payload)
}

// Fence refuses a store that is gone for good, ends its connections both ways, and sends it nothing any more; it is told
// why if it connects. The caller has the fence on disk, and gives its Peers' answers accordingly: this is for what is
// connected now. Unfence takes it back.
func (t *Transport) Fence(s base.StoreID) {
	t.registry.fence(s, true)
	t.mu.RLock()
	p := t.mu.peers[s]
	t.mu.RUnlock()
	if p == nil {
		return
	}
	for _, l := range p {
		l.cut(errRemoved)
	}
}

// Unfence lets a store connect again.
func (t *Transport) Unfence(s base.StoreID) { t.registry.fence(s, false) }

// peerOf returns the lanes to a store, made at the first use; their number is bounded by that of the stores which
// descriptors name.
func (t *Transport) peerOf(to base.StoreID) *peer {
	t.mu.RLock()
	p := t.mu.peers[to]
	t.mu.RUnlock()
	if p != nil {
		return p
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if p = t.mu.peers[to]; p != nil {
		return p
	}
	p = &peer{
		bulkLane:    newLane(t, to, bulkLane, t.cfg.QueueBytes),
		controlLane: newLane(t, to, controlLane, t.cfg.ControlQueueBytes),
	}
	t.mu.peers[to] = p
	t.startLocked(p)
	return p
}

func (t *Transport) startLocked(p *peer) {
	for _, l := range p {
		switch {
		case t.mu.stopped:
			l.stop()
		case t.mu.running != nil:
			ctx := t.mu.running
			t.lanes.Go(func() { l.run(ctx) })
		}
	}
}

// Run sends and receives until ctx ends; then it breaks all links, ends all inbound streams and joins every goroutine.
// What is queued is dropped, and Handler is not called any more once Run has returned. It runs once.
func (t *Transport) Run(ctx context.Context) error {
	t.mu.Lock()
	if t.mu.running != nil || t.mu.stopped {
		t.mu.Unlock()
		return errors.New("transport: Run was called before")
	}
	t.mu.running = ctx
	for _, p := range t.mu.peers {
		t.startLocked(p)
	}
	t.mu.Unlock()

	var reporter sync.WaitGroup
	reporter.Go(func() { t.reports.run(ctx, t.cfg.Handler, t.metrics.unreach) })
	t.beatLoop(ctx)
	t.mu.Lock()
	t.mu.stopped, t.mu.running = true, nil
	t.mu.Unlock()
	reporter.Wait()
	t.lanes.Wait()
	t.inbounds.Wait()
	return ctx.Err()
}

// beatLoop sends the heartbeats that are made within a window of the first one. Where none are made it sleeps.
func (t *Transport) beatLoop(ctx context.Context) {
	timer := time.NewTimer(time.Hour)
	timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.beats:
		}
		timer.Reset(t.cfg.HeartbeatWindow)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
		t.flushes.Add(1)
		t.flushBeats()
	}
}

// flushBeats sends the heartbeats that have gathered since the last call: one frame per peer.
func (t *Transport) flushBeats() {
	t.mu.RLock()
	defer t.mu.RUnlock()
	for _, p := range t.mu.peers {
		p[controlLane].flushBeats()
	}
}
