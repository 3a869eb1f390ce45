package bench

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/shardd/shardd/engine"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
	"github.com/shardd/shardd/shard"
	"github.com/shardd/shardd/transport"
)

// trio is three stores in one process. Messages between them are encoded and decoded as on a wire, and handed over at
// once: what is measured is the pass, with its syncs, and not a network.
type trio struct {
	stores  [3]*shard.Store
	regs    [3]*prometheus.Registry
	leaders []atomic.Uint64 // by shard, from 0: the store that leads it
	led     chan int        // a shard that has found its first leader
}

// linked is one store's way out.
type linked struct {
	from base.StoreID
	to   *trio
}

func (l linked) Send(to base.StoreID, msgs []wire.RaftMessage) {
	frame, err := transport.AppendFrame(nil, msgs)
	if err != nil {
		return // dropped, as a transport would
	}
	out, _, err := transport.DecodeFrame(frame, l.from, to, nil)
	if err == nil {
		l.to.stores[to-1].Step(out)
	}
}

func startTrio(b *testing.B, shards int) *trio {
	b.Helper()
	t := &trio{leaders: make([]atomic.Uint64, shards), led: make(chan int, shards)}
	for i := range t.stores {
		self := base.StoreID(i + 1)
		e, err := engine.Open(engine.Options{Dir: b.TempDir(), Fatal: func(err error) { b.Error(err) }})
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() {
			if err := e.Close(); err != nil {
				b.Error(err)
			}
		})
		t.regs[i] = prometheus.NewRegistry()
		t.stores[i], err = shard.New(shard.Config{Store: self, Incarnation: 1, Engine: e, Sender: linked{self, t},
			Registerer: t.regs[i], OnLeader: func(s base.ShardID, leader base.StoreID, _ uint64) {
				if at := int(s) - 10; leader != 0 && t.leaders[at].Swap(uint64(leader)) == 0 {
					t.led <- at
				}
			},
			Fault: func(s base.ShardID, r base.ReplicaID, why string) { b.Errorf("%s/%d stopped: %s", s, r, why) },
		})
		if err != nil {
			b.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	for _, s := range t.stores {
		running.Go(func() {
			if err := s.Run(ctx); err != nil {
				b.Error(err)
			}
		})
	}
	b.Cleanup(func() {
		cancel()
		running.Wait()
	})
	for i := range shards {
		d := benchDescriptor(i, shards, 3)
		for k := range t.stores {
			at := (i + 1 + k) % 3 // the one that campaigns comes last, when the others can vote
			if err := t.stores[at].Create(d, nil, k == 2); err != nil {
				b.Fatal(err)
			}
		}
	}
	for range shards {
		select {
		case <-t.led:
		case <-time.After(time.Minute):
			b.Fatal("a shard found no leader within a minute")
		}
	}
	return t
}

// answered is one client's place for the answer to its request.
type answered chan wire.Answer

func (a answered) Complete(_ uint64, answer wire.Answer) { a <- answer }

// put writes one record and waits until it is durable on a quorum and applied.
func (t *trio) put(r *rand.Rand, buf, value []byte, done answered) ([]byte, error) {
	shards := len(t.leaders)
	i := r.IntN(shards)
	op := benchPut(r, i, shards, value)
	buf = op.Append(buf[:0])
	// The first writes of a shard may find that its leader has not heard of its election yet.
	for deadline := time.Now().Add(10 * time.Second); ; {
		leader := t.stores[t.leaders[i].Load()-1]
		leader.Write([]shard.WriteRequest{{Shard: op.Shard, Version: op.Version, Raw: buf, Waiter: done}})
		a := <-done
		if a.Code == wire.OK {
			return buf, nil
		}
		if time.Now().After(deadline) || a.Code != wire.NotLeader && a.Code != wire.Busy {
			return nil, fmt.Errorf("write to %s: code %d %s", op.Shard, a.Code, a.Payload)
		}
	}
}

// use sums up the groups and the proposed writes of all synced commits so far.
func (t *trio) use(b *testing.B) (groups, writes Sum) {
	b.Helper()
	for _, reg := range t.regs {
		families, err := reg.Gather()
		if err != nil {
			b.Fatal(err)
		}
		byName := map[string]*dto.MetricFamily{}
		for _, f := range families {
			byName[f.GetName()] = f
		}
		groups.addDifference(Sum{}, sumOf(byName["shardd_shard_commit_groups"]))
		writes.addDifference(Sum{}, sumOf(byName["shardd_shard_commit_writes"]))
	}
	return groups, writes
}

// BenchmarkPass has clients write 1 KiB records, each one at a time, to the leaders of all shards. ns/op is per write,
// for all three stores and their syncs together.
func BenchmarkPass(b *testing.B) {
	for _, shards := range []int{1, 16, 128} {
		for _, clients := range []int{1, 64, 256} {
			b.Run(fmt.Sprintf("shards=%d/clients=%d", shards, clients), func(b *testing.B) {
				t := startTrio(b, shards)
				groups0, writes0 := t.use(b)
				cpu := ownCPU()
				b.SetBytes(benchValue)
				b.ReportAllocs()
				b.ResetTimer()
				var next atomic.Int64
				var running sync.WaitGroup
				for c := range clients {
					running.Go(func() {
						r := rand.New(rand.NewPCG(1, uint64(c)))
						value, done := benchValueOf(r), make(answered, 1)
						var buf []byte
						var err error
						for next.Add(1) <= int64(b.N) {
							if buf, err = t.put(r, buf, value, done); err != nil {
								b.Error(err)
								return
							}
						}
					})
				}
				running.Wait()
				b.StopTimer()
				cpu = ownCPU() - cpu
				groups1, writes1 := t.use(b)
				var groups, writes Sum
				groups.addDifference(groups0, groups1)
				writes.addDifference(writes0, writes1)
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "writes/s")
				b.ReportMetric(float64(cpu.Microseconds())/float64(b.N), "cpu-us/write")
				b.ReportMetric(groups.mean(), "groups/commit")
				b.ReportMetric(writes.mean(), "writes/commit")
			})
		}
	}
}
