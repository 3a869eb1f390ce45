package bench

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/shardd/shardd/client"
	"github.com/shardd/shardd/client/admin"
	"github.com/shardd/shardd/engine"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
	"github.com/shardd/shardd/node"
	"github.com/shardd/shardd/shard"
)

// What the benchmarks here are for is the processor's share and what is allocated; the time of those that write is the
// disk's.

// lone is a store whose shards have no other replica. Nothing runs: the benchmark makes the passes.
type lone struct {
	*shard.Store
	shards int
	open   int // requests without an answer
	failed wire.Answer
}

// Complete implements shard.Waiter.
func (l *lone) Complete(_ uint64, a wire.Answer) {
	l.open--
	if a.Code != wire.OK {
		l.failed = a
	}
}

type nowhere struct{}

func (nowhere) Send(base.StoreID, []wire.RaftMessage) {}

func newLone(b *testing.B, shards int) *lone {
	b.Helper()
	e, err := engine.Open(engine.Options{Dir: b.TempDir(), Fatal: func(err error) { b.Error(err) }})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := e.Close(); err != nil {
			b.Error(err)
		}
	})
	led := 0
	l := &lone{shards: shards}
	l.Store, err = shard.New(shard.Config{Store: 1, Incarnation: 1, Engine: e, Sender: nowhere{}, Workers: 1, ApplyWorkers: 1,
		Limits:   shard.Limits{GroupQueue: 1 << 30, StoreQueue: 1 << 30},
		OnLeader: func(_ base.ShardID, leader base.StoreID, _ uint64) { led += int(leader) },
		Fault:    func(s base.ShardID, _ base.ReplicaID, why string) { b.Errorf("%s stopped: %s", s, why) }})
	if err != nil {
		b.Fatal(err)
	}
	for i := range shards {
		if err := l.Create(benchDescriptor(i, shards, 1), nil, true); err != nil {
			b.Fatal(err)
		}
	}
	for deadline := time.Now().Add(time.Minute); led < shards; {
		if !l.Poll() {
			runtime.Gosched() // a sync is under way
		}
		if time.Now().After(deadline) {
			b.Fatalf("%d of %d shards are led", led, shards)
		}
	}
	l.drain(b)
	return l
}

// drain makes passes until everything is answered.
func (l *lone) drain(b *testing.B) {
	b.Helper()
	for {
		if !l.Poll() {
			if l.open == 0 {
				break
			}
			time.Sleep(50 * time.Microsecond) // a sync is under way: spinning would be counted
		}
	}
	if l.failed.Code != 0 {
		b.Fatalf("code %s: %s", l.failed.Code, l.failed.Payload)
	}
}

// writes makes n requests to random shards. Their bytes are the store's: every call has its own.
func (l *lone) writes(r *rand.Rand, n int, value []byte) []shard.WriteRequest {
	reqs := make([]shard.WriteRequest, n)
	for i := range reqs {
		op := benchPut(r, r.IntN(l.shards), l.shards, value)
		reqs[i] = shard.WriteRequest{Shard: op.Shard, Version: op.Version, Req: uint64(i), Raw: op.Append(nil), Waiter: l}
	}
	return reqs
}

// BenchmarkIntake queues a frame of writes: all that happens on the goroutine that received it.
func BenchmarkIntake(b *testing.B) {
	for _, n := range []int{1, 16} {
		b.Run(fmt.Sprintf("writes=%d", n), func(b *testing.B) {
			l := newLone(b, 16)
			r := rand.New(rand.NewPCG(1, 1))
			reqs := l.writes(r, n, benchValueOf(r))
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				l.open += n
				l.Write(reqs)
				if l.open >= 4096 {
					b.StopTimer()
					l.drain(b)
					b.StartTimer()
				}
			}
			b.StopTimer()
			l.drain(b)
		})
	}
}

// BenchmarkStore takes a frame of writes through the whole of one store: intake, propose, pass, log, apply, answer.
func BenchmarkStore(b *testing.B) {
	for _, n := range []int{1, 16, 256} {
		b.Run(fmt.Sprintf("writes=%d", n), func(b *testing.B) {
			l := newLone(b, 16)
			r := rand.New(rand.NewPCG(1, 1))
			frames := make([][]shard.WriteRequest, 64)
			for i := range frames {
				frames[i] = l.writes(r, n, benchValueOf(r))
			}
			b.ReportAllocs()
			cpu := ownCPU()
			for i := 0; b.Loop(); i++ {
				l.open += n
				l.Write(frames[i%len(frames)])
				l.drain(b)
			}
			b.ReportMetric(float64((ownCPU()-cpu).Microseconds())/float64(b.N*n), "cpu-us/write")
		})
	}
}

