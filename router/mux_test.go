package router

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
)

// pipe is a FrameStream in memory. The test is the node: it takes frames from sent and puts answer frames into answers.
type pipe struct {
	ctx     context.Context
	sent    chan []byte
	answers chan []byte
	broken  chan struct{}
	once    sync.Once
}

var errPulled = errors.New("plug pulled")

func newPipe(ctx context.Context) *pipe {
	return &pipe{ctx: ctx, sent: make(chan []byte), answers: make(chan []byte, 16), broken: make(chan struct{})}
}

func (p *pipe) pull() { p.once.Do(func() { close(p.broken) }) }

func (p *pipe) Send(f []byte) error {
	select {
	case p.sent <- f:
		return nil
	case <-p.broken:
	case <-p.ctx.Done():
	}
	return io.EOF
}

func (p *pipe) Recv() ([]byte, error) {
	select {
	case f := <-p.answers:
		return f, nil
	case <-p.broken:
		return nil, errPulled
	case <-p.ctx.Done():
		return nil, p.ctx.Err()
	}
}

func (p *pipe) CloseSend() error { return nil }

func opsOf(t testing.TB, frame []byte) (ops []wire.Op) {
	t.Helper()
	for len(frame) > 0 {
		var op wire.Op
		_, rest, err := wire.DecodeOp(frame, &op)
		if err != nil {
			t.Fatalf("frame does not decode: %v", err)
		}
		ops, frame = append(ops, op), rest
	}
	return ops
}

// echo answers every operation with its key.
func echo(t testing.TB, frame []byte) []byte {
	var out []byte
	for _, op := range opsOf(t, frame) {
		a := wire.Answer{Req: op.Req, Payload: op.Key}
		out = a.Append(out)
	}
	return out
}

// rig is a Mux whose streams the test holds.
type rig struct {
	*Mux
	streams chan *pipe
	fail    atomic.Pointer[error]
	opens   atomic.Int32
}

func newRig(cfg MuxConfig) *rig {
	r := &rig{streams: make(chan *pipe, 16)}
	r.Mux = NewMux(func(ctx context.Context, _ base.StoreID) (FrameStream, error) {
		r.opens.Add(1)
		if err := r.fail.Load(); err != nil {
			return nil, *err
		}
		p := newPipe(ctx)
		r.streams <- p
		return p, nil
	}, cfg)
	return r
}

// send starts a get of key i and returns where its outcome arrives.
func (r *rig) send(i int) (chan outcome, *wire.Op) {
	ch := make(chan outcome, 2)
	op := &wire.Op{Code: wire.OpGet, Key: key(i)}
	r.Send(context.Background(), 1, op, func(a wire.Answer, err error) { ch <- outcome{a, err} })
	return ch, op
}

func TestMuxSendsWhatWaitsInOneFrameAndMatchesAnswersInAnyOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newRig(MuxConfig{})
		defer m.Close()
		first, _ := m.send(0)
		p := <-m.streams
		synctest.Wait() // the sender hangs in Send with the first
		var chs []chan outcome
		for i := 1; i <= 20; i++ {
			ch, _ := m.send(i)
			chs = append(chs, ch)
		}
		f0 := <-p.sent
		f1 := <-p.sent
		ops := opsOf(t, f1)
		if len(opsOf(t, f0)) != 1 || len(ops) != 20 {
			t.Fatalf("frames of %d and %d operations, want 1 and 20", len(opsOf(t, f0)), len(ops))
		}
		for i := len(ops) - 1; i >= 0; i-- { // backwards, two of them twice, one unknown
			a := wire.Answer{Req: ops[i].Req, Payload: ops[i].Key}
			p.answers <- a.Append(a.Append(nil))
		}
		p.answers <- (&wire.Answer{Req: 1 << 60}).Append(nil)
		for i, ch := range chs {
			if o := <-ch; o.err != nil || string(o.answer.Payload) != string(key(i+1)) {
				t.Fatalf("operation %d: %q, %v", i+1, o.answer.Payload, o.err)
			}
		}
		p.answers <- echo(t, f0)
		if o := <-first; o.err != nil {
			t.Fatal(o.err)
		}
	})
}

