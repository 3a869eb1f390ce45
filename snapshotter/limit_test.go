package snapshotter

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"

	sharddv1 "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/engine"
	"github.com/shardd/shardd/internal/base"
)

// manual is a clock that sleeping moves.
type manual struct {
	mu  sync.Mutex
	now time.Duration
}

func (c *manual) Boot() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *manual) Wall() time.Time { return time.Unix(0, 0) }

func (c *manual) sleep(_ context.Context, d time.Duration) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now += d
	return nil
}

// about allows for the rounding of the bucket.
func about(got, want time.Duration) bool {
	return got > want-time.Millisecond && got < want+time.Millisecond
}

func TestThePacerGivesBytesAtItsRate(t *testing.T) {
	c := &manual{}
	var waited time.Duration
	p := newPacer(c, 1<<20, func(d time.Duration) { waited += d })
	p.sleep = c.sleep
	ctx := t.Context()
	if n, err := p.take(ctx, 5<<20); n != 1<<20 || err != nil || waited != 0 {
		t.Fatalf("the full bucket gave %d, %v, after %s", n, err, waited)
	}
	if n, err := p.take(ctx, 5<<20); n != sliceBytes || err != nil || !about(waited, time.Second/4) {
		t.Fatalf("the empty bucket gave %d, %v, after %s", n, err, waited)
	}
	if err := p.takeAll(ctx, 2<<20); err != nil || !about(waited, 2250*time.Millisecond) {
		t.Fatalf("2 MiB took %s, %v", waited, err)
	}
	p.setLimit(4 << 20)
	waited = 0
	if err := p.takeAll(ctx, 2<<20); err != nil || !about(waited, time.Second/2) {
		t.Fatalf("2 MiB at 4 MiB/s took %s, %v", waited, err)
	}
	gone, cancel := context.WithCancelCause(ctx)
	cancel(ErrReplaced)
	p.sleep = sleep
	if _, err := p.take(gone, 1<<20); !errors.Is(err, ErrReplaced) {
		t.Fatalf("got %v", err)
	}
}

// TestStreamsKeepTheLimits measures on a clock that only waiting for tokens moves.
func TestStreamsKeepTheLimits(t *testing.T) {
	for _, side := range []base.StoreID{source, sink} {
		t.Run(side.String(), func(t *testing.T) {
			p := newPair(t, options{})
			d := p.testShard(10, 4000, 1000)
			h := p.from
			pace := h.service.send
			if side == sink {
				h = p.to
				pace = h.service.receive
			}
			send, receive := h.service.SetLimits(1<<20, 1<<20)
			if send != 1<<20 || receive != 1<<20 {
				t.Fatalf("limits %d and %d", send, receive)
			}
			if send, receive = h.service.SetLimits(0, 1); send != 1<<20 || receive != MinBytesPerSecond {
				t.Fatalf("limits %d and %d", send, receive)
			}
			h.service.SetLimits(0, 1<<20)
			c := &manual{}
			pace.clock, pace.sleep = c, c.sleep
			fresh := newPacer(c, 1<<20, pace.waited)
			pace.bucket = fresh.bucket
			size := p.stateBytes(d)
			p.mustSend(d)
			least := time.Duration(float64(size-partBytes) / float64(1<<20) * float64(time.Second))
			if c.Boot() < least-time.Millisecond || c.Boot() > least+2*time.Second {
				t.Errorf("%d bytes took %s at 1 MiB/s, want about %s", size, c.Boot(), least)
			}
		})
	}
}

func TestTheQueueStartsRecoveryFirst(t *testing.T) {
	s := &Service{cfg: testConfig().withDefaults()}
	q := newQueue(1)
	var jobs []*job
	for i, p := range []Priority{Rebalance, Rebalance, Recovery, Rebalance, Recovery} {
		j := newJob(s, Request{Shard: base.ShardID(i + 1), To: 2, Priority: p})
		jobs = append(jobs, j)
		q.add(j)
	}
	var order []base.ShardID
	for range jobs {
		ready, ended, _ := q.next(0)
		if len(ready) != 1 || len(ended) != 0 {
			t.Fatalf("%d ready, %d ended", len(ready), len(ended))
		}
		order = append(order, ready[0].req.Shard)
		if again, _, _ := q.next(0); len(again) != 0 {
			t.Fatal("two jobs share one slot")
		}
		q.leave(ready[0], false, 0)
	}
	if want := []base.ShardID{3, 5, 1, 2, 4}; !slices.Equal(order, want) {
		t.Fatalf("order %v, want %v", order, want)
	}
}

