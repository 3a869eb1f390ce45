package router

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync"
	"time"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
)

// link is a Mux's side of one node: a queue of frames being gathered, a table of operations in flight, a goroutine that
// sends, and one per open stream that receives.
//
// An operation is queued, then sent, then answered. It becomes sent under the lock in which its frame is taken for a
// stream that is then open, before any byte can leave: whatever breaks later, "not sent" is never claimed wrongly.
type link struct {
	mux    *Mux
	to     base.StoreID
	wake   chan struct{} // capacity 1
	redial redial        // the sender's

	mu struct {
		sync.Mutex
		closed    bool
		stream    *stream  // open, or nil
		frames    [][]byte // queued; the last one still grows
		bytes     int      // in frames
		lastTake  int      // bytes of the previous take: what the next frame will probably need
		cancelled int      // operations in frames that were taken back
		slots     []slot
		free      []uint32
		down      error // why the last open failed; operations before downUntil fail with it at once
		downUntil time.Time
		wanted    time.Time // when an operation was last refused or failed for that
		silent    time.Time // when the first frame since the last answer was sent; zero if none was
		probed    time.Time // when the probe that is under way was queued; zero if none is
	}
}

// stream is one open FrameStream.
type stream struct {
	FrameStream
	cancel context.CancelFunc
	ended  chan struct{} // closed when its receiver has returned
}

// slot is one operation. Its request id is generation << 32 | index, so that a late answer finds nobody.
type slot struct {
	done  func(wire.Answer, error)
	gen   uint32
	state slotState
}

type slotState uint8

const (
	slotFree slotState = iota
	slotQueued
	slotCancelled // queued, but taken back
	slotSent
)

// send queues one operation.
func (l *link) send(op *wire.Op, done func(wire.Answer, error)) {
	l.mu.Lock()
	first := len(l.mu.frames) == 0 // the one that wakes the sender
	if err := l.refuseLocked(op.Size()); err != nil {
		l.mu.Unlock()
		done(wire.Answer{}, err)
		return
	}
	l.queueLocked(op, done)
	l.mu.Unlock()
	if first {
		l.signal()
	}
}

// sendMany queues several operations under one lock, so that the sender takes all of them at once.
func (l *link) sendMany(ops []*wire.Op, dones []func(wire.Answer, error)) {
	total := 0
	for _, op := range ops {
		total += op.Size()
	}
	type refusal struct {
		done func(wire.Answer, error)
		err  error
	}
	var refused []refusal
	l.mu.Lock()
	first := len(l.mu.frames) == 0
	if first {
		l.mu.lastTake = max(l.mu.lastTake, total) // the size of the first frame
	}
	for i, op := range ops {
		if err := l.refuseLocked(op.Size()); err != nil {
			refused = append(refused, refusal{dones[i], err})
			continue
		}
		l.queueLocked(op, dones[i])
	}
	first = first && len(l.mu.frames) > 0
	l.mu.Unlock()
	if first {
		l.signal()
	}
	for _, r := range refused {
		r.done(wire.Answer{}, r.err)
	}
}

// signal wakes the sender.
func (l *link) signal() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// refuseLocked says why an operation of size bytes may not be queued, if so.
//
// A node that hangs (stopped, or behind a connection that swallows) is noticed by silence: if nothing has come back for
// a while, a probe goes out, which a living node answers at once, however long it may work on the rest. While a probe
// stays unanswered new operations are refused as not sent, so that they can go to another replica; otherwise each of
// them would wait for its deadline, and each write would end with an unknown outcome.
func (l *link) refuseLocked(size int) error {
	limit := l.mux.cfg.SilenceTimeout
	switch {
	case l.mu.closed:
		return errMuxClosed
	case l.shunnedLocked():
		return l.mu.down
	case l.mu.bytes > 0 && l.mu.bytes+size > l.mux.cfg.QueueBytes:
		return fmt.Errorf("%d bytes wait for %s: %w: %w", l.mu.bytes, l.to, ErrQueueFull, ErrNotSent)
	case l.mu.silent.IsZero():
		return nil
	case !l.mu.probed.IsZero():
		if since := time.Since(l.mu.probed); since > limit {
			return fmt.Errorf("%s has not answered a probe for %s: %w", l.to, since.Round(time.Millisecond), ErrNotSent)
		}
	case time.Since(l.mu.silent) > limit:
		l.mu.probed = time.Now()
		// No shard has id 0: refused at the door.
		l.queueLocked(&wire.Op{Code: wire.OpGet, Key: base.UserStart(), Timeout: 1000}, func(wire.Answer, error) {})
	}
	return nil
}

