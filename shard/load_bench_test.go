package shard

import (
	"slices"
	"testing"
	"time"

	"go.etcd.io/etcd/raft/v3/raftpb"

	"github.com/shardd/shardd/engine"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/clock"
	"github.com/shardd/shardd/internal/wire"
)

// BenchmarkCountedRead compares reads of 1 KiB from memory with and without counting and sampling, in turns, so that
// what else goes on in the machine falls on both. Beside much other work on two cores it was 1.11 quiet and 1.12
// sampled, or 50 ns, where a read costs a server 19 us and more altogether.
func BenchmarkCountedRead(b *testing.B) {
	for _, busy := range []bool{false, true} {
		name := "quiet"
		if busy {
			name = "sampled"
		}
		b.Run(name, func(b *testing.B) {
			eng, err := engine.Open(engine.Options{Dir: "data", FS: engine.NewMemFS()})
			if err != nil {
				b.Fatal(err)
			}
			defer eng.Close()
			s, err := New(Config{Store: 1, Incarnation: 1, Engine: eng, Sender: nobody{}, Clock: clock.System()})
			if err != nil {
				b.Fatal(err)
			}
			get := op(wire.OpGet, 7, "key", "")
			if err := s.Create(desc(7, "", "", 1), []engine.KV{{Key: get.Key, Value: make([]byte, 1024)}}, false); err != nil {
				b.Fatal(err)
			}
			for s.Poll() {
			}
			r := s.lookup(7)
			if busy {
				r.load.sampler.Store(newSampler(1, s.clock.Boot()))
			}
			s.SetSplitLimits(SplitLimits{Requests: -1, RequestBytes: -1, CPUMicros: -1})
			buf := make([]byte, 0, 4096)
			const block = 256
			var counted, bare []time.Duration // by block
			for n := 0; n < b.N; n += block {
				start := time.Now()
				for range block {
					buf = s.Read(&get, buf[:0])
				}
				mid := time.Now()
				for range block {
					_ = get.Validate() // Read's own checks
					buf = s.get(s.serving(7), &get, buf[:0])
				}
				counted, bare = append(counted, mid.Sub(start)), append(bare, time.Since(mid))
				if !busy {
					r.load.sampler.Store(nil)
				}
			}
			// The lower quarter of the blocks is those that nothing came between.
			slices.Sort(counted)
			slices.Sort(bare)
			c, p := counted[len(counted)/4], bare[len(bare)/4]
			b.ReportMetric(float64(c)/float64(p), "ratio")
			b.ReportMetric(float64(c-p)/block, "ns-more/read")
		})
	}
}

// BenchmarkCountedApply is what counting adds to one run of sixteen entries of 1 KiB each: all the accounting of writes
// but the sampling.
func BenchmarkCountedApply(b *testing.B) {
	eng, err := engine.Open(engine.Options{Dir: "data", FS: engine.NewMemFS()})
	if err != nil {
		b.Fatal(err)
	}
	defer eng.Close()
	s, err := New(Config{Store: 1, Incarnation: 1, Engine: eng, Sender: nobody{}, Clock: clock.System()})
	if err != nil {
		b.Fatal(err)
	}
	if err := s.Create(desc(7, "", "", 1), nil, false); err != nil {
		b.Fatal(err)
	}
	for s.Poll() {
	}
	r := s.lookup(7)
	put := op(wire.OpPut, 7, "key", string(make([]byte, 1024)))
	h := wire.EntryHeader{Kind: wire.EntryData, Count: 1}
	ents := make([]raftpb.Entry, 16)
	for i := range ents {
		ents[i].Data = put.Append(h.Append(nil))
	}
	var before, after engine.Stats
	b.ReportAllocs()
	for b.Loop() {
		before = after
		after.PutOps, after.PutBytes = after.PutOps+16, after.PutBytes+16*1028
		began := s.clock.Boot()
		now := s.clock.Boot()
		r.countApplied(ents, now-began, now)
		r.grew(&before, &after, now)
	}
}

type nobody struct{}

func (nobody) Send(base.StoreID, []wire.RaftMessage) {}
