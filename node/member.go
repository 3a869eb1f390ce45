package node

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/connectivity"

	"github.com/shardd/shardd/engine"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/clock"
	"github.com/shardd/shardd/placement"
	"github.com/shardd/shardd/router"
	"github.com/shardd/shardd/shard"
	"github.com/shardd/shardd/shard/liveness"
	"github.com/shardd/shardd/transport"
)

// member is the running part of a node that belongs to a cluster.
type member struct {
	n     *Node
	log   *slog.Logger
	clock clock.Clock

	cluster     base.ClusterID
	self        base.StoreID
	incarnation uint64
	// meta is the newest descriptor of the meta shard that the ident holds; see metadesc.go.
	meta atomic.Pointer[base.Descriptor]

	book      *book
	labels    labelBook
	store     *shard.Store
	liveness  *liveness.Monitor
	peersWake chan struct{}
	transport *transport.Transport
	mux       *router.Mux
	local     *localSender
	router    *router.Router
	dir       *placement.Directory
	jobs      *jobRunner
	recoverer *recoverer
	scans     *scanWorkers
	snapshots *snapshots
	verifier  *verifier
	index     *index
	reports   reports
	plan      clusterView
	rules     ruleBook
	driver    *driver
	followers followers // owned by the report loop
	cpu       cpuMeter
	slow      slowness

	// verifyPatience is how long a replica may show no progress when replicas are compared.
	verifyPatience time.Duration

	// strangers are the peers at whose addresses a node of another cluster was found.
	strangers struct {
		sync.Mutex
		seen map[base.StoreID]bool
	}

	// unfit are the stores that should be given no leadership, as the meta leader last said; nil: none.
	unfit atomic.Pointer[map[base.StoreID]bool]
	// choosing bounds the searches for split keys.
	choosing turns
	// metaHint is the node that last said it leads the meta shard, for nodes without a replica of it.
	metaHint atomic.Uint64
	// metaSeen is the Boot time of the last answered report, 0 before the first.
	metaSeen atomic.Int64
	// merges counts the ids of merges of this life; asks runs what frozen shards want to know.
	merges atomic.Uint64
	asks   asks
}

// boot makes a member from the ident on disk. Nothing of it runs yet. The incarnation is raised, synced, before
// anything can be sent under it.
func (n *Node) boot() (*member, error) {
	inc, err := n.eng.RaiseIncarnation()
	if err != nil {
		return nil, fmt.Errorf("raise incarnation: %w", err)
	}
	id, ok := n.eng.Ident()
	if !ok || id.Meta == nil {
		return nil, n.refused(engine.ExitCorrupt, fmt.Errorf("ident of %s has no meta descriptor", id.Store))
	}
	log := n.log.With("node", id.Store.String())
	m := &member{
		n: n, log: log, clock: n.cfg.Clock, cluster: id.Cluster, self: id.Store, incarnation: inc,
		book: newBook(n.eng, log, id), scans: newScanWorkers(n.cfg.Settings.ScanWorkers, n.metrics.scans),
		snapshots: &snapshots{}, verifier: newVerifier(n.cfg.Clock, n.metrics.verified), index: newIndex(),
		verifyPatience: defaultVerifyPatience, choosing: make(turns, choosers),
	}
	m.meta.Store(id.Meta)
	m.verifier.damaged = func(d *base.Descriptor, why string) { m.store.QuarantineRange(d.Start, d.End, why) }
	s := &n.cfg.Settings
	late := &lateSender{}
	if err := m.newLiveness(log); err != nil {
		return nil, err
	}
	m.store, err = shard.New(shard.Config{
		Store: id.Store, Incarnation: inc, Engine: n.eng, Sender: late, Clock: n.cfg.Clock, Logger: log,
		Liveness:   m.liveness,
		NoSleep:    s.NoSleep,
		Registerer: n.reg, Tick: s.Tick, ElectionTick: s.ElectionTick, HeartbeatTick: s.HeartbeatTick,
		Workers: s.Workers, ApplyWorkers: s.ApplyWorkers, OnLeader: m.onLeader,
		Snapshots: m.snapshots, OnVerify: m.verifier.add,
		Compaction: shard.Compaction{
			Factor: uint64(s.LogFactor), FloorBytes: uint64(s.LogFloorBytes),
			ShardCapBytes: uint64(s.LogShardCapBytes), StoreCapBytes: uint64(s.LogStoreCapBytes),
			SpareBytes: uint64(s.LogSpareBytes),
		},
		Split:   s.splitLimits(),
		MayLead: m.mayLead, OnSplit: m.onSplit, OnMerge: m.onMerge, Merges: mergeAsker{m}, MergeTimeout: mergeTicks * s.Tick,
		Indexes: indexAsker{m},
		Fault: func(sh base.ShardID, r base.ReplicaID, reason string) {
			log.Error("replica stopped", "replica", base.ReplicaName(sh, r), "reason", reason)
		},
	})
	if err != nil {
		return nil, fmt.Errorf("start store %s: %w", id.Store, err)
	}
	if err := m.newSnapshots(); err != nil {
		return nil, err
	}
	m.transport = transport.New(transport.Config{
		Cluster: id.Cluster, Store: id.Store, Incarnation: inc, Address: n.addr, Handler: m.store, Peers: m.book,
		HeartbeatWindow: s.Tick / 10, Logger: log, Registerer: n.reg, Fenced: m.fenced,
	})
	late.to = m.transport
	m.mux = router.NewMux(m.openStream, router.MuxConfig{Buffer: transport.GetBuffer, Logger: log, Registerer: n.reg})
	m.local = &localSender{m: m}
	m.router = router.New(router.Config{
		Directory: directory{m}, Sender: m.local, Logger: log, Registerer: n.reg, Near: m.near,
	})
	m.dir = placement.NewDirectory(metaKV{m.router})
	m.jobs = newJobRunner(memberWorld{m}, m.dir, n.cfg.Clock, log, newJobMetrics(n.reg))
	m.recoverer = newRecoverer(m)
	m.reports.wake = make(chan struct{}, 1)
	m.reports.view = placement.NewView(n.cfg.Clock)
	m.driver = newDriver(m, newDriverMetrics(n.reg))
	m.jobs.onEnd, m.index.changed = m.driver.jobEnded, m.driver.poke
	return m, nil
}