// queueLocked encodes an operation into the last frame.
func (l *link) queueLocked(op *wire.Op, done func(wire.Answer, error)) {
	size := op.Size()
	op.Req = l.newSlotLocked(done)
	first := len(l.mu.frames) == 0
	last := len(l.mu.frames) - 1
	if first || len(l.mu.frames[last])+size > cap(l.mu.frames[last]) {
		// A queue that is filling up gathers in frames of the full size; a lone operation does not need one.
		room := l.mux.cfg.FrameBytes
		if first {
			room = min(room, max(4<<10, l.mu.lastTake+l.mu.lastTake/2))
		}
		l.mu.frames = append(l.mu.frames, l.mux.cfg.Buffer(max(room, size))[:0])
		last++
	}
	l.mu.frames[last] = op.Append(l.mu.frames[last])
	l.mu.bytes += size
}

func (l *link) newSlotLocked(done func(wire.Answer, error)) uint64 {
	var i uint32
	if n := len(l.mu.free); n > 0 {
		i = l.mu.free[n-1]
		l.mu.free = l.mu.free[:n-1]
	} else {
		i = uint32(len(l.mu.slots))
		l.mu.slots = append(l.mu.slots, slot{})
	}
	s := &l.mu.slots[i]
	s.gen, s.done, s.state = s.gen+1, done, slotQueued
	return uint64(s.gen)<<32 | uint64(i)
}

// slotLocked returns the slot of a request, or nil if it has gone.
func (l *link) slotLocked(req uint64) *slot {
	i := uint32(req)
	if int(i) >= len(l.mu.slots) {
		return nil
	}
	if s := &l.mu.slots[i]; s.state != slotFree && s.gen == uint32(req>>32) {
		return s
	}
	return nil
}

func (l *link) freeLocked(i uint32) (done func(wire.Answer, error)) {
	s := &l.mu.slots[i]
	done = s.done
	s.done, s.state = nil, slotFree
	l.mu.free = append(l.mu.free, i)
	return done
}

// takeBack cancels a queued operation.
func (l *link) takeBack(req uint64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.slotLocked(req)
	if s == nil || s.state != slotQueued {
		return false
	}
	s.state, s.done = slotCancelled, nil
	l.mu.cancelled++
	return true
}

// run is the sender.
func (l *link) run() {
	defer l.mux.wg.Done()
	defer l.shut()
	l.redial.init(&l.mux.cfg)
	defer l.redial.timer.Stop()
	for {
		select {
		case <-l.wake:
			runtime.Gosched() // those who are about to send join this frame
		case <-l.redial.timer.C:
			l.tryAgain()
		case <-l.mux.ctx.Done():
			return
		}
		for l.poll() {
		}
	}
}

// poll opens a stream if there is none and sends what is queued; it reports whether there was anything.
func (l *link) poll() bool {
	if l.idle() {
		return false
	}
	s, err := l.ensure()
	if err != nil {
		l.failQueued(err)
		return false
	}
	frames := l.take(s)
	for _, f := range frames {
		if err := s.Send(f); err != nil {
			if errors.Is(err, io.EOF) {
				<-s.ended // the receiver learns why
			}
			l.retire(s, err)
			break
		}
		l.mux.metrics.frames.Inc()
	}
	return true
}

func (l *link) idle() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.mu.frames) == 0
}

// ensure returns the open stream, or opens one.
func (l *link) ensure() (*stream, error) {
	l.mu.Lock()
	s := l.mu.stream
	if s == nil {
		l.busyLocked(0)
	}
	l.mu.Unlock()
	if s != nil {
		return s, nil
	}
	ctx, cancel := context.WithCancel(l.mux.ctx)
	limit := time.AfterFunc(l.mux.cfg.OpenTimeout, cancel)
	fs, err := l.mux.open(ctx, l.to)
	if !limit.Stop() && err == nil {
		err = context.DeadlineExceeded
	}
	if err != nil {
		cancel()
		l.mux.metrics.failed.Inc()
		return nil, fmt.Errorf("open a stream to %s: %w: %w", l.to, err, ErrNotSent)
	}
	l.redial.succeeded()
	s = &stream{FrameStream: fs, cancel: cancel, ended: make(chan struct{})}
	l.mu.Lock()
	l.mu.stream, l.mu.down = s, nil
	l.mu.Unlock()
	l.mux.wg.Add(1)
	go l.receive(s)
	return s, nil
}

// take empties the queue for a stream; it returns nothing if that has ended by now.
func (l *link) take(s *stream) [][]byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.mu.stream != s {
		return nil
	}
	frames := l.mu.frames
	if l.mu.cancelled > 0 {
		frames = l.compactLocked(frames)
	}
	ops := 0
	for _, f := range frames {
		for at := 0; at < len(f); at += int(binary.BigEndian.Uint32(f[at:])) {
			l.mu.slots[uint32(binary.BigEndian.Uint64(f[at+reqOffset:]))].state = slotSent
			ops++
		}
	}
	l.mux.metrics.ops.Add(float64(ops))
	if ops > 0 && l.mu.silent.IsZero() {
		l.mu.silent = time.Now()
	}
	l.mu.lastTake = l.mu.bytes
	l.mu.frames, l.mu.bytes = nil, 0
	return frames
}

