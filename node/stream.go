package node

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/shardd/shardd/internal/wire"
	"github.com/shardd/shardd/shard"
	"github.com/shardd/shardd/transport"
)

const (
	// answerFrame is where a frame of answers is cut while more are pending, in bytes.
	answerFrame = 64 << 10
	// streamScans bounds the scans of one stream that run or whose pages wait to be sent, since each holds a page.
	streamScans = 8
	// readBuffer is the first size of a buffer for one scan page, in bytes.
	readBuffer = 64 << 10
	// defaultOpTimeout is the life of an operation that names none.
	defaultOpTimeout = 10 * time.Second
	// noSlot marks an answer to an operation that took no slot.
	noSlot = ^uint64(0)
)

// opStream serves one batched stream of operations.
//
//	reader     frame -> validated operations -> Gets that need no one else are answered at once (Store.ReadNow), in one frame
//	           for the rest one Store.Write and one Store.ReadIndex per frame
//	Complete   (store workers) -> done
//	answers    done -> frame; confirmed Gets run here, Scans on the node's scan workers; sent at 64 KiB or when nothing
//	           is pending
//
// Every operation that is in flight holds a slot; slots bound what a stream may have open, whatever the other side does
// with its request ids. The stream's gRPC handler is the answer loop, since returning is the only way to end the stream.
type opStream struct {
	n     *Node
	m     *member
	class transport.Class
	s     *transport.Stream
	wake  chan struct{} // capacity 1
	taken chan struct{} // capacity 1: the answer loop has taken what was done
	sent  prometheus.Counter
	// reading is set while the reader answers operations itself: the stream must not end meanwhile.
	reading atomic.Bool

	nextTrace time.Duration // the reader's: when a request is followed again
	nextLook  time.Duration // the same, of Gets that are answered at once

	mu struct {
		sync.Mutex
		slots   []slot
		free    []uint64
		open    int // slots in use
		bytes   int // of their operations
		done    []finished
		direct  int   // of done: answers without a slot
		readErr error // set once the reader has ended
		dead    bool  // nothing can be sent any more
	}

	answers struct { // owned by the answer loop
		buf      []byte
		batch    []finished
		released []uint64
		scans    []uint64 // slots of scans that wait for their turn
		running  int
		followed []followed // in buf
	}
}

type slot struct {
	op    wire.Op
	size  int
	trace *shard.Trace
}

// finished is an operation that has its answer, or a read that may now run (OK with encoded nil).
type finished struct {
	slot    uint64
	answer  wire.Answer
	encoded []byte // the whole answer of a scan
}

// serveBatch is what transport.RegisterBatch calls for each stream.
func (n *Node) serveBatch(class transport.Class, s *transport.Stream) error {
	m, err := n.needMember()
	if err != nil {
		return err
	}
	n.calls.enter()
	defer n.calls.leave()
	st := &opStream{
		n: n, m: m, class: class, s: s, wake: make(chan struct{}, 1),
		taken: make(chan struct{}, 1), sent: n.metrics.frames.WithLabelValues("out"),
	}
	n.metrics.streams.Inc()
	defer n.metrics.streams.Dec()
	// The reader ends when this handler has returned, or before; Run joins it.
	n.streams.Go(func() {
		err := st.read()
		st.mu.Lock()
		st.mu.readErr = err
		st.mu.Unlock()
		st.signal()
	})
	return st.answer()
}

// read takes frames until the other side closes the stream (io.EOF) or it breaks.
func (st *opStream) read() error {
	frames, ops := st.n.metrics.frames.WithLabelValues("in"), st.n.metrics.ops.WithLabelValues(st.class.String())
	var in inbound
	for {
		frame, err := st.s.Recv()
		if err != nil {
			return err
		}
		frames.Inc()
		err = in.parse(frame, st.class)
		ops.Add(float64(len(in.ops)))
		if werr := st.awaitTaken(); werr != nil {
			return werr
		}
		st.reading.Store(true) // before it looks whether the node drains
		serr := st.submit(&in)
		st.reading.Store(false)
		if isClosed(st.n.drain) {
			st.signal()
		}
		if serr != nil {
			return serr
		}
		if err != nil {
			return status.Errorf(codes.InvalidArgument, "operation stream: %v", err)
		}
	}
}

