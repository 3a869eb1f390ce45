package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
	"github.com/shardd/shardd/transport"
)

// opClient speaks the raw protocol of operation streams.
type opClient struct {
	t    *testing.T
	s    *transport.Stream
	rest []byte
	stop context.CancelFunc
}

func openOps(t *testing.T, p *proc, class transport.Class) *opClient {
	t.Helper()
	ctx, cancel := context.WithCancel(testContext(t))
	t.Cleanup(cancel)
	s, err := transport.OpenBatch(ctx, p.conn, class)
	if err != nil {
		t.Fatal(err)
	}
	return &opClient{t: t, s: s, stop: cancel}
}

func (c *opClient) send(ops ...wire.Op) {
	c.t.Helper()
	var n int
	for i := range ops {
		n += ops[i].Size()
	}
	buf := transport.GetBuffer(n)
	for i := range ops {
		buf = ops[i].Append(buf)
	}
	if err := c.s.Send(buf); err != nil {
		c.t.Fatal(err)
	}
}

func (c *opClient) next() (wire.Answer, error) {
	for len(c.rest) == 0 {
		b, err := c.s.Recv()
		if err != nil {
			return wire.Answer{}, err
		}
		c.rest = b
	}
	var a wire.Answer
	rest, err := wire.DecodeAnswer(c.rest, &a)
	c.rest = rest
	return a, err
}

// answers collects n answers by request id; an id that is answered twice fails the test.
func (c *opClient) answers(n int) map[uint64]wire.Answer {
	c.t.Helper()
	out := map[uint64]wire.Answer{}
	for range n {
		a, err := c.next()
		if err != nil {
			c.t.Fatal(err)
		}
		if old, dup := out[a.Req]; dup {
			c.t.Fatalf("request %d answered twice: %v, %v", a.Req, old.Code, a.Code)
		}
		out[a.Req] = a
	}
	return out
}

// oneNode starts a cluster of one node with one shard and returns the shard's descriptor.
func oneNode(t *testing.T) (*proc, *base.Descriptor) {
	t.Helper()
	p := newProc(t, "one").start()
	initAll(t, p, []*proc{p}, 1)
	settled(t, p, 1)
	d, ok := p.n.member.Load().store.Descriptor(2)
	if !ok {
		t.Fatal("no shard 2")
	}
	return p, d
}

func op(d *base.Descriptor, code wire.OpCode, req uint64, key, value string) wire.Op {
	o := wire.Op{Code: code, Req: req, Shard: d.Shard, Version: d.Epoch.Version, Key: base.UserKey([]byte(key))}
	if code == wire.OpScan || code == wire.OpDeleteRange {
		o.Value = base.UserKey([]byte(value))
	} else if value != "" {
		o.Value = []byte(value)
	}
	return o
}

func TestFrameOfManyOperationsIsAnsweredOnce(t *testing.T) {
	p, d := oneNode(t)
	c := openOps(t, p, transport.ClassClient)
	var ops []wire.Op
	for i := range 200 {
		ops = append(ops, op(d, wire.OpPut, uint64(i), fmt.Sprintf("key-%03d", i), strings.Repeat("v", i*20)))
	}
	c.send(ops...)
	for req, a := range c.answers(200) {
		if a.Code != wire.OK || a.Arg == 0 {
			t.Fatalf("put %d: %v %s", req, a.Code, a.Payload)
		}
	}
	ops = ops[:0]
	for i := range 200 {
		ops = append(ops, op(d, wire.OpGet, uint64(i), fmt.Sprintf("key-%03d", i), ""))
		ops = append(ops, op(d, wire.OpScan, uint64(1000+i), fmt.Sprintf("key-%03d", i), "key-999"))
	}
	ops = append(ops, op(d, wire.OpGet, 5000, "absent", ""))
	c.send(ops...)
	got := c.answers(401)
	for i := range 200 {
		if a := got[uint64(i)]; a.Code != wire.OK || len(a.Payload) != i*20 {
			t.Errorf("get %d: %v, %d bytes", i, a.Code, len(a.Payload))
		}
		a := got[uint64(1000+i)]
		var row wire.Row
		if _, err := wire.DecodeRow(a.Payload, &row); a.Code != wire.OK || err != nil {
			t.Fatalf("scan %d: %v %v", i, a.Code, err)
		}
		if want := fmt.Sprintf("\x02key-%03d", i); string(row.Key) != want {
			t.Errorf("scan %d starts at %q, want %q", i, row.Key, want)
		}
	}
	if got[5000].Code != wire.NotFound {
		t.Errorf("absent key: %v", got[5000].Code)
	}
	if err := c.s.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if _, err := c.next(); !errors.Is(err, io.EOF) {
		t.Errorf("after the close: %v", err)
	}
}

