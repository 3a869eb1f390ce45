package shard

import (
	"fmt"
	"runtime"
	"testing"
	"time"

	"go.etcd.io/etcd/raft/v3/raftpb"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
	"github.com/shardd/shardd/shard/liveness"
)

// manyShards is a cluster of three with so many shards, all led and leased by store 1 and asleep.
func manyShards(t *testing.T, shards int) (c *cluster, ids []base.ShardID) {
	t.Helper()
	c = newLiveCluster(t, 3, nil)
	for i := range shards {
		id := shardID(10 + i)
		ids = append(ids, id)
		d := desc(id, fmt.Sprintf("%04d", i), fmt.Sprintf("%04d", i+1), 1, 2, 3)
		for at, r := range d.Replicas {
			if err := c.nodes[r.Store].store.Create(d, nil, at == 0); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, id := range ids {
		c.leads(id, 1)
	}
	for _, id := range ids {
		c.untilAsleep(id)
	}
	return c, ids
}

func TestFailoverTakesTheTimeOfThePromiseAndLittleMore(t *testing.T) {
	c, lead := liveShard(t, nil)
	c.crash(lead, 100)
	ticks := 0
	for ; c.leader(7) == nil; ticks++ {
		if ticks > 8+3 { // the promise, and what two followers may be apart
			t.Fatal("no leader")
		}
		c.tick()
	}
	c.mustReadNow(c.leased(7), 7, "a", "1")
	t.Logf("a leader after %d ticks of 100 ms", ticks)
}

// The other follower heard the lost leader's store for longer: it ignores the candidate at first.
func TestACandidateThatComesTooEarlyAsksAgain(t *testing.T) {
	for _, late := range []base.StoreID{2, 3} {
		c, lead := liveShard(t, nil)
		early := 5 - late
		c.net.Cut(1, early) // it hears nothing of store 1 for 400 ms before the others
		for range 4 {
			c.tick()
		}
		if c.nodes[early].live.Epoch(1, c.nodes[early].Boot()) == 0 {
			t.Fatal("lapsed already")
		}
		c.crash(lead, 100)
		ticks := 0
		for ; c.leader(7) == nil; ticks++ {
			if ticks > 8+6 {
				t.Fatalf("%s comes early: no leader %d ticks after store 1 has gone", early, ticks)
			}
			c.tick()
		}
		t.Logf("%s comes early: a leader after %d ticks", early, ticks)
	}
}

func TestV1V12TheGroupsOfALostStoreElectInBoundedBatchesAndAreSpread(t *testing.T) {
	const shards, batch = 200, 16
	c, ids := manyShards(t, shards)
	c.each(func(n *testNode) { n.store.workers[0].fireBatch = batch })
	c.crash(c.nodes[1], 100)
	campaigns := map[base.StoreID]map[base.ShardID]bool{}
	most := 0
	c.each(func(n *testNode) {
		campaigns[n.id] = map[base.ShardID]bool{}
		n.tap(func(_ base.StoreID, msgs []wire.RaftMessage) {
			for i := range msgs {
				if msgs[i].Msg.Type == raftpb.MsgPreVote {
					campaigns[n.id][msgs[i].Shard] = true
				}
			}
		})
	})
	started := func() int { return len(campaigns[2]) + len(campaigns[3]) }
	led := func() (n int) {
		for _, id := range ids {
			if c.leader(id) != nil {
				n++
			}
		}
		return n
	}
	ticks, before := 0, 0
	for ; led() < shards; ticks++ {
		if ticks > 30 {
			t.Fatalf("%d of %d shards have a leader", led(), shards)
		}
		c.tick()
		most = max(most, started()-before)
		before = started()
	}
	if most > 2*2*batch { // the batch of the event and that of the tick may come together
		t.Errorf("%d groups campaigned within a tick, at most %d on each store", most, 2*batch)
	}
	if extra := started() - shards; extra > shards/20 {
		t.Errorf("%d campaigns for %d shards", started(), shards)
	}
	leads := map[base.StoreID]int{}
	for _, id := range ids {
		leads[c.leader(id).id]++
	}
	if leads[2] < shards*2/5 || leads[3] < shards*2/5 {
		t.Errorf("leaders per store: %v", leads)
	}
	t.Logf("%d ticks after the crash, %d campaigns, at most %d in a tick, leaders %v", ticks, started(), most, leads)
	for _, id := range ids {
		c.untilAsleep(id)
	}
}

func TestV12ARestartOfAllStoresElectsWithoutAStorm(t *testing.T) {
	const shards = 200
	c, ids := manyShards(t, shards)
	c.each(func(n *testNode) { c.crash(n, 100) })
	for _, id := range c.ids() {
		c.start(c.nodes[id])
	}
	c.eachStore(func(n *testNode) {
		if got := n.store.sleeping.Load(); got != 0 && got != shards { // before their workers have looked
			t.Errorf("%d replicas of %s sleep", got, n.id)
		}
	})
	campaigns := c.count(func(m *wire.RaftMessage) bool {
		return m.Msg.Type == raftpb.MsgVote && m.To == 1 || m.From == 1 && m.Msg.Type == raftpb.MsgVote && m.To == 2
	})
	ticks := 0
	for ; ; ticks++ {
		led := 0
		for _, id := range ids {
			if c.leader(id) != nil {
				led++
			}
		}
		if led == shards {
			break
		}
		if ticks > 50 {
			t.Fatalf("%d of %d shards have a leader", led, shards)
		}
		c.tick()
	}
	leads := map[base.StoreID]int{}
	for _, id := range ids {
		leads[c.leader(id).id]++
	}
	if *campaigns > shards+shards/10 {
		t.Errorf("%d elections for %d shards", *campaigns, shards)
	}
	t.Logf("%d ticks, %d elections, leaders %v", ticks, *campaigns, leads)
}

// Where the first in turn lacks entries, the others have refused it before their own turns, which are far away with many
// that wait.
func TestAVoterThatHasToRefuseACandidateGoesNext(t *testing.T) {
	const shards, batch = 100, 4
	c, ids := manyShards(t, shards)
	c.net.Isolate(3)
	for i, id := range ids {
		c.put(id, fmt.Sprintf("%04d", i), "x")
	}
	c.each(func(n *testNode) { c.crash(n, 100) })
	c.net.HealAll()
	asked, led := map[base.ShardID]int{}, map[base.ShardID]int{} // at which tick first
	ticks, first := 0, 0
	for _, id := range c.ids() {
		n := c.nodes[id]
		c.start(n)
		n.store.workers[0].fireBatch = batch
		n.tap(func(_ base.StoreID, msgs []wire.RaftMessage) {
			for i := range msgs {
				if m := &msgs[i]; m.Msg.Type == raftpb.MsgPreVote {
					if _, ok := asked[m.Shard]; !ok {
						if asked[m.Shard] = ticks; n.id == 3 {
							first++
						}
					}
				}
			}
		})
	}
	for ; len(led) < shards; ticks++ {
		if ticks > 200 {
			t.Fatalf("%d of %d shards have a leader", len(led), shards)
		}
		c.tick()
		for _, id := range ids {
			if _, ok := led[id]; !ok && c.leader(id) != nil {
				led[id] = ticks
			}
		}
	}
	most := 0
	for _, id := range ids {
		most = max(most, led[id]-asked[id])
	}
	if first < shards/5 {
		t.Errorf("store 3, which lacks an entry, was first in %d of %d shards", first, shards)
	}
	if least := shards / batch; most >= least/2 {
		t.Errorf("a shard had a leader %d ticks after the first had asked; turns were at least %d apart", most, least)
	}
	t.Logf("store 3 was first in %d shards; leaders at most %d ticks after the first had asked, after %d in all", first, most, ticks)
}

func TestV7AStartedStoreGivesNoVoteUntilItsOldPromisesAreOver(t *testing.T) {
	c, lead := liveShard(t, nil)
	two := c.nodes[2]
	c.crash(two, 100)
	c.start(two)
	until := two.live.QuietUntil()
	if until <= two.Boot() {
		t.Fatal("it need not keep quiet")
	}
	term := c.termOf(two, 7)
	said := 0
	two.tap(func(_ base.StoreID, msgs []wire.RaftMessage) {
		for _, m := range msgs {
			switch m.Msg.Type {
			case raftpb.MsgVoteResp, raftpb.MsgPreVoteResp, raftpb.MsgVote, raftpb.MsgPreVote:
				if m.Msg.Reject {
					continue
				}
				if two.Boot() < until {
					t.Errorf("%s leaves %s before %s", m.Msg.Type, two.Boot(), until)
				}
				said++
			}
		}
	})
	lead.paused = true // it would tell the started replica that it leads
	c.nodes[3].paused = true
	ask := func() {
		for _, m := range []raftpb.Message{
			{Type: raftpb.MsgPreVote, Term: term + 1, Index: 1000, LogTerm: term},
			{Type: raftpb.MsgVote, Term: term + 1, Index: 1000, LogTerm: term},
		} {
			two.store.Step([]wire.RaftMessage{msgBetween(7, 3, 2, m)})
			c.drain()
		}
	}
	for two.Boot() < until {
		ask()
		if said > 0 {
			t.FailNow()
		}
		c.tick()
	}
	ask()
	if said == 0 {
		t.Fatal("it gives no vote afterwards either")
	}
}

// What a leader orders that has given its lease up is another matter: a rolling restart hands leaderships to stores that
// have just been started.
func TestV7ALeadershipIsHandedToAStoreThatKeepsQuiet(t *testing.T) {
	c, lead := liveShard(t, nil)
	two := c.nodes[2]
	c.crash(two, 100)
	c.start(two)
	c.until("it follows", func() bool { s, _, _ := two.store.Leader(7); return s == 1 })
	two.recorded = time.Hour
	c.crash(two, 100)
	c.start(two)
	c.until("it is counted", func() bool {
		s := lead.live.Held(2)
		return s != nil && s.Until > lead.Boot() && lead.store.lookup(7).counts(2, s.Epoch)
	})
	if res := c.outcome(c.transfer(lead, 7, 2)); res.err != nil {
		t.Fatal(res.err)
	}
	if !two.store.workerOf(7).mustKeepQuiet(two.store.lookup(7)) {
		t.Fatal("it need not keep quiet")
	}
	c.mustReadNow(c.leased(7), 7, "a", "1")
}

func TestV7AGroupOfOneVoterNeedNotKeepQuiet(t *testing.T) {
	c := newLiveCluster(t, 1, nil)
	c.create(desc(7, "", "", 1))
	c.put(7, "a", "1")
	n := c.nodes[1]
	n.recorded = time.Hour
	c.crash(n, 0)
	c.start(n)
	c.until("it leads", func() bool { return c.leader(7) != nil })
	c.mustReadNow(c.leased(7), 7, "a", "1")

	// Unless its log may bring another configuration.
	r := n.store.lookup(7)
	w := n.store.workerOf(7)
	if w.mustKeepQuiet(r) {
		t.Fatal("it keeps quiet")
	}
	// Or others were members before: it may have promised something to one that leads still, as far as that one knows.
	d := r.desc.Load()
	shrunk := *d
	shrunk.NextReplicaID++
	r.desc.Store(&shrunk)
	if !w.mustKeepQuiet(r) {
		t.Fatal("it does not keep quiet though another replica was a member")
	}
	r.desc.Store(d)
	r.worker.confEntry = r.applied.Load() + 1
	last := r.lastIndex()
	if w.mustKeepQuiet(r); r.worker.confEntry > last {
		t.Fatalf("a conf change at %d of %d was not looked for", r.worker.confEntry, last)
	}
}

func TestV10AStoreWithAStalledDiskLosesItsSupportAndItsLeases(t *testing.T) {
	c, lead := liveShard(t, nil)
	release := c.holdSyncs(lead)
	a := newAnswers(t)
	c.write(lead, op(wire.OpPut, 7, "a", "2"), a, 0)
	c.drain()
	for ok := true; ok; ok, _ = lead.store.SyncHealthy() {
		runtime.Gosched()
	}
	for ticks := 0; c.leader(7) == nil || c.leader(7) == lead; ticks++ {
		if ticks > 30 {
			t.Fatal("the stalled store still leads")
		}
		c.tickDraining(lead)
	}
	if _, ok := c.readNow(lead, 7, "a"); ok {
		t.Fatal("it reads by a lease")
	}
	release()
	c.mustGet(7, "a", "2")
}

// A store that takes no part in leases is no worse off than before there were any.
func TestAStoreWithoutLeasesWorksWithOthersThatHaveThem(t *testing.T) {
	c := newLiveCluster(t, 3, nil)
	three := c.nodes[3]
	c.crash(three, 100)
	three.promise = -1
	c.start(three)
	c.create(desc(7, "", "", 1, 2, 3))
	c.put(7, "a", "1")
	c.mustReadNow(c.leased(7), 7, "a", "1")
	c.everywhere(7, "a", "1")
	// What its earlier life was promised would be counted once more, and end: the others learn of a new life from its beats.
	c.until("the support of its earlier life has ended", func() bool {
		for _, n := range c.nodes {
			if n != three && n.live.Epoch(3, n.Boot()) != 0 {
				return false
			}
		}
		return true
	})
	c.until("it leads", func() bool {
		lead := c.leader(7)
		if lead == nil {
			return false
		}
		if lead != three {
			_ = lead.store.requestTransfer(7, 3, func(uint64, error) {})
		}
		return lead == three
	})
	c.put(7, "a", "2")
	c.mustGet(7, "a", "2")
	for range 100 {
		c.tick()
	}
	if c.leader(7) != three {
		t.Fatal("it cannot lead")
	}
}

// replacedOn3 is a cluster in which a snapshot has just put a replica of shard 7 in the place of another one, on store 3, at
// which the worker has not looked yet.
func replacedOn3(t *testing.T) (c *cluster, lead *testNode, old, next *replica) {
	t.Helper()
	c, lead = liveShard(t, small)
	three := c.nodes[3]
	lead.filter(func(m *wire.RaftMessage) bool { return m.ToStore != 3 || m.Msg.Type != raftpb.MsgApp })
	old = three.store.lookup(7)
	c.outgrow(7, "k", three)
	lead.filter(nil)
	three.hold = true
	c.until("a snapshot is installed", func() bool {
		for three.store.lookup(7) == old && three.store.pollLife() {
		}
		return three.store.lookup(7) != old
	})
	three.hold = false
	if next = three.store.lookup(7); next.worker.over != old || next.promised.Load() != nil {
		t.Fatal("the promise has gone over before the worker has looked")
	}
	if old.bound(three.Boot()) == nil {
		t.Fatal("the old replica has promised nothing")
	}
	lead.filter(func(m *wire.RaftMessage) bool { return m.ToStore != 3 })
	return c, lead, old, next
}

func TestASnapshotKeepsThePromiseOfTheReplicaItReplaces(t *testing.T) {
	c, _, old, next := replacedOn3(t)
	three := c.nodes[3]
	next.in.Lock()
	next.in.msgs = nil // of the leader: they would make it promise anew
	next.in.Unlock()
	three.passes()
	if p := next.bound(three.Boot()); p == nil || p != old.promised.Load() {
		t.Fatalf("promised %+v, before %+v", p, old.promised.Load())
	}
	granted := 0
	three.tap(func(_ base.StoreID, msgs []wire.RaftMessage) {
		for i := range msgs {
			if m := &msgs[i].Msg; m.Type == raftpb.MsgPreVoteResp && !m.Reject {
				granted++
			}
		}
	})
	three.asks(2, 1000, 1000)
	if granted > 0 {
		t.Fatal("it votes against the leader that the old one follows")
	}
}

// A leader gives up in the moment in which the object changes: its word meets the old one.
func TestAReleaseOfTheReplicaThatASnapshotReplacesHoldsForTheNextOne(t *testing.T) {
	c, lead, old, next := replacedOn3(t)
	three := c.nodes[3]
	three.store.workerOf(7).takeRelease(old, lead.id, &liveness.Group{Shard: 7, Term: c.termOf(lead, 7)})
	three.passes()
	if p := next.bound(three.Boot()); p != nil {
		t.Fatalf("bound by %+v", p)
	}
}

func TestAReleaseThatOvertakesTheLeadersLastWordsStands(t *testing.T) {
	c, lead := liveShard(t, nil)
	two := c.nodes[2]
	r := two.store.lookup(7)
	term := c.termOf(lead, 7)
	lead.paused, c.nodes[3].paused = true, true
	two.store.OnReleased(1, []liveness.Group{{Shard: 7, Term: term}})
	c.drain()
	if r.promised.Load() != nil {
		t.Fatal("the promise stays")
	}
	two.store.Step([]wire.RaftMessage{msgBetween(7, 1, 2, raftpb.Message{Type: raftpb.MsgHeartbeat, Term: term})})
	c.drain()
	if p := r.promised.Load(); p != nil {
		t.Fatalf("promised again to a leader that gave up: %+v", p)
	}
}