// BenchmarkRead answers a Get of one of 10,000 records, as a stream's handler does once it may.
func BenchmarkRead(b *testing.B) {
	l := newLone(b, 16)
	r := rand.New(rand.NewPCG(1, 1))
	value := benchValueOf(r)
	ops := make([]wire.Op, 10_000)
	reqs := make([]shard.WriteRequest, len(ops))
	for i := range ops {
		ops[i] = benchPut(r, i%16, 16, value)
		reqs[i] = shard.WriteRequest{Shard: ops[i].Shard, Version: 1, Req: uint64(i), Raw: ops[i].Append(nil), Waiter: l}
		ops[i].Code, ops[i].Value = wire.OpGet, nil
	}
	l.open = len(reqs)
	l.Write(reqs)
	l.drain(b)
	buf := make([]byte, 0, 4<<10)
	b.SetBytes(benchValue)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if buf = l.Read(&ops[i%len(ops)], buf[:0]); len(buf) < benchValue {
			b.Fatalf("an answer of %d bytes", len(buf))
		}
	}
}

// BenchmarkRoundTrip is what a client sees of a node in the same process: loopback gRPC, one replica.
func BenchmarkRoundTrip(b *testing.B) {
	db := startLoneNode(b)
	ctx := context.Background()
	value := benchValueOf(rand.New(rand.NewPCG(1, 1)))
	key := func(n int) []byte { return fmt.Appendf(nil, "user%06d", n) }
	for i := range 1000 {
		if _, err := db.All().Put(ctx, key(i), value); err != nil {
			b.Fatal(err)
		}
	}
	for _, clients := range []int{1, 64} {
		for name, do := range map[string]func(n int) error{
			"get": func(n int) error { _, err := db.All().Get(ctx, key(n)); return err },
			"put": func(n int) error { _, err := db.All().Put(ctx, key(n), value); return err },
		} {
			b.Run(fmt.Sprintf("%s/clients=%d", name, clients), func(b *testing.B) {
				b.SetBytes(benchValue)
				b.ReportAllocs()
				cpu := ownCPU()
				b.ResetTimer()
				var running sync.WaitGroup
				for c := range clients {
					running.Go(func() {
						r := rand.New(rand.NewPCG(2, uint64(c)))
						for i := c; i < b.N; i += clients {
							if err := do(r.IntN(1000)); err != nil {
								b.Error(err)
								return
							}
						}
					})
				}
				running.Wait()
				b.StopTimer()
				b.ReportMetric(float64((ownCPU()-cpu).Microseconds())/float64(b.N), "cpu-us/op")
			})
		}
	}
}

// startLoneNode starts a cluster of one node and returns a client of it.
func startLoneNode(b *testing.B) *client.DB {
	b.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	n, err := node.New(node.Config{DataDir: b.TempDir(), Listen: "127.0.0.1:0", Version: "bench",
		Logger:   slog.New(slog.DiscardHandler),
		Settings: node.Settings{NoBalance: true},
		Fatal:    func(err error) { b.Error(err) }})
	if err != nil {
		b.Fatal(err)
	}
	var running sync.WaitGroup
	running.Go(func() {
		if err := n.Run(ctx); err != nil && !errors.Is(err, context.Canceled) {
			b.Error(err)
		}
	})
	b.Cleanup(func() {
		cancel()
		running.Wait()
	})
	a, err := admin.Open([]string{n.Addr()})
	if err != nil {
		b.Fatal(err)
	}
	defer a.Close()
	deadline, stop := context.WithTimeout(ctx, time.Minute)
	defer stop()
	if _, err := a.Init(deadline, []string{n.Addr()}, nil); err != nil {
		b.Fatal(err)
	}
	db, err := client.Open(deadline, []string{n.Addr()})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := db.Close(); err != nil {
			b.Error(err)
		}
	})
	return db
}