func TestClientStreamMayNotTouchTheSystemSpace(t *testing.T) {
	p, d := oneNode(t)
	meta := *d
	meta.Shard = base.MetaShard
	system := func(code wire.OpCode, req uint64, key, value string) wire.Op {
		o := op(&meta, code, req, "", "")
		o.Key, o.Value = []byte(key), []byte(value)
		return o
	}
	step := wire.Sub{Code: wire.OpPut, Key: []byte("\x03c"), Value: []byte("x")}
	ops := []wire.Op{
		system(wire.OpGet, 1, "\x03c", ""),
		system(wire.OpPut, 2, "\x03c", "x"),
		system(wire.OpDelete, 3, "\x03c", ""),
		system(wire.OpScan, 4, "\x03", "\x04"),
		system(wire.OpScan, 5, "\x02", "\x04"),
		system(wire.OpDeleteRange, 6, "\x02zz", "\x03d"),
		system(wire.OpBatch, 7, "\x02a", string(step.Append(nil))),
		system(wire.OpGet, 8, "\x01s", ""),
		system(wire.OpGet, 9, "\x02", ""),
	}
	c := openOps(t, p, transport.ClassClient)
	c.send(ops...)
	for req, a := range c.answers(len(ops)) {
		if a.Code != wire.Invalid || len(a.Payload) == 0 {
			t.Errorf("operation %d: %v %s", req, a.Code, a.Payload)
		}
	}
	c = openOps(t, p, transport.ClassNode)
	c.send(ops[0])
	if a := c.answers(1)[1]; a.Code != wire.OK {
		t.Errorf("node stream: %v %s", a.Code, a.Payload)
	}
}

func TestOperationThatBreaksALimitIsRefusedAndTheNextOneServed(t *testing.T) {
	p, d := oneNode(t)
	c := openOps(t, p, transport.ClassClient)
	flags := op(d, wire.OpGet, 3, "a", "")
	flags.Flags = 0x80
	check := op(d, wire.OpCheckAbsent, 4, "a", "")
	c.send(
		op(d, wire.OpPut, 1, strings.Repeat("k", base.MaxKeySize+1), "v"),
		op(d, wire.OpPut, 2, "a", strings.Repeat("v", base.MaxValueSize+1)),
		flags, check,
		op(d, wire.OpCode(99), 5, "a", ""),
		op(d, wire.OpScan, 6, "b", "a"),
		op(d, wire.OpPut, 7, "a", "v"),
	)
	got := c.answers(7)
	for req := uint64(1); req <= 6; req++ {
		if a := got[req]; a.Code != wire.Invalid || len(a.Payload) == 0 {
			t.Errorf("operation %d: %v %s", req, a.Code, a.Payload)
		}
	}
	if got[7].Code != wire.OK {
		t.Errorf("the valid one: %v %s", got[7].Code, got[7].Payload)
	}
}

func TestFrameThatCannotBeMadeOutEndsOnlyItsStream(t *testing.T) {
	p, d := oneNode(t)
	good := op(d, wire.OpGet, 7, "a", "")
	raw := good.Append(nil)
	for name, frame := range map[string][]byte{
		"cut":         raw[:len(raw)-1],
		"cut header":  raw[:20],
		"few bytes":   raw[:3],
		"long length": append([]byte{0xff, 0xff, 0xff, 0xff}, raw[4:]...),
		"text":        []byte("GET / HTTP/1.1\r\nHost: example.com\r\n\r\n and some more to fill a header"),
	} {
		c := openOps(t, p, transport.ClassClient)
		c.send(good)
		c.answers(1)
		if err := c.s.Send(append(transport.GetBuffer(len(frame)), frame...)); err != nil {
			t.Fatal(err)
		}
		var err error
		for err == nil {
			_, err = c.next()
		}
		if status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v", name, err)
		}
	}
	c := openOps(t, p, transport.ClassClient)
	c.send(good)
	c.answers(1)
}

