package shard

import (
	"fmt"
	"testing"
	"time"

	"go.etcd.io/etcd/raft/v3"
	"go.etcd.io/etcd/raft/v3/raftpb"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
	"github.com/shardd/shardd/shard/liveness"
)

// readNow reads by a lease; ok is false if that is not possible.
func (c *cluster) readNow(n *testNode, shard base.ShardID, key string) (a wire.Answer, ok bool) {
	c.t.Helper()
	o := op(wire.OpGet, shard, key, "")
	o.Version = version(n, shard)
	out, ok := n.store.ReadNow(&o, []byte("before"), n.Boot())
	if !ok {
		if string(out) != "before" {
			c.t.Fatalf("a read that was not possible left %q", out)
		}
		return a, false
	}
	if _, err := wire.DecodeAnswer(out[len("before"):], &a); err != nil {
		c.t.Fatal(err)
	}
	return a, true
}

// leased waits until a shard has a leader that reads by its lease.
func (c *cluster) leased(shard base.ShardID) (n *testNode) {
	c.t.Helper()
	c.until("a lease of "+shard.String(), func() bool {
		if n = c.leader(shard); n == nil {
			return false
		}
		_, ok := c.readNow(n, shard, "-")
		return ok
	})
	return n
}

// mustReadNow reads a key by the leader's lease.
func (c *cluster) mustReadNow(n *testNode, shard base.ShardID, key, want string) {
	c.t.Helper()
	a, ok := c.readNow(n, shard, key)
	if !ok || a.Code != wire.OK || string(a.Payload) != want {
		c.t.Fatalf("%s on %s: %t, %s %q, want %q", key, n.id, ok, a.Code, a.Payload, want)
	}
}

// liveShard is a cluster of three with shard 7, led and leased by store 1, and "a" = "1" in it.
func liveShard(t *testing.T, tune func(*Config)) (c *cluster, lead *testNode) {
	c = newLiveCluster(t, 3, tune)
	c.create(desc(7, "", "", 1, 2, 3))
	c.put(7, "a", "1")
	lead = c.leased(7)
	if lead.id != 1 {
		t.Fatalf("led by %s", lead.id)
	}
	c.everywhere(7, "a", "1")
	return c, lead
}

// msgBetween is one from the replica on a store to that on another.
func msgBetween(shard base.ShardID, from, to base.StoreID, m raftpb.Message) wire.RaftMessage {
	m.From, m.To = uint64(from), uint64(to)
	return wire.RaftMessage{
		Shard: shard, From: base.ReplicaID(from), To: base.ReplicaID(to), FromStore: from, ToStore: to, Msg: m,
	}
}

func (c *cluster) termOf(n *testNode, shard base.ShardID) uint64 {
	return n.store.lookup(shard).worker.rn.BasicStatus().Term
}

func TestALeaderWithALeaseReadsAloneAndAtOnce(t *testing.T) {
	c, lead := liveShard(t, nil)
	sent := 0
	lead.tap(func(_ base.StoreID, msgs []wire.RaftMessage) { sent += len(msgs) })
	c.mustReadNow(lead, 7, "a", "1")
	if a, ok := c.readNow(lead, 7, "absent"); !ok || a.Code != wire.NotFound {
		t.Fatalf("absent: %t %s", ok, a.Code)
	}
	a := newAnswers(t)
	req := c.readIndex(lead, 7, a, 0)
	if ans, ok := a.of(req); !ok || ans.Code != wire.OK {
		t.Fatalf("a read index under a lease was not answered at once: %t %s", ok, ans.Code)
	}
	if sent > 0 {
		t.Fatalf("%d messages for reads", sent)
	}
	for _, id := range []base.StoreID{2, 3} {
		if _, ok := c.readNow(c.nodes[id], 7, "a"); ok {
			t.Fatalf("%s reads without leading", id)
		}
	}
	if st, _ := lead.store.Status(7); !st.Lease || !st.Leads {
		t.Fatalf("%+v", st)
	}
}

