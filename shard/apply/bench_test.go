package apply

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"testing"

	"go.etcd.io/etcd/raft/v3/raftpb"

	"github.com/shardd/shardd/internal/wire"
)

const (
	benchOps     = 64 // in an entry
	benchEntries = 4  // in a call
)

func benchKey(i int) string {
	// Spread over the shard like hashed keys, so that the order of emission matters.
	return fmt.Sprintf("c%016x", uint64(i)*0x9e3779b97f4a7c15)
}

// benchCall returns the entries of one call, to be re-indexed for each.
func benchCall(value int, mk func(key, value string) wire.Op) []raftpb.Entry {
	text := string(make([]byte, value))
	ents := make([]raftpb.Entry, benchEntries)
	for i := range ents {
		ops := make([]wire.Op, benchOps)
		for j := range ops {
			ops[j] = mk(benchKey(i*benchOps+j), text)
		}
		ents[i] = entry(0, 6, 0, ops...)
	}
	return ents
}

func putOp(k, v string) wire.Op { return op(wire.OpPut, k, v) }

// BenchmarkApply measures one operation on its way from the log into an engine batch, without the commit.
func BenchmarkApply(b *testing.B) {
	for _, c := range []struct {
		name  string
		value int
		mk    func(k, v string) wire.Op
	}{
		{"put-1KiB", 1 << 10, putOp},
		{"put-16B", 16, putOp},
		{"put-if-absent-16B", 16, func(k, v string) wire.Op { return ifVersion(putOp(k, v), 0) }},
		{"batch-check-put-16B", 16, func(k, v string) wire.Op {
			return batchOp(step(wire.OpCheckAbsent, k, ""), step(wire.OpPut, k, v))
		}},
		{"batch-put-check-16B", 16, func(k, v string) wire.Op {
			return batchOp(step(wire.OpPut, k, v), step(wire.OpCheckPresent, k, ""))
		}},
		{"delete-range", 0, func(k, _ string) wire.Op { return op(wire.OpDeleteRange, k, k+"z") }},
	} {
		b.Run(c.name, func(b *testing.B) {
			s := newStore(b)
			ents := benchCall(c.value, c.mk)
			batch := s.engine.NewBatch()
			defer batch.Close()
			sink := func(_, _ int, _ uint64, a wire.Answer) {
				if a.Code != wire.OK {
					b.Fatalf("%s: %s", a.Code, a.Payload)
				}
			}
			b.ReportAllocs()
			b.SetBytes(int64(len(ents[0].Data) / benchOps))
			for n := 0; n < b.N; n += benchOps * benchEntries {
				s.renumber(ents)
				if err := s.m.Apply(batch, ents, sink); err != nil {
					b.Fatal(err)
				}
				batch.Reset()
			}
		})
	}
}

// BenchmarkApplyCommit measures puts of uniform keys into a memtable that is already large, where insertion is most of
// the cost.
func BenchmarkApplyCommit(b *testing.B) {
	s := &store{tb: b, memTable: 64 << 20} // as on disk
	s.create()
	defer s.close()
	rng := rand.New(rand.NewPCG(1, 1))
	value := string(make([]byte, 100))
	const kinds = 512
	var calls [kinds][]raftpb.Entry
	for i := range calls {
		calls[i] = benchCall(0, func(string, string) wire.Op { return putOp(benchKey(rng.IntN(1_000_000)), value) })
	}
	batch := s.engine.NewBatch()
	defer batch.Close()
	b.ReportAllocs()
	b.ResetTimer()
	for n := 0; n < b.N; n += benchOps * benchEntries {
		ents := calls[n/(benchOps*benchEntries)%kinds]
		s.renumber(ents)
		if err := s.m.Apply(batch, ents, nil); err != nil {
			b.Fatal(err)
		}
		if err := s.engine.Commit(batch, false); err != nil {
			b.Fatal(err)
		}
		batch.Reset()
	}
}

// renumber makes ents the ones after the applied index.
func (s *store) renumber(ents []raftpb.Entry) {
	at := s.m.Applied().Index
	for i := range ents {
		ents[i].Index = at + 1 + uint64(i)
	}
}

func TestUnconditionalPutDoesNotAllocate(t *testing.T) {
	s := newStore(t)
	ents := benchCall(100, putOp)
	batch := s.engine.NewBatch()
	defer batch.Close()
	ok := 0
	sink := func(_, _ int, _ uint64, a wire.Answer) {
		if a.Code == wire.OK {
			ok++
		}
	}
	calls := 0
	perCall := testing.AllocsPerRun(50, func() {
		calls++
		s.renumber(ents)
		if err := s.m.Apply(batch, ents, sink); err != nil {
			t.Fatal(err)
		}
		batch.Reset()
	})
	if ok != calls*benchOps*benchEntries {
		t.Fatalf("%d of %d puts applied", ok, calls*benchOps*benchEntries)
	}
	// A call may allocate its scratch anew when the collector has taken it; an operation may not.
	if perCall > benchOps {
		t.Fatalf("%.0f allocations for %d puts", perCall, benchOps*benchEntries)
	}
}

// A client chooses the number of steps: no order of them may cost the square of it.
func TestLargestBatchOfRangesAndConditions(t *testing.T) {
	s := newStore(t)
	key := func(i int) string { return "c" + string(binary.BigEndian.AppendUint32(nil, uint32(i))) }
	var steps []wire.Sub
	for i, size := 0, 0; ; i++ {
		for _, st := range []wire.Sub{
			step(wire.OpDeleteRange, key(4*i), key(4*i+2)), step(wire.OpPut, key(4*i), ""), checkVersion(key(4*i+1), 0),
			step(wire.OpCheckPresent, key(4*i), ""),
		} {
			size += st.Size()
			steps = append(steps, st)
		}
		if size > 4<<20-1000 {
			break
		}
	}
	steps = append(steps, step(wire.OpCheckAbsent, key(0), ""))
	o := batchOp(steps...)
	// Fails at the end, in one call with itself: everything is taken back, then done again.
	for _, answers := range s.apply([]raftpb.Entry{s.next(1, o, o)}, false) {
		for _, a := range answers {
			if a.Code != wire.ConditionFailed || binary.BigEndian.Uint32(a.Payload) != uint32(len(steps)-1) {
				t.Fatalf("%s %x, want the last of %d steps to fail", a.Code, a.Payload, len(steps))
			}
		}
	}
	if data := s.brief(); data != "" {
		t.Fatalf("stored %q", data)
	}
}
