package shard

import (
	"fmt"
	"testing"

	"go.etcd.io/etcd/raft/v3/raftpb"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
	"github.com/shardd/shardd/shard/liveness"
)

// asleep reports whether every running replica of a shard sleeps.
func (c *cluster) asleep(shard base.ShardID) bool {
	all := true
	c.each(func(n *testNode) {
		if r := n.store.lookup(shard); r != nil {
			all = all && r.asleep.Load()
		}
	})
	return all
}

// untilAsleep waits for that.
func (c *cluster) untilAsleep(shard base.ShardID) {
	c.t.Helper()
	c.until(shard.String()+" is asleep", func() bool { return c.asleep(shard) })
}

// count counts what all stores send.
func (c *cluster) count(f func(m *wire.RaftMessage) bool) *int {
	n := new(int)
	c.eachStore(func(node *testNode) {
		node.tap(func(_ base.StoreID, msgs []wire.RaftMessage) {
			for i := range msgs {
				if f(&msgs[i]) {
					*n++
				}
			}
		})
	})
	return n
}

func anyMessage(*wire.RaftMessage) bool { return true }

// A cached entry keeps the whole frame that it came in, with entries of other shards.
func TestAGroupThatSleepsKeepsNoEntriesInMemory(t *testing.T) {
	c, lead := liveShard(t, nil)
	cached := func() (bytes int64) {
		c.each(func(n *testNode) { bytes += n.eng.EntryCacheBytes() })
		return bytes
	}
	for i := range 10 {
		c.put(7, fmt.Sprint("k", i), "v")
	}
	if cached() == 0 {
		t.Fatal("nothing is cached while it is awake")
	}
	c.untilAsleep(7)
	if n := cached(); n != 0 {
		t.Fatalf("%d bytes are cached", n)
	}
	c.put(7, "z", "1")
	c.mustReadNow(lead, 7, "z", "1")
	c.everywhere(7, "z", "1")
	if cached() == 0 {
		t.Fatal("nothing is cached once it is awake again")
	}
}

func TestV9AnIdleGroupSleepsForNothingAndAWriteWakesIt(t *testing.T) {
	c, lead := liveShard(t, nil)
	c.untilAsleep(7)
	sent := c.count(anyMessage)
	passes := lead.store.workers[0].passes
	for range 200 {
		c.tick()
	}
	if *sent > 0 || !c.asleep(7) {
		t.Fatalf("%d messages, asleep %t", *sent, c.asleep(7))
	}
	if n := len(lead.store.workers[0].awake); n > 0 {
		t.Fatalf("%d replicas are ticked in %d passes", n, lead.store.workers[0].passes-passes)
	}
	c.mustReadNow(lead, 7, "a", "1")
	c.put(7, "a", "2")
	c.mustReadNow(lead, 7, "a", "2")
	c.untilAsleep(7)
	c.everywhere(7, "a", "2")
	if got := lead.store.sleeping.Load(); got != 1 {
		t.Fatalf("%d replicas sleep, by the count", got)
	}
	for _, id := range c.ids() {
		if o := c.nodes[id].store.Orphans(); len(o) > 0 {
			t.Fatalf("a replica that sleeps believes itself forgotten: %v", o)
		}
	}
}

func TestV9AFollowerThatIsDownKeepsNobodyAwakeAndIsFedWhenItIsBack(t *testing.T) {
	c, _ := liveShard(t, nil)
	three := c.nodes[3]
	c.crash(three, 100)
	c.until("the others sleep without it", func() bool { return c.asleep(7) })
	c.put(7, "a", "2")
	c.untilAsleep(7)
	c.start(three)
	c.until("it is fed", func() bool {
		v, ok := c.local(three, 7, "a")
		return ok && v == "2"
	})
	c.untilAsleep(7)
	if c.leader(7).id != 1 {
		t.Fatal("another leader")
	}
}

// A store that did not lapse, but was not heard of for a while, comes back under the same epoch.
func TestV9AFollowerThatWasCutOffIsFedWhenItsSupportReturns(t *testing.T) {
	c, lead := liveShard(t, nil)
	c.untilAsleep(7)
	c.net.Isolate(3)
	c.until("its support runs out", func() bool {
		s := lead.live.Held(3)
		return s.Until <= lead.Boot()
	})
	c.put(7, "a", "2")
	for range 3 {
		c.tick()
	}
	c.net.HealAll()
	c.everywhere(7, "a", "2")
	c.untilAsleep(7)
}

