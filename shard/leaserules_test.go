package shard

import (
	"testing"
	"time"

	"go.etcd.io/etcd/raft/v3"
	"go.etcd.io/etcd/raft/v3/raftpb"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
)

// on returns a store's replica of shard 7 and its worker, which runs on the test's goroutine.
func (n *testNode) on() (w *worker, r *replica) { return n.store.workerOf(7), n.store.lookup(7) }

func (n *testNode) state() raft.StateType {
	_, r := n.on()
	return r.worker.rn.BasicStatus().RaftState
}

func TestV2OnlyStampsOfTheTermCountAndNoneReplacesALaterOne(t *testing.T) {
	c, lead := liveShard(t, nil)
	_, r := lead.on()
	was, term := r.worker.leading.stampOf(3), c.termOf(lead, 7)
	for what, tc := range map[string]struct{ term, epoch, commit uint64 }{
		"a later epoch in the term before": {term - 1, was.epoch + 1, was.commit},
		"the same, and commit index":       {term - 1, was.epoch, was.commit + 1},
		"an earlier epoch":                 {term, was.epoch - 1, was.commit + 1},
		"no epoch":                         {term, 0, 0},
		"an earlier commit index":          {term, was.epoch, was.commit - 1},
	} {
		m := msgBetween(7, 3, 1, raftpb.Message{Type: raftpb.MsgHeartbeatResp, Term: tc.term})
		m.Stamp = wire.Stamp{Epoch: tc.epoch, Commit: tc.commit}
		lead.store.Step([]wire.RaftMessage{m})
		lead.passes()
		if got := r.worker.leading.stampOf(3); got.epoch != was.epoch || got.commit != was.commit {
			t.Fatalf("%s: %+v, was %+v", what, got, was)
		}
	}
}

func TestV2AStampGoesToTheLeaderOfItsTermAlone(t *testing.T) {
	c, lead := liveShard(t, nil)
	two := c.nodes[2]
	w, r := two.on()
	p, term := r.promised.Load(), c.termOf(lead, 7)
	stamp := func(to base.StoreID, m raftpb.Message) uint64 { return w.stamp(r, &m, to).Epoch }
	good := raftpb.Message{Type: raftpb.MsgAppResp, To: 1, Term: term}
	if got := stamp(1, good); got != p.epoch || got == 0 {
		t.Fatalf("stamp of %x, promised under %x", got, p.epoch)
	}
	later, other, vote := good, good, good
	later.Term++
	other.To = 3
	vote.Type = raftpb.MsgVoteResp
	for what, got := range map[string]uint64{
		"a later term":    stamp(1, later),
		"another replica": stamp(1, other),
		"another store":   stamp(3, good),
		"a vote":          stamp(1, vote),
	} {
		if got != 0 {
			t.Errorf("%s: stamp of %x", what, got)
		}
	}
	// What was to be said in the old term is no promise once raft has moved on.
	two.store.Step([]wire.RaftMessage{msgBetween(7, 3, 2, raftpb.Message{Type: raftpb.MsgAppResp, Term: term + 1})})
	two.passes()
	if got := stamp(1, good); got != 0 || r.promised.Load() != p {
		t.Errorf("stamp of %x in term %d", got, c.termOf(two, 7))
	}
}

func TestV9WhatKeepsALeaderAwake(t *testing.T) {
	c, lead := liveShard(t, nil)
	c.untilAsleep(7)
	w, r := lead.on()
	rw := &r.worker
	rests := func() bool { return w.mayRest(r) }
	third := func() *followerStamp {
		for i := range rw.leading.stamps {
			if rw.leading.stamps[i].replica == 3 {
				return &rw.leading.stamps[i]
			}
		}
		t.Fatal("no stamp")
		return nil
	}
	if !rests() {
		t.Fatal("it sleeps though it may not")
	}
	lease := r.lease.Load()
	for what, f := range map[string]func() (undo func()){
		"a promise of an earlier epoch": func() func() { third().epoch--; return func() { third().epoch++ } },
		"an earlier commit index":       func() func() { third().commit--; return func() { third().commit++ } },
		"no lease":                      func() func() { r.lease.Store(nil); return func() { r.lease.Store(lease) } },
		"a conf change that is not applied": func() func() {
			was := rw.confEntry
			rw.confEntry = r.applied.Load() + 1
			return func() { rw.confEntry = was }
		},
		"its turn to stand":        func() func() { rw.runOut.queued = true; return func() { rw.runOut.queued = false } },
		"an election to call":      func() func() { rw.stand = standAlone; return func() { rw.stand = standNot } },
		"leaderships to give up":   func() func() { lead.store.paused.Store(true); return func() { lead.store.paused.Store(false) } },
		"a disk that stands still": func() func() { lead.store.stalled.Store(true); return func() { lead.store.stalled.Store(false) } },
	} {
		undo := f()
		if rests() {
			t.Errorf("it may sleep with %s", what)
		}
		if undo(); !rests() {
			t.Fatalf("it may not sleep without %s", what)
		}
	}
	// One that is down has missed its chance: it is fed when it is back.
	c.stop(c.nodes[3])
	c.until("its support is over", func() bool { return lead.live.Held(3).Until <= lead.Boot() })
	c.until("the others sleep", func() bool { return c.asleep(7) })
	if third().commit--; !rests() {
		t.Error("a follower that is down keeps its leader awake")
	}
}

