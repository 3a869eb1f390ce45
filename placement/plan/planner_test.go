package plan

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/shardd/shardd/internal/base"
)

// crowd puts all shards on the first three stores.
func crowd(stores, shards int) *View {
	return build(zones(stores, 3), shards, func(int) ([]base.StoreID, uint64, Load) {
		return []base.StoreID{1, 2, 3}, 64 << 20, Load{}
	})
}

func TestAFailedOperatorIsNotTriedAgainAtOnce(t *testing.T) {
	v := crowd(6, 1)
	v.SetMember(Member{ID: 1, Labels: map[string]string{"zone": "a"}, Commission: Decommissioning}, time.Second)
	p := NewPlanner(0)
	cfg := Config{Off: PartLeaders}
	alive := func(now time.Duration) {
		for _, s := range v.Stores() {
			s.Seen = now
		}
	}
	now, last := time.Second, time.Duration(0)
	for want := 10 * time.Second; want <= 160*time.Second; want *= 2 {
		alive(now)
		r := p.Round(v, cfg, now, nil)
		if len(r.Ops) != 1 || r.Ops[0].Kind != OpMove {
			t.Fatalf("at %s: %v", now, r.Ops)
		}
		if avoid := r.Ops[0].To; last != 0 && avoid == 4 {
			t.Fatal("the store that failed is tried again")
		}
		op := r.Ops[0]
		op.ID = 7
		p.Started(&op)
		op.To = 4 // the one that failed
		p.Ended(&op, "no snapshot came through", now, cfg)
		alive(now + want - time.Millisecond)
		if r := p.Round(v, cfg, now+want-time.Millisecond, nil); len(r.Ops) != 0 {
			t.Fatalf("tried again after less than %s", want)
		}
		last = now
		now += want
	}
	w, ok := p.WhyOperator(7, 10)
	if !ok || !strings.Contains(w.Summary, "no snapshot came through") || len(w.Past) < 2 {
		t.Fatalf("%+v", w)
	}
}

func TestTheJournalStaysWithinItsBytes(t *testing.T) {
	var j journal
	for i := range 10_000 {
		seq := j.add(Decision{Shard: base.ShardID(i), Outcome: strings.Repeat("x", i%500)}, 64<<10)
		j.name(seq, uint64(i+1))
	}
	if j.size > 64<<10 || len(j.ring) < 50 {
		t.Fatalf("%d bytes in %d entries", j.size, len(j.ring))
	}
	got := j.newest(3, func(d *Decision) bool { return d.Operator > 0 })
	if len(got) != 3 || got[0].Shard != 9999 || got[0].Operator != 10_000 {
		t.Fatalf("%+v", got)
	}
	j.name(1, 5) // long gone
}

// TestAPlannerThatRemembersPlansLikeOneThatDoesNot lets a cluster change at random and compares the needs that the
// incremental checks left with those of a view in which every shard is checked anew.
func TestAPlannerThatRemembersPlansLikeOneThatDoesNot(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
		n := rapid.IntRange(3, 8).Draw(t, "stores")
		v := build(zones(n, 3), 40, func(int) ([]base.StoreID, uint64, Load) {
			perm := rng.Perm(n)
			return []base.StoreID{base.StoreID(perm[0] + 1), base.StoreID(perm[1] + 1), base.StoreID(perm[2] + 1)},
				uint64(rng.IntN(300 << 20)), Load{Reads: uint32(rng.IntN(50))}
		})
		w := newWorld(v, Config{}, 256<<20)
		for range rapid.IntRange(1, 30).Draw(t, "steps") {
			s := v.order[rng.IntN(n)]
			switch rapid.IntRange(0, 7).Draw(t, "what") {
			case 0:
				w.dead[s.ID] = !w.dead[s.ID]
				w.elect()
			case 1:
				m := s.Member
				m.Commission = Decommissioning - m.Commission
				v.SetMember(m, w.now)
			case 2:
				m := s.Member
				m.Drain = DrainReplicas - m.Drain
				v.SetMember(m, w.now)
			case 3:
				sh := v.shards[base.ShardID(2+rng.IntN(40))]
				if sh != nil {
					v.setNumbers(sh, uint64(rng.IntN(600<<20)), 0, Load{Reads: uint32(rng.IntN(9000))})
				}
			case 4:
				m := s.Member
				m.Labels = map[string]string{"zone": string(rune('a' + rng.IntN(3)))}
				v.SetMember(m, w.now)
			default:
				w.round()
				w.to(w.now + time.Duration(rng.IntN(int(8*time.Minute))))
			}
		}
		w.round()
		fresh := v.Clone()
		cfg := w.cfg
		fresh.Tick(&cfg, w.now)
		fresh.refresh(&cfg)
		for id, sh := range v.shards {
			if f := fresh.shards[id]; f.need != sh.need || f.spare != sh.spare || f.ready != sh.ready {
				t.Fatalf("%s needs %v (spare %d, ready %v), checked anew %v (%d, %v)", sh, sh.need.Names(), sh.spare, sh.ready,
					f.need.Names(), f.spare, f.ready)
			}
		}
		if err := v.Check(); err != nil {
			t.Fatal(err)
		}
	})
}

