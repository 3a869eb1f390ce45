package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	sharddv1 "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/engine"
	"github.com/shardd/shardd/internal/base"
)

func TestTheWholeStateArrives(t *testing.T) {
	for _, disk := range []bool{false, true} {
		t.Run(fmt.Sprintf("disk=%v", disk), func(t *testing.T) {
			p := newPair(t, options{disk: disk})
			for i, c := range []struct{ rows, value int }{{0, 0}, {1, 10}, {10, 50}, {3000, 500}, {200, 20_000}} {
				d := p.testShard(base.ShardID(10+i), c.rows, c.value)
				want := contents(t, p.from.engine, d)
				p.mustSend(d)
				p.same(d, want, 100)
				// Once more over what is there, newer and shorter.
				b := p.from.engine.NewBatch()
				b.DeleteRange(d.Start, append(append([]byte(nil), d.Start...), "000005"...))
				if err := p.from.engine.Commit(b, false); err != nil {
					t.Fatal(err)
				}
				b.Close()
				p.write(d, 3, 40, 101)
				want = contents(t, p.from.engine, d)
				p.mustSend(d)
				p.same(d, want, 101)
			}
		})
	}
}

func TestASmallShardIsSentWithoutWaitingForTheGrant(t *testing.T) {
	p := newPair(t, options{config: func(c *Config) { c.SmallBytes = 1 << 20 }})
	d := p.testShard(10, 100, 100)
	finished := make(chan struct{})
	p.faults.set(func(context.CancelFunc) *tap {
		return &tap{
			onSent: func(_ *tap, m any) {
				if r, ok := m.(*sharddv1.StreamRequest); ok && r.GetFinish() != nil {
					close(finished)
				}
			},
			onRecv: func(*tap, *sharddv1.StreamResponse) { <-finished }, // no grant is seen before
		}
	})
	want := contents(t, p.from.engine, d)
	p.mustSend(d)
	p.same(d, want, 100)

	p.faults.set(nil)
	p.to.target.set(func() {
		p.to.target.accept = func(*engine.SnapshotMeta) error { return &DeclinedError{Reason: "no"} }
	})
	var no *DeclinedError
	if err := p.await(p.send(d)); !errors.As(err, &no) || no.Reason != "no" || no.Store != sink {
		t.Fatalf("got %v", err)
	}
}

func TestWritesDuringTheStreamAreNotInIt(t *testing.T) {
	p := newPair(t, options{})
	d := p.testShard(10, 2000, 300)
	want := contents(t, p.from.engine, d)
	var once sync.Once
	p.faults.set(func(context.CancelFunc) *tap {
		return &tap{onSend: func(x *tap, m any) {
			if x.parts.Load() == 3 {
				once.Do(func() {
					p.write(d, 1500, 100, 200)
					b := p.from.engine.NewBatch()
					defer b.Close()
					b.DeleteRange(d.Start, d.End)
					b.SetApplied(d.Shard, &engine.AppliedState{Index: 201, Term: 6, Conf: engine.ConfStateOf(d)})
					if err := p.from.engine.Commit(b, true); err != nil {
						t.Error(err)
					}
				})
			}
		}}
	})
	p.mustSend(d)
	p.same(d, want, 100)
}

// TestABrokenStreamGoesOnBehindWhatIsStaged breaks streams at random parts and looks at where the next one starts.
func TestABrokenStreamGoesOnBehindWhatIsStaged(t *testing.T) {
	r := seeded(t)
	p := newPair(t, options{})
	d := p.testShard(10, 4000, 500)
	want := contents(t, p.from.engine, d)
	var mu sync.Mutex
	var taps []*tap
	var known int64 // chunks that the sender was told of
	const breaks = 6
	p.faults.set(func(context.CancelFunc) *tap {
		mu.Lock()
		defer mu.Unlock()
		x := &tap{onRecv: func(x *tap, m *sharddv1.StreamResponse) {
			mu.Lock()
			defer mu.Unlock()
			if s := m.GetStaged(); s != nil {
				known = max(known, int64(s.GetChunks()))
			}
			if g := m.GetGranted(); g != nil && int64(g.GetChunks()) < known {
				t.Errorf("%d chunks are granted, %d were staged", g.GetChunks(), known)
			}
		}}
		if len(taps) < breaks {
			at := 1 + r.Int64N(8)
			x.onSent = func(x *tap, _ any) {
				if x.parts.Load() >= at {
					x.cancel()
				}
			}
		}
		taps = append(taps, x)
		return x
	})
	p.mustSend(d)
	p.same(d, want, 100)
	if len(taps) < breaks+1 {
		t.Fatalf("%d streams", len(taps))
	}
	var sent int64
	size := p.from.service.Progress()
	for i, x := range taps {
		sent += x.bytes.Load()
		if first, granted := x.first.Load(), x.granted.Load(); first != 0 && first != granted {
			t.Errorf("stream %d: starts at chunk %d, %d are there", i, first-1, granted-1)
		}
	}
	if len(size) != 0 {
		t.Errorf("progress after the end: %+v", size)
	}
	// Each break costs what was on its way: one chunk being written, one assembled, a part of a third in the window.
	if most := int64(p.stateBytes(d)) + breaks*10*(64<<10); sent > most {
		t.Errorf("%d bytes sent, at most %d", sent, most)
	}
	if _, installs := p.to.target.counts(); installs != 1 {
		t.Errorf("%d installs", installs)
	}
}

