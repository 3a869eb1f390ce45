package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"google.golang.org/grpc"

	sharddv1 "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/engine"
)

// errIdle ends a stream on which nothing was heard from the receiver; it may be resumed.
var errIdle = errors.New("nothing was heard from the receiver")

// sendStream is one attempt at a snapshot: one stream, three goroutines. The caller's one talks, one listens, and one
// builds the next chunk.
type sendStream struct {
	s      *Service
	j      *job
	t      *transfer
	grpc   sharddv1.SnapshotService_StreamClient
	ctx    context.Context
	cancel context.CancelCauseFunc
	idle   *time.Timer
	over   *time.Timer // ends a snapshot that takes too long; nil before the grant

	granted chan *sharddv1.SnapshotGranted // one
	heard   chan struct{}                  // closed when the listener has ended

	// The listener's, until heard is closed, as are staged, alive and damaged of the transfer.
	installed bool
	err       error // a *DeclinedError, or what ended the stream
}

// attempt opens a stream and talks until the snapshot is installed. What may be tried again is a *brokenError, or a
// *DeclinedError with a wait.
func (s *Service) attempt(j *job, t *transfer) error {
	ctx, cancel := context.WithCancelCause(j.ctx)
	defer cancel(nil)
	cc, err := s.cfg.Dial(j.req.ToStore)
	if err != nil {
		return &brokenError{fmt.Errorf("dial %s: %w", j.req.ToStore, err)}
	}
	stream, err := sharddv1.NewSnapshotServiceClient(cc).Stream(ctx, grpc.ForceCodecV2(newCodec()))
	if err != nil {
		return &brokenError{err}
	}
	a := &sendStream{
		s: s, j: j, t: t, grpc: stream, ctx: ctx, cancel: cancel,
		granted: make(chan *sharddv1.SnapshotGranted, 1), heard: make(chan struct{}),
	}
	a.idle = time.AfterFunc(s.cfg.Timeouts.Idle, func() { cancel(&brokenError{errIdle}) })
	defer a.idle.Stop()
	go a.listen() // joined below
	err = a.talk()
	defer a.stopLimit()
	switch {
	case err == nil:
		<-a.heard // finish was sent: the answer ends it
	case errors.Is(err, io.EOF):
		<-a.heard // the receiver ended the stream, and the listener learns why
	default:
		cancel(err)
		<-a.heard
	}
	var d *DeclinedError
	switch cause := context.Cause(ctx); {
	case a.installed:
		return nil
	case errors.As(a.err, &d):
		return a.err
	case cause != nil: // ours, or the job's
		return cause
	}
	return &brokenError{a.err}
}

// listen takes the receiver's answers until the stream ends.
func (a *sendStream) listen() {
	defer close(a.heard)
	for {
		m, err := a.grpc.Recv()
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF // a stream ends with an answer
			}
			a.err = err
			return
		}
		a.idle.Reset(a.s.cfg.Timeouts.Idle)
		switch f := m.Frame.(type) {
		case *sharddv1.StreamResponse_Granted:
			a.t.staged, a.t.alive = f.Granted.GetChunks(), a.s.cfg.Clock.Boot()
			select {
			case a.granted <- f.Granted:
			default: // nobody waits for a second one
			}
		case *sharddv1.StreamResponse_Staged:
			if n := f.Staged.GetChunks(); n > a.t.staged {
				a.t.staged, a.t.alive, a.t.damaged = n, a.s.cfg.Clock.Boot(), 0
			}
		case *sharddv1.StreamResponse_Installed:
			a.installed = true
			return
		case *sharddv1.StreamResponse_Declined:
			wait := time.Duration(f.Declined.GetWaitMs()) * time.Millisecond
			a.err = &DeclinedError{Store: a.j.req.ToStore, Reason: f.Declined.GetReason(), Wait: wait}
			return
		}
	}
}

// talk sends everything from reserve to finish. io.EOF means that the stream has ended and the listener knows why.
func (a *sendStream) talk() error {
	a.j.meter.enter(Reserving)
	if a.t.small != nil {
		return a.talkSmall()
	}
	meta, total := a.t.meta, a.t.total
	if meta == nil {
		m, err := a.s.firstMeta(a.j)
		if err != nil {
			return viewError(err)
		}
		meta, total = m.Append(nil), m.ApproxBytes
	}
	if err := a.reserve(meta, total); err != nil {
		return err
	}
	var g *sharddv1.SnapshotGranted
	select {
	case g = <-a.granted:
	case <-a.heard:
		return io.EOF
	}
	if err := a.pin(); err != nil {
		return err
	}
	a.limitTime()
	if err := a.stream(g.GetChunks(), g.GetResume()); err != nil {
		return err
	}
	return a.finish()
}

// viewError lets the attempt be repeated if the view was lost to a range that moves.
func viewError(err error) error {
	if errors.Is(err, engine.ErrViewLost) {
		return &brokenError{err}
	}
	return err
}

// send gives a message to gRPC. An error that is not io.EOF aborts the stream, too.
func (a *sendStream) send(m any) error {
	if err := a.grpc.SendMsg(m); err != nil && !errors.Is(err, io.EOF) {
		return &brokenError{err}
	} else if err != nil {
		return io.EOF
	}
	return nil
}

