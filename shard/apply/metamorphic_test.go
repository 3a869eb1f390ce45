package apply

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"reflect"
	"testing"

	"go.etcd.io/etcd/raft/v3/raftpb"

	"github.com/shardd/shardd/engine"
	"github.com/shardd/shardd/internal/wire"
)

// Package variables of a test binary only: how many logs to try, and which one to repeat.
var (
	metamorphicLogs = flag.Int("metamorphic-logs", 60, "random logs to apply under random cuts and crashes")
	metamorphicSeed = flag.Uint64("metamorphic-seed", 0, "repeat the log of one seed (0: draw)")
)

// TestCutsAndCrashesDoNotShow is rule S4: one log, applied under random cuts into calls and with crashes that lose an
// unsynced tail, gives the bytes and answers of the model that applies one operation at a time.
func TestCutsAndCrashesDoNotShow(t *testing.T) {
	seeds := []uint64{*metamorphicSeed}
	if *metamorphicSeed == 0 {
		seeds = seeds[:0]
		n := *metamorphicLogs
		if testing.Short() {
			n = min(n, 10)
		}
		for range n {
			seeds = append(seeds, rand.Uint64()|1)
		}
	}
	codes := map[wire.Code]int{}
	crashes, lost := 0, 0
	for _, seed := range seeds {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			g := newGenerator(seed)
			log := make([]item, 80+g.rng.IntN(160))
			for i := range log {
				log[i] = g.next()
				for _, r := range log[i].replies {
					codes[r.code]++
				}
			}
			s := newStore(t)
			c, l := s.replay(log, rand.New(rand.NewPCG(seed, 2)))
			crashes, lost = crashes+c, lost+l
			if got, want := s.dump(), g.model.dump(); got != want {
				t.Errorf("stored\n%s\nwant\n%s", got, want)
			}
		})
	}
	// The test must have been about something.
	t.Logf("answers %v, %d crashes, %d entries lost and applied again", codes, crashes, lost)
	if *metamorphicSeed == 0 {
		for _, c := range []wire.Code{wire.OK, wire.ConditionFailed, wire.EpochMismatch, wire.Invalid} {
			if codes[c] == 0 {
				t.Errorf("no answer was %s", c)
			}
		}
		if crashes == 0 || lost == 0 {
			t.Errorf("%d crashes lost %d entries", crashes, lost)
		}
	}
}

// replay applies the log to its end and checks every answer, those of repeated entries too. It returns the number of
// crashes and of entries that they lost.
func (s *store) replay(log []item, rng *rand.Rand) (crashes, lost int) {
	s.tb.Helper()
	first, synced := log[0].entry.Index, uint64(engine.InitialIndex)
	for at := 0; at < len(log); {
		sync := rng.IntN(6) == 0
		if log[at].desc != nil {
			s.confChange(log[at], sync)
			at++
		} else {
			n := 0
			for limit := 1 + rng.IntN(12); n < limit && at+n < len(log) && log[at+n].desc == nil; n++ {
			}
			s.applyItems(log[at:at+n], sync)
			at += n
		}
		applied := s.m.Applied().Index
		if sync {
			synced = applied
		}
		if rng.IntN(10) == 0 {
			s.crash([]int{0, 50, 100}[rng.IntN(3)], rng.Int64())
			crashes++
			now := s.m.Applied().Index
			if now < synced || now > applied {
				s.tb.Fatalf("applied %d after a crash, was %d, synced up to %d", now, applied, synced)
			}
			lost += int(applied - now)
			at, synced = int(now+1-first), now
		}
	}
	return crashes, lost
}

func (s *store) confChange(it item, sync bool) {
	s.tb.Helper()
	conf := engine.ConfStateOf(it.desc)
	b := s.engine.NewBatch()
	if err := s.m.ApplyConfState(b, it.entry.Index, it.entry.Term, &conf, it.desc); err != nil {
		s.tb.Fatal(err)
	}
	s.commit(b, sync)
}

func (s *store) applyItems(items []item, sync bool) {
	s.tb.Helper()
	ents := make([]raftpb.Entry, len(items))
	for i := range items {
		ents[i] = items[i].entry
	}
	for i, answers := range s.apply(ents, sync) {
		var got []reply
		for _, a := range answers {
			got = append(got, replyOf(a))
		}
		if !reflect.DeepEqual(got, items[i].replies) {
			s.tb.Fatalf("entry %d: answers %+v, want %+v", ents[i].Index, got, items[i].replies)
		}
	}
}

// Who waits for answers must not change what is stored.
func TestSinkDoesNotShow(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	g := newGenerator(seed)
	s := newStore(t)
	for range 200 {
		it := g.next()
		if it.desc != nil {
			s.confChange(it, false)
			continue
		}
		b := s.engine.NewBatch()
		if err := s.m.Apply(b, []raftpb.Entry{it.entry}, nil); err != nil {
			t.Fatal(err)
		}
		s.commit(b, false)
	}
	if got, want := s.dump(), g.model.dump(); got != want {
		t.Fatalf("stored\n%s\nwant\n%s", got, want)
	}
}