func TestV1AFollowerIgnoresVotesWhileItsPromiseBindsEvenIfRaftHasForgottenItsLeader(t *testing.T) {
	c, lead := liveShard(t, nil)
	two := c.nodes[2]
	granted := 0
	two.tap(func(_ base.StoreID, msgs []wire.RaftMessage) {
		for _, m := range msgs {
			if (m.Msg.Type == raftpb.MsgVoteResp || m.Msg.Type == raftpb.MsgPreVoteResp) && !m.Msg.Reject {
				granted++
			}
		}
	})
	term := c.termOf(two, 7)
	// A delayed answer of a higher term: raft takes the term and forgets its leader.
	two.store.Step([]wire.RaftMessage{msgBetween(7, 3, 2, raftpb.Message{Type: raftpb.MsgAppResp, Term: term + 3})})
	two.passes()
	if st := two.store.lookup(7).worker.rn.BasicStatus(); st.Lead != 0 || st.Term != term+3 {
		t.Fatalf("leader %d in term %d", st.Lead, st.Term)
	}
	for _, typ := range []raftpb.MessageType{raftpb.MsgPreVote, raftpb.MsgVote} {
		two.store.Step([]wire.RaftMessage{msgBetween(7, 3, 2, raftpb.Message{
			Type: typ, Term: term + 4, Index: 1000, LogTerm: term + 3,
		})})
		two.passes()
	}
	if granted > 0 {
		t.Fatalf("%d votes were given while the promise to %s binds", granted, lead.id)
	}
	c.mustReadNow(lead, 7, "a", "1")
	// It says so, and the leader makes room.
	c.until("a leader that all follow", func() bool {
		n := c.leader(7)
		return n != nil && c.termOf(n, 7) > term+3
	})
	c.mustGet(7, "a", "1")
}

func TestV1FollowersOfASupportedStoreDoNotCampaignHoweverLongTheirLeaderIsSilent(t *testing.T) {
	c, lead := liveShard(t, nil)
	term := c.termOf(lead, 7)
	lead.filter(func(m *wire.RaftMessage) bool { return false })
	lead.paused = true // its raft group, that is: it would step down
	for range 50 {
		c.clock.now.Add(int64(100 * time.Millisecond))
		lead.live.Tick(lead.Boot())
		c.beat()
		c.each(func(n *testNode) { n.store.TickAll() })
		c.settle()
	}
	for _, id := range []base.StoreID{2, 3} {
		if got := c.termOf(c.nodes[id], 7); got != term {
			t.Fatalf("%s is in term %d, was in %d", id, got, term)
		}
	}
	lead.paused = false
	lead.filter(nil)
	c.put(7, "b", "2")
}

func TestV2AnAnswerGivenUnderAnEarlierEpochDoesNotCount(t *testing.T) {
	c, lead := liveShard(t, func(cfg *Config) { cfg.ElectionTick = 60 })
	old := map[base.StoreID]uint64{}
	for _, id := range []base.StoreID{2, 3} {
		old[id] = lead.live.Held(id).Epoch
		c.nodes[id].filter(func(m *wire.RaftMessage) bool { return false }) // no answers, no votes
	}
	lead.mute = true
	c.until("support lapses", func() bool {
		return c.nodes[2].live.Epoch(1, c.nodes[2].Boot()) == 0 && c.nodes[3].live.Epoch(1, c.nodes[3].Boot()) == 0
	})
	if _, ok := c.readNow(lead, 7, "a"); ok {
		t.Fatal("it reads without support")
	}
	lead.mute = false
	c.until("support is back", func() bool {
		for id, epoch := range old {
			if s := lead.live.Held(id); s.Epoch == epoch || s.Until <= lead.Boot() {
				return false
			}
		}
		return true
	})
	for range 3 {
		if _, ok := c.readNow(lead, 7, "a"); ok {
			t.Fatal("the promises of an earlier epoch count")
		}
		c.tick()
	}
	for _, id := range []base.StoreID{2, 3} {
		c.nodes[id].filter(nil)
	}
	c.mustReadNow(c.leased(7), 7, "a", "1")
}

func TestV2AFollowerWithoutTheTermsFirstEntryDoesNotCount(t *testing.T) {
	c, lead := liveShard(t, nil)
	// The next leader's appends get no answers; its heartbeats do, with stamps.
	for _, id := range []base.StoreID{1, 3} {
		c.nodes[id].filter(func(m *wire.RaftMessage) bool { return m.Msg.Type != raftpb.MsgAppResp || m.ToStore != 2 })
	}
	two := c.nodes[2]
	_ = c.transfer(lead, 7, 2)
	c.until("it leads", func() bool { return two.store.lookup(7).lead.Load().leads })
	for range 5 {
		c.tick()
		if r := two.store.lookup(7); r.leaseAt(two.Boot()) != nil {
			t.Fatal("it counts followers that may not have its log")
		}
	}
	for _, id := range []base.StoreID{1, 3} {
		c.nodes[id].filter(nil)
	}
	c.leased(7)
}