func TestV9AFollowerThatLivesAndLagsKeepsItsLeaderAwake(t *testing.T) {
	c, lead := liveShard(t, nil)
	lead.filter(func(m *wire.RaftMessage) bool { return m.ToStore != 3 || m.Msg.Type != raftpb.MsgApp })
	c.put(7, "a", "2")
	for range 60 {
		c.tick()
		if lead.store.lookup(7).asleep.Load() {
			t.Fatal("the leader sleeps while a follower lacks an entry")
		}
	}
	lead.filter(nil)
	c.everywhere(7, "a", "2")
	c.untilAsleep(7)
}

// V11: what was lost is sent again, though nobody asks for it.
func TestV11ALostAppendIsSentAgainBeforeTheGroupSleeps(t *testing.T) {
	c, lead := liveShard(t, nil)
	lost := 0
	lead.filter(func(m *wire.RaftMessage) bool {
		if m.Msg.Type == raftpb.MsgApp && lost < 3 {
			lost++
			return false
		}
		return true
	})
	c.put(7, "a", "2")
	if lost != 3 {
		t.Fatalf("%d appends were lost", lost)
	}
	c.everywhere(7, "a", "2")
	c.untilAsleep(7)
}

// Every replica knows the last commit index when its group falls asleep: nothing would tell it later.
func TestV9AllKnowWhatIsCommittedWhenTheySleep(t *testing.T) {
	c, lead := liveShard(t, nil)
	for i := range 20 {
		c.put(7, "a", fmt.Sprint(i))
		c.untilAsleep(7)
		c.each(func(n *testNode) {
			if v, ok := c.local(n, 7, "a"); !ok || v != fmt.Sprint(i) {
				t.Fatalf("%s sleeps with %q, led by %s", n.id, v, lead.id)
			}
		})
	}
}

func TestV12AnIgnoredVoteWakesTheLeader(t *testing.T) {
	c, lead := liveShard(t, nil)
	c.untilAsleep(7)
	beats := c.count(func(m *wire.RaftMessage) bool { return m.Msg.Type == raftpb.MsgHeartbeat })
	term := c.termOf(lead, 7)
	for _, to := range []base.StoreID{1, 3} {
		c.nodes[to].store.Step([]wire.RaftMessage{msgBetween(7, 2, to, raftpb.Message{
			Type: raftpb.MsgPreVote, Term: term + 1, Index: 1000, LogTerm: term,
		})})
	}
	for range 5 {
		c.tick()
	}
	if *beats == 0 {
		t.Fatal("the leader sleeps on, though somebody looks for one")
	}
	c.untilAsleep(7)
	if got := c.termOf(lead, 7); got != term {
		t.Fatalf("term %d, was %d", got, term)
	}
}

func TestV12AStartedStoreLearnsItsLeadersWithoutAnElection(t *testing.T) {
	c := newLiveCluster(t, 3, nil)
	const shards = 20
	for i := range shards {
		c.create(desc(shardID(10+i), fmt.Sprintf("%02d", i), fmt.Sprintf("%02d", i+1), 1, 2, 3))
	}
	terms := map[base.ShardID]uint64{}
	for i := range shards {
		c.leased(shardID(10 + i))
		c.untilAsleep(shardID(10 + i))
		terms[shardID(10+i)] = c.termOf(c.nodes[1], shardID(10+i))
	}
	three := c.nodes[3]
	c.crash(three, 100)
	for range 20 {
		c.tick()
	}
	c.start(three)
	c.until("its replicas know their leaders", func() bool {
		for i := range shards {
			if s, _, ok := three.store.Leader(shardID(10 + i)); !ok || s == 0 {
				return false
			}
		}
		return true
	})
	for i := range shards {
		c.untilAsleep(shardID(10 + i))
		if got := c.termOf(c.nodes[1], shardID(10+i)); got != terms[shardID(10+i)] {
			t.Fatalf("shard %d is in term %d, was in %d", 10+i, got, terms[shardID(10+i)])
		}
	}
}

// A replica of which nobody knows that it missed its removal must not sleep in the belief that all is well (I5).
func TestAReplicaThatMissedItsRemovalDoesNotSleepForEver(t *testing.T) {
	c := newLiveCluster(t, 4, nil)
	c.create(desc(7, "", "", 1, 2, 3, 4))
	c.put(7, "a", "1")
	lead := c.leased(7)
	gone := lead.id%4 + 1
	c.untilAsleep(7)
	c.mustChange(7, ReplicaChange{Op: Demote, Store: gone})
	c.until("the joint configuration is left", func() bool { return !isJoint(c.desc(7)) })
	c.each(func(n *testNode) { n.filter(func(m *wire.RaftMessage) bool { return m.ToStore != gone }) }) // hears no farewell
	c.mustChange(7, ReplicaChange{Op: Remove, Store: gone})
	for range 3 {
		c.tick()
	}
	if n := c.nodes[gone]; n.store.lookup(7).bound(n.Boot()) != nil {
		t.Error("its leader's store does not tell it that it owes nothing any more")
	}
	c.until("it asks", func() bool { return len(c.nodes[gone].store.Orphans()) > 0 })
}

