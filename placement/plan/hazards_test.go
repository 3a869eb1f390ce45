package plan

import (
	"strings"
	"testing"
	"time"

	"github.com/shardd/shardd/internal/base"
)

// yugabyte#5186: a new control-plane leader moved things before it had heard from all stores.
func TestANewDriverStartsNothingBeforeItHasHeardFromAllStores(t *testing.T) {
	v := NewView()
	for i, l := range zones(4, 3) {
		v.SetMember(Member{ID: base.StoreID(i + 1), Labels: l}, 0)
	}
	p := NewPlanner(0)
	d := desc(2, "a", "z", 1, 1, 1, 2, 3)
	// Until the others have told, the shard seems to be led by nobody and to have one live replica.
	now := time.Second
	hear := func(id base.StoreID) {
		r := StoreReport{Store: id, Incarnation: 1, At: now, Full: true}
		if _, ok := d.ReplicaOn(id); ok {
			r.Replicas = []ReplicaReport{holds(d, id, id == 3)}
		}
		mustReport(t, v, r)
	}
	hear(1)
	for ; now < 59*time.Second; now += time.Second {
		hear(1)
		r := p.Round(v, Config{}, now, nil)
		if len(r.Ops) > 0 || !strings.Contains(r.Waiting, "3 of 4 nodes have not reported yet, n2 first") {
			t.Fatalf("at %s: %q, %v", now, r.Waiting, r.Ops)
		}
	}
	for id := base.StoreID(1); id <= 4; id++ {
		hear(id)
	}
	if r := p.Round(v, Config{}, now, nil); r.Waiting != "" || len(r.Ops) > 0 {
		t.Fatalf("%q, %v", r.Waiting, r.Ops)
	}
	// It does not wait again for a store that falls silent later.
	if r := p.Round(v, Config{}, now+time.Minute, nil); r.Waiting != "" {
		t.Fatal(r.Waiting)
	}
	// One that never hears of a store waits for the grace period only.
	late := NewPlanner(0)
	empty := v.Clone()
	empty.SetMember(Member{ID: 9}, now)
	if r := late.Round(empty, Config{}, 61*time.Second, nil); r.Waiting != "" {
		t.Fatal(r.Waiting)
	}
}

// pd#4136, cockroach#108420: schedulers undid each other, and shards were split and merged in turn.
func TestSplitsAndMergesDoNotFlap(t *testing.T) {
	v := build(zones(6, 3), 40, func(i int) ([]base.StoreID, uint64, Load) {
		a := base.StoreID(i%2*3 + 1)
		sizes := []uint64{10 << 20, 300 << 20, 1 << 20, 700 << 20, 25 << 20}
		return []base.StoreID{a, a + 1, a + 2}, sizes[i%len(sizes)], Load{Reads: uint32(i % 3)}
	})
	w := newWorld(v, Config{}, 128<<20)
	split, merged := map[base.ShardID]int{}, 0
	var last time.Duration
	w.done = func(op *Operator) {
		switch op.Kind {
		case OpSplit:
			split[op.Shard]++
		case OpMerge:
			merged++
			if split[op.Shard]+split[op.Other] > 0 {
				t.Fatalf("%s was split before", op)
			}
		}
		last = w.now
	}
	for w.now < 6*time.Hour {
		w.round()
		next := w.now + 5*time.Second
		if len(w.running) > 0 {
			next = min(next, max(w.running[0].ends, w.now+time.Second))
		}
		w.to(next)
	}
	for id, n := range split {
		if n > 1 {
			t.Fatalf("%s was split %d times", id, n)
		}
	}
	if len(split) != 16 || merged < 4 || last > 3*time.Hour {
		t.Fatalf("%d split, %d merged, the last at %s", len(split), merged, last)
	}
	for sh := range v.Shards("") {
		if r := v.Right(sh); r != nil && sh.Size+r.Size < 20<<20 && sh.class&classSmall != 0 && r.class&classSmall != 0 {
			t.Fatalf("%s and %s stay small", sh, r)
		}
	}
	if err := v.Check(); err != nil {
		t.Fatal(err)
	}
}

func TestStoresAreNotDownForTheTimeThatTheDriverSlept(t *testing.T) {
	cfg := Config{}.WithDefaults()
	v := NewView()
	for id := base.StoreID(1); id <= 4; id++ {
		v.SetMember(Member{ID: id}, 0)
		if id < 4 {
			if _, err := v.Report(&StoreReport{Store: id, Incarnation: 1, Full: true, At: time.Minute}); err != nil {
				t.Fatal(err)
			}
		}
	}
	now := time.Hour // it slept from the second minute on
	v.Forgive(now-2*time.Minute, now)
	v.Tick(&cfg, now)
	for _, s := range v.Stores() {
		if s.Down() {
			t.Errorf("%s is down", s.ID)
		}
	}
	now += 4*time.Minute + time.Second
	v.Tick(&cfg, now)
	if !v.Store(1).Down() {
		t.Error("a store that stays silent is not down in time")
	}
}
