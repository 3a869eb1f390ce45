package snapshotter

import (
	"context"
	"errors"
	"hash/crc32"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/mem"

	"github.com/shardd/shardd/engine"
	"github.com/shardd/shardd/internal/base"
)

// damage replaces a part's data by a copy with one byte changed.
func damage(f *partFrame, at int) []byte {
	b := f.data.ReadOnlyData()
	c := append([]byte(nil), b...)
	c[at%len(c)] ^= 0x40
	f.data.Free()
	f.data = mem.SliceBuffer(c)
	return c
}

func TestADamagedPartIsSentAgain(t *testing.T) {
	p := newPair(t, options{})
	d := p.testShard(10, 2000, 500)
	want := contents(t, p.from.engine, d)
	var hit atomic.Bool
	p.faults.set(func(context.CancelFunc) *tap {
		return &tap{onSend: func(x *tap, m any) {
			if f, ok := m.(*partFrame); ok && x.parts.Load() == 5 && !hit.Swap(true) {
				damage(f, 1000)
			}
		}}
	})
	p.mustSend(d)
	p.same(d, want, 100)
	if p.faults.streams != 2 {
		t.Errorf("%d streams", p.faults.streams)
	}
}

func TestPartsThatAreAlwaysDamagedEndTheSnapshot(t *testing.T) {
	p := newPair(t, options{})
	d := p.testShard(10, 2000, 500)
	p.faults.set(func(context.CancelFunc) *tap {
		return &tap{onSend: func(x *tap, m any) {
			if f, ok := m.(*partFrame); ok && f.chunk == 4 && f.data != nil {
				damage(f, 7)
			}
		}}
	})
	err := p.await(p.send(d))
	if err == nil || !strings.Contains(err.Error(), "chunk 4 arrives damaged") {
		t.Fatalf("got %v", err)
	}
	if _, ok, _ := p.to.engine.ReplicaState(d.Shard); ok {
		t.Error("something was installed")
	}
}

// TestAChunkThatIsNotWhatItSaysIsDeclined has a sender whose checksum fits the damaged table.
func TestAChunkThatIsNotWhatItSaysIsDeclined(t *testing.T) {
	p := newPair(t, options{})
	d := p.testShard(10, 2000, 500)
	p.faults.set(func(context.CancelFunc) *tap {
		return &tap{onSend: func(x *tap, m any) {
			f, ok := m.(*partFrame)
			if !ok || f.chunk != 2 || len(f.header) == 0 {
				return
			}
			c, err := engine.DecodeChunkHeader(f.header)
			if err != nil || !f.last {
				t.Errorf("header: %v, last %v", err, f.last)
				return
			}
			c.CRC = crc32.Checksum(damage(f, 100), crc32.MakeTable(crc32.Castagnoli))
			f.header = c.AppendHeader(nil)
		}}
	})
	var no *DeclinedError
	if err := p.await(p.send(d)); !errors.As(err, &no) || !strings.Contains(no.Reason, "chunk 2") {
		t.Fatalf("got %v", err)
	}
	waitFor(t, "staging is gone", func() bool { return p.to.engine.StagedBytes() == 0 })
}

func TestADeclineWithAWaitIsAskedAgain(t *testing.T) {
	p := newPair(t, options{})
	d := p.testShard(10, 500, 500)
	want := contents(t, p.from.engine, d)
	no := 3
	p.to.target.accept = func(*engine.SnapshotMeta) error {
		if no--; no >= 0 {
			return &DeclinedError{Reason: "split pending", Wait: 5 * time.Millisecond}
		}
		return nil
	}
	p.mustSend(d)
	p.same(d, want, 100)
	if n, _ := p.to.target.counts(); n < 5 { // three times no, once before and once with the view
		t.Errorf("asked %d times", n)
	}
}