func TestAJobThatWasPutOffHoldsNoSlot(t *testing.T) {
	s := &Service{cfg: testConfig().withDefaults()}
	q := newQueue(1)
	a, b := newJob(s, Request{Shard: 1, To: 2}), newJob(s, Request{Shard: 2, To: 2})
	q.add(a)
	q.add(b)
	ready, _, _ := q.next(0)
	if !q.leave(ready[0], true, time.Minute) {
		t.Fatal("it may not wait")
	}
	ready, _, wait := q.next(0)
	if len(ready) != 1 || ready[0] != b || wait != time.Minute {
		t.Fatalf("%d ready, wait %s", len(ready), wait)
	}
	q.leave(b, false, 0)
	if ready, _, _ = q.next(time.Minute); len(ready) != 1 || ready[0] != a {
		t.Fatal("it does not come again")
	}
	// Replaced while it runs: it may not come back.
	if old, ok := q.add(newJob(s, Request{Shard: 1, To: 2})); old != a || !ok {
		t.Fatal("not replaced")
	}
	if q.leave(a, true, 0) {
		t.Fatal("a replaced job waits again")
	}
}

func TestTheReceiverAdmitsRecoveryFirst(t *testing.T) {
	a := newAdmission(1, 10, 1000)
	ctx := t.Context()
	if err := a.enter(ctx, Rebalance, 5000, time.Minute); err != nil { // alone, whatever its size
		t.Fatal(err)
	}
	got := make(chan string, 3)
	waiting := func(n int) {
		waitFor(t, "waits", func() bool { _, _, w := a.state(); return w == n })
	}
	var wg sync.WaitGroup
	for i, x := range []struct {
		name string
		p    Priority
	}{{"first rebalance", Rebalance}, {"second rebalance", Rebalance}, {"recovery", Recovery}} {
		wg.Go(func() {
			if err := a.enter(ctx, x.p, 600, time.Minute); err != nil {
				t.Error(err)
			}
			got <- x.name
		})
		waiting(i + 1)
	}
	a.leave(5000)
	var order []string
	for range 3 {
		order = append(order, <-got)
		a.leave(600)
	}
	wg.Wait()
	if want := []string{"recovery", "first rebalance", "second rebalance"}; !slices.Equal(order, want) {
		t.Fatalf("order %v", order)
	}
}

func TestTheReceiverDeclinesWhenItIsBusy(t *testing.T) {
	a := newAdmission(1, 1, 1000)
	ctx := t.Context()
	if err := a.enter(ctx, Rebalance, 1, time.Minute); err != nil {
		t.Fatal(err)
	}
	if err := a.enter(ctx, Rebalance, 1, time.Millisecond); !errors.Is(err, errBusy) {
		t.Fatalf("got %v", err)
	}
	// One place to wait: recovery takes it from rebalance.
	first, second := make(chan error, 1), make(chan error, 1)
	go func() { first <- a.enter(ctx, Rebalance, 1, time.Minute) }()
	waitFor(t, "waits", func() bool { _, _, w := a.state(); return w == 1 })
	go func() { second <- a.enter(ctx, Recovery, 1, time.Minute) }()
	if err := <-first; !errors.Is(err, errTooMany) {
		t.Fatalf("got %v", err)
	}
	a.leave(1)
	if err := <-second; err != nil {
		t.Fatal(err)
	}
	a.leave(1)
	if slots, bytes, waiting := a.state(); slots != 0 || bytes != 0 || waiting != 0 {
		t.Fatalf("%d slots, %d bytes, %d waiting", slots, bytes, waiting)
	}
}

