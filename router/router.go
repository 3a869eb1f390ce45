package router

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
)

// Route is a descriptor and who leads the shard, as far as the teller knows (0: unknown).
type Route struct {
	Desc   *base.Descriptor
	Leader base.StoreID
}

// Directory finds shards when the cache cannot. Lookup returns consecutive shards from the one that holds key upwards,
// or, in reverse, from the one that holds the largest key below key downwards. To answer for user keys it may itself
// read system keys through the Router that asks.
type Directory interface {
	Lookup(ctx context.Context, key []byte, reverse bool) ([]Route, error)
}

// Sender carries one operation to one node. Send may set op.Req, keeps neither op nor what it points to after it has
// returned, and calls done exactly once, from any goroutine; done does not block. An error that wraps ErrNotSent says
// that no byte has left; after any other error a write may have happened.
type Sender interface {
	Send(ctx context.Context, to base.StoreID, op *wire.Op, done func(wire.Answer, error))
}

// ManySender is a Sender that takes several operations for one node at once, so that they share a frame. Each is as
// with Send; dones[i] belongs to ops[i].
type ManySender interface {
	SendMany(ctx context.Context, to base.StoreID, ops []*wire.Op, dones []func(wire.Answer, error))
}

// Canceler is a Sender that can take an operation back. Cancel reports whether the operation with that request id
// had not left and now never will; done is then not called.
type Canceler interface {
	Cancel(to base.StoreID, req uint64) bool
}

// Config says what a Router works with. Directory and Sender are required; the zero value of the rest is useful.
type Config struct {
	Directory Directory
	Sender    Sender
	// OpTimeout bounds an operation whose context has no deadline. Default 10 s.
	OpTimeout time.Duration
	// ReadTimeout bounds one attempt of a read, so that a node that hangs does not use up the whole budget: the next
	// replica is asked after it. Default 2 s. A write waits for its answer until the deadline, since it may not be sent
	// twice.
	ReadTimeout time.Duration
	// LookupTimeout bounds one question to the Directory. Default 3 s.
	LookupTimeout time.Duration
	// BackoffMin and BackoffMax bound the pause between attempts, which grows by half and is jittered. Defaults 5 and 250 ms:
	// an election takes a second or two, and the pause adds at most its own length to the outage.
	BackoffMin, BackoffMax time.Duration
	// Near ranks nodes for reads that any replica may serve: the higher, the nearer. It must be quick. nil: all are alike.
	Near func(base.StoreID) int
	// PageBytes bounds one scan page, in bytes of keys plus values. Default 256 KiB.
	PageBytes  uint32
	Logger     *slog.Logger          // nil: silent
	Registerer prometheus.Registerer // nil: no metrics
}

func (c Config) withDefaults() Config {
	or := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	or(&c.OpTimeout, 10*time.Second)
	or(&c.ReadTimeout, 2*time.Second)
	or(&c.LookupTimeout, 3*time.Second)
	or(&c.BackoffMin, 5*time.Millisecond)
	or(&c.BackoffMax, 250*time.Millisecond)
	if c.PageBytes == 0 {
		c.PageBytes = 256 << 10
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}

// Router sends operations to the shards that hold their keys. It is safe for concurrent use, starts no goroutine that
// outlives a call, and needs no Close.
type Router struct {
	cfg     Config
	log     *slog.Logger
	metrics *metrics
	cancel  Canceler   // the Sender, if it can
	many    ManySender // the Sender, if it can
	cache   *cache
	asking  [2]chan struct{} // a token while a question for user or for system keys is with the Directory
	calls   sync.Pool
	// rowBytes is about how large the answers of recent DoManys were, in bytes; 0: none yet.
	rowBytes atomic.Int64
	shunned  shunned
	spin     atomic.Uint32
}

// New returns a Router with an empty cache.
func New(cfg Config) *Router {
	cfg = cfg.withDefaults()
	r := &Router{
		cfg: cfg, log: cfg.Logger, metrics: newMetrics(cfg.Registerer), cache: newCache(),
		calls: sync.Pool{New: newCall},
	}
	for i := range r.asking {
		r.asking[i] = make(chan struct{}, 1)
	}
	r.cancel, _ = cfg.Sender.(Canceler)
	r.many, _ = cfg.Sender.(ManySender)
	return r
}

// Do runs one operation within one shard; op.Shard, Version, Req and Timeout are set by the Router. The error is nil
// exactly if the answer's code is OK, NotFound or ConditionFailed; otherwise it is an *Error. A Scan or DeleteRange
// whose range, or a Batch whose keys, lie in several shards fails with ErrCrossShard: see Scan and DeleteRange.
func (r *Router) Do(ctx context.Context, op wire.Op) (wire.Answer, error) {
	a, _, err := r.DoTraced(ctx, op)
	return a, err
}

// Trace says how an answer came about that is a result and yet a failure to the caller: NotFound or ConditionFailed.
type Trace struct {
	Shard    base.ShardID
	Store    base.StoreID // the node that answered
	Attempts int
	Elapsed  time.Duration
}

// DoTraced is Do with a Trace, which is set if the answer's code is NotFound or ConditionFailed.
func (r *Router) DoTraced(ctx context.Context, op wire.Op) (wire.Answer, Trace, error) {
	var f flight
	r.ready(ctx, &f, op)
	r.fly(ctx, &f)
	r.release(&f)
	var t Trace
	if f.err == nil && f.answer.Code != wire.OK {
		t = Trace{Shard: f.entry.desc.Shard, Store: f.store, Attempts: f.attempts, Elapsed: time.Since(f.start)}
	}
	return f.answer, t, f.err
}

// fly repeats attempts until f is over.
func (r *Router) fly(ctx context.Context, f *flight) {
	for !f.over {
		r.pause(ctx, f.delay)
		r.launch(ctx, f)
		r.land(ctx, f)
	}
}

// pause sleeps between attempts, or until ctx ends.
func (r *Router) pause(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// Learn puts routes into the cache, for example those that came with another answer.
func (r *Router) Learn(routes []Route) {
	for _, rt := range routes {
		r.cache.insert(rt.Desc, rt.Leader, 0)
	}
}