func TestADeclineEndsTheSnapshot(t *testing.T) {
	p := newPair(t, options{config: func(c *Config) { c.Timeouts.Reserve = 100 * time.Millisecond }})
	d := p.testShard(10, 500, 500)
	for _, c := range []struct {
		name string
		wait time.Duration
		set  func(err error)
	}{
		{"at once", 0, func(err error) { p.to.target.accept = func(*engine.SnapshotMeta) error { return err } }},
		{"after asking for long", 20 * time.Millisecond, func(err error) {
			p.to.target.accept = func(*engine.SnapshotMeta) error { return err }
		}},
		{"for what the view holds", 0, func(err error) {
			n := 0
			p.to.target.accept = func(*engine.SnapshotMeta) error {
				if n++; n == 2 {
					return err
				}
				return nil
			}
		}},
		{"by the install", 0, func(err error) {
			p.to.target.install = func(context.Context, *engine.SnapshotMeta) error { return err }
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			p.to.target.set(func() {
				p.to.target.accept, p.to.target.install = nil, nil
				c.set(&DeclinedError{Reason: c.name, Wait: c.wait})
			})
			var no *DeclinedError
			if err := p.await(p.send(d)); !errors.As(err, &no) || no.Reason != c.name || no.Wait != c.wait {
				t.Fatalf("got %v", err)
			}
			waitFor(t, "staging is gone", func() bool { return p.to.engine.StagedBytes() == 0 })
		})
	}
}

func TestARequestThatDoesNotFitTheReplicaEnds(t *testing.T) {
	p := newPair(t, options{})
	d := p.testShard(10, 500, 500)
	if err := p.await(p.send(d, func(r *Request) { r.Index = 101 })); !errors.Is(err, ErrStale) {
		t.Errorf("index: %v", err)
	}
	if err := p.await(p.send(d, func(r *Request) { r.To = 3 })); !errors.Is(err, ErrStale) {
		t.Errorf("replica: %v", err)
	}
	if err := p.await(p.send(d, func(r *Request) { r.Shard = 77 })); !errors.Is(err, engine.ErrNoReplica) {
		t.Errorf("shard: %v", err)
	}
}

func TestALaterRequestReplacesTheEarlierOne(t *testing.T) {
	p := newPair(t, options{})
	d := p.testShard(10, 3000, 500)
	want := contents(t, p.from.engine, d)
	reached, free := make(chan struct{}), make(chan struct{})
	var held atomic.Bool
	release := sync.OnceFunc(func() { close(free) })
	defer release()
	p.faults.set(func(context.CancelFunc) *tap {
		return &tap{onSend: func(x *tap, m any) {
			if x.parts.Load() == 4 && !held.Swap(true) {
				close(reached)
				<-free
			}
		}}
	})
	first := p.send(d)
	<-reached
	second := p.send(d, func(r *Request) { r.Term = 8 })
	if err := p.await(second); err != nil {
		t.Fatal(err)
	}
	release()
	if err := p.await(first); !errors.Is(err, ErrReplaced) {
		t.Fatalf("got %v", err)
	}
	p.same(d, want, 100)
}

func TestTheEndOfRunEndsEverySnapshot(t *testing.T) {
	p := newPair(t, options{config: func(c *Config) { c.MaxSending = 1 }})
	d, e := p.testShard(10, 3000, 500), p.testShard(11, 10, 10)
	waiting := make(<-chan error)
	var once sync.Once
	p.faults.set(func(context.CancelFunc) *tap {
		return &tap{onSend: func(x *tap, m any) {
			if x.parts.Load() == 4 {
				once.Do(func() {
					waiting = p.send(e)
					p.from.stop()
					<-x.Context().Done()
				})
			}
		}}
	})
	if err := p.await(p.send(d)); !errors.Is(err, ErrStopped) {
		t.Fatalf("got %v", err)
	}
	p.from.halt()
	if err := p.await(waiting); !errors.Is(err, ErrStopped) {
		t.Fatalf("got %v", err)
	}
	if err := p.await(p.send(d)); !errors.Is(err, ErrStopped) { // inside Send
		t.Fatalf("got %v", err)
	}
}