// The word of its removal may be lost altogether: it asks its leader from time to time, which does not lead it any more.
func TestAReplicaThatWasRemovedIsNotLed(t *testing.T) {
	c := newLiveCluster(t, 4, nil)
	c.create(desc(7, "", "", 1, 2, 3, 4))
	lead := c.leased(7)
	gone := c.nodes[lead.id%4+1]
	id := gone.store.lookup(7).id
	g := liveness.Group{Shard: 7, Term: c.termOf(lead, 7), Follower: id}
	c.mustChange(7, ReplicaChange{Op: Demote, Store: gone.id})
	c.until("the joint configuration is left", func() bool { return !isJoint(c.desc(7)) })
	if !lead.store.Leads(g) {
		t.Fatal("it does not lead its learner")
	}
	listed := lead.store.lookup(7).desc.Load()
	c.each(func(n *testNode) { n.filter(func(m *wire.RaftMessage) bool { return m.ToStore != gone.id }) })
	gone.deaf = true
	c.mustChange(7, ReplicaChange{Op: Remove, Store: gone.id})
	for range 5 {
		c.tick()
	}
	if gone.store.lookup(7).bound(gone.Boot()) == nil {
		t.Fatal("it has heard of its removal")
	}
	r := lead.store.lookup(7)
	if d := r.ruled.Load(); lead.store.Leads(g) || d != r.desc.Load() {
		t.Fatalf("it leads what it has removed; it goes by %s", d)
	}
	// Its worker, and so its lease, may not know yet what is applied.
	r.ruled.Store(listed)
	if !lead.store.Leads(g) {
		t.Fatal("it does not lead a replica that it may count")
	}
	r.ruled.Store(r.desc.Load())
	next := g
	next.Follower = r.desc.Load().NextReplicaID // added, and not known here yet
	if !lead.store.Leads(next) {
		t.Fatal("it does not lead a replica that is newer than its descriptor")
	}
	gone.deaf = false
	c.until("it is told, and asks whether it still should exist", func() bool { return len(gone.store.Orphans()) > 0 })
}

// An old message of its leader's comes after the word that it was removed: it follows that leader again, as far as it knows,
// and only its own question can bring the truth to light.
func TestARemovedReplicaThatFollowsAnOldMessageDoesNotSleepForEver(t *testing.T) {
	c := newLiveCluster(t, 4, nil)
	c.create(desc(7, "", "", 1, 2, 3, 4))
	c.put(7, "a", "1")
	lead := c.leased(7)
	gone := lead.id%4 + 1
	c.mustChange(7, ReplicaChange{Op: Demote, Store: gone})
	c.until("the joint configuration is left", func() bool { return !isJoint(c.desc(7)) })
	c.each(func(n *testNode) { n.filter(func(m *wire.RaftMessage) bool { return m.ToStore != gone }) }) // hears no farewell
	c.mustChange(7, ReplicaChange{Op: Remove, Store: gone})
	n := c.nodes[gone]
	c.until("it looks for proof", func() bool { return len(n.store.Orphans()) > 0 })
	old := raftpb.Message{Type: raftpb.MsgHeartbeat, Term: c.termOf(lead, 7)}
	n.store.Step([]wire.RaftMessage{msgBetween(7, lead.id, gone, old)})
	c.until("it sleeps", func() bool { return n.store.lookup(7).asleep.Load() })
	c.until("it looks for proof again", func() bool { return len(n.store.Orphans()) > 0 })
}

func TestALeaderIsToldOfEachStoreThatTakesPart(t *testing.T) {
	c, lead := liveShard(t, nil)
	c.untilAsleep(7)
	// A whole lapse of one store, both ways: what it promised is over, so it has to promise anew.
	c.net.Isolate(3)
	for range 15 {
		c.tick()
	}
	c.net.HealAll()
	c.until("store 3 is counted again", func() bool {
		l, s := lead.store.lookup(7).lease.Load(), lead.live.Held(3)
		return l != nil && s != nil && s.Until > lead.Boot() && lead.store.lookup(7).counts(3, s.Epoch)
	})
	c.untilAsleep(7)
	if n := c.leader(7); n != lead {
		t.Fatalf("led by %v", n)
	}
}

func TestSleepersOverTheStoresCapAreWokenToCutTheirLogs(t *testing.T) {
	c := newLiveCluster(t, 1, small)
	c.create(desc(7, "a", "b", 1))
	c.create(desc(8, "b", "c", 1))
	c.fill(7, 12<<10)
	c.untilAsleep(7)
	n := c.nodes[1]
	before := n.store.lookup(7).logBytes()
	n.store.cfg.Compaction.StoreCapBytes = before / 2
	c.until("the log of the sleeper is cut", func() bool { return n.store.lookup(7).logBytes() < before })
}