// TestNoMoreSnapshotsAreReceivedThanSlots looks at every moment when a slot is taken.
func TestNoMoreSnapshotsAreReceivedThanSlots(t *testing.T) {
	p := newPair(t, options{config: func(c *Config) {
		c.MaxSending, c.MaxReceiving = 6, 2
		c.Timeouts.ReserveWait = 20 * time.Millisecond
	}})
	var dones []<-chan error
	var shards []*base.Descriptor
	for i := range 6 {
		shards = append(shards, p.testShard(base.ShardID(10+i), 600, 500))
	}
	p.to.target.install = func(context.Context, *engine.SnapshotMeta) error {
		if slots, _, _ := p.to.service.admission.state(); slots > 2 {
			t.Errorf("%d slots are taken", slots)
		}
		return nil
	}
	for _, d := range shards {
		dones = append(dones, p.send(d))
	}
	for i, done := range dones {
		if err := p.await(done); err != nil {
			t.Error(err)
		}
		p.same(shards[i], contents(t, p.from.engine, shards[i]), 100)
	}
}

func TestTheMemoryBudgetIsKept(t *testing.T) {
	b := newBudget(100)
	ctx := t.Context()
	first, err := b.take(ctx, 60)
	if err != nil {
		t.Fatal(err)
	}
	gone, cancel := context.WithCancelCause(ctx)
	failed := make(chan error, 1)
	go func() {
		_, err := b.take(gone, 1000) // all there is
		failed <- err
	}()
	waiting := func(n int) {
		waitFor(t, "waits", func() bool {
			b.mu.Lock()
			defer b.mu.Unlock()
			return len(b.mu.waiting) == n
		})
	}
	waiting(1)
	small := make(chan func(), 1)
	go func() {
		release, err := b.take(ctx, 40)
		if err != nil {
			t.Error(err)
		}
		small <- release
	}()
	waiting(2) // it fits, but does not overtake
	cancel(ErrStopped)
	if err := <-failed; !errors.Is(err, ErrStopped) {
		t.Fatalf("got %v", err)
	}
	second := <-small
	if b.used() != 100 {
		t.Fatalf("%d used", b.used())
	}
	first()
	first()
	second()
	if b.used() != 0 {
		t.Fatalf("%d used", b.used())
	}
}

func TestPartsAreWrittenAsProtobufReadsThem(t *testing.T) {
	sst := make([]byte, 100_000)
	for i := range sst {
		sst[i] = byte(i * 7)
	}
	released := 0
	tab := newTable(&engine.Chunk{SST: sst}, func() { released++ })
	for _, f := range []*partFrame{
		{chunk: 3},
		{chunk: 300, header: []byte("header"), data: tab.part(0, 70_000)},
		{chunk: 1 << 30, data: tab.part(99_990, 10), last: true},
		{chunk: 0, data: tab.part(5, 5000), last: true},
	} {
		bufs, err := newCodec().Marshal(f)
		if err != nil {
			t.Fatal(err)
		}
		var got sharddv1.StreamRequest
		if err := newCodec().Unmarshal(bufs, &got); err != nil {
			t.Fatal(err)
		}
		want := &sharddv1.SnapshotPart{Chunk: f.chunk, Header: f.header, Last: f.last}
		if f.data != nil {
			want.Data = append([]byte(nil), f.data.ReadOnlyData()...)
		}
		if !proto.Equal(got.GetPart(), want) {
			t.Errorf("part of chunk %d is read as chunk %d, %d bytes", f.chunk, got.GetPart().GetChunk(),
				len(got.GetPart().GetData()))
		}
		bufs.Free()
	}
	if released != 0 {
		t.Fatal("released under the sender")
	}
	tab.done()
	if released != 1 {
		t.Fatalf("released %d times", released)
	}
}

func TestProgressShowsRateAndPhase(t *testing.T) {
	c := &manual{}
	m := newMeter(c, Progress{Shard: 3, Total: 100})
	if p := m.progress(); p.Phase != Waiting || p.Total != 100 || p.Rate != 0 {
		t.Fatalf("%+v", p)
	}
	m.enter(Streaming)
	for range 100 {
		c.now += 100 * time.Millisecond
		m.add(1000)
	}
	p := m.progress()
	if p.Done != 100_000 || p.Total != 100_000 || p.Elapsed != 10*time.Second || p.Rate < 8_000 || p.Rate > 12_000 {
		t.Fatalf("%+v", p)
	}
	c.now += time.Minute
	if p := m.progress(); p.Rate > 1 {
		t.Fatalf("rate %f a minute after the last byte", p.Rate)
	}
	m.enter(Installing)
	if spent := m.spent(); spent[Streaming] != 70*time.Second || m.progress().Rate != 0 {
		t.Fatalf("%v", spent)
	}
}

var _ mem.BufferPool = (*table)(nil)