func TestMuxSendsManyInOneFrameOrInFullOnes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newRig(MuxConfig{FrameBytes: 32 << 10})
		defer m.Close()
		lot := func(n int) (ops []*wire.Op, dones []func(wire.Answer, error)) {
			for i := range n {
				ops = append(ops, &wire.Op{Code: wire.OpGet, Key: key(i)})
				dones = append(dones, func(wire.Answer, error) {})
			}
			return ops, dones
		}
		ops, dones := lot(500) // of 53 bytes each
		m.SendMany(context.Background(), 1, ops, dones)
		p := <-m.streams
		if n := len(opsOf(t, <-p.sent)); n != 500 {
			t.Errorf("a frame of %d operations, want all 500", n)
		}
		ops, dones = lot(1000)
		m.SendMany(context.Background(), 1, ops, dones)
		if a, b := len(opsOf(t, <-p.sent)), len(opsOf(t, <-p.sent)); a+b != 1000 || a < 600 {
			t.Errorf("frames of %d and %d operations", a, b)
		}
		m.Close()
		failed := 0
		ops, dones = lot(3)
		for i := range dones {
			dones[i] = func(_ wire.Answer, err error) {
				if errors.Is(err, ErrNotSent) {
					failed++
				}
			}
		}
		m.SendMany(context.Background(), 1, ops, dones)
		if failed != 3 {
			t.Errorf("%d of 3 failed as not sent after Close", failed)
		}
	})
}

func TestMuxTellsSentFromNotSentWhenAStreamBreaks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newRig(MuxConfig{})
		defer m.Close()
		a, _ := m.send(1)
		p := <-m.streams
		<-p.sent
		b, _ := m.send(2) // its frame is being sent when the stream breaks
		synctest.Wait()
		c, _ := m.send(3) // queued
		p.pull()
		for name, ch := range map[string]chan outcome{"answered never": a, "half sent": b} {
			if o := <-ch; !errors.Is(o.err, ErrBroken) || errors.Is(o.err, ErrNotSent) || !errors.Is(o.err, errPulled) {
				t.Errorf("%s: %v", name, o.err)
			}
		}
		p = <-m.streams // what was only queued goes to the next stream
		f := <-p.sent
		if ops := opsOf(t, f); len(ops) != 1 || string(ops[0].Key) != string(key(3)) {
			t.Fatalf("next stream got %v", ops)
		}
		p.answers <- echo(t, f)
		if o := <-c; o.err != nil {
			t.Error(o.err)
		}
	})
}

func TestMuxFailsFastWhileANodeIsDownAndComesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newRig(MuxConfig{})
		defer m.Close()
		refused := errors.New("connection refused")
		m.fail.Store(&refused)
		for range 5 {
			ch, _ := m.send(1)
			if o := <-ch; !errors.Is(o.err, ErrNotSent) || !errors.Is(o.err, refused) {
				t.Fatal(o.err)
			}
		}
		if n := m.opens.Load(); n != 1 {
			t.Errorf("dialled %d times at once", n)
		}
		m.fail.Store(nil)
		time.Sleep(2 * time.Second)
		ch, _ := m.send(1)
		p := <-m.streams
		p.answers <- echo(t, <-p.sent)
		if o := <-ch; o.err != nil {
			t.Error(o.err)
		}
	})
}

func TestMuxTakesBackOnlyWhatHasNotLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newRig(MuxConfig{})
		defer m.Close()
		sent, sentOp := m.send(0)
		p := <-m.streams
		synctest.Wait()
		var chs []chan outcome
		var ops []*wire.Op
		for i := 1; i <= 4; i++ {
			ch, op := m.send(i)
			chs, ops = append(chs, ch), append(ops, op)
		}
		if m.Cancel(1, sentOp.Req) {
			t.Error("took back what may have left")
		}
		if !m.Cancel(1, ops[0].Req) || !m.Cancel(1, ops[2].Req) {
			t.Error("did not take back what was queued")
		}
		if m.Cancel(1, ops[0].Req) || m.Cancel(2, 5) || m.Cancel(1, 1<<40) {
			t.Error("took back what is not there")
		}
		p.answers <- echo(t, <-p.sent)
		f := <-p.sent
		if got := opsOf(t, f); len(got) != 2 || string(got[0].Key) != string(key(2)) || string(got[1].Key) != string(key(4)) {
			t.Fatalf("sent %v", got)
		}
		p.answers <- echo(t, f)
		for _, ch := range []chan outcome{sent, chs[1], chs[3]} {
			if o := <-ch; o.err != nil {
				t.Error(o.err)
			}
		}
		synctest.Wait()
		if len(chs[0]) != 0 || len(chs[2]) != 0 {
			t.Error("done of a cancelled operation was called")
		}
	})
}

func TestMuxRefusesNewOperationsToANodeThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newRig(MuxConfig{})
		defer m.Close()
		var got [][]byte
		m.send(0)
		p := <-m.streams
		take := func() (ops []wire.Op) {
			f := <-p.sent
			got = append(got, f)
			return opsOf(t, f)
		}
		take()
		// A node that works on something long is alive: it answers the probe.
		time.Sleep(1500 * time.Millisecond)
		a, _ := m.send(1)
		ops := take()
		if len(ops) != 2 || ops[0].Shard != 0 || ops[0].Code != wire.OpGet {
			t.Fatalf("after silence went %+v, want a probe and the operation", ops)
		}
		p.answers <- (&wire.Answer{Code: wire.ShardNotFound, Req: ops[0].Req}).Append(nil)
		synctest.Wait()
		time.Sleep(1500 * time.Millisecond)
		m.send(2)
		if ops := take(); len(ops) != 1 {
			t.Fatalf("an idle wait counts as silence: %+v", ops)
		}
		// From here on it hangs.
		time.Sleep(1500 * time.Millisecond)
		m.send(3)
		take()
		time.Sleep(1500 * time.Millisecond)
		b, _ := m.send(4)
		if o := <-b; !errors.Is(o.err, ErrNotSent) {
			t.Fatal(o.err)
		}
		// It comes back and answers everything.
		for _, f := range got {
			p.answers <- echo(t, f)
		}
		if o := <-a; o.err != nil {
			t.Error(o.err)
		}
		synctest.Wait()
		c, _ := m.send(5)
		p.answers <- echo(t, <-p.sent)
		if o := <-c; o.err != nil {
			t.Error(o.err)
		}
	})
}

func TestMuxBoundsItsQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newRig(MuxConfig{QueueBytes: 10 << 10, FrameBytes: 1 << 10})
		defer m.Close()
		m.send(0)
		p := <-m.streams
		synctest.Wait()
		n := 0
		for {
			ch, _ := m.send(n)
			if len(ch) == 1 {
				o := <-ch
				if !errors.Is(o.err, ErrQueueFull) || !errors.Is(o.err, ErrNotSent) {
					t.Fatal(o.err)
				}
				break
			}
			n++
		}
		if per := wire.HeaderSize + len(key(0)); n != 10<<10/per {
			t.Errorf("%d operations of %d bytes fit into 10 KiB", n, per)
		}
		<-p.sent
		for n > 0 {
			f := <-p.sent
			if len(f) > 4<<10 {
				t.Errorf("frame of %d bytes", len(f))
			}
			n -= len(opsOf(t, f))
		}
	})
}

func TestMuxCopiesSmallValuesOutOfLargeFrames(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newRig(MuxConfig{})
		defer m.Close()
		a, opA := m.send(1)
		p := <-m.streams
		<-p.sent
		b, opB := m.send(2)
		<-p.sent
		small, large := bytes.Repeat([]byte{1}, 100), bytes.Repeat([]byte{2}, 1000)
		frame := (&wire.Answer{Req: opA.Req, Payload: small}).Append(nil)
		frame = (&wire.Answer{Req: opB.Req, Payload: large}).Append(frame)
		p.answers <- frame
		oa, ob := <-a, <-b
		clear(frame)
		if !bytes.Equal(oa.answer.Payload, small) {
			t.Error("small value points into the frame")
		}
		if bytes.Equal(ob.answer.Payload, large) {
			t.Error("a value that is most of its frame was copied")
		}
	})
}

func TestMuxDropsAStreamThatSendsGarbage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newRig(MuxConfig{})
		defer m.Close()
		for i, garbage := range [][]byte{{1, 2, 3}, bytes.Repeat([]byte{0xff}, 100), make([]byte, 40)} {
			ch, _ := m.send(i)
			p := <-m.streams
			<-p.sent
			p.answers <- garbage
			if o := <-ch; !errors.Is(o.err, ErrBroken) {
				t.Errorf("%x: %v", garbage[:3], o.err)
			}
		}
	})
}

