package snapshotter

import (
	"context"
	"errors"
	"io"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	sharddv1 "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/engine"
)

// read takes messages off the stream until it ends. What it does not take stays in gRPC's window, which holds the sender
// back: there is one chunk here and one in the handler, no more.
func (r *recvStream) read() {
	defer close(r.events)
	var a assembly
	defer func() { a.drop() }()
	for finished := false; ; {
		m, err := r.grpc.Recv()
		r.idle.Stop()
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = status.Error(codes.Canceled, "the sender ended the stream early")
			}
			r.fault = err
			return
		}
		var ev event
		switch f := m.Frame.(type) {
		case *sharddv1.StreamRequest_Reserve:
			ev.reserve = f.Reserve
		case *sharddv1.StreamRequest_Part:
			ev, err = r.take(&a, f.Part)
		case *sharddv1.StreamRequest_Finish:
			finished = true
			ev, err = r.last(&a, f.Finish)
		}
		if err != nil {
			r.fault = err
			return
		}
		if ev.complete() {
			select {
			case r.events <- ev:
			case <-r.ctx.Done():
				if ev.release != nil {
					ev.release()
				}
				return
			}
		}
		select {
		case <-r.open:
			if !finished {
				r.idle.Reset(r.s.cfg.Timeouts.Idle)
			}
		default:
		}
	}
}

// granted waits for the grant: before it nothing takes memory. A small shard's parts are here earlier.
func (r *recvStream) granted() error {
	select {
	case <-r.open:
		return nil
	case <-r.ctx.Done():
		return context.Cause(r.ctx)
	}
}

// take adds a part; the event is set if it completes a chunk.
func (r *recvStream) take(a *assembly, p *sharddv1.SnapshotPart) (ev event, err error) {
	if err := r.granted(); err != nil {
		return ev, err
	}
	data := p.GetData()
	if len(data) > maxPartBytes {
		return ev, status.Errorf(codes.InvalidArgument, "a part of %d bytes, at most %d are taken", len(data), maxPartBytes)
	}
	if err := r.s.receive.takeAll(r.ctx, len(data)); err != nil {
		return ev, err
	}
	r.sn.meter.add(len(data))
	r.s.metrics.receive.bytes.Add(float64(len(data)))
	if len(p.GetHeader()) > 0 {
		if err := r.startChunk(a, p.GetHeader()); err != nil {
			return ev, err
		}
	}
	switch c := a.chunk; {
	case c == nil && len(data) == 0:
		return ev, nil // a sign of life between chunks
	case c == nil:
		return ev, status.Error(codes.InvalidArgument, "a chunk starts without its header")
	case p.GetChunk() != c.Seq || len(c.SST)+len(data) > int(c.Size):
		return ev, status.Errorf(codes.DataLoss, "a part of chunk %d, or too long for chunk %d", p.GetChunk(), c.Seq)
	}
	a.chunk.SST = append(a.chunk.SST, data...)
	if !p.GetLast() {
		return ev, nil
	}
	if c := a.chunk; len(c.SST) != int(c.Size) {
		return ev, status.Errorf(codes.DataLoss, "chunk %d ended at %d bytes of %d", c.Seq, len(c.SST), c.Size)
	}
	ev = event{chunk: a.chunk, release: a.release}
	*a = assembly{}
	return ev, nil
}

// last checks that the finish does not come in the middle of a chunk.
func (r *recvStream) last(a *assembly, f *sharddv1.SnapshotFinish) (event, error) {
	if err := r.granted(); err != nil {
		return event{}, err
	}
	if a.chunk != nil {
		return event{}, status.Errorf(codes.DataLoss, "finish within chunk %d", a.chunk.Seq)
	}
	r.sn.meter.enter(Verifying)
	return event{finish: f}, nil
}

// assembly is the chunk that is being received.
type assembly struct {
	chunk   *engine.Chunk // nil between chunks
	release func()        // gives memory back, and the table's buffer
}

func (a *assembly) drop() {
	if a.chunk != nil {
		a.release()
	}
}

// startChunk takes memory for a chunk as its header describes it.
func (r *recvStream) startChunk(a *assembly, header []byte) error {
	if a.chunk != nil {
		return status.Errorf(codes.DataLoss, "a header within chunk %d", a.chunk.Seq)
	}
	c, err := engine.DecodeChunkHeader(header)
	if err != nil {
		return status.Error(codes.DataLoss, err.Error())
	}
	if c.Size > maxChunkBytes {
		return status.Errorf(codes.InvalidArgument, "chunk %d of %d bytes, at most %d are taken", c.Seq, c.Size,
			maxChunkBytes)
	}
	release, err := r.s.receiveMemory.take(r.ctx, int64(c.Size))
	if err != nil {
		return err
	}
	tables := &r.s.tables
	buf, ok := tables.Get().(*[]byte)
	if !ok || cap(*buf) < int(c.Size) {
		b := make([]byte, 0, c.Size)
		buf = &b
	}
	c.SST = (*buf)[:0]
	a.chunk = c
	a.release = func() {
		release()
		tables.Put(buf)
	}
	return nil
}