func TestTheReceiverStopsInTheMiddle(t *testing.T) {
	p := newPair(t, options{config: func(c *Config) { c.Timeouts.Resume = 200 * time.Millisecond }})
	d := p.testShard(10, 3000, 500)
	p.faults.set(func(context.CancelFunc) *tap {
		return &tap{onSend: func(x *tap, m any) {
			if x.parts.Load() == 4 {
				p.to.stop()
				<-x.Context().Done()
			}
		}}
	})
	if err := p.await(p.send(d)); err == nil {
		t.Fatal("installed on a store that stops")
	}
	waitFor(t, "staging is gone", func() bool { return p.to.engine.StagedBytes() == 0 })
}

// TestEveryDoneIsCalledOnce has snapshots of many shards broken, damaged, declined, replaced and restarted at random.
func TestEveryDoneIsCalledOnce(t *testing.T) {
	r := seeded(t)
	p := newPair(t, options{config: func(c *Config) {
		c.MaxSending, c.MaxReceiving, c.MaxWaiting = 4, 2, 3
		c.Timeouts = Timeouts{
			Idle: 2 * time.Second, Resume: time.Second, Reserve: 2 * time.Second, ReserveWait: 20 * time.Millisecond,
		}
	}})
	var shards []*base.Descriptor
	var want [][]string
	for i := range 6 {
		d := p.testShard(base.ShardID(10+i), 20+r.IntN(1200), 400)
		shards, want = append(shards, d), append(want, contents(t, p.from.engine, d))
	}
	var mu sync.Mutex
	pick := func(n int) int {
		mu.Lock()
		defer mu.Unlock()
		return r.IntN(n)
	}
	chance := func(n int) bool { return pick(n) == 0 }
	p.faults.set(func(context.CancelFunc) *tap {
		return &tap{onSend: func(x *tap, m any) {
			f, ok := m.(*partFrame)
			switch {
			case chance(25):
				x.cancel()
			case ok && f.data != nil && chance(25):
				damage(f, 11)
			}
		}}
	})
	odd := func() error {
		switch {
		case chance(8):
			return &DeclinedError{Reason: "later", Wait: 5 * time.Millisecond}
		case chance(20):
			return &DeclinedError{Reason: "never"}
		case chance(20):
			return errors.New("an error")
		}
		return nil
	}
	p.to.target.set(func() {
		p.to.target.accept = func(*engine.SnapshotMeta) error { return odd() }
		p.to.target.install = func(context.Context, *engine.SnapshotMeta) error { return odd() }
	})
	type call struct {
		calls   atomic.Int32
		request int
	}
	var all []*call
	var ended, succeeded atomic.Int32
	for i := range 40 {
		c := &call{request: i}
		all = append(all, c)
		d := shards[pick(len(shards))]
		p.send(d, func(q *Request) {
			q.Term = uint64(7 + i)
			q.Priority = Priority(i % 2)
			q.Done = func(err error) {
				c.calls.Add(1)
				ended.Add(1)
				if err == nil {
					succeeded.Add(1)
				}
			}
		})
		if i%4 == 3 { // else they would only replace each other
			n := int32(i - 4)
			waitFor(t, "some end", func() bool { return ended.Load() >= n })
		}
	}
	waitFor(t, "all end", func() bool { return int(ended.Load()) >= len(all) })
	p.faults.set(nil)
	p.to.target.set(func() { p.to.target.accept, p.to.target.install = nil, nil })
	for i, d := range shards {
		if err := p.await(p.send(d, func(q *Request) { q.Term = 100 })); err != nil {
			t.Fatal(err)
		}
		p.same(d, want[i], 100)
	}
	p.from.halt()
	for _, c := range all {
		if n := c.calls.Load(); n != 1 {
			t.Errorf("Done of request %d was called %d times", c.request, n)
		}
	}
	t.Logf("%d of %d succeeded", succeeded.Load(), len(all))
}