func TestV3ALeaseReadSeesTheTermsFirstEntryApplied(t *testing.T) {
	_, lead := liveShard(t, nil)
	r := lead.store.lookup(7)
	first := r.lease.Load().first
	r.commit.Store(first - 1) // as it is in the moment in which the quorum is counted, before it is published
	if index, ok := r.leaseIndex(); !ok || index < first {
		t.Fatalf("index %d, %t, the term begins at %d", index, ok, first)
	}
	r.applied.Store(first - 1)
	o := op(wire.OpGet, 7, "a", "")
	if _, ok := lead.store.ReadNow(&o, nil, lead.Boot()); ok {
		t.Fatal("it reads before the first entry of its term is applied")
	}
}

func TestV3EveryHalfOfTheConfigurationNeedsACountedQuorum(t *testing.T) {
	c := newLiveCluster(t, 5, nil)
	one := c.nodes[1]
	good := func(id base.StoreID) leaseVoter { return leaseVoter{id, one.live.Held(id).Epoch} }
	stale := func(id base.StoreID) leaseVoter { return leaseVoter{id, one.live.Held(id).Epoch - 1} }
	half := func(voters int, self bool, others ...leaseVoter) leaseHalf { return leaseHalf{voters, self, others} }
	for name, tc := range map[string]struct {
		l    lease
		want bool
	}{
		"alone":                         {lease{halves: [2]leaseHalf{half(1, true)}}, true},
		"one of three":                  {lease{halves: [2]leaseHalf{half(3, true)}}, false},
		"two of three":                  {lease{halves: [2]leaseHalf{half(3, true, good(2))}}, true},
		"two of three, one stale":       {lease{halves: [2]leaseHalf{half(3, true, stale(2))}}, false},
		"not a voter itself, one":       {lease{halves: [2]leaseHalf{half(3, false, good(2))}}, false},
		"not a voter itself, two":       {lease{halves: [2]leaseHalf{half(3, false, good(2), good(3))}}, true},
		"two of four":                   {lease{halves: [2]leaseHalf{half(4, true, good(2))}}, false},
		"joint, both":                   {lease{halves: [2]leaseHalf{half(3, true, good(2)), half(3, true, good(4))}}, true},
		"joint, only the incoming":      {lease{halves: [2]leaseHalf{half(3, true, good(2)), half(3, true, stale(4))}}, false},
		"joint, only the outgoing":      {lease{halves: [2]leaseHalf{half(3, false, good(2)), half(3, true, good(4))}}, false},
		"joint, on its way out, a half": {lease{halves: [2]leaseHalf{half(3, false, good(2), good(3)), half(3, true)}}, false},
	} {
		if got := tc.l.holds(one.live, one.Boot()); got != tc.want {
			t.Errorf("%s: %t", name, got)
		}
	}
	l := lease{halves: [2]leaseHalf{half(3, true, good(2))}}
	if l.holds(one.live, one.live.Held(2).Until) {
		t.Error("it holds when its time is over")
	}
}

func TestV4ATransferEndsTheLeaseOfTheTermAndALeadershipThatComesToNothing(t *testing.T) {
	c, lead := liveShard(t, nil)
	term := c.termOf(lead, 7)
	orders := 0
	lead.filter(func(m *wire.RaftMessage) bool { // what leaves with a lease is checked on the way here
		if m.Msg.Type == raftpb.MsgTimeoutNow {
			orders++
			return orders > 1 // the first one is lost
		}
		return true
	})
	ch := c.transfer(lead, 7, 2)
	c.settle()
	if orders != 1 {
		t.Fatalf("%d orders", orders)
	}
	ticks := 0
	for ; c.termOf(lead, 7) == term; ticks++ {
		if _, ok := c.readNow(lead, 7, "a"); ok {
			t.Fatal("it reads by a lease that it has given up")
		}
		if ticks > 2*lead.store.cfg.ElectionTick {
			t.Fatal("the leadership without a lease stays")
		}
		c.tick()
	}
	<-ch
	if orders < 2 {
		t.Error("it does not try to hand over again")
	}
	c.mustReadNow(c.leased(7), 7, "a", "1")
	t.Logf("a new term after %d ticks", ticks)
}