func TestSleepersWhoseLogsCannotBeCutSleepOnOverTheStoresCap(t *testing.T) {
	c := newLiveCluster(t, 1, small)
	c.create(desc(7, "", "", 1))
	c.fill(7, 12<<10)
	n := c.nodes[1]
	c.untilAsleep(7)
	rw := &n.store.lookup(7).worker
	rw.history.reset(n.store.lookup(7).applied.Load(), rw.conf) // as after a restart: which configuration they had is not known
	before := n.store.lookup(7).logBytes()
	n.store.cfg.Compaction.StoreCapBytes = before * 3 / 4
	for range 20 {
		c.tick()
		if !c.asleep(7) {
			t.Fatal("it is woken for nothing")
		}
	}
	if w := n.store.workerOf(7); w.logLevel >= before {
		t.Fatalf("%d bytes are not over the cap of %d", before, w.logLevel)
	}
	n.store.cfg.Compaction.StoreCapBytes = before / 4 // now all of them go
	c.until("its log is cut", func() bool { return n.store.lookup(7).logBytes() < before })
}

func TestProgressWakesNobodyAndKnowsWhoIsThere(t *testing.T) {
	c, lead := liveShard(t, nil)
	c.untilAsleep(7)
	look := func() (out []Progress) {
		ch := make(chan []Progress, 1)
		w := lead.store.workerOf(7)
		w.peek(func() { ch <- w.progress(lead.store.lookup(7)) })
		c.settle()
		return <-ch
	}
	for _, p := range look() {
		if !p.Active {
			t.Errorf("%+v", p)
		}
	}
	c.stop(c.nodes[3])
	for range 40 {
		c.tick()
	}
	for _, p := range look() {
		if p.Active != (p.Store != 3) {
			t.Errorf("long after store 3 has gone: %+v", p)
		}
	}
	if !c.asleep(7) {
		t.Error("looking at it has woken it")
	}
}

func TestPausedAndStalledLeadersDoNotSleepOnTheirLeaderships(t *testing.T) {
	c, lead := liveShard(t, nil)
	c.untilAsleep(7)
	lead.store.PauseLeading(true)
	c.until("it is handed over", func() bool { n := c.leader(7); return n != nil && n != lead })
	c.mustReadNow(c.leased(7), 7, "a", "1")
}

// Two stores come back in one batch of events: the one that lags must not stay so because the other one does not.
func TestV9EachReasonToWakeALeaderCounts(t *testing.T) {
	c, lead := liveShard(t, nil)
	c.untilAsleep(7)
	r := lead.store.lookup(7)
	for _, stores := range [][]base.StoreID{{2, 3}, {3, 2}, {2, 0}} {
		stamps := r.worker.leading.stamps
		for i := range stamps {
			if stamps[i].replica == 3 {
				stamps[i].commit-- // as if it did not know the last commit index
			}
		}
		for _, store := range stores {
			if store == 0 {
				lead.store.rouse()
			} else {
				lead.store.OnSupport(store, 0, false)
			}
		}
		lead.passes()
		if r.asleep.Load() {
			t.Fatalf("events of %v leave it asleep", stores)
		}
		c.untilAsleep(7)
	}
}

// A leader may fall asleep right behind a heartbeat: if the answers woke it, it would send the next one, for ever.
func TestV9AHeartbeatAndItsAnswerWakeNobodyWhoHasNothingToDo(t *testing.T) {
	c, lead := liveShard(t, nil)
	var beat wire.RaftMessage
	lead.tap(func(to base.StoreID, msgs []wire.RaftMessage) {
		for _, m := range msgs {
			if to == 2 && m.Msg.Type == raftpb.MsgHeartbeat {
				beat = m
			}
		}
	})
	c.put(7, "a", "2")
	c.until("a heartbeat was sent", func() bool { return beat.Shard == 7 })
	c.untilAsleep(7)
	others := 0
	answers := c.count(func(m *wire.RaftMessage) bool {
		if m.Msg.Type != raftpb.MsgHeartbeatResp {
			others++
		}
		return m.Msg.Type == raftpb.MsgHeartbeatResp
	})
	for range 3 {
		c.nodes[2].store.Step([]wire.RaftMessage{beat})
		c.settle()
		if !c.asleep(7) {
			t.Fatal("a replica was woken")
		}
	}
	if *answers != 3 || others != 0 {
		t.Fatalf("%d answers and %d other messages, want 3 and none", *answers, others)
	}
}