func (a *sendStream) reserve(meta []byte, total uint64) error {
	a.j.meter.setTotal(total)
	return a.send(&sharddv1.StreamRequest{Frame: &sharddv1.StreamRequest_Reserve{
		Reserve: &sharddv1.SnapshotReserve{
			ClusterId: a.s.cfg.Cluster[:], SnapshotId: a.t.id[:], Meta: meta, Priority: a.j.req.Priority.String(),
			TotalBytes: total,
		},
	}})
}

// pin opens the view, once granted, and says what it holds. A resumed stream has done so before.
func (a *sendStream) pin() error {
	if a.t.view != nil {
		return nil
	}
	v, err := a.s.openView(a.j)
	if err != nil {
		return viewError(err)
	}
	m := a.s.metaOf(a.j, v, v.ApproxBytes())
	a.t.view, a.t.meta, a.t.total = v, m.Append(nil), m.ApproxBytes
	a.t.granted = a.s.cfg.Clock.Boot()
	return a.reserve(a.t.meta, a.t.total)
}

// limitTime ends the snapshot when it has taken too long for its size. The limit follows the rate that is set.
func (a *sendStream) limitTime() {
	left := func() time.Duration {
		return a.t.granted + a.s.allowance(max(a.t.total, a.j.meter.progress().Done)) - a.s.cfg.Clock.Boot()
	}
	ready := make(chan struct{})
	a.over = time.AfterFunc(left(), func() {
		<-ready
		if d := left(); d > 0 {
			a.over.Reset(d)
			return
		}
		a.cancel(fmt.Errorf("%w: %s after its grant", ErrTimeout, a.s.cfg.Clock.Boot()-a.t.granted))
	})
	close(ready)
}

func (a *sendStream) stopLimit() {
	if a.over != nil {
		a.over.Stop()
	}
}

// allowance is how long a snapshot of a size may take from its grant on.
func (s *Service) allowance(bytes uint64) time.Duration {
	rate := min(s.cfg.Timeouts.SlowestRate, s.send.limit.Load()/uint64(4*s.cfg.MaxSending))
	return s.cfg.Timeouts.Snapshot + time.Duration(float64(bytes)/float64(max(rate, 1))*float64(time.Second))
}

// talkSmall sends everything without waiting for the grant.
func (a *sendStream) talkSmall() error {
	a.t.granted = a.s.cfg.Clock.Boot()
	a.limitTime()
	a.j.meter.setDone(0)
	a.j.meter.enter(Streaming)
	if err := a.reserve(a.t.meta, a.t.total); err != nil {
		return err
	}
	a.t.ends = a.t.ends[:0]
	for _, c := range a.t.small {
		if err := a.push(c, func() {}); err != nil {
			return err
		}
	}
	return a.finish()
}

// stream sends the chunks from a position on.
func (a *sendStream) stream(seq uint32, from []byte) error {
	if int(seq) > len(a.t.ends) {
		return fmt.Errorf("%s says to have %d chunks, %d were sent", a.j.req.ToStore, seq, len(a.t.ends))
	}
	a.t.ends = a.t.ends[:seq]
	a.j.meter.setDone(a.t.before(seq))
	a.j.meter.enter(Streaming)

	ctx, stop := context.WithCancelCause(a.ctx)
	var builder sync.WaitGroup
	chunks := make(chan built)
	builder.Go(func() { a.s.build(ctx, a.j, a.t.view, seq, from, chunks) })
	defer builder.Wait()
	defer stop(io.EOF)

	alive := time.NewTicker(max(a.s.cfg.Timeouts.Idle/3, time.Millisecond))
	defer alive.Stop()
	for {
		select {
		case b, ok := <-chunks:
			if !ok {
				return context.Cause(a.ctx) // nil if the last chunk was sent
			}
			if b.err != nil || b.chunk == nil {
				b.release()
				if b.err != nil {
					return fmt.Errorf("read %s: %w", a.j.req.Shard, b.err)
				}
				continue
			}
			err := a.push(b.chunk, b.release)
			if err != nil {
				return err
			}
		case <-alive.C: // the next chunk is slow to come: an empty part says that we are here
			if err := a.send(&partFrame{chunk: uint32(len(a.t.ends))}); err != nil {
				return err
			}
		case <-a.heard:
			return io.EOF
		}
	}
}

// push sends one chunk, part by part as the bucket allows. release gives its share of the memory back; what gRPC still
// has of it then is a part or two.
func (a *sendStream) push(c *engine.Chunk, release func()) error {
	defer release()
	view, size := a.t.view, len(c.SST)
	tab := newTable(c, func() {
		if view != nil { // else it is kept to be sent again
			view.Release(c)
		}
	})
	defer tab.done()
	header := c.AppendHeader(nil)
	for at := 0; at < size; {
		n, err := a.s.send.take(a.ctx, size-at)
		if err != nil {
			return err
		}
		f := &partFrame{chunk: c.Seq, header: header, data: tab.part(at, n), last: at+n == size}
		header = nil
		if err := a.send(f); err != nil {
			return err
		}
		at += n
		a.j.sent += uint64(n)
		a.j.meter.add(n)
		a.s.metrics.send.bytes.Add(float64(n))
	}
	a.j.chunks++
	a.t.ends = append(a.t.ends, a.t.before(c.Seq)+uint64(size))
	return nil
}

func (a *sendStream) finish() error {
	a.j.meter.enter(Installing)
	n := uint32(len(a.t.ends))
	return a.send(&sharddv1.StreamRequest{Frame: &sharddv1.StreamRequest_Finish{
		Finish: &sharddv1.SnapshotFinish{Chunks: n, Bytes: a.t.before(n)},
	}})
}