func FuzzInboundNeverPassesWhatAClientMayNot(f *testing.F) {
	d := &base.Descriptor{Shard: 2, Epoch: base.Epoch{Version: 1}}
	o := op(d, wire.OpPut, 1, "k", "v")
	f.Add(o.Append(nil))
	o = op(d, wire.OpScan, 2, "a", "b")
	f.Add(o.Append(nil))
	s := wire.Sub{Code: wire.OpPut, Key: []byte("\x02k"), Value: []byte("v")}
	o = op(d, wire.OpBatch, 3, "k", string(s.Append(nil)))
	f.Add(append(o.Append(nil), o.Append(nil)...))
	f.Fuzz(func(t *testing.T, frame []byte) {
		var in inbound
		in.parse(frame, transport.ClassClient)
		for _, p := range in.ops {
			if p.refused != "" {
				continue
			}
			if err := p.op.Validate(); err != nil {
				t.Fatal(err)
			}
			if p.op.Key[0] != base.SpaceUser {
				t.Fatalf("key %x passed", p.op.Key)
			}
		}
	})
}

func TestStreamPastItsLimitIsAnsweredBusy(t *testing.T) {
	p, d := oneNode(t)
	p.n.cfg.Settings.StreamOps = 4
	c := openOps(t, p, transport.ClassClient)
	var ops []wire.Op
	for i := range 64 {
		ops = append(ops, op(d, wire.OpPut, uint64(i), "k", "v"))
	}
	c.send(ops...) // one frame: none is answered before all are taken in
	busy := 0
	for _, a := range c.answers(64) {
		switch a.Code {
		case wire.Busy:
			busy++
		case wire.OK:
		default:
			t.Errorf("%v %s", a.Code, a.Payload)
		}
	}
	if busy != 60 {
		t.Errorf("%d refused, want 60", busy)
	}
	c.send(ops[0])
	if a := c.answers(1)[0]; a.Code != wire.OK {
		t.Errorf("after the answers: %v", a.Code)
	}
}

func TestGarbageOnThePortsLeavesTheNodeServing(t *testing.T) {
	p := newProc(t, "p")
	p.http = "127.0.0.1:0"
	p.start()
	initAll(t, p, []*proc{p}, 2)
	seed := startSeed(t)
	rng := rand.New(rand.NewPCG(uint64(seed), 3))
	for _, addr := range []string{p.addr, p.n.HTTPAddr()} {
		for i := range 20 {
			junk := make([]byte, 1+rng.IntN(4096))
			for j := range junk {
				junk[j] = byte(rng.Uint32())
			}
			if i%3 == 0 {
				junk = append([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), junk...)
			}
			conn, err := net.Dial("tcp", addr)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := conn.Write(junk); err != nil {
				t.Log(err) // the node may close first
			}
			conn.Close()
		}
	}
	l := newLedger(seed)
	l.put(t, p, 5, 2)
	l.check(t, p)
	if _, err := p.admin().NodeStatus(testContext(t), &pb.NodeStatusRequest{}); err != nil {
		t.Error(err)
	}
}

func TestDrainAnswersWhatIsOpen(t *testing.T) {
	p, d := oneNode(t)
	c := openOps(t, p, transport.ClassClient)
	c.send(op(d, wire.OpPut, 1, "k", "v"))
	c.answers(1)
	p.stop()
	if _, err := c.next(); status.Code(err) != codes.Unavailable {
		t.Errorf("stream of a stopped node: %v", err)
	}
	if <-p.done; p.err != nil {
		t.Error(p.err)
	}
}

// A client that sends nonsense and is slow to read holds itself up, not the node's memory; once it reads, everything is
// answered.
func TestRefusalsThatNobodyReadsHoldTheStreamBack(t *testing.T) {
	ps := startProcs(t, 1)
	initAll(t, ps[0], ps, 1)
	c := openOps(t, ps[0], transport.ClassClient)
	const frames, perFrame = 300, 1000 // about 14 MB there and 25 MB back, beyond every window
	sent := make(chan error, 1)
	go func() {
		op := wire.Op{Code: wire.OpGet, Key: []byte{base.SpaceSystem, 'x'}, Shard: 1, Version: 1}
		for f := range frames {
			var buf []byte
			for i := range perFrame {
				op.Req = uint64(f*perFrame + i)
				buf = op.Append(buf)
			}
			if err := c.s.Send(buf); err != nil {
				sent <- err
				return
			}
		}
		sent <- nil
	}()
	for req := range uint64(frames * perFrame) {
		a, err := c.next()
		if err != nil {
			t.Fatal(err)
		}
		if a.Code != wire.Invalid || a.Req != req {
			t.Fatalf("request %d: %v of %d", req, a.Code, a.Req)
		}
	}
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
}