func TestV9WhatKeepsAFollowerAwake(t *testing.T) {
	c, _ := liveShard(t, nil)
	c.untilAsleep(7)
	w, r := c.nodes[2].on()
	good := *r.promised.Load()
	for what, tc := range map[string]struct {
		p    *promise
		want bool
	}{
		"its promise to its leader":     {&good, true},
		"no promise":                    {nil, false},
		"a promise of an earlier epoch": {&promise{good.store, good.replica, good.term, good.epoch - 1}, false},
		"a promise to another":          {&promise{good.store, good.replica + 1, good.term, good.epoch}, false},
		"a promise to one of before":    {&promise{good.store, good.replica, good.term - 1, good.epoch}, false},
	} {
		if r.promised.Store(tc.p); w.mayRest(r) != tc.want {
			t.Errorf("with %s it may sleep: %t", what, !tc.want)
		}
	}
	r.promised.Store(&good)
}

// A leader that loses its quorum must find that out, though all that it lacks is on stores that are down.
func TestV9ALeaderWithoutALeaseDoesNotSleep(t *testing.T) {
	c, lead := liveShard(t, nil)
	c.untilAsleep(7)
	c.net.Isolate(1)
	_, r := lead.on()
	c.until("it steps down", func() bool { return !r.worker.leads })
	c.net.HealAll()
	c.mustReadNow(c.leased(7), 7, "a", "1")
}

// A leader gets its ticks even where followers get none of those that fire: on a store that keeps quiet.
func TestV11ALeaderOnAStoreThatKeepsQuietSendsAgainWhatWasLost(t *testing.T) {
	c, lead := liveShard(t, nil)
	two := c.nodes[2]
	two.recorded = 10 * time.Minute
	c.crash(two, 100)
	c.start(two)
	c.until("it is counted, and supported", func() bool {
		s, one, three := lead.live.Held(2), two.live.Held(1), two.live.Held(3)
		return s != nil && one != nil && three != nil && s.Until > lead.Boot() && lead.store.lookup(7).counts(2, s.Epoch)
	})
	if res := c.outcome(c.transfer(lead, 7, 2)); res.err != nil {
		t.Fatal(res.err)
	}
	if w, r := two.on(); !w.mustKeepQuiet(r) || c.leased(7) != two {
		t.Fatal("it does not lead, or need not keep quiet")
	}
	lost := 0
	two.filter(func(m *wire.RaftMessage) bool {
		if m.Msg.Type == raftpb.MsgApp && lost < 3 {
			lost++
			return false
		}
		return true
	})
	c.put(7, "a", "2")
	c.everywhere(7, "a", "2")
}

func TestV13ARunOutFiresOnlyIfThereStillIsReason(t *testing.T) {
	c, _ := liveShard(t, nil)
	w, r := c.nodes[3].on() // whose turn is the first
	rw := &r.worker
	kept := r.promised.Load()
	for what, f := range map[string]func() (undo func()){
		"its leader's store is supported": func() func() { r.promised.Store(kept); return func() {} },
		"there is another term":           func() func() { rw.term++; return func() { rw.term-- } },
		"it leads":                        func() func() { rw.leads = true; return func() { rw.leads = false } },
	} {
		r.promised.Store(nil)
		w.queueRunOut(r, 1)
		undo := f()
		_, waits, cost := w.fireRunOut(r)
		if undo(); waits || cost > 0 || rw.runOut.queued || rw.stand != standNot {
			t.Errorf("%s: waits %t, stands %d", what, waits, rw.stand)
		}
	}
	r.promised.Store(nil)
	w.queueRunOut(r, 1)
	if _, waits, cost := w.fireRunOut(r); waits || cost != 1 || rw.stand != standUp {
		t.Errorf("with reason: waits %t, stands %d", waits, rw.stand)
	}
	rw.stand = standNot
	r.promised.Store(kept)
}

