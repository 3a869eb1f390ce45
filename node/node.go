package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"

	"github.com/shardd/shardd/engine"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/snapshotter"
	"github.com/shardd/shardd/transport"
)

// Node is one Shardd node. Make it with New, serve with Run.
type Node struct {
	cfg  Config
	log  *slog.Logger
	reg  *prometheus.Registry
	eng  *engine.Engine
	addr string // advertised
	born time.Duration

	lis     net.Listener
	httpLis net.Listener // nil: none
	server  *grpc.Server
	late    *lateServices // the transport's services, which exist only once the node is a member
	health  *health.Server
	conns   *conns
	bulk    *conns // for snapshots alone
	metrics *metrics

	// init holds a token while the ident may be written: making a cluster, being adopted, joining.
	init     chan struct{}
	founding atomic.Bool   // holds the token as founder
	identSet chan struct{} // closed once the ident is on disk

	member  atomic.Pointer[member] // nil until the node serves as a member
	serving chan struct{}          // closed once member is set
	refuse  chan struct{}          // closed when operations of clients are refused, since the node stops
	drain   chan struct{}          // closed when their streams are to end
	fail    chan error             // capacity 1: what ends Run early
	streams sync.WaitGroup         // readers of batched streams
	calls   calls

	leaving  atomic.Bool // hands its leaderships over; stopping follows
	stopping atomic.Bool

	// For tests: halt closed means stop at once, as a kill would; crash is asked at each named point and may halt.
	halt  chan struct{}
	crash func(point string)
}

// point names a moment of the making of a cluster at which tests kill the node. The error ends the step.
func (n *Node) point(name string) error {
	if n.crash == nil {
		return nil
	}
	n.crash(name)
	if isClosed(n.halt) {
		return errors.New("halted at " + name)
	}
	return nil
}

// New opens the engine and binds the ports; nothing is served before Run. Errors of the data directory carry an exit
// code (engine.ExitCode). A Node that is never run must be closed by running it with an ended context.
func New(cfg Config) (_ *Node, err error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	cfg = cfg.withDefaults()
	n := &Node{
		cfg: cfg, log: cfg.Logger, reg: prometheus.NewRegistry(), born: cfg.Clock.Boot(),
		init: make(chan struct{}, 1), identSet: make(chan struct{}), serving: make(chan struct{}),
		refuse: make(chan struct{}), drain: make(chan struct{}), fail: make(chan error, 1), halt: make(chan struct{}),
	}
	n.reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	n.metrics = newMetrics(n.reg)
	defer func() {
		if err != nil {
			err = errors.Join(err, n.closeAll())
		}
	}()
	n.eng, err = engine.Open(engine.Options{
		Dir: cfg.DataDir, FS: cfg.FS, Logger: n.log, Registerer: n.reg, Fatal: cfg.Fatal,
		CacheBytes: cfg.Settings.CacheBytes, MemTableBytes: cfg.Settings.MemTableBytes, Compression: cfg.Settings.Compression,
		EntryCacheBytes: cfg.Settings.EntryCacheBytes, StagingBytes: cfg.Settings.StagingBytes,
		RowCacheBytes: cfg.Settings.RowCacheBytes,
		LowSpaceBytes: cfg.Settings.LowSpaceBytes, CriticalSpaceBytes: cfg.Settings.CriticalSpaceBytes,
		ReserveBytes: cfg.Settings.ReserveBytes, OnCorrupt: n.corrupt,
	})
	if err != nil {
		return nil, err
	}
	if n.lis, err = net.Listen("tcp", cfg.Listen); err != nil {
		return nil, fmt.Errorf("listen on %s: %w", cfg.Listen, err)
	}
	n.addr = cfg.Advertise
	if n.addr == "" {
		n.addr = n.lis.Addr().String()
	}
	if cfg.HTTP != "" {
		if n.httpLis, err = net.Listen("tcp", cfg.HTTP); err != nil {
			return nil, fmt.Errorf("listen on http address %s: %w", cfg.HTTP, err)
		}
	}
	n.conns, n.bulk = newConns(transport.DialOptions()), newConns(snapshotter.DialOptions())
	n.newServer()
	if _, ok := n.eng.Ident(); ok {
		close(n.identSet)
	}
	return n, nil
}

// Addr returns the advertised address of the gRPC server, host:port.
func (n *Node) Addr() string { return n.addr }

// HTTPAddr returns the bound address of the HTTP server, host:port, or "" if there is none.
func (n *Node) HTTPAddr() string {
	if n.httpLis == nil {
		return ""
	}
	return n.httpLis.Addr().String()
}

// Metrics gathers the node's own metrics, process and Go collectors included.
func (n *Node) Metrics() prometheus.Gatherer { return n.reg }

// failWith ends Run with err; the first one counts.
func (n *Node) failWith(err error) {
	select {
	case n.fail <- err:
	default:
	}
}

// refused is an error of membership with the exit code that an operator acts on.
func (n *Node) refused(code int, err error) error {
	return &engine.OpenError{Code: code, Dir: n.cfg.DataDir, Err: err}
}

// lockInit takes the right to write the ident, or gives up with ctx.
func (n *Node) lockInit(ctx context.Context) error {
	select {
	case n.init <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (n *Node) unlockInit() { <-n.init }

// self returns the node's id, 0 while it has none.
func (n *Node) self() base.StoreID {
	id, _ := n.eng.Ident()
	return id.Store
}

// closeAll closes what New opened.
func (n *Node) closeAll() error {
	var errs []error
	if n.server != nil {
		n.server.Stop()
		n.streams.Wait()
	}
	for _, l := range []net.Listener{n.lis, n.httpLis} {
		if l != nil {
			if err := l.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
				errs = append(errs, fmt.Errorf("close listener: %w", err))
			}
		}
	}
	for _, c := range []*conns{n.conns, n.bulk} {
		if c != nil {
			c.close()
		}
	}
	if n.eng != nil {
		if err := n.eng.Close(); err != nil {
			errs = append(errs, fmt.Errorf("close engine: %w", err))
		}
	}
	return errors.Join(errs...)
}
