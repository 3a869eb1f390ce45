package snapshotter

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.etcd.io/etcd/raft/v3/raftpb"
	"go.uber.org/goleak"
	"google.golang.org/grpc"

	sharddv1 "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/engine"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/transport"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	source base.StoreID = 1
	sink   base.StoreID = 2
)

// limit ends a test that hangs; nothing is measured with it.
const limit = 20 * time.Second

func seeded(t testing.TB) *rand.Rand {
	t.Helper()
	seed := time.Now().UnixNano()
	if s := os.Getenv("TEST_SEED"); s != "" {
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil {
			t.Fatalf("TEST_SEED: %v", err)
		}
		seed = n
	}
	t.Logf("seed %d: run again with TEST_SEED=%d", seed, seed)
	return rand.New(rand.NewPCG(uint64(seed), 1))
}

func waitFor(t testing.TB, what string, cond func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	end := time.NewTimer(limit)
	defer end.Stop()
	for !cond() {
		select {
		case <-tick.C:
		case <-end.C:
			t.Fatalf("%s: did not happen", what)
		}
	}
}

// target installs with a mark as shard.Store would, unless the test says otherwise.
type target struct {
	store base.StoreID

	mu       sync.Mutex
	engine   *engine.Engine
	accept   func(*engine.SnapshotMeta) error
	install  func(ctx context.Context, m *engine.SnapshotMeta) error // before the real one
	accepts  int
	installs int
}

func (x *target) AcceptSnapshot(m *engine.SnapshotMeta) error {
	x.mu.Lock()
	x.accepts++
	f := x.accept
	x.mu.Unlock()
	if f != nil {
		return f(m)
	}
	return nil
}

func (x *target) InstallSnapshot(ctx context.Context, m *engine.SnapshotMeta, st *engine.Staging) error {
	x.mu.Lock()
	x.installs++
	f, e := x.install, x.engine
	x.mu.Unlock()
	if f != nil {
		if err := f(ctx, m); err != nil {
			return err
		}
	}
	_, err := e.Install(engine.Install{
		Staging: st, Mark: engine.ReplicaMark{ReplicaID: m.To, NextReplicaID: m.Desc.NextReplicaID},
		Hard: raftpb.HardState{Term: m.RaftTerm},
	})
	return err
}

func (x *target) set(f func()) {
	x.mu.Lock()
	defer x.mu.Unlock()
	f()
}

func (x *target) counts() (accepts, installs int) {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.accepts, x.installs
}

// host is one store: engine, service and server.
type host struct {
	t       testing.TB
	pair    *pair
	store   base.StoreID
	fs      *engine.FS
	dir     string
	engine  *engine.Engine
	target  *target
	service *Service
	server  *grpc.Server
	stop    context.CancelFunc
	wg      sync.WaitGroup
}

// pair is two stores; the first sends to the second.
type pair struct {
	t        testing.TB
	from, to *host
	faults   faults
	conn     *grpc.ClientConn

	mu   sync.Mutex
	addr string // of the sink
	log  bytes.Buffer
}

// options of a pair; the zero value is small chunks in memory without a limit.
type options struct {
	disk   bool
	config func(*Config)
}

func testConfig() Config {
	return Config{
		Cluster: base.ClusterID{9}, SendBytesPerSecond: 1 << 40, ReceiveBytesPerSecond: 1 << 40,
		ChunkBytes: 64 << 10, SmallBytes: 1 << 10,
		Timeouts: Timeouts{Idle: 5 * time.Second, Resume: 30 * time.Second, Reserve: 30 * time.Second},
	}
}

