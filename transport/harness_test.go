package transport

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"go.etcd.io/etcd/raft/v3/raftpb"
	"go.uber.org/goleak"
	"google.golang.org/grpc"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds every wait of these tests; nothing waits for it to pass.
const patience = 30 * time.Second

// book is an address book that all stores of a test share.
type book struct {
	mu      sync.Mutex
	addrs   map[base.StoreID]string
	seen    map[base.StoreID]uint64
	refused map[base.StoreID]error
}

func newBook() *book {
	return &book{addrs: map[base.StoreID]string{}, seen: map[base.StoreID]uint64{}}
}

func (b *book) Addr(id base.StoreID) (string, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	a, ok := b.addrs[id]
	return a, ok
}

func (b *book) set(id base.StoreID, addr string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.addrs[id] = addr
}

// refuse has every later Hello of a store fail.
func (b *book) refuse(id base.StoreID, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.refused = map[base.StoreID]error{id: err}
}

func (b *book) Hello(id base.StoreID, addr string, incarnation uint64) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.refused[id]; err != nil {
		return err
	}
	if incarnation < b.seen[id] {
		return fmt.Errorf("%s has incarnation %d on record: %w", id, b.seen[id], ErrStale)
	}
	b.seen[id] = incarnation
	return nil
}

// recorder is a Handler that keeps what it gets.
type recorder struct {
	mu   sync.Mutex
	cond *sync.Cond
	msgs []wire.RaftMessage
	lost []group
	live []liveBody
	hold chan struct{} // if set, Step of an append waits for it to close
}

type liveBody struct {
	from        base.StoreID
	incarnation uint64
	payload     string
}

func newRecorder() *recorder {
	r := &recorder{}
	r.cond = sync.NewCond(&r.mu)
	return r
}

func (r *recorder) Step(msgs []wire.RaftMessage) {
	if r.hold != nil && msgs[0].Msg.Type == raftpb.MsgApp {
		<-r.hold
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.msgs = append(r.msgs, msgs...)
	r.cond.Broadcast()
}

func (r *recorder) Unreachable(shard base.ShardID, from, to base.ReplicaID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lost = append(r.lost, group{shard, from, to})
	r.cond.Broadcast()
}

func (r *recorder) Liveness(from base.StoreID, incarnation uint64, payload []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.live = append(r.live, liveBody{from, incarnation, string(payload)})
	r.cond.Broadcast()
}

// until waits for a condition on the record.
func (r *recorder) until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	expired := false
	stop := time.AfterFunc(patience, func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		expired = true
		r.cond.Broadcast()
	})
	defer stop.Stop()
	r.mu.Lock()
	defer r.mu.Unlock()
	for !ok() {
		if expired {
			t.Fatalf("timed out waiting for %s: %d messages, %d losses", what, len(r.msgs), len(r.lost))
		}
		r.cond.Wait()
	}
}

// stepped and lostGroups return what has come so far.
func (r *recorder) stepped() []wire.RaftMessage {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.msgs)
}

func (r *recorder) lostGroups() []group {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.lost)
}

func (r *recorder) has(typ raftpb.MessageType, index uint64) bool {
	for i := range r.msgs {
		if r.msgs[i].Msg.Type == typ && r.msgs[i].Msg.Index == index {
			return true
		}
	}
	return false
}

type store struct {
	t      testing.TB
	id     base.StoreID
	tr     *Transport
	srv    *grpc.Server
	addr   string
	rec    *recorder
	fenced chan error
	stop   func()
}

var testCluster = base.ClusterID{1, 2, 3}

// start runs a store on real loopback TCP. edit may change its configuration; addr "" takes a free port.
func start(t testing.TB, b *book, id base.StoreID, addr string, edit func(*Config)) *store {
	t.Helper()
	if addr == "" {
		addr = "127.0.0.1:0"
	}
	lis, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	s := &store{t: t, id: id, addr: lis.Addr().String(), rec: newRecorder(), fenced: make(chan error, 100)}
	cfg := Config{
		Cluster: testCluster, Store: id, Incarnation: 1, Address: s.addr, Handler: s.rec, Peers: b,
		HeartbeatWindow: 5 * time.Millisecond, Registerer: prometheus.NewRegistry(),
		Fenced: func(err error) { s.fenced <- err },
	}
	if edit != nil {
		edit(&cfg)
	}
	if b != nil && cfg.Address == s.addr {
		b.set(id, s.addr)
	}
	s.tr = New(cfg)
	s.srv = grpc.NewServer(ServerOptions()...)
	s.tr.Register(s.srv)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := s.tr.Run(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("run: %v", err)
		}
	})
	wg.Go(func() { s.srv.Serve(lis) })
	s.stop = sync.OnceFunc(func() {
		cancel()
		s.srv.Stop()
		wg.Wait()
	})
	t.Cleanup(s.stop)
	return s
}

func appendMsg(shard base.ShardID, index uint64, data []byte) wire.RaftMessage {
	return wire.RaftMessage{Shard: shard, From: 1, To: 2, Msg: raftpb.Message{
		Type: raftpb.MsgApp, From: 1, To: 2, Term: 3, Index: index,
		Entries: []raftpb.Entry{{Term: 3, Index: index + 1, Data: data}},
	}}
}

func voteMsg(index uint64) wire.RaftMessage {
	return wire.RaftMessage{Shard: 1, From: 1, To: 2, Msg: raftpb.Message{
		Type: raftpb.MsgVote, From: 1, To: 2, Term: 3, Index: index}}
}

func beatMsg(shard base.ShardID) wire.RaftMessage {
	return wire.RaftMessage{Shard: shard, From: 1, To: 2, Msg: raftpb.Message{
		Type: raftpb.MsgHeartbeat, From: 1, To: 2, Term: 3, Commit: 4}}
}

// sendUntil repeats a message, as raft does, until it is there.
func sendUntil(t testing.TB, from, to *store, m wire.RaftMessage) {
	t.Helper()
	ticker := time.NewTicker(2 * time.Millisecond)
	defer ticker.Stop()
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			from.tr.Send(to.id, []wire.RaftMessage{m})
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
			}
		}
	})
	defer wg.Wait()
	defer cancel()
	to.rec.until(t, fmt.Sprintf("%s %d", m.Msg.Type, m.Msg.Index), func() bool {
		return to.rec.has(m.Msg.Type, m.Msg.Index)
	})
}

func value(c prometheus.Metric) float64 {
	var m dto.Metric
	if err := c.Write(&m); err != nil {
		panic(err)
	}
	if m.Counter != nil {
		return m.Counter.GetValue()
	}
	return m.Gauge.GetValue()
}

// untilMetric polls a counter until it is at least one.
func untilMetric(t *testing.T, what string, c prometheus.Metric) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for value(c) < 1 {
		if time.Now().After(deadline) {
			t.Fatalf("timed out waiting for %s", what)
		}
		<-time.After(time.Millisecond)
	}
}

func fencedBy(t *testing.T, s *store) error {
	t.Helper()
	select {
	case err := <-s.fenced:
		return err
	case <-time.After(patience):
		t.Fatal("the store was not told that it is fenced")
		return nil
	}
}