func TestMuxCloseFailsEverythingAndJoins(t *testing.T) {
	defer goleak.VerifyNone(t)
	m := newRig(MuxConfig{})
	a, _ := m.send(1)
	p := <-m.streams
	<-p.sent
	b, _ := m.send(2)
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	if o := <-a; !errors.Is(o.err, ErrClosed) || errors.Is(o.err, ErrNotSent) {
		t.Errorf("sent: %v", o.err)
	}
	if o := <-b; !errors.Is(o.err, ErrClosed) {
		t.Errorf("queued: %v", o.err)
	}
	c, _ := m.send(3)
	if o := <-c; !errors.Is(o.err, ErrClosed) || !errors.Is(o.err, ErrNotSent) {
		t.Errorf("after close: %v", o.err)
	}
	m.Send(context.Background(), 9, &wire.Op{Code: wire.OpGet, Key: key(1)}, func(_ wire.Answer, err error) {
		if !errors.Is(err, ErrClosed) {
			t.Errorf("other node after close: %v", err)
		}
	})
}

// TestMuxCompletesEveryOperationOnceUnderBreaks runs many senders against streams that break at random.
func TestMuxCompletesEveryOperationOnceUnderBreaks(t *testing.T) {
	defer goleak.VerifyNone(t)
	m := newRig(MuxConfig{RedialMin: time.Microsecond, RedialMax: time.Microsecond})
	stop := make(chan struct{})
	var nodes sync.WaitGroup
	nodes.Go(func() {
		for {
			select {
			case p := <-m.streams:
				nodes.Go(func() {
					for n := 1; ; n++ {
						select {
						case f := <-p.sent:
							p.answers <- echo(t, f)
						case <-p.ctx.Done():
							return
						}
						if n == 50 {
							p.pull()
						}
					}
				})
			case <-stop:
				return
			}
		}
	})
	var senders sync.WaitGroup
	var ok, failed atomic.Int64
	for g := range 8 {
		senders.Go(func() {
			for i := range 500 {
				ch, op := m.send(g*1000 + i)
				if i%7 == 0 && m.Cancel(1, op.Req) {
					continue
				}
				o := <-ch
				switch {
				case o.err == nil && string(o.answer.Payload) == string(key(g*1000+i)):
					ok.Add(1)
				case errors.Is(o.err, ErrBroken) || errors.Is(o.err, ErrNotSent):
					failed.Add(1)
				default:
					t.Errorf("%q, %v", o.answer.Payload, o.err)
				}
				if len(ch) != 0 {
					t.Error("completed twice")
				}
			}
		})
	}
	senders.Wait()
	close(stop)
	m.Close()
	nodes.Wait()
	if ok.Load() == 0 {
		t.Errorf("nothing succeeded, %d failed", failed.Load())
	}
}

// loop is a stream that answers at once, for benchmarks.
type loop struct {
	ctx    context.Context
	frames chan []byte
}

func (l *loop) Send(f []byte) error {
	out := make([]byte, 0, len(f)+len(f)/2)
	var op wire.Op
	for len(f) > 0 {
		_, rest, err := wire.DecodeOp(f, &op)
		if err != nil {
			return err
		}
		out = (&wire.Answer{Req: op.Req, Version: op.Version, Payload: op.Key}).Append(out)
		f = rest
	}
	select {
	case l.frames <- out:
		return nil
	case <-l.ctx.Done():
		return io.EOF
	}
}

func (l *loop) Recv() ([]byte, error) {
	select {
	case f := <-l.frames:
		return f, nil
	case <-l.ctx.Done():
		return nil, l.ctx.Err()
	}
}

func (l *loop) CloseSend() error { return nil }

// BenchmarkRoundTrip is a routed read through the Mux over a stream in memory: everything of the client but gRPC.
func BenchmarkRoundTrip(b *testing.B) {
	for _, clients := range []int{1, 64} {
		b.Run(fmt.Sprint("clients=", clients), func(b *testing.B) {
			m := NewMux(func(ctx context.Context, _ base.StoreID) (FrameStream, error) {
				return &loop{ctx: ctx, frames: make(chan []byte, 16)}, nil
			}, MuxConfig{})
			defer m.Close()
			r := New(Config{Directory: newWorld(0, 10, 20, 30), Sender: m})
			b.ReportAllocs()
			b.SetParallelism(clients)
			b.ResetTimer()
			b.RunParallel(func(pb *testing.PB) {
				op := wire.Op{Code: wire.OpGet, Key: key(15)}
				for pb.Next() {
					if _, err := r.Do(context.Background(), op); err != nil {
						b.Error(err)
					}
				}
			})
		})
	}
}