func newPair(t testing.TB, o options) *pair {
	t.Helper()
	p := &pair{t: t}
	t.Cleanup(func() {
		if t.Failed() {
			p.mu.Lock()
			defer p.mu.Unlock()
			t.Logf("log:\n%s", p.log.String())
		}
	})
	for _, h := range []struct {
		at    **host
		store base.StoreID
	}{{&p.from, source}, {&p.to, sink}} {
		x := &host{t: t, pair: p, store: h.store, dir: "data"}
		if o.disk {
			x.dir = t.TempDir()
		} else {
			x.fs = engine.NewMemFS()
		}
		x.target = &target{store: h.store}
		x.open()
		x.start(o)
		*h.at = x
	}
	p.dial()
	t.Cleanup(func() {
		p.from.close()
		p.to.close()
		if err := p.conn.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

func (h *host) open() {
	h.t.Helper()
	e, err := engine.Open(engine.Options{Dir: h.dir, FS: h.fs, ProbeInterval: -1, Fatal: func(err error) {
		h.t.Errorf("fatal: %v", err)
	}})
	if err != nil {
		h.t.Fatal(err)
	}
	h.engine = e
	h.target.set(func() { h.target.engine = e })
}

// Write takes the log of both services.
func (p *pair) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.log.Write(b)
}

func (h *host) start(o options) {
	h.t.Helper()
	p := h.pair
	cfg := testConfig()
	cfg.Engine, cfg.Store, cfg.Target = h.engine, h.store, h.target
	cfg.Logger = slog.New(slog.NewTextHandler(p, &slog.HandlerOptions{Level: slog.LevelDebug}))
	cfg.Dial = func(base.StoreID) (grpc.ClientConnInterface, error) { return p.conn, nil }
	if o.config != nil {
		o.config(&cfg)
	}
	s, err := New(cfg)
	if err != nil {
		h.t.Fatal(err)
	}
	l, err := (&net.ListenConfig{}).Listen(h.t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		h.t.Fatal(err)
	}
	h.service, h.server = s, grpc.NewServer(transport.ServerOptions()...)
	s.Register(h.server)
	h.wg.Go(func() {
		if err := h.server.Serve(l); err != nil {
			h.t.Error(err)
		}
	})
	if h.store == sink {
		p.mu.Lock()
		p.addr = l.Addr().String()
		p.mu.Unlock()
	}
	var ctx context.Context
	ctx, h.stop = context.WithCancel(context.Background())
	h.wg.Go(func() {
		if err := s.Run(ctx); err != nil {
			h.t.Error(err)
		}
	})
	waitFor(h.t, "service runs", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.mu.running != nil
	})
}

// halt stops service and server and joins them.
func (h *host) halt() {
	h.stop()
	h.server.Stop()
	h.wg.Wait()
}

func (h *host) close() {
	h.halt()
	if n := h.engine.StagedBytes(); n != 0 {
		h.t.Errorf("%s: %d bytes are still staged", h.store, n)
	}
	if used := h.service.sendMemory.used() + h.service.receiveMemory.used(); used != 0 {
		h.t.Errorf("%s: %d bytes of the memory budget are still taken", h.store, used)
	}
	if slots, bytes, waiting := h.service.admission.state(); slots != 0 || bytes != 0 || waiting != 0 {
		h.t.Errorf("%s: still admitted: %d slots, %d bytes, %d waiting", h.store, slots, bytes, waiting)
	}
	if err := h.engine.Close(); err != nil {
		h.t.Error(err)
	}
}

func (p *pair) dial() {
	o := append(DialOptions(), grpc.WithStreamInterceptor(p.faults.intercept),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			p.mu.Lock()
			addr := p.addr
			p.mu.Unlock()
			return (&net.Dialer{}).DialContext(ctx, "tcp", addr)
		}))
	conn, err := grpc.NewClient("passthrough:///sink", o...)
	if err != nil {
		p.t.Fatal(err)
	}
	p.conn = conn
}

// faults sees every message of the sender's streams.
type faults struct {
	mu      sync.Mutex
	streams int
	onOpen  func(cancel context.CancelFunc) *tap // nil: none
	last    *tap
}

// tap watches one stream. Its functions run on the sender's goroutines; nil ones are skipped.
type tap struct {
	cancel context.CancelFunc
	grpc.ClientStream
	onSend func(x *tap, m any) // before it leaves; may change it
	onSent func(x *tap, m any)
	onRecv func(x *tap, m *sharddv1.StreamResponse) // before the sender sees it

	parts, bytes atomic.Int64
	first        atomic.Int64 // chunk of the first part with data, plus 1
	granted      atomic.Int64 // chunks that the grant names, plus 1
}

func (f *faults) set(onOpen func(cancel context.CancelFunc) *tap) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.onOpen = onOpen
}

func (f *faults) intercept(ctx context.Context, d *grpc.StreamDesc, cc *grpc.ClientConn, method string,
	streamer grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	ctx, cancel := context.WithCancel(ctx)
	cs, err := streamer(ctx, d, cc, method, opts...)
	if err != nil {
		cancel()
		return nil, err
	}
	context.AfterFunc(cs.Context(), cancel)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.streams++
	x := &tap{}
	if f.onOpen != nil {
		if y := f.onOpen(cancel); y != nil {
			x = y
		}
	}
	x.cancel, x.ClientStream = cancel, cs
	f.last = x
	return x, nil
}

func (x *tap) SendMsg(m any) error {
	if f, ok := m.(*partFrame); ok && f.data != nil {
		x.first.CompareAndSwap(0, int64(f.chunk)+1)
		x.parts.Add(1)
		x.bytes.Add(int64(f.data.Len()))
	}
	if x.onSend != nil {
		x.onSend(x, m)
	}
	err := x.ClientStream.SendMsg(m)
	if x.onSent != nil {
		x.onSent(x, m)
	}
	return err
}