// awaitTaken holds the reader back while too many refusals wait to be sent: they hold no slot, so a client that sends
// nonsense and reads no answers would otherwise fill the memory. gRPC's flow control then stops the client.
func (st *opStream) awaitTaken() error {
	for {
		st.mu.Lock()
		over := st.mu.direct > st.n.cfg.Settings.StreamOps
		st.mu.Unlock()
		if !over {
			return nil
		}
		select {
		case <-st.taken:
		case <-st.s.Context().Done():
			return st.s.Context().Err()
		}
	}
}

// readNow answers the Gets of a frame that nothing has to be waited for, and sends the answers. It returns how many
// operations are left.
func (st *opStream) readNow(in *inbound, now time.Duration) (left int, err error) {
	var buf []byte
	look := st.looks(now)
	for i := range in.ops {
		p := &in.ops[i]
		if p.refused != "" || p.op.Code != wire.OpGet {
			left++
			continue
		}
		if buf == nil {
			buf = transport.GetBuffer(2 * answerFrame) // the last answer may reach over the cut
		}
		if buf, p.done = look.readNow(st, &p.op, buf); !p.done {
			left++
			continue
		}
		if len(buf) >= answerFrame {
			if err := st.send(buf); err != nil {
				return left, err
			}
			buf = nil
		}
	}
	if len(buf) > 0 {
		if err := st.send(buf); err != nil {
			return left, err
		}
	} else if buf != nil {
		transport.PutBuffer(buf)
	}
	st.endLook(&look)
	return left, nil
}

// send sends a frame of answers, which is the transport's from then on.
func (st *opStream) send(buf []byte) error {
	if err := st.s.Send(buf); err != nil {
		return fmt.Errorf("send answers: %w", err)
	}
	st.sent.Inc()
	return nil
}

// submit gives the operations of one frame to the store. An error means that nothing can be sent any more.
func (st *opStream) submit(in *inbound) error {
	defer in.release()
	now, draining := st.m.clock.Boot(), isClosed(st.n.refuse)
	if !draining {
		if left, err := st.readNow(in, now); left == 0 || err != nil {
			return err
		}
	}
	in.writes, in.reads = in.writes[:0], in.reads[:0]
	direct := 0
	limit := &st.n.cfg.Settings
	st.mu.Lock()
	for i := range in.ops {
		p := &in.ops[i]
		switch {
		case p.done:
			continue
		case p.refused != "":
			st.directLocked(p.op.Req, wire.Invalid, p.refused)
			st.n.metrics.refused.WithLabelValues("invalid").Inc()
			direct++
			continue
		case p.op.Code == wire.OpReadIndex && st.m.meant(&p.op) != "":
			st.directLocked(p.op.Req, wire.Unavailable, st.m.meant(&p.op))
			st.n.metrics.refused.WithLabelValues("misdirected").Inc()
			direct++
			continue
		case draining:
			st.directLocked(p.op.Req, wire.Unavailable, "the node is stopping")
			st.n.metrics.refused.WithLabelValues("stopping").Inc()
			direct++
			continue
		case st.mu.open >= limit.StreamOps || st.mu.bytes+len(p.raw) > limit.StreamBytes && st.mu.open > 0:
			st.mu.done = append(st.mu.done, finished{slot: noSlot, answer: wire.Answer{
				Code: wire.Busy, Req: p.op.Req, Arg: busyBackoffMS,
				Payload: fmt.Appendf(nil, "stream has %d operations of %d bytes open", st.mu.open, st.mu.bytes),
			}})
			st.n.metrics.refused.WithLabelValues("busy").Inc()
			direct++
			continue
		}
		id := st.takeLocked(p)
		timeout := time.Duration(p.op.Timeout) * time.Millisecond
		if timeout == 0 {
			timeout = defaultOpTimeout
		}
		if p.op.Code.IsWrite() {
			in.writes = append(in.writes, shard.WriteRequest{
				Shard: p.op.Shard, Version: p.op.Version, Req: id, Raw: p.raw, Deadline: now + timeout, Waiter: st,
			})
		} else {
			in.reads = append(in.reads, readRequest(&p.op, id, now+timeout, st))
		}
	}
	st.mu.direct += direct
	st.mu.Unlock()
	if direct > 0 {
		st.signal()
	}
	st.follow(in, now)
	if len(in.writes) > 0 {
		st.m.store.Write(in.writes)
	}
	if len(in.reads) > 0 {
		st.m.store.ReadIndex(in.reads)
	}
	return nil
}

