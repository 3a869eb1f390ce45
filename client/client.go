package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
	"github.com/shardd/shardd/router"
	"github.com/shardd/shardd/transport"
)

// Option changes how Open sets a DB up.
type Option func(*options)

type options struct {
	timeout    time.Duration
	logger     *slog.Logger
	registerer prometheus.Registerer
	dial       []grpc.DialOption
	labels     map[string]string
}

// WithTimeout bounds operations whose context has no deadline. Default 10 s.
func WithTimeout(d time.Duration) Option { return func(o *options) { o.timeout = d } }

// WithLogger makes the client log what it repairs. Default: silent.
func WithLogger(l *slog.Logger) Option { return func(o *options) { o.logger = l } }

// WithRegisterer makes the client export metrics. Default: none.
func WithRegisterer(r prometheus.Registerer) Option { return func(o *options) { o.registerer = r } }

// WithDialOptions adds to the gRPC options of every connection, for example credentials or an own dialer.
func WithDialOptions(opts ...grpc.DialOption) Option {
	return func(o *options) { o.dial = append(o.dial, opts...) }
}

// WithLabels says where the client is, in the words of the nodes' own labels (shardd --labels), for example zone, rack
// and host. Reads with AtFollower or Stale go to a replica whose node shares the most of them. Default: none, and all
// nodes are alike.
func WithLabels(labels map[string]string) Option { return func(o *options) { o.labels = labels } }

// DB is a connection to a cluster, safe for any number of goroutines.
type DB struct {
	nodes  *nodes
	mux    *router.Mux
	router *router.Router
	closed atomic.Bool
}

// Open connects to a cluster through any of its nodes (host:port) and returns once one of them has told where the keys
// are, or with ErrUnavailable at the deadline of ctx (default: that of WithTimeout). More endpoints than one let the
// client start while a node is down; nodes that are not listed are found by asking.
func Open(ctx context.Context, endpoints []string, opts ...Option) (*DB, error) {
	o := options{timeout: 10 * time.Second, logger: slog.New(slog.DiscardHandler)}
	for _, opt := range opts {
		opt(&o)
	}
	if len(endpoints) == 0 {
		return nil, fmt.Errorf("open: no endpoints, give at least one host:port: %w", ErrInvalid)
	}
	ns, err := newNodes(endpoints, o.dial, o.labels)
	if err != nil {
		return nil, fmt.Errorf("open: %w", err)
	}
	db := &DB{nodes: ns}
	db.mux = router.NewMux(ns.open, router.MuxConfig{
		Buffer: transport.GetBuffer, Logger: o.logger, Registerer: o.registerer,
	})
	db.router = router.New(router.Config{
		Directory: ns, Sender: db.mux, OpTimeout: o.timeout, Logger: o.logger, Registerer: o.registerer,
		Near: ns.nearness,
	})
	if _, err := db.router.Shards(ctx, base.UserStart(), []byte{base.SpaceUser, 0}); err != nil {
		_ = db.Close() // the failure to open is the one worth reporting
		return nil, opError("open", nil, err)
	}
	return db, nil
}

// Close ends all connections and joins all goroutines. Operations in flight fail; a write among them with ErrAmbiguous.
func (db *DB) Close() error {
	if db.closed.Swap(true) {
		return nil
	}
	return errors.Join(db.mux.Close(), db.nodes.close())
}

// All returns the Range of every key.
func (db *DB) All() *Range { return db.newRange(nil, nil) }

// Prefix returns the Range of the keys that start with p.
func (db *DB) Prefix(p []byte) *Range {
	return db.newRange(bytes.Clone(p), base.PrefixEnd(p))
}

// Range returns the Range [lo, hi). A nil lo is the start and a nil hi the end of the key space. An empty or inverted
// range is refused with ErrInvalid.
func (db *DB) Range(lo, hi []byte) (*Range, error) {
	if hi != nil && bytes.Compare(lo, hi) >= 0 {
		what := "inverted"
		if bytes.Equal(lo, hi) {
			what = "empty"
		}
		return nil, opError("range", lo, fmt.Errorf("%s range [%q, %q): the start must lie below the end: %w",
			what, shorten(lo), shorten(hi), ErrInvalid))
	}
	for _, k := range [][]byte{lo, hi} {
		if len(k) > base.MaxKeySize {
			return nil, opError("range", k, fmt.Errorf("bound of %d bytes, at most %d: %w", len(k), base.MaxKeySize, ErrInvalid))
		}
	}
	return db.newRange(bytes.Clone(lo), bytes.Clone(hi)), nil
}

// newRange takes ownership of lo and hi; a nil hi is the end of the key space.
func (db *DB) newRange(lo, hi []byte) *Range {
	r := &Range{db: db, lo: lo, hi: hi, from: base.UserKey(lo), to: base.UserEnd()}
	if hi != nil {
		r.to = base.UserKey(hi)
	}
	return r
}

// do runs one routed operation.
func (db *DB) do(ctx context.Context, op wire.Op) (wire.Answer, router.Trace, error) {
	if db.closed.Load() {
		return wire.Answer{}, router.Trace{}, ErrClosed
	}
	return db.router.DoTraced(ctx, op)
}

// resultError is an OpError for an answer that came, with what the caller has to take as a failure.
func resultError(op string, key []byte, t router.Trace, err error) error {
	return &OpError{Op: op, Key: bytes.Clone(key), Shard: uint64(t.Shard), Node: uint64(t.Store), Attempts: t.Attempts,
		Elapsed: t.Elapsed, Err: err}
}

// opError makes the public form of an error. What the router knows of the attempts goes into its fields.
func opError(op string, key []byte, err error) error {
	e := &OpError{Op: op, Key: bytes.Clone(key), Err: err}
	var re *router.Error
	if errors.As(err, &re) {
		e.Shard, e.Node, e.Attempts, e.Elapsed = uint64(re.Shard), uint64(re.Store), re.Attempts, re.Elapsed
		e.Err = re.Kind
		if re.Reason != nil && !errors.Is(re.Reason, re.Kind) {
			e.Err = fmt.Errorf("%w: %w", re.Kind, re.Reason)
		} else if re.Reason != nil {
			e.Err = re.Reason
		}
	}
	return e
}