func TestV4ALeaderThatCannotHandOverGivesUpAndFreesItsFollowers(t *testing.T) {
	c, lead := liveShard(t, nil)
	term := c.termOf(lead, 7)
	lead.filter(func(m *wire.RaftMessage) bool { return m.Msg.Type != raftpb.MsgTimeoutNow })
	_ = c.transfer(lead, 7, 2)
	ticks := 0
	for c.settle(); lead.store.lookup(7).worker.leads; ticks++ {
		if ticks > 2*lead.store.cfg.ElectionTick {
			t.Fatal("it leads without a lease for more than two election timeouts")
		}
		c.tick()
	}
	for ; c.leader(7) == nil || c.termOf(c.leader(7), 7) == term; ticks++ {
		if ticks > 45 { // without V8 the followers keep their promises for a check's time
			t.Fatal("no other leader")
		}
		c.tick()
	}
	if c.leased(7) == lead {
		t.Log("the old leader won again")
	}
	t.Logf("another term leads after %d ticks", ticks)
}

func TestV4TheLastReplicaOfAShardGetsALeaseAgainAfterATransferThatCameToNothing(t *testing.T) {
	c := newLiveCluster(t, 1, nil)
	c.create(desc(7, "", "", 1))
	c.put(7, "a", "1")
	lead := c.leased(7)
	term := c.termOf(lead, 7)
	lead.store.lookup(7).giveUpLease() // as if the target had been removed since
	c.put(7, "a", "2")
	c.until("a term with a lease", func() bool { return c.termOf(lead, 7) > term && c.leased(7) == lead })
	c.mustReadNow(lead, 7, "a", "2")
}

func TestV5AReadWaitsForTheCommitIndexThatIsKnownWhenItArrives(t *testing.T) {
	c, lead := liveShard(t, nil)
	lead.lazy = true // apply stands still there
	a := newAnswers(t)
	c.write(lead, op(wire.OpPut, 7, "a", "2"), a, 0)
	c.until("committed", func() bool {
		r := lead.store.lookup(7)
		return r.commit.Load() > r.applied.Load() && c.nodes[2].store.lookup(7).applied.Load() >= r.commit.Load()
	})
	if _, ok := c.readNow(lead, 7, "a"); ok {
		t.Fatal("it reads before what is committed is applied")
	}
	req := c.readIndex(lead, 7, a, 0)
	c.tick()
	if _, ok := a.of(req); ok {
		t.Fatal("a read index is answered before what is committed is applied")
	}
	lead.lazy = false
	c.until("the answer", func() bool { _, ok := a.of(req); return ok })
	c.mustReadNow(lead, 7, "a", "2")
}

func TestV5ALeaderThatIsSlowToApplyASplitDoesNotReadWhatItGaveAway(t *testing.T) {
	c, lead := liveShard(t, nil)
	lead.lazy = true
	ch := c.split(lead, 7, SplitSide{ID: 8, Start: base.UserKey([]byte("m"))})
	right := func() *testNode {
		for _, id := range []base.StoreID{2, 3} {
			if r := c.nodes[id].store.lookup(8); r != nil && r.lead.Load().leads {
				return c.nodes[id]
			}
		}
		return nil
	}
	c.until("the right side is led elsewhere", func() bool {
		if n := c.nodes[2]; n.store.lookup(8) != nil {
			_ = n.store.call(n.store.lookup(8), func(r *replica) { r.worker.stand = standAlone })
		}
		return right() != nil
	})
	a := newAnswers(t)
	o := op(wire.OpPut, 8, "x", "new")
	o.Version = version(right(), 8)
	req := c.write(right(), o, a, 0)
	c.until("a write there", func() bool { _, ok := a.of(req); return ok })
	if ans, _ := a.of(req); ans.Code != wire.OK {
		t.Fatal(ans.Code)
	}
	o = op(wire.OpGet, 7, "x", "")
	if out, ok := lead.store.ReadNow(&o, nil, lead.Boot()); ok {
		t.Fatalf("it answers for the range that it gave away: %q", out)
	}
	lead.lazy = false
	c.splitOutcome(ch)
	if ans, ok := c.readNow(lead, 7, "x"); ok && ans.Code != wire.EpochMismatch {
		t.Fatalf("%s", ans.Code)
	}
}