// stateBytes is what the shard takes as tables.
func (p *pair) stateBytes(d *base.Descriptor) (n uint64) {
	p.t.Helper()
	v, err := p.from.engine.OpenView(d.Shard)
	if err != nil {
		p.t.Fatal(err)
	}
	defer v.Close()
	var from []byte
	for seq := uint32(0); ; seq++ {
		c, next, err := v.Chunk(seq, from, 64<<10)
		if err != nil {
			p.t.Fatal(err)
		}
		n += uint64(c.Size)
		if next == nil {
			return n
		}
		from = next
	}
}

func TestAReceiverThatRestartsIsSentEverythingAgain(t *testing.T) {
	p := newPair(t, options{})
	d := p.testShard(10, 3000, 500)
	want := contents(t, p.from.engine, d)
	reached, restarted := make(chan struct{}), make(chan struct{})
	streams := 0
	var again *tap
	p.faults.set(func(context.CancelFunc) *tap {
		streams++
		if streams > 1 {
			again = &tap{}
			return again
		}
		return &tap{
			onRecv: func(x *tap, m *sharddv1.StreamResponse) {
				if m.GetStaged().GetChunks() == 5 {
					close(reached)
				}
			},
			onSend: func(x *tap, _ any) {
				if x.parts.Load() == 8 {
					<-restarted
				}
			},
		}
	})
	done := p.send(d)
	<-reached
	p.to.halt()
	if err := p.to.engine.Close(); err != nil {
		t.Fatal(err)
	}
	p.to.open()
	if n := p.to.engine.StagedBytes(); n != 0 {
		t.Errorf("%d bytes are staged after a restart", n)
	}
	p.to.start(options{})
	close(restarted)
	if err := p.await(done); err != nil {
		t.Fatal(err)
	}
	p.same(d, want, 100)
	p.faults.mu.Lock()
	defer p.faults.mu.Unlock()
	if again.first.Load() != 1 || again.granted.Load() != 1 {
		t.Errorf("the next stream started at chunk %d", again.first.Load()-1)
	}
}

func TestAnInstallOutlivesItsStream(t *testing.T) {
	p := newPair(t, options{})
	d := p.testShard(10, 1000, 300)
	want := contents(t, p.from.engine, d)
	inside, broken := make(chan struct{}), make(chan struct{})
	release := sync.OnceFunc(func() { close(broken) })
	defer release()
	p.to.target.install = func(ctx context.Context, _ *engine.SnapshotMeta) error {
		close(inside)
		<-broken
		return ctx.Err()
	}
	done := p.send(d)
	<-inside
	p.faults.mu.Lock()
	p.faults.last.cancel()
	p.faults.mu.Unlock()
	waitFor(t, "the sender comes back", func() bool {
		p.faults.mu.Lock()
		defer p.faults.mu.Unlock()
		return p.faults.streams > 1
	})
	release()
	if err := p.await(done); err != nil {
		t.Fatal(err)
	}
	p.same(d, want, 100)
	if _, n := p.to.target.counts(); n != 1 {
		t.Errorf("installed %d times", n)
	}
}

func TestASnapshotThatNobodyComesBackForIsRemoved(t *testing.T) {
	p := newPair(t, options{config: func(c *Config) { c.Timeouts.Resume = 50 * time.Millisecond }})
	d := p.testShard(10, 2000, 500)
	p.faults.set(func(context.CancelFunc) *tap {
		return &tap{
			onRecv: func(x *tap, m *sharddv1.StreamResponse) {
				if m.GetStaged().GetChunks() == 3 {
					p.from.stop()
				}
			},
			onSend: func(x *tap, _ any) {
				if x.parts.Load() == 8 {
					<-x.Context().Done()
				}
			},
		}
	})
	if err := p.await(p.send(d)); !errors.Is(err, ErrStopped) {
		t.Fatalf("got %v", err)
	}
	waitFor(t, "staging is gone", func() bool { return p.to.engine.StagedBytes() == 0 })
	waitFor(t, "the session is gone", func() bool { return len(p.to.service.Progress()) == 0 })
}

func TestAReceiverThatGoesAwayForGoodEndsTheSnapshot(t *testing.T) {
	p := newPair(t, options{config: func(c *Config) { c.Timeouts.Resume = 300 * time.Millisecond }})
	d := p.testShard(10, 2000, 500)
	p.to.server.Stop()
	err := p.await(p.send(d))
	if err == nil || !strings.Contains(err.Error(), "no progress") || status.Code(err) != codes.Unavailable {
		t.Fatalf("got %v", err)
	}
}

func TestASilentReceiverIsGivenUp(t *testing.T) {
	p := newPair(t, options{config: func(c *Config) {
		c.Timeouts.Resume = 200 * time.Millisecond
		if c.Store == source {
			c.Timeouts.Idle = 50 * time.Millisecond
		}
	}})
	d := p.testShard(10, 2000, 500)
	hold := make(chan struct{})
	p.to.target.accept = func(*engine.SnapshotMeta) error { <-hold; return nil }
	defer close(hold)
	err := p.await(p.send(d))
	if !errors.Is(err, errIdle) {
		t.Fatalf("got %v", err)
	}
}

func TestASnapshotThatTakesTooLongForItsSizeEnds(t *testing.T) {
	p := newPair(t, options{config: func(c *Config) {
		c.Timeouts.Snapshot, c.Timeouts.SlowestRate = 100*time.Millisecond, 1<<40
	}})
	d := p.testShard(10, 2000, 500)
	hold := make(chan struct{})
	p.to.target.install = func(ctx context.Context, _ *engine.SnapshotMeta) error { <-hold; return nil }
	defer close(hold)
	err := p.await(p.send(d))
	if !errors.Is(err, ErrTimeout) {
		t.Fatalf("got %v", err)
	}
}