func TestV13WhoIsToStandLooksAgain(t *testing.T) {
	c, _ := liveShard(t, nil)
	two := c.nodes[2]
	w, r := two.on()
	kept := r.promised.Load()
	for what, f := range map[string]func(){
		"its promise binds": func() { r.worker.stand = standUp },
		"it knows a leader": func() { r.worker.stand = standAlone; r.promised.Store(nil) },
	} {
		f()
		w.standNow(r)
		if got := two.state(); got != raft.StateFollower || r.worker.stand != standNot {
			t.Fatalf("%s, and it is %s", what, got)
		}
		r.promised.Store(kept)
	}
	// One that keeps quiet stands later.
	two.recorded = 10 * time.Minute
	c.crash(two, 100)
	c.start(two)
	two.passes()
	w, r = two.on()
	r.worker.stand = standUp
	if w.standNow(r); two.state() != raft.StateFollower || r.worker.stand != standUp {
		t.Fatalf("it keeps quiet, and is %s", two.state())
	}
	r.worker.stand = standNot
}

func TestACandidateThatNobodyAnswersAsksAgain(t *testing.T) {
	c, lead := liveShard(t, nil)
	three := c.nodes[3]
	c.nodes[2].filter(func(*wire.RaftMessage) bool { return false })
	asked := 0
	three.tap(func(to base.StoreID, msgs []wire.RaftMessage) {
		for i := range msgs {
			if to == 2 && msgs[i].Msg.Type == raftpb.MsgPreVote {
				asked++
			}
		}
	})
	c.crash(lead, 100)
	c.until("it stands", func() bool { return asked > 0 })
	for range campaignTries * campaignTicks { // less than raft itself would wait
		c.tick()
	}
	if asked < campaignTries {
		t.Fatalf("%d questions", asked)
	}
}

func TestOfTwoCandidatesThatAreEqualOneYields(t *testing.T) {
	for _, id := range []base.StoreID{2, 3} {
		c, lead := liveShard(t, nil)
		n := c.nodes[id]
		other := 5 - id
		n.filter(func(*wire.RaftMessage) bool { return false })
		c.nodes[other].filter(func(*wire.RaftMessage) bool { return false })
		c.crash(lead, 100)
		c.until("it stands", func() bool { return n.state() == raft.StatePreCandidate })
		w, r := n.on()
		r.worker.retries = campaignTries
		_, last := r.worker.log.Bounds()
		term, err := r.worker.log.Term(last)
		if err != nil {
			t.Fatal(err)
		}
		m := inMessage{store: other, msg: raftpb.Message{
			Type: raftpb.MsgPreVote, From: uint64(other), To: uint64(id), Term: r.worker.term + 1, LogTerm: term, Index: last,
		}}
		yields := r.prefers(base.ReplicaID(other))
		if yields == (id == 3) {
			t.Fatalf("store %s yields: %t", id, yields)
		}
		if got := w.letsPass(r, &m); got != yields || (r.worker.yielding > 0) != yields {
			t.Fatalf("store %s lets the other pass: %t, and waits for %d ticks", id, got, r.worker.yielding)
		}
		if !yields {
			m.msg.Index++ // a better one goes first
			if !w.letsPass(r, &m) || r.worker.yielding == 0 {
				t.Fatal("it does not yield to one that has more")
			}
		}
		if w.retryCampaign(r, rankTicks-1); r.worker.rn.HasReady() {
			t.Fatal("it does not wait")
		}
		if w.retryCampaign(r, 1); !r.worker.rn.HasReady() {
			t.Fatal("it does not ask when the other has had its time")
		}
		n.passes()
	}
}

// A follower in a higher term owes its leader silence until that one knows; a leader that sleeps is not going to ask.
func TestALeaderThatSleepsIsToldOfAHigherTermUntilItKnows(t *testing.T) {
	c, lead := liveShard(t, nil)
	c.untilAsleep(7)
	two, term := c.nodes[2], c.termOf(lead, 7)
	lost := 0
	two.filter(func(m *wire.RaftMessage) bool {
		if m.Msg.Type == raftpb.MsgAppResp && m.Msg.Term > term && lost < 2 {
			lost++
			return false
		}
		return true
	})
	two.store.Step([]wire.RaftMessage{msgBetween(7, 3, 2, raftpb.Message{Type: raftpb.MsgAppResp, Term: term + 3})})
	c.until("a leader that all follow", func() bool {
		n := c.leader(7)
		return n != nil && c.termOf(n, 7) > term+3
	})
	if lost != 2 {
		t.Fatalf("%d reminders were lost", lost)
	}
}