func TestV6APauseAfterTheViewWasOpenedIsNoticed(t *testing.T) {
	c, lead := liveShard(t, nil)
	o := op(wire.OpGet, 7, "a", "")
	now := lead.Boot()
	reads := 0
	lead.onBoot = func() { // the process stands still just before the last look at the clock
		if reads++; reads == 1 {
			c.clock.now.Add(int64(2 * time.Second))
		}
	}
	out, ok := lead.store.ReadNow(&o, nil, now)
	lead.onBoot = nil
	if ok || len(out) > 0 {
		t.Fatalf("it answers after a pause: %q", out)
	}
	if reads == 0 {
		t.Fatal("the clock was not read")
	}
}

func TestV8ALeadershipThatEndsIsToldToTheFollowers(t *testing.T) {
	c, lead := liveShard(t, nil)
	lead.store.fault(lead.store.lookup(7), "as by a damaged disk", nil)
	lead.store.pool.Enqueue(7)
	ticks := 0
	for c.settle(); c.leader(7) == nil; ticks++ {
		if ticks > 12 {
			t.Fatal("the followers go on supporting a live store whose replica is gone")
		}
		c.tick()
	}
	c.leased(7)
	t.Logf("another leader after %d ticks", ticks)
	lead.faults = nil
}

// A release that is late may find a later replica of the shard, which the leader may count: it keeps its promise.
func TestV8AReleaseOfAnEarlierReplicaEndsNoPromise(t *testing.T) {
	c, lead := liveShard(t, nil)
	two := c.nodes[2]
	r, term := two.store.lookup(7), c.termOf(lead, 7)
	two.store.OnReleased(1, []liveness.Group{{Shard: 7, Term: term, Follower: r.id + 1}})
	two.passes()
	if r.bound(two.Boot()) == nil || r.worker.runOut.queued {
		t.Fatal("the promise has ended")
	}
	two.store.OnReleased(1, []liveness.Group{{Shard: 7, Term: term, Follower: r.id}})
	two.passes()
	if r.bound(two.Boot()) != nil {
		t.Fatal("its own release did not end the promise")
	}
}

// The stores of all others hear at once that the leader of before leads no more, maybe before they hear of the next one: the
// target of a transfer must not meet candidates because of that.
func TestV8WhoIsReleasedWaitsForWordOfTheNextLeaderFirst(t *testing.T) {
	c, lead := liveShard(t, nil)
	three := c.nodes[3] // whose turn is the first
	r, term := three.store.lookup(7), c.termOf(lead, 7)
	if rank, ok := three.store.workerOf(7).rank(r, 1); !ok || rank != 0 {
		t.Fatalf("turn %d (%t)", rank, ok)
	}
	three.store.OnReleased(1, []liveness.Group{{Shard: 7, Term: term}})
	three.passes()
	if st := r.worker.rn.BasicStatus(); st.RaftState != raft.StateFollower || !r.worker.runOut.queued {
		t.Fatalf("%s at once", st.RaftState)
	}
	three.filter(func(*wire.RaftMessage) bool { return false })
	ticks := 0
	for ; r.worker.rn.BasicStatus().RaftState == raft.StateFollower; ticks++ {
		if ticks > 3*rankTicks {
			t.Fatal("it never stands")
		}
		c.clock.now.Add(int64(three.store.cfg.Tick))
		three.store.TickAll()
		three.passes()
	}
	if ticks < rankTicks {
		t.Errorf("it stands after %d ticks", ticks)
	}
}

// A release goes by another lane than appends, and overtakes them.
func TestV8ALateAppendOfALeaderThatGaveUpTakesNobodysTurn(t *testing.T) {
	c, _ := liveShard(t, nil)
	three := c.nodes[3]
	r, term := three.store.lookup(7), c.termOf(three, 7)
	three.store.OnReleased(1, []liveness.Group{{Shard: 7, Term: term}})
	three.passes()
	three.store.Step([]wire.RaftMessage{msgBetween(7, 1, 3, raftpb.Message{Type: raftpb.MsgHeartbeat, Term: term})})
	three.passes()
	if r.promised.Load() != nil || !r.worker.runOut.queued {
		t.Fatalf("promise %v, queued %t", r.promised.Load(), r.worker.runOut.queued)
	}
	three.filter(func(*wire.RaftMessage) bool { return false })
	for ticks := 0; r.worker.rn.BasicStatus().RaftState == raft.StateFollower; ticks++ {
		if ticks > 3*rankTicks {
			t.Fatal("it does not stand in its turn")
		}
		c.clock.now.Add(int64(three.store.cfg.Tick))
		three.store.TickAll()
		three.passes()
	}
}