// lateSender breaks the circle of store and transport, each of which needs the other to be made. Set before both run.
type lateSender struct{ to shard.Sender }

// openStream opens a batched stream of operations to another node, for the router.
func (m *member) openStream(ctx context.Context, to base.StoreID) (router.FrameStream, error) {
	addr, ok := m.book.Addr(to)
	if !ok {
		return nil, fmt.Errorf("address of %s is unknown", to)
	}
	cc, err := m.n.conns.to(addr)
	if err != nil {
		return nil, err
	}
	if cc.GetState() == connectivity.TransientFailure {
		cc.ResetConnectBackoff() // for the try after this one: the Mux has its own pace
	}
	return transport.OpenBatch(ctx, cc, transport.ClassNode)
}

// onLeader is told of leader changes by the store's workers.
func (m *member) onLeader(s base.ShardID, leader base.StoreID, term uint64) {
	if s == base.MetaShard {
		poke(m.driver.turned)
		poke(m.jobs.turned)
		if leader != 0 {
			m.metaHint.Store(uint64(leader))
		}
	}
	m.wakePeers()
}

// run starts the member's goroutines, serves, and returns once all have ended: after ctx, gracefully, or when the store
// or the transport ends by itself.
func (m *member) run(ctx context.Context) error {
	n := m.n
	var wg sync.WaitGroup
	core, stopCore := context.WithCancel(context.WithoutCancel(ctx))
	loops, stopLoops := context.WithCancel(core)
	defer stopCore()
	defer stopLoops()
	part := func(name string, run func(context.Context) error) {
		wg.Go(func() {
			if err := run(core); err != nil && core.Err() == nil {
				n.failWith(fmt.Errorf("%s: %w", name, err))
			}
		})
	}
	part("store", m.store.Run)
	m.transport.Register(n.late)
	m.snapshots.service.Register(n.late)
	part("transport", m.transport.Run)
	part("liveness", m.liveness.Run)
	part("snapshots", m.snapshots.service.Run)
	part("checksums", m.verifier.run)
	n.member.Store(m)
	m.quarantineKnown()
	close(n.serving)
	m.log.Info("serving", "cluster", m.cluster.String(), "incarnation", m.incarnation, "addr", n.addr)
	var background sync.WaitGroup
	background.Go(func() { m.reportLoop(loops) })
	background.Go(func() { m.foundingLoop(loops) })
	background.Go(func() { m.checkJoin(loops) })
	background.Go(func() { m.checkRemoved(loops) })
	background.Go(func() { m.recoverer.run(loops) })
	background.Go(func() { m.spaceLoop(loops) })
	background.Go(func() { m.indexLoop(loops) })
	background.Go(func() { m.orphanLoop(loops) })
	background.Go(func() { m.jobLoop(loops) })
	background.Go(func() { m.driver.run(loops) })
	background.Go(func() { m.asks.run(loops) })
	background.Go(func() { m.peersLoop(loops) })

	var err error
	select {
	case <-ctx.Done():
	case err = <-n.fail:
	case <-n.halt:
	}
	limit := n.cfg.StopTimeout
	if err == nil && !isClosed(n.halt) {
		m.leave(core, limit*3/5)
	}
	n.stopping.Store(true)
	n.setHealth(false)
	stopLoops()
	background.Wait()
	close(n.refuse)
	if err == nil && !isClosed(n.halt) {
		linger(drainLinger)
	}
	close(n.drain)
	if err == nil && !isClosed(n.halt) {
		m.drainServer(limit / 5)
	}
	n.server.Stop()
	n.streams.Wait()
	m.scans.wait()
	if merr := m.mux.Close(); merr != nil {
		m.log.Warn("close streams to other nodes", "err", merr)
	}
	stopCore()
	wg.Wait()
	m.local.wg.Wait()
	return err
}

// drainLinger is for how long a node that stops refuses operations before it ends their streams. What is on its way when a
// stream ends has an unknown outcome for its client; one that is refused goes to the new leaders, and sends no more here.
const drainLinger = 50 * time.Millisecond

func linger(d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	<-t.C
}

// drainServer tells clients to go elsewhere and lets their calls and operations finish, within limit.
func (m *member) drainServer(limit time.Duration) {
	done := make(chan struct{})
	go func() {
		m.n.server.GracefulStop()
		close(done)
	}()
	t := time.NewTimer(limit)
	defer t.Stop()
	select {
	case <-m.n.calls.wait():
	case <-t.C:
		m.log.Warn("not everything was answered before the stop", "limit", limit)
	}
	m.n.server.Stop() // ends the raft streams of the others, and so the goroutine
	<-done
}
