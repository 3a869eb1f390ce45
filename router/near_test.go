package router

import (
	"context"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
)

// nearWorld has one shard on the stores 1 to 3, led by store 1, and a router for which the higher id is the nearer.
func nearWorld(near func(base.StoreID) int) (*world, *Router) {
	w := newWorld(10)
	return w, New(Config{Directory: w, Sender: w, Near: near})
}

func anyGet(m ReadMode) wire.Op {
	op := wire.Op{Code: wire.OpGet, Key: key(1)}
	m.Set(&op)
	return op
}

func (w *world) take() []base.StoreID {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := w.served
	w.served = nil
	return out
}

func mustDo(t *testing.T, r *Router, op wire.Op) {
	t.Helper()
	a, err := r.Do(context.Background(), op)
	if err != nil || string(a.Payload) != "v1" {
		t.Fatalf("%q, %v", a.Payload, err)
	}
}

func TestAReadForAnyReplicaGoesToTheNearestAndFailsOverToTheLeaderLast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		// The leader is the nearest but one.
		w, r := nearWorld(func(s base.StoreID) int { return []int{0, 1, 0, 2}[s] })
		down := map[base.StoreID]bool{}
		w.atReplica = func(to base.StoreID, _ *wire.Op) *wire.Answer {
			if down[to] {
				return &wire.Answer{Code: wire.Unavailable}
			}
			return nil
		}
		read := func(want ...base.StoreID) {
			t.Helper()
			mustDo(t, r, anyGet(ReadMode{Follower: true}))
			if got := w.take(); !slices.Equal(got, want) {
				t.Errorf("asked %v, want %v", got, want)
			}
		}
		read(3)
		down[3] = true
		read(3, 1)
		read(1) // store 3 failed a moment ago
		down[1] = true
		read(1, 2)
		down = map[base.StoreID]bool{}
		time.Sleep(shunFor + time.Second)
		read(3)
	})
}

func TestOfEquallyNearReplicasTheLeaderServesStaleReadsInTurnAndFollowerReadsLast(t *testing.T) {
	w, r := nearWorld(nil)
	count := func(m ReadMode) map[base.StoreID]int {
		for range 30 {
			mustDo(t, r, anyGet(m))
		}
		n := map[base.StoreID]int{}
		for _, s := range w.take() {
			n[s]++
		}
		return n
	}
	if got := count(ReadMode{MaxAge: time.Second}); got[1] != 10 || got[2] != 10 || got[3] != 10 {
		t.Errorf("stale reads: %v", got)
	}
	if got := count(ReadMode{Follower: true}); got[1] != 0 || got[2] < 10 || got[3] < 10 {
		t.Errorf("follower reads: %v", got)
	}
	mustDo(t, r, wire.Op{Code: wire.OpGet, Key: key(1)})
	if got := w.take(); !slices.Equal(got, []base.StoreID{1}) {
		t.Errorf("a plain read went to %v: who served another one is not the leader for that", got)
	}
}

func TestAReplicaThatIsBehindOrGoneCostsOneQuestionMore(t *testing.T) {
	old := desc(2, base.UserStart(), base.UserEnd(), 0)
	for name, tc := range map[string]struct {
		answer  wire.Answer
		lookups int // besides the first
	}{
		"its descriptor is older": {mismatch(old), 0},
		"it knows no leader":      {wire.Answer{Code: wire.NotLeader}, 0},
		"it names a leader":       {wire.Answer{Code: wire.NotLeader, Arg: 2}, 0},
		"it has left":             {wire.Answer{Code: wire.ShardNotFound}, 1},
		"it is overloaded":        {wire.Answer{Code: wire.Busy, Arg: 1}, 0},
		"it did not hear back":    {wire.Answer{Code: wire.TimedOut}, 0},
	} {
		w, r := nearWorld(func(s base.StoreID) int { return int(s) })
		w.atReplica = func(to base.StoreID, _ *wire.Op) *wire.Answer {
			if to == 3 {
				return &tc.answer
			}
			return nil
		}
		mustDo(t, r, anyGet(ReadMode{MaxAge: time.Second}))
		if got := w.take(); !slices.Equal(got, []base.StoreID{3, 2}) || w.lookups != 1+tc.lookups {
			t.Errorf("%s: asked %v, %d look-ups", name, got, w.lookups)
		}
		if r.cache.at(key(1)).desc.Epoch.Version != 1 {
			t.Errorf("%s: an old descriptor was taken", name)
		}
	}
}

func TestWhenNoReplicaServesAReadItGoesOnLikeAnyOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, r := nearWorld(nil)
		tries := 0
		w.atReplica = func(to base.StoreID, _ *wire.Op) *wire.Answer {
			if tries++; tries <= 5 {
				return &wire.Answer{Code: wire.NotLeader, Arg: 2}
			}
			return nil
		}
		mustDo(t, r, anyGet(ReadMode{Follower: true}))
		got := w.take()
		first := slices.Clone(got[:3])
		slices.Sort(first)
		if !slices.Equal(first, []base.StoreID{1, 2, 3}) || len(got) != 6 {
			t.Errorf("asked %v", got)
		}
	})
}

func TestAScanReadsAllItsPagesAtOneReplica(t *testing.T) {
	w, r := nearWorld(nil)
	w.maxRows = 2
	o := ScanOptions{ReadMode: ReadMode{MaxAge: time.Second}}
	if got := collect(t, r, base.UserStart(), base.UserEnd(), o); len(got) != 10 {
		t.Fatalf("%d rows", len(got))
	}
	if got := slices.Compact(w.take()); len(got) != 1 {
		t.Errorf("asked %v", got)
	}
}