// reqOffset is where an encoded operation holds its request id (wire.HeaderSize's layout).
const reqOffset = 8

// compactLocked drops what was taken back.
func (l *link) compactLocked(frames [][]byte) (out [][]byte) {
	for _, f := range frames {
		kept := f[:0]
		for at, n := 0, 0; at < len(f); at += n {
			n = int(binary.BigEndian.Uint32(f[at:]))
			i := uint32(binary.BigEndian.Uint64(f[at+reqOffset:]))
			if l.mu.slots[i].state == slotCancelled {
				l.freeLocked(i)
				continue
			}
			kept = append(kept, f[at:at+n]...)
		}
		if len(kept) > 0 {
			out = append(out, kept)
		}
	}
	l.mu.cancelled = 0
	return out
}

// failQueued ends what waits for a stream that could not be opened.
func (l *link) failQueued(err error) {
	l.mu.Lock()
	l.mu.wanted = time.Now()
	l.shunLocked(err)
	l.mu.frames, l.mu.bytes, l.mu.cancelled = nil, 0, 0
	dones := l.collectLocked(slotQueued)
	l.mu.Unlock()
	for _, done := range dones {
		done(wire.Answer{}, err)
	}
}

// collectLocked frees all operations in a state; those that were taken back go with the queued ones.
func (l *link) collectLocked(st slotState) (dones []func(wire.Answer, error)) {
	for i := range l.mu.slots {
		switch s := &l.mu.slots[i]; {
		case s.state == st:
			dones = append(dones, l.freeLocked(uint32(i)))
		case s.state == slotCancelled && st == slotQueued:
			l.freeLocked(uint32(i))
		}
	}
	return dones
}

// retire ends a stream, once, and fails what was sent on it. What is still queued goes to the next stream.
func (l *link) retire(s *stream, err error) {
	l.mu.Lock()
	if l.mu.stream != s {
		l.mu.Unlock()
		return
	}
	l.mu.stream, l.mu.silent, l.mu.probed = nil, time.Time{}, time.Time{}
	dones := l.collectLocked(slotSent)
	closed := l.mux.ctx.Err() != nil
	l.mu.Unlock()
	s.cancel()
	if closed {
		err = fmt.Errorf("%w: %w", ErrClosed, ErrBroken)
	} else {
		l.mux.metrics.broken.Inc()
		l.mux.cfg.Logger.Debug("stream ended", "store", l.to.String(), "in_flight", len(dones), "err", err)
		err = fmt.Errorf("stream to %s: %w: %w", l.to, ErrBroken, err)
	}
	for _, done := range dones {
		done(wire.Answer{}, err)
	}
}

// shut ends the link with its Mux.
func (l *link) shut() {
	l.mu.Lock()
	l.mu.closed = true
	s := l.mu.stream
	l.mu.frames, l.mu.bytes, l.mu.cancelled = nil, 0, 0
	dones := l.collectLocked(slotQueued)
	l.mu.Unlock()
	if s != nil {
		_ = s.CloseSend() // the context that has ended ends the stream anyway
		l.retire(s, ErrClosed)
	}
	for _, done := range dones {
		done(wire.Answer{}, errMuxClosed)
	}
}

// receive hands the answers of a stream out.
func (l *link) receive(s *stream) {
	defer l.mux.wg.Done()
	defer close(s.ended)
	var batch []delivery
	for {
		frame, err := s.Recv()
		if err == nil {
			batch, err = l.deliver(frame, batch[:0])
		}
		if err != nil {
			l.retire(s, err)
			return
		}
	}
}

type delivery struct {
	answer wire.Answer
	done   func(wire.Answer, error)
}

// deliver completes the operations that a frame answers. The error says that the frame is not one.
func (l *link) deliver(frame []byte, batch []delivery) ([]delivery, error) {
	var err error
	for rest := frame; len(rest) > 0; {
		var d delivery
		if rest, err = wire.DecodeAnswer(rest, &d.answer); err != nil {
			break
		}
		batch = append(batch, d)
	}
	l.mu.Lock()
	l.mu.silent, l.mu.probed = time.Time{}, time.Time{}
	for i := range batch {
		req := batch[i].answer.Req
		if s := l.slotLocked(req); s != nil && s.state == slotSent {
			batch[i].done = l.freeLocked(uint32(req))
		}
	}
	l.mu.Unlock()
	for i := range batch {
		d := &batch[i]
		if d.done == nil {
			continue // nobody waits any more
		}
		if n := len(d.answer.Payload); n > 0 && 2*n < len(frame) {
			d.answer.Payload = bytes.Clone(d.answer.Payload) // a kept value must not pin a frame of many
		}
		d.done(d.answer, nil)
		*d = delivery{}
	}
	return batch, err
}
