package shard

import (
	"testing"

	"go.etcd.io/etcd/raft/v3/raftpb"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
)

func noSleep(cfg *Config) { cfg.NoSleep = true }

func isBeat(m *wire.RaftMessage) bool { return m.Msg.Type == raftpb.MsgHeartbeat }

// rests reports whether every running replica of a shard rests.
func (c *cluster) rests(shard base.ShardID) bool {
	all := true
	c.each(func(n *testNode) {
		if r := n.store.lookup(shard); r != nil {
			all = all && r.worker.rests
		}
	})
	return all
}

// restingShard is a shard led by store 1 that may not sleep, and has nothing to do.
func restingShard(t *testing.T) (c *cluster, lead *testNode) {
	t.Helper()
	c, lead = liveShard(t, noSleep)
	c.until("it rests", func() bool { return c.rests(7) })
	return c, lead
}

func TestAnIdleGroupThatMayNotSleepBeatsSeldom(t *testing.T) {
	c, lead := restingShard(t)
	term := c.termOf(lead, 7)
	var beats, others int
	c.count(func(m *wire.RaftMessage) bool {
		switch {
		case isBeat(m):
			beats++
		case m.Msg.Type != raftpb.MsgHeartbeatResp:
			others++
		}
		return true
	})
	const ticks = 600
	for range ticks {
		c.tick()
		c.each(func(n *testNode) {
			if n.store.lookup(7).asleep.Load() {
				t.Fatalf("it sleeps at %s", n.id)
			}
		})
	}
	// Raft's check of its quorum costs one beat more, about every hundred ticks.
	if want := 2 * ticks / restBeat; beats < want-2 || beats > want*3/2 || others > 0 {
		t.Fatalf("%d beats and %d other messages in %d ticks, want about %d and none", beats, others, ticks, want)
	}
	if got := c.termOf(lead, 7); got != term || c.leader(7) != lead {
		t.Fatalf("term %d, was %d", got, term)
	}
	c.mustReadNow(lead, 7, "a", "1")
	c.put(7, "a", "2")
	c.everywhere(7, "a", "2")
}

// Most of what a tick costs is the look at the replica.
func TestAGroupThatRestsIsSeldomLookedAt(t *testing.T) {
	c, lead := restingShard(t)
	r := lead.store.lookup(7)
	visits, last := 0, r.worker.visited
	const ticks = 200
	for range ticks {
		c.tick()
		if r.worker.visited != last {
			visits, last = visits+1, r.worker.visited
		}
	}
	if visits < ticks/restLook || visits > 2*ticks/restLook {
		t.Fatalf("looked at in %d of %d ticks", visits, ticks)
	}
}

// A store comes back, and a follower there does not know all that is committed: it gets a heartbeat at once.
func TestV9AnEventMakesALeaderThatRestsBeatAtOnce(t *testing.T) {
	c, lead := restingShard(t)
	r := lead.store.lookup(7)
	w := lead.store.workerOf(7)
	c.until("its beat is far", func() bool { return w.turnOf(r)%restBeat == 1 && r.worker.rests })
	beats := c.count(isBeat)
	for i := range r.worker.leading.stamps {
		if s := &r.worker.leading.stamps[i]; s.replica == 3 {
			s.commit--
		}
	}
	lead.store.OnSupport(3, 0, false)
	lead.passes()
	if *beats == 0 {
		t.Fatal("no beat")
	}
	c.until("it rests", func() bool { return c.rests(7) })
}

// Beats of many shards do not come in one burst.
func TestBeatsOfGroupsThatRestAreSpread(t *testing.T) {
	w := &worker{store: &Store{workers: make([]*worker, 1)}}
	at := map[uint64]int{}
	for i := range 10 * restBeat {
		r := &replica{shard: shardID(i)}
		for w.turns = 0; !w.beats(r); w.turns++ {
		}
		if !w.looksAt(r) {
			t.Fatal("a beat is due at a tick at which the replica is not looked at")
		}
		at[w.turns]++
	}
	for turn := range uint64(restBeat) {
		if at[turn] != 10 {
			t.Fatalf("%d groups beat at tick %d of %d, want 10", at[turn], turn, restBeat)
		}
	}
}

func TestAGroupThatRestsSendsWhatWasLostAgainAtItsUsualBeat(t *testing.T) {
	c, lead := restingShard(t)
	lost := 0
	lead.filter(func(m *wire.RaftMessage) bool {
		if m.Msg.Type == raftpb.MsgApp && m.ToStore == 3 && lost < 1 {
			lost++
			return false
		}
		return true
	})
	c.put(7, "a", "2")
	for range 3 * lead.store.cfg.HeartbeatTick {
		c.tick()
	}
	if v, ok := c.local(c.nodes[3], 7, "a"); lost != 1 || !ok || v != "2" {
		t.Fatalf("%d appends lost; store 3 has %q", lost, v)
	}
}

func TestV12AnIgnoredVoteMakesALeaderThatRestsBeat(t *testing.T) {
	c, lead := restingShard(t)
	for turn := range 3 {
		c.until("it rests", func() bool { return c.rests(7) })
		w := lead.store.workerOf(7)
		c.until("its beat is far", func() bool { return w.turnOf(lead.store.lookup(7))%restBeat == 1 })
		beats := c.count(isBeat)
		lead.store.Step([]wire.RaftMessage{msgBetween(7, 2, 1, raftpb.Message{
			Type: raftpb.MsgPreVote, Term: c.termOf(lead, 7) + 1, Index: 1000, LogTerm: 1,
		})})
		for range 4 {
			c.tick()
		}
		if *beats == 0 {
			t.Fatalf("turn %d: no beat, though somebody looks for a leader", turn)
		}
	}
}

func TestAFollowerThatComesBackToAGroupThatRestsIsFed(t *testing.T) {
	c, _ := restingShard(t)
	three := c.nodes[3]
	c.crash(three, 100)
	c.put(7, "a", "2")
	c.until("the others rest without it", func() bool { return c.rests(7) })
	c.start(three)
	c.until("it is fed", func() bool {
		v, ok := c.local(three, 7, "a")
		return ok && v == "2"
	})
	c.until("all rest", func() bool { return c.rests(7) })
	if c.leader(7).id != 1 {
		t.Fatal("another leader")
	}
}

func TestAGroupThatRestsElectsAnotherLeaderWhenItsOwnIsGone(t *testing.T) {
	c, lead := restingShard(t)
	limit := 3 * lead.store.cfg.ElectionTick
	c.stop(lead)
	ticks := 0
	c.until("there is another leader", func() bool { ticks++; n := c.leader(7); return n != nil && n != lead })
	if ticks > limit {
		t.Fatalf("after %d ticks, want at most %d", ticks, limit)
	}
	c.until("they rest", func() bool { return c.rests(7) })
}

// A leader that nobody supports does not rest on: raft finds that its quorum is gone.
func TestALeaderThatRestsStepsDownWhenItsQuorumIsGone(t *testing.T) {
	c, lead := restingShard(t)
	c.net.Isolate(1)
	ticks := 0
	c.until("it leads no more", func() bool { ticks++; return !lead.store.lookup(7).worker.leads })
	if limit := 4 * lead.store.cfg.ElectionTick; ticks > limit {
		t.Fatalf("after %d ticks, want at most %d", ticks, limit)
	}
	c.net.HealAll()
	c.until("they rest", func() bool { return c.rests(7) })
}