// readRequest asks the store for the right to run a read, or for the index that a read elsewhere needs.
func readRequest(op *wire.Op, req uint64, deadline time.Duration, w shard.Waiter) shard.ReadRequest {
	return shard.ReadRequest{
		Shard: op.Shard, Version: op.Version, Key: op.Key, End: scanEnd(op), Req: req, Deadline: deadline, Waiter: w,
		Follower: op.Flags&wire.FlagFollower != 0, MaxAge: time.Duration(op.MaxAge) * time.Millisecond,
		IndexOnly: op.Code == wire.OpReadIndex,
	}
}

// scanEnd returns where the range of a read ends, nil if it reads one key.
func scanEnd(op *wire.Op) []byte {
	if op.Code == wire.OpScan {
		return op.Value
	}
	return nil
}

// busyBackoffMS is the pause that a refused client is asked for.
const busyBackoffMS = 20

func (st *opStream) directLocked(req uint64, code wire.Code, text string) {
	st.mu.done = append(st.mu.done, finished{
		slot: noSlot, answer: wire.Answer{Code: code, Req: req, Payload: []byte(text)},
	})
}

func (st *opStream) takeLocked(p *parsed) uint64 {
	var id uint64
	if k := len(st.mu.free); k > 0 {
		id, st.mu.free = st.mu.free[k-1], st.mu.free[:k-1]
	} else {
		id = uint64(len(st.mu.slots))
		st.mu.slots = append(st.mu.slots, slot{})
	}
	st.mu.slots[id] = slot{op: p.op, size: len(p.raw)}
	st.mu.open++
	st.mu.bytes += len(p.raw)
	return id
}

// Complete implements shard.Waiter; req is a slot.
func (st *opStream) Complete(req uint64, a wire.Answer) {
	st.push(finished{slot: req, answer: a})
}

func (st *opStream) push(f finished) {
	st.mu.Lock()
	st.mu.done = append(st.mu.done, f)
	first := len(st.mu.done) == 1
	st.mu.Unlock()
	if first {
		st.signal()
	}
}

func (st *opStream) signal() {
	poke(st.wake)
}

// answer is the answer loop. It returns when the stream is broken, or when everything is answered and either the other
// side has closed it or the node drains.
func (st *opStream) answer() error {
	ctx, drain := st.s.Context(), st.n.drain
	for {
		select {
		case <-st.wake:
			// Whatever completes in the same pass shall share the frame.
			runtime.Gosched()
		case <-drain:
			drain = nil
		case <-ctx.Done():
			st.abandon()
			return status.FromContextError(ctx.Err()).Err()
		case <-st.n.halt:
			st.abandon()
			return status.Error(codes.Unavailable, "the node was stopped")
		}
		for st.take() {
			if err := st.encode(); err != nil {
				st.abandon()
				return err
			}
		}
		if err := st.flush(); err != nil {
			st.abandon()
			return err
		}
		if ended, err := st.ended(ctx, drain == nil); ended {
			return err
		}
	}
}

// take moves what is done to the answer loop and frees the slots of what it has answered.
func (st *opStream) take() bool {
	a := &st.answers
	clear(a.batch)
	st.mu.Lock()
	defer st.mu.Unlock()
	for _, id := range a.released {
		st.mu.bytes -= st.mu.slots[id].size
		st.mu.slots[id] = slot{}
		st.mu.free = append(st.mu.free, id)
		st.mu.open--
	}
	a.released = a.released[:0]
	a.batch, st.mu.done = st.mu.done, a.batch[:0]
	if st.mu.direct > 0 {
		st.mu.direct = 0
		poke(st.taken)
	}
	return len(a.batch) > 0
}

