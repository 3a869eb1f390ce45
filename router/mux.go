package router

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
)

// FrameStream is a bidirectional stream of frames to one node: operations go out, answers come back. Send takes
// ownership of the frame; a frame returned by Recv belongs to the caller for ever. Send and Recv run concurrently, each
// from one goroutine at a time. The stream ends with the context it was opened with.
type FrameStream interface {
	Send(frame []byte) error
	Recv() (frame []byte, err error)
	CloseSend() error
}

// OpenFunc opens a stream to a node. The stream lives until ctx ends.
type OpenFunc func(ctx context.Context, to base.StoreID) (FrameStream, error)

// MuxConfig holds the limits of a Mux; the zero value is useful.
type MuxConfig struct {
	// Buffer returns an empty buffer with a capacity of at least n bytes for a frame; its ownership goes to the stream.
	// Default: plain allocation. Clients pass transport.GetBuffer.
	Buffer func(n int) []byte
	// FrameBytes is where a frame is cut while more operations wait; one larger operation still goes out whole. Default
	// 128 KiB.
	FrameBytes int
	// QueueBytes bounds what waits for one node; past it operations fail with ErrQueueFull. Default 16 MiB.
	QueueBytes int
	// OpenTimeout bounds the opening of a stream. Default 3 s.
	OpenTimeout time.Duration
	// RedialMin and RedialMax bound the pause after a stream could not be opened, which doubles and is jittered; until one
	// is open operations fail at once with ErrNotSent. Once no operation has asked for the node for ten seconds the next one
	// tries by itself. Defaults 20 and 250 ms.
	RedialMin, RedialMax time.Duration
	// SilenceTimeout is how long a node may send nothing, with operations in flight, before it is probed, and again how
	// long the probe may take before new operations are refused with ErrNotSent. Default 1 s.
	SilenceTimeout time.Duration
	Logger         *slog.Logger          // nil: silent
	Registerer     prometheus.Registerer // nil: no metrics
}

func (c MuxConfig) withDefaults() MuxConfig {
	if c.Buffer == nil {
		c.Buffer = func(n int) []byte { return make([]byte, 0, n) }
	}
	if c.FrameBytes <= 0 {
		c.FrameBytes = 128 << 10
	}
	if c.QueueBytes <= 0 {
		c.QueueBytes = 16 << 20
	}
	if c.OpenTimeout <= 0 {
		c.OpenTimeout = 3 * time.Second
	}
	if c.SilenceTimeout <= 0 {
		c.SilenceTimeout = time.Second
	}
	if c.RedialMin <= 0 {
		c.RedialMin = 20 * time.Millisecond
	}
	if c.RedialMax <= 0 {
		c.RedialMax = 250 * time.Millisecond
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}

// Mux is a Sender that runs the concurrent operations to one node over one stream, many operations to a frame. There is
// no timer in it: the first operation wakes the node's sender, which yields once so that others can join, sends all
// that is queued, and goes on until nothing is. While one frame is being sent the next one gathers.
type Mux struct {
	open    OpenFunc
	cfg     MuxConfig
	metrics *muxMetrics
	ctx     context.Context // ends with Close
	cancel  context.CancelFunc
	wg      sync.WaitGroup
	mu      struct {
		sync.RWMutex
		closed bool
		links  map[base.StoreID]*link
	}
}

// NewMux returns a Mux without any stream; streams are opened when operations need them. Close ends it.
func NewMux(open OpenFunc, cfg MuxConfig) *Mux {
	cfg = cfg.withDefaults()
	m := &Mux{open: open, cfg: cfg, metrics: newMuxMetrics(cfg.Registerer)}
	m.ctx, m.cancel = context.WithCancel(context.Background())
	m.mu.links = make(map[base.StoreID]*link)
	return m
}

// Send implements Sender. The operation is encoded before Send returns.
func (m *Mux) Send(ctx context.Context, to base.StoreID, op *wire.Op, done func(wire.Answer, error)) {
	if err := ctx.Err(); err != nil {
		done(wire.Answer{}, fmt.Errorf("%w: %w", err, ErrNotSent))
		return
	}
	l := m.link(to)
	if l == nil {
		done(wire.Answer{}, errMuxClosed)
		return
	}
	l.send(op, done)
}

// SendMany implements ManySender: the operations are queued as one, so that they leave in one frame, or in as few as
// MuxConfig.FrameBytes allows.
func (m *Mux) SendMany(ctx context.Context, to base.StoreID, ops []*wire.Op, dones []func(wire.Answer, error)) {
	err := ctx.Err()
	if err != nil {
		err = fmt.Errorf("%w: %w", err, ErrNotSent)
	}
	l := m.link(to)
	if l == nil {
		err = errMuxClosed
	}
	if err != nil {
		for _, done := range dones {
			done(wire.Answer{}, err)
		}
		return
	}
	l.sendMany(ops, dones)
}

var errMuxClosed = fmt.Errorf("%w: %w", ErrClosed, ErrNotSent)

// Cancel implements Canceler.
func (m *Mux) Cancel(to base.StoreID, req uint64) bool {
	m.mu.RLock()
	l := m.mu.links[to]
	m.mu.RUnlock()
	return l != nil && l.takeBack(req)
}

// Close breaks all streams, fails what is in flight and joins all goroutines. It must not be called from a done.
func (m *Mux) Close() error {
	m.mu.Lock()
	m.mu.closed = true
	m.mu.Unlock()
	m.cancel()
	m.wg.Wait()
	return nil
}

// link returns the link to a node, made on first use, or nil after Close.
func (m *Mux) link(to base.StoreID) *link {
	m.mu.RLock()
	l, closed := m.mu.links[to], m.mu.closed
	m.mu.RUnlock()
	if l != nil || closed {
		return l // a link of a closed Mux refuses by itself
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.mu.closed || m.mu.links[to] != nil {
		return m.mu.links[to]
	}
	l = &link{mux: m, to: to, wake: make(chan struct{}, 1)}
	m.mu.links[to] = l
	m.wg.Add(1)
	go l.run()
	return l
}