func TestSimulateShowsWhatANewNodeGets(t *testing.T) {
	v := crowd(3, 60)
	cfg := Config{}
	before := fmt.Sprint(v.Store(1).Replicas, v.Store(2).Replicas, v.Store(3).Replicas)
	got := Simulate(v, cfg, Trial{Add: []map[string]string{{"zone": "a"}, {"zone": "b"}, {"zone": "c"}}})
	if got.Unfinished || len(got.Problems) > 0 {
		t.Fatalf("%v", got.Problems)
	}
	for _, n := range got.Nodes {
		if n.After.Replicas < 29 || n.After.Replicas > 31 || n.After.Leaders < 9 || n.After.Leaders > 11 {
			t.Fatalf("%s: %+v", n.ID, n.After)
		}
	}
	moves := 0
	for _, m := range got.Moves {
		if m.Kind == OpMove {
			moves++
		}
	}
	if moves < 87 || moves > 93 || got.Bytes != uint64(moves)*64<<20 || got.Took < 10*time.Second {
		t.Fatalf("%d moves, %d bytes, %s", moves, got.Bytes, got.Took)
	}
	if fmt.Sprint(v.Store(1).Replicas, v.Store(2).Replicas, v.Store(3).Replicas) != before {
		t.Fatal("the live view changed")
	}
	again := Simulate(v, cfg, Trial{Add: []map[string]string{{"zone": "a"}, {"zone": "b"}, {"zone": "c"}}})
	if fmt.Sprint(again) != fmt.Sprint(got) {
		t.Fatal("another run gives another result")
	}
}

func TestSimulateSaysWhatStaysWrong(t *testing.T) {
	v := crowd(6, 30)
	lost := Simulate(v, Config{}, Trial{Lose: []base.StoreID{1}})
	if lost.Unfinished || len(lost.Problems) > 0 || lost.Nodes[0].After.Replicas != 0 || lost.Nodes[0].Note != "lost" {
		t.Fatalf("%+v", lost)
	}
	two := Simulate(v, Config{}, Trial{Lose: []base.StoreID{1, 2}})
	if len(two.Problems) == 0 || !strings.Contains(strings.Join(two.Problems, "\n"), "30 shards: without quorum") {
		t.Fatalf("%v", two.Problems)
	}
	gone := Simulate(crowd(3, 5), Config{}, Trial{Remove: []base.StoreID{2}})
	if !strings.Contains(strings.Join(gone.Problems, "\n"), "n2 keeps 5 replicas") {
		t.Fatalf("%v", gone.Problems)
	}
	five := Simulate(v, Config{}, Trial{Rules: &Uniform{Voters: 5, Levels: DefaultLevels()}})
	if len(five.Problems) > 0 || five.Nodes[0].After.Replicas < 24 {
		t.Fatalf("%+v", five)
	}
}

// BenchmarkMillion shows what a million shards on a thousand stores cost: the bytes of a shard in the view, the first
// round, which checks all, a round in which nothing changed, and one in which a thousand shards did.
//
//	go test ./placement/plan -run '^$' -bench Million -benchtime 20x
func BenchmarkMillion(b *testing.B) {
	const stores, shards = 1000, 1_000_000
	before := liveHeap()
	v := NewView()
	for i := range stores {
		v.SetMember(Member{ID: base.StoreID(i + 1), Labels: map[string]string{
			"zone": string(rune('a' + i%3)), "host": fmt.Sprint(i),
		}}, 0)
	}
	leads := func(i int) [3]base.StoreID {
		k := i % (stores / 3)
		return [3]base.StoreID{base.StoreID(3*k + i%3 + 1), base.StoreID(3*k + (i+1)%3 + 1), base.StoreID(3*k + (i+2)%3 + 1)}
	}
	report := func(i int, on base.StoreID, size uint64) ReplicaReport {
		s := leads(i)
		d := desc(base.ShardID(i+2), fmt.Sprintf("user%012d", i), fmt.Sprintf("user%012d", i+1), 1, 1, s[:]...)
		r := holds(d, on, on == s[0])
		r.Size = size
		r.Load = Load{Reads: 50, Writes: 10, ReadBytes: 50 << 10}
		return r
	}
	for s := range stores / 3 * 3 {
		on := base.StoreID(s + 1)
		r := StoreReport{Store: on, Incarnation: 1, Full: true}
		for i := s / 3; i < shards; i += stores / 3 {
			r.Replicas = append(r.Replicas, report(i, on, 100<<20))
		}
		if _, err := v.Report(&r); err != nil {
			b.Fatal(err)
		}
	}
	perShard := float64(liveHeap()-before) / shards
	cfg := Config{Off: PartMerge | PartHot}
	p := NewPlanner(0)
	p.waiting = false
	at := time.Now()
	r := p.Round(v, cfg, time.Second, nil)
	first := time.Since(at)
	if r.Checked < shards {
		b.Fatalf("checked %d", r.Checked)
	}
	var running []*Operator
	for i := range r.Ops {
		running = append(running, &r.Ops[i])
	}
	now := time.Second
	var quiet, busy time.Duration
	checked := 0
	for n := 0; b.Loop(); n++ {
		now += time.Millisecond
		at := time.Now()
		p.Round(v, cfg, now, running)
		quiet += time.Since(at)
		changed := StoreReport{Store: 1, Incarnation: 1, At: now}
		for i := 0; i < 1000; i++ {
			changed.Replicas = append(changed.Replicas, report(i*(stores/3), 1, uint64(100+n%2*300)<<20))
		}
		if _, err := v.Report(&changed); err != nil {
			b.Fatal(err)
		}
		at = time.Now()
		checked += p.Round(v, cfg, now, running).Checked
		busy += time.Since(at)
	}
	b.ReportMetric(perShard, "B/shard")
	b.ReportMetric(float64(first.Milliseconds()), "ms/first-round")
	b.ReportMetric(float64(quiet.Microseconds())/float64(b.N), "us/quiet-round")
	b.ReportMetric(float64(busy.Microseconds())/float64(b.N), "us/busy-round")
	b.ReportMetric(float64(checked)/float64(b.N), "checked/busy-round")
}

func liveHeap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}