// What takes the place of a replica that has stopped must not inherit a promise that nobody counts on any more.
func TestV8AReleaseReachesAReplicaThatHasStopped(t *testing.T) {
	c, lead := liveShard(t, nil)
	three := c.nodes[3]
	r, term := three.store.lookup(7), c.termOf(lead, 7)
	three.store.fault(r, "a test", nil)
	three.store.pool.Enqueue(7)
	three.passes()
	three.faults = nil
	if !r.worker.disposed || r.bound(three.Boot()) == nil {
		t.Fatalf("disposed %t, bound %v", r.worker.disposed, r.bound(three.Boot()))
	}
	three.store.OnReleased(1, []liveness.Group{{Shard: 7, Term: term}})
	three.passes()
	if r.bound(three.Boot()) != nil || r.worker.runOut.queued {
		t.Fatalf("bound %v, queued %t", r.bound(three.Boot()), r.worker.runOut.queued)
	}
}

func TestV8AskedAStoreSaysWhatItDoesNotLead(t *testing.T) {
	c, lead := liveShard(t, nil)
	term := c.termOf(lead, 7)
	g := liveness.Group{Shard: 7, Term: term}
	mine := liveness.Group{Shard: 7, Term: term, Follower: 2}
	if got := c.nodes[2].store.Follows(1); len(got) != 1 || got[0] != mine {
		t.Fatalf("store 2 follows %v on store 1", got)
	}
	if got := c.nodes[2].store.Follows(3); len(got) != 0 {
		t.Fatalf("store 2 follows %v on store 3", got)
	}
	for _, tc := range []struct {
		n    *testNode
		g    liveness.Group
		want bool
	}{{lead, g, true}, {lead, mine, true}, {lead, liveness.Group{Shard: 7, Term: term - 1}, false}, {lead, liveness.Group{Shard: 9, Term: 1}, false},
		{c.nodes[2], g, false}} {
		if got := tc.n.store.Leads(tc.g); got != tc.want {
			t.Errorf("%s leads %v: %t", tc.n.id, tc.g, got)
		}
	}
}

func TestV13ALeaderThatIsNoVoterHoldsNoLease(t *testing.T) {
	c, lead := liveShard(t, nil)
	r := lead.store.lookup(7)
	lead.store.call(r, func(r *replica) {
		r.worker.nonvoter = true
		lead.store.workerOf(7).publishLease(r)
	})
	c.drain()
	if _, ok := c.readNow(lead, 7, "a"); ok {
		t.Fatal("it reads by a lease")
	}
}

func TestV13ARunOutLooksAgainWhenItsTurnComes(t *testing.T) {
	c, lead := liveShard(t, nil)
	term := c.termOf(lead, 7)
	// Both followers lose the leader's store for a moment, and have it back before their turn.
	for _, id := range []base.StoreID{2, 3} {
		n := c.nodes[id]
		epoch := n.live.Epoch(1, n.Boot())
		n.store.OnLapse(1, epoch)
	}
	for range 30 {
		c.tick()
	}
	if got := c.termOf(lead, 7); got != term || c.leader(7) != lead {
		t.Fatalf("term %d, was %d", got, term)
	}
}

func TestMovesKeepLeasesSafe(t *testing.T) {
	c := newLiveCluster(t, 4, nil)
	c.create(desc(7, "", "", 1, 2, 3))
	for i := range 3 {
		c.put(7, "k", fmt.Sprint(i))
		lead := c.leased(7)
		from, to := base.StoreID(0), base.StoreID(0)
		d := c.desc(7)
		for _, id := range c.ids() {
			if _, ok := d.ReplicaOn(id); !ok {
				to = id
			} else if id != lead.id || i == 2 {
				from = id
			}
		}
		c.mustChange(7, ReplicaChange{Op: AddLearner, Store: to})
		c.everywhere(7, "k", fmt.Sprint(i))
		c.mustChange(7, ReplicaChange{Op: Promote, Store: to}, ReplicaChange{Op: Demote, Store: from})
		c.until("the joint configuration is left", func() bool { return c.leader(7) != nil && !isJoint(c.desc(7)) })
		c.mustChange(7, ReplicaChange{Op: Remove, Store: from})
		c.mustReadNow(c.leased(7), 7, "k", fmt.Sprint(i))
	}
}