func (x *tap) RecvMsg(m any) error {
	if err := x.ClientStream.RecvMsg(m); err != nil {
		return err
	}
	r := m.(*sharddv1.StreamResponse)
	if g := r.GetGranted(); g != nil {
		x.granted.Store(int64(g.GetChunks()) + 1)
	}
	if x.onRecv != nil {
		x.onRecv(x, r)
	}
	return nil
}

// testShard makes a shard on the source whose replica 2 on the sink is to be fed.
func (p *pair) testShard(id base.ShardID, rows, valueBytes int) *base.Descriptor {
	p.t.Helper()
	d := &base.Descriptor{
		Shard: id, Start: fmt.Appendf([]byte{base.SpaceUser}, "s%04d", id),
		End:   fmt.Appendf([]byte{base.SpaceUser}, "s%04d", id+1),
		Epoch: base.Epoch{ConfVer: 2, Version: 1}, NextReplicaID: 3,
		Replicas: []base.ReplicaDesc{
			{Replica: 1, Store: source, Role: base.RoleVoter}, {Replica: 2, Store: sink, Role: base.RoleLearner},
		},
	}
	b := p.from.engine.NewBatch()
	defer b.Close()
	b.CreateReplica(d, 1, 1, nil)
	if err := p.from.engine.Commit(b, true); err != nil {
		p.t.Fatal(err)
	}
	p.write(d, rows, valueBytes, 100)
	return d
}

// write puts rows and moves the applied index.
func (p *pair) write(d *base.Descriptor, rows, valueBytes int, index uint64) {
	p.t.Helper()
	r := rand.New(rand.NewPCG(index, uint64(d.Shard)))
	b := p.from.engine.NewBatch()
	defer b.Close()
	value := make([]byte, valueBytes)
	for i := range rows {
		for j := range value {
			value[j] = byte(r.Uint32())
		}
		b.Put(fmt.Appendf(bytes.Clone(d.Start), "%06d", i), engine.ValueHeader{Version: index}, value)
	}
	b.SetApplied(d.Shard, &engine.AppliedState{Index: index, Term: engine.InitialTerm, Conf: engine.ConfStateOf(d)})
	if err := p.from.engine.Commit(b, true); err != nil {
		p.t.Fatal(err)
	}
}

// contents returns every row of a shard.
func contents(t testing.TB, e *engine.Engine, d *base.Descriptor) (rows []string) {
	t.Helper()
	it, err := e.NewIter(d.Start, d.End, false)
	if err != nil {
		t.Fatal(err)
	}
	for ; it.Valid(); it.Next() {
		rows = append(rows, fmt.Sprintf("%x %d %x", it.Key(), it.Header().Version, it.Value()))
	}
	if err := errors.Join(it.Err(), it.Close()); err != nil {
		t.Fatal(err)
	}
	return rows
}

// same fails unless the sink has exactly these rows, and is applied to index.
func (p *pair) same(d *base.Descriptor, want []string, index uint64) {
	p.t.Helper()
	got := contents(p.t, p.to.engine, d)
	if !slices.Equal(got, want) {
		p.t.Fatalf("%s: %d rows arrived, or other ones, want %d", d.Shard, len(got), len(want))
	}
	st, ok, err := p.to.engine.ReplicaState(d.Shard)
	if err != nil || !ok {
		p.t.Fatalf("replica state: %v, %v", ok, err)
	}
	if st.Applied.Index != index || st.Mark.ReplicaID != 2 || st.Desc.String() != d.String() {
		p.t.Fatalf("replica state %+v, want index %d and %s", st, index, d)
	}
}

// send requests a snapshot; the channel gets every call of Done.
func (p *pair) send(d *base.Descriptor, edit ...func(*Request)) <-chan error {
	done := make(chan error, 10)
	req := Request{
		Shard: d.Shard, From: 1, To: 2, ToStore: sink, Term: 7, Index: 100, Done: func(err error) { done <- err },
	}
	for _, f := range edit {
		f(&req)
	}
	p.from.service.Send(req)
	return done
}

func (p *pair) await(done <-chan error) error {
	p.t.Helper()
	end := time.NewTimer(limit)
	defer end.Stop()
	select {
	case err := <-done:
		return err
	case <-end.C:
		p.t.Fatal("the snapshot does not end")
		return nil
	}
}

func (p *pair) mustSend(d *base.Descriptor) {
	p.t.Helper()
	if err := p.await(p.send(d)); err != nil {
		p.t.Fatal(err)
	}
}