// ended reports whether the stream is over and with which status.
func (st *opStream) ended(ctx context.Context, draining bool) (bool, error) {
	st.mu.Lock()
	defer st.mu.Unlock()
	err := st.mu.readErr
	if err != nil && !errors.Is(err, io.EOF) && ctx.Err() != nil {
		return true, err
	}
	if err == nil && !draining || st.mu.open > 0 || len(st.mu.done) > 0 || st.reading.Load() {
		return false, nil
	}
	switch {
	case errors.Is(err, io.EOF):
		return true, nil
	case err != nil:
		return true, err
	}
	return true, status.Error(codes.Unavailable, "the node is stopping")
}

// abandon drops what comes in from now on: the store still completes what it holds.
func (st *opStream) abandon() {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.mu.dead = true
}

// encode turns one batch of finished operations into answers.
func (st *opStream) encode() error {
	a := &st.answers
	for i := range a.batch {
		f := &a.batch[i]
		if f.slot == noSlot {
			a.buf = f.answer.Append(st.room(f.answer.Size()))
		} else {
			st.encodeSlot(f)
		}
		if len(a.buf) >= answerFrame {
			if err := st.flush(); err != nil {
				return err
			}
		}
	}
	return nil
}

func (st *opStream) encodeSlot(f *finished) {
	a := &st.answers
	// The slot is ours until it is released, but the table may grow under the reader.
	st.mu.Lock()
	op := &st.mu.slots[f.slot].op
	code, req, trace := op.Code, op.Req, st.mu.slots[f.slot].trace
	read := code.IsRead() && f.answer.Code == wire.OK
	var get wire.Op
	if read && code == wire.OpGet {
		get = *op
	}
	st.mu.Unlock()
	var took time.Duration
	switch {
	case f.encoded != nil:
		a.running--
		a.buf = append(st.room(len(f.encoded)), f.encoded...)
		transport.PutBuffer(f.encoded)
		st.startScans()
	case read && code == wire.OpScan:
		a.scans = append(a.scans, f.slot)
		st.startScans()
		return // the slot stays until the page is there
	case read && trace != nil:
		from := st.m.clock.Boot()
		a.buf = st.m.store.Read(&get, st.room(wire.AnswerHeaderSize))
		took = st.m.clock.Boot() - from
	case read:
		a.buf = st.m.store.Read(&get, st.room(wire.AnswerHeaderSize))
	default:
		f.answer.Req = req
		a.buf = f.answer.Append(st.room(f.answer.Size()))
	}
	if trace != nil {
		a.followed = append(a.followed, followed{trace: trace, write: code.IsWrite(), read: took})
	}
	a.released = append(a.released, f.slot)
}

// room returns the answer buffer, a new one with a frame's worth of room or enough for n bytes if there is none.
func (st *opStream) room(n int) []byte {
	if st.answers.buf == nil {
		return transport.GetBuffer(max(2*answerFrame, n)) // the last answer may reach over the cut
	}
	return st.answers.buf
}

func (st *opStream) flush() error {
	a := &st.answers
	if len(a.buf) == 0 {
		return nil
	}
	buf := a.buf
	a.buf = nil
	if err := st.send(buf); err != nil {
		return err
	}
	if len(a.followed) > 0 {
		st.n.metrics.latency.left(a.followed, st.m.clock.Boot())
		clear(a.followed)
		a.followed = a.followed[:0]
	}
	return nil
}

// startScans gives waiting scans to the scan workers, up to the stream's share.
func (st *opStream) startScans() {
	a := &st.answers
	for a.running < streamScans && len(a.scans) > 0 {
		id := a.scans[0]
		a.scans = a.scans[1:]
		a.running++
		st.m.scans.submit(func() { st.scan(id) })
	}
}

// scan runs on a scan worker.
func (st *opStream) scan(id uint64) {
	st.mu.Lock()
	op, dead := st.mu.slots[id].op, st.mu.dead
	st.mu.Unlock()
	if dead {
		return
	}
	st.push(finished{slot: id, encoded: st.m.store.Read(&op, transport.GetBuffer(readBuffer))})
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// requestID returns the request id of an operation that could not be decoded, if its header reaches that far.
func requestID(b []byte) (uint64, bool) {
	if len(b) < 16 {
		return 0, false
	}
	return binary.BigEndian.Uint64(b[8:]), true
}
