package shardtest

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/shardd/shardd/engine"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
	"github.com/shardd/shardd/shard"
	"github.com/shardd/shardd/transport/simnet"
)

// TestACrashOfAllStoresAtAnySyncedBoundaryLosesNothingPromised runs writes, elections and cuts over three stores and
// two shards. Just before and just after each sync of any store the whole cluster loses power, in a copy of the world
// that keeps 0, 50 or 100 % of what was not synced, or a different share on each store. Each copy starts again and must
// keep every promise made so far: terms and votes (observer.boots), acknowledged appends, acknowledged writes. Its state
// must be what its log says, before and after, and no write that was definitely refused may turn up.
func TestACrashOfAllStoresAtAnySyncedBoundaryLosesNothingPromised(t *testing.T) {
	withAndWithoutLeases(t, func(t *testing.T, leases bool) {
		eachSeed(t, 1, func(t *testing.T, seed int64) { crashAtEachBoundary(t, seed, leases) })
	})
}

func crashAtEachBoundary(t *testing.T, seed int64, leases bool) {
	rng := rand.New(rand.NewPCG(uint64(seed), 2))
	boundaries := 30
	if testing.Short() {
		boundaries = 12
	}
	tune := func(c *shard.Config) { c.EntryBytes, c.MaxSizePerMsg = 300, 400 }
	simulateWith(t, seed, 3, leases, tune, func(s *sim) {
		run := &cloneRun{s: s, rng: rng, replay: newReplayer(t)}
		defer run.replay.close()
		s.create(desc(7, "a", "b", 1, 2, 3), true)
		s.create(desc(8, "b", "c", 2, 3, 1), true)
		s.net.SetFaults(simnet.Faults{Drop: 0.03, Duplicate: 0.03, Reorder: 0.1, MaxDelay: 2 * time.Millisecond})
		s.atSync = run.crashAll
		for run.boundaries < boundaries && !t.Failed() {
			run.step()
		}
		// A quiet end: however unlucky the seed, some acknowledged writes go through crashes.
		s.net.HealAll()
		s.net.SetFaults(simnet.Faults{})
		for i := 0; run.acked() < 10 && i < 100 && !t.Failed(); i++ {
			run.write()
			s.tick()
		}
		s.atSync = nil
		t.Logf("%d boundaries, %d worlds, %d writes, %d acknowledged",
			run.boundaries, run.worlds, len(run.writes), run.acked())
		if run.acked() < 10 {
			t.Errorf("only %d writes were acknowledged", run.acked())
		}
	})
}

type cloneRun struct {
	s          *sim
	rng        *rand.Rand
	replay     *replayer
	writes     []*request
	boundaries int
	worlds     int
}

var shardPrefix = map[base.ShardID]string{7: "a", 8: "b"}

func (c *cloneRun) acked() (n int) {
	for _, w := range c.writes {
		if w.done && w.answer.Code == wire.OK {
			n++
		}
	}
	return n
}

// write asks for a few writes, mostly at the leaders.
func (c *cloneRun) write() {
	s, rng := c.s, c.rng
	for id := base.ShardID(7); id <= 8; id++ {
		for range rng.IntN(3) {
			n := s.nodes[rng.IntN(3)]
			if l := s.leader(id); l != nil && rng.IntN(4) > 0 {
				n = l
			}
			key := fmt.Sprintf("%s%03d", shardPrefix[id], len(c.writes))
			c.writes = append(c.writes, s.put(n, id, key, fmt.Sprint("v", len(c.writes)), 0))
		}
	}
}

// step is one random event of the original world.
func (c *cloneRun) step() {
	c.write()
	s, rng := c.s, c.rng
	switch rng.IntN(24) {
	case 0:
		s.net.Isolate(base.StoreID(1 + rng.IntN(3)))
	case 1:
		s.net.Cut(base.StoreID(1+rng.IntN(3)), base.StoreID(1+rng.IntN(3)))
	case 2, 3, 4, 5:
		s.net.HealAll()
	case 6:
		s.campaign(s.nodes[rng.IntN(3)], base.ShardID(7+rng.IntN(2)))
	}
	switch rng.IntN(3) {
	case 0:
		s.tick()
	case 1:
		s.drainStores()
	default:
		s.poll(s.nodes[rng.IntN(3)])
		for range rng.IntN(10) {
			s.net.Step()
		}
	}
}

// crashAll goes on in copies of the world in which every store has just lost power.
func (c *cloneRun) crashAll(n *node, when string) {
	if when == "before the sync" {
		c.boundaries++
	}
	mixed := func() int { return []int{0, 50, 100}[c.rng.IntN(3)] }
	for _, keep := range [][]int{{0, 0, 0}, {50, 50, 50}, {100, 100, 100}, {mixed(), mixed(), mixed()}} {
		c.worlds++
		what := fmt.Sprintf("world %d: %s %s of boundary %d, %v%% kept, seed %d",
			c.worlds, n.id, when, c.boundaries, keep, c.s.seed)
		c.verify(what, c.s.fork(c.worlds, keep))
		if c.s.t.Failed() {
			c.s.t.Logf("first failure in %s", what)
			c.s.atSync = nil
			return
		}
	}
}

// verify checks a world from its boot until it is whole again.
func (c *cloneRun) verify(what string, w *sim) {
	t := c.s.t
	t.Helper()
	defer w.stopAll()
	for _, n := range w.nodes {
		c.replay.check(what+", at boot of "+n.id.String(), n.eng)
	}
	for id := base.ShardID(7); id <= 8; id++ {
		w.mustPut(id, shardPrefix[id]+"end", "x")
	}
	w.until("equal replicas", func() bool { return w.equal(7) && w.equal(8) })
	w.lookAll()
	var dump []*engine.Engine
	for _, n := range w.nodes {
		dump = append(dump, n.eng)
	}
	for id := base.ShardID(7); id <= 8; id++ {
		d, _ := w.nodes[0].store.Descriptor(id)
		want := rows(t, dump[0], d)
		for i := range dump[1:] {
			if got := rows(t, dump[i+1], d); !bytes.Equal(got, want) {
				t.Errorf("%s: n1 and n%d hold different rows of %s", what, i+2, id)
			}
		}
	}
	c.replay.check(what+", at the end", w.nodes[c.worlds%3].eng)
	for _, r := range c.writes {
		if !r.done {
			continue
		}
		a := w.local(w.nodes[0], r.id, r.key)
		switch {
		case r.answer.Code == wire.OK && (a.Code != wire.OK || string(a.Payload) != r.value || a.Arg != r.answer.Arg):
			t.Errorf("%s: acknowledged %s is lost: %s", what, r.name, a.Code)
		case r.answer.Code != wire.OK && r.answer.Code != wire.Ambiguous && a.Code != wire.NotFound:
			t.Errorf("%s: %s was answered %s and is there", what, r.name, r.answer.Code)
		}
	}
}

// equal reports whether all replicas of a shard have applied the same index, the last of each log.
func (s *sim) equal(id base.ShardID) bool {
	first, ok := s.nodes[0].store.Status(id)
	for _, n := range s.nodes {
		st, _ := n.store.Status(id)
		ok = ok && st.Applied == first.Applied && st.LastIndex == st.Applied
	}
	return ok
}
