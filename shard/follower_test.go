package shard

import (
	"errors"
	"testing"
	"time"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
)

// asker carries questions for read indexes between the stores of a cluster: at once, or when the test lets them go.
type asker struct {
	c     *cluster
	hold  bool
	cut   bool // nothing gets through
	held  []func()
	asked int
}

var errCut = errors.New("cut")

func (a *asker) AskIndex(
	to base.StoreID, shard base.ShardID, start []byte, timeout time.Duration, done func(wire.Answer, error),
) {
	a.asked++
	if a.cut {
		done(wire.Answer{}, errCut)
		return
	}
	ask := func() {
		if a.c.nodes[to].store == nil {
			done(wire.Answer{}, errCut)
			return
		}
		a.c.nodes[to].store.ReadIndex([]ReadRequest{{
			Shard: shard, Key: start, Deadline: a.c.clock.Boot() + timeout, IndexOnly: true,
			Waiter: waiterFunc(func(ans wire.Answer) { done(ans, nil) }),
		}})
	}
	if a.hold {
		a.held = append(a.held, ask)
		return
	}
	ask()
}

// release lets go of the questions that are held back.
func (a *asker) release() {
	held := a.held
	a.held = nil
	for _, f := range held {
		f()
	}
	a.c.settle()
}

type waiterFunc func(wire.Answer)

func (f waiterFunc) Complete(_ uint64, a wire.Answer) { f(a) }

// newFollowers is a cluster whose stores ask each other.
func newFollowers(t *testing.T, stores int) (*cluster, *asker) {
	a := &asker{}
	c := newCluster(t, stores, func(cfg *Config) { cfg.Indexes = a })
	a.c = c
	return c, a
}

// anyRead asks a store for a read that any replica may serve, at a version; maxAge 0 is a linearizable one.
func (c *cluster) anyRead(n *testNode, shard base.ShardID, v uint64, maxAge time.Duration, a *answers) uint64 {
	c.next++
	req := c.next
	a.expect(req)
	n.store.ReadIndex([]ReadRequest{{
		Shard: shard, Version: v, Req: req, Follower: maxAge == 0, MaxAge: maxAge, Waiter: a,
	}})
	c.settle()
	return req
}

// code is what has become of a request; 255 if nothing has.
func (a *answers) code(req uint64) wire.Code {
	if ans, ok := a.of(req); ok {
		return ans.Code
	}
	return 255
}

const open = wire.Code(255)

func TestAFollowerServesALinearizableReadOnceItHasAppliedTheLeadersIndex(t *testing.T) {
	c, _ := newFollowers(t, 3)
	c.create(desc(7, "", "", 1, 2, 3))
	c.put(7, "k", "old")
	c.everywhere(7, "k", "old")
	f := c.nodes[2]
	f.lazy = true // apply stands still
	c.put(7, "k", "new")
	a := newAnswers(t)
	req := c.anyRead(f, 7, 1, 0, a)
	if got := a.code(req); got != open {
		t.Fatalf("answered %s before the write was applied", got)
	}
	f.lazy = false
	c.settle()
	if got := a.code(req); got != wire.OK {
		t.Fatalf("answered %s", got)
	}
	if v, _ := c.local(f, 7, "k"); v != "new" {
		t.Errorf("read %q", v)
	}
}

func TestReadsThatWaitTogetherShareOneQuestionAndNoneJoinsOneUnderWay(t *testing.T) {
	c, q := newFollowers(t, 3)
	c.create(desc(7, "", "", 1, 2, 3))
	q.hold = true
	a := newAnswers(t)
	var reqs []uint64
	for range 10 {
		reqs = append(reqs, c.anyRead(c.nodes[2], 7, 1, 0, a))
	}
	q.release()
	if a.code(reqs[0]) != wire.OK || a.code(reqs[1]) != open {
		t.Fatalf("after the first answer: %s, %s", a.code(reqs[0]), a.code(reqs[1]))
	}
	q.release()
	if q.asked != 2 || a.missing() != 0 {
		t.Errorf("%d questions, %d reads without an answer", q.asked, a.missing())
	}
}

func TestAQuestionFollowsTheHintOfAStoreThatNoLongerLeads(t *testing.T) {
	c, q := newFollowers(t, 3)
	c.create(desc(7, "", "", 1, 2, 3))
	q.hold = true
	a := newAnswers(t)
	req := c.anyRead(c.nodes[2], 7, 1, 0, a) // bound for store 1
	if res := c.outcome(c.transfer(c.nodes[1], 7, 3)); res.err != nil {
		t.Fatal(res.err)
	}
	c.until("store 3 leads", func() bool { return c.leader(7) == c.nodes[3] })
	q.release()
	q.release()
	if a.code(req) != wire.OK || q.asked != 2 {
		t.Errorf("%s after %d questions", a.code(req), q.asked)
	}
}

func TestAFollowerThatCannotAskSaysSoAndOneThatGetsNoAnswerGivesUp(t *testing.T) {
	c, q := newFollowers(t, 3)
	c.create(desc(7, "", "", 1, 2, 3))
	a := newAnswers(t)
	q.cut = true
	if req := c.anyRead(c.nodes[2], 7, 1, 0, a); a.code(req) != wire.Unavailable {
		t.Errorf("cut off: %s", a.code(req))
	}
	q.cut, q.hold = false, true
	first, second := c.anyRead(c.nodes[2], 7, 1, 0, a), c.anyRead(c.nodes[2], 7, 1, 0, a)
	for range 11 {
		c.tick()
	}
	if a.code(first) != wire.TimedOut || a.code(second) != open {
		t.Fatalf("after the time-out: %s, and %s for the next question", a.code(first), a.code(second))
	}
	q.release()
	if a.code(second) != wire.OK {
		t.Errorf("the question after one that was lost: %s", a.code(second))
	}
}

func TestAStaleReadIsServedAtOnceWhileItsAgeIsProvedAndNeverBeyond(t *testing.T) {
	c, q := newFollowers(t, 3)
	c.create(desc(7, "", "", 1, 2, 3))
	a, f := newAnswers(t), c.nodes[2]
	const d = time.Second
	if req := c.anyRead(f, 7, 1, d, a); a.code(req) != wire.OK || q.asked != 1 {
		t.Fatalf("first: %s after %d questions", a.code(req), q.asked)
	}
	q.hold = true
	c.pass(400 * time.Millisecond)
	if req := c.anyRead(f, 7, 1, d, a); a.code(req) != wire.OK || q.asked != 1 {
		t.Fatalf("at 400 ms: %s after %d questions", a.code(req), q.asked)
	}
	c.pass(200 * time.Millisecond)
	if req := c.anyRead(f, 7, 1, d, a); a.code(req) != wire.OK || q.asked != 2 {
		t.Fatalf("at 600 ms: %s after %d questions, want one ahead of need", a.code(req), q.asked)
	}
	c.pass(350 * time.Millisecond)
	if req := c.anyRead(f, 7, 1, d, a); a.code(req) != wire.OK {
		t.Fatalf("at 950 ms: %s", a.code(req))
	}
	c.pass(time.Millisecond) // of another clock it may be a second by now
	late := c.anyRead(f, 7, 1, d, a)
	if a.code(late) != open {
		t.Fatalf("at 951 ms: %s", a.code(late))
	}
	if req := c.anyRead(f, 7, 1, 2*d, a); a.code(req) != wire.OK {
		t.Fatalf("at 951 ms, with twice the bound: %s", a.code(req))
	}
	q.release()
	q.release()
	if a.code(late) != wire.OK {
		t.Fatalf("after an answer: %s", a.code(late))
	}
}

// A question that was under way for long proves nothing about what happened meanwhile.
func TestAnAgeCountsFromTheQuestionNotFromTheAnswer(t *testing.T) {
	c, q := newFollowers(t, 3)
	c.create(desc(7, "", "", 1, 2, 3))
	a, f := newAnswers(t), c.nodes[2]
	q.hold = true
	first := c.anyRead(f, 7, 1, 10*time.Second, a)
	c.pass(900 * time.Millisecond)
	q.release()
	if a.code(first) != wire.OK {
		t.Fatal(a.code(first))
	}
	c.pass(100 * time.Millisecond)
	if req := c.anyRead(f, 7, 1, time.Second, a); a.code(req) != open {
		t.Errorf("100 ms after the answer to a question of a second ago: %s", a.code(req))
	}
	q.release()
}

func TestAnIndexThatIsNotAppliedProvesNoAge(t *testing.T) {
	c, q := newFollowers(t, 3)
	c.create(desc(7, "", "", 1, 2, 3))
	c.put(7, "k", "old")
	c.everywhere(7, "k", "old")
	a, f := newAnswers(t), c.nodes[2]
	const d = time.Minute
	proved := c.anyRead(f, 7, 1, d, a)
	c.pass(time.Second)
	f.lazy = true
	c.put(7, "k", "new")
	waits := c.anyRead(f, 7, 1, 0, a) // brings an index that is ahead of apply
	if a.code(proved) != wire.OK || a.code(waits) != open {
		t.Fatalf("%s, %s", a.code(proved), a.code(waits))
	}
	if req := c.anyRead(f, 7, 1, d, a); a.code(req) != wire.OK {
		t.Errorf("the older proof is lost: %s", a.code(req))
	}
	if req := c.anyRead(f, 7, 1, 500*time.Millisecond, a); a.code(req) != open {
		t.Errorf("a state of a second ago served as one of 500 ms: %s", a.code(req))
	}
	f.lazy = false
	c.settle()
	if a.missing() != 0 || q.asked != 3 {
		t.Errorf("%d reads without an answer, %d questions", a.missing(), q.asked)
	}
}

// V5 at a follower: the right-hand side of a split takes writes while a slow follower of the left still has the range.
func TestAFollowerBehindASplitDoesNotServeWhatTheSplitGaveAway(t *testing.T) {
	c, _ := newFollowers(t, 3)
	c.create(desc(7, "", "", 1, 2, 3))
	c.put(7, "x", "old")
	c.everywhere(7, "x", "old")
	a, slow := newAnswers(t), c.nodes[3]
	slow.lazy = true
	if res := c.splitOutcome(c.split(c.leader(7), 7, side(8, "m"))); res.err != nil {
		t.Fatal(res.err)
	}
	c.until("the right side leads", func() bool { return c.leader(8) != nil })
	c.put(8, "x", "new")
	for _, age := range []time.Duration{0, time.Millisecond} {
		req := c.anyRead(slow, 7, 1, age, a)
		if a.code(req) != open {
			t.Errorf("max age %s: %s", age, a.code(req))
		}
	}
	// A caller who knows of the split already waits for the same.
	next := c.anyRead(slow, 7, 2, 0, a)
	if a.code(next) != open {
		t.Errorf("at the new version: %s", a.code(next))
	}
	slow.lazy = false
	c.until("all are answered", func() bool { return a.missing() == 0 })
	o := op(wire.OpGet, 7, "x", "")
	var ans wire.Answer
	if _, err := wire.DecodeAnswer(slow.store.Read(&o, nil), &ans); err != nil || ans.Code != wire.EpochMismatch {
		t.Errorf("read of what was given away: %s, %v", ans.Code, err)
	}
}

func TestAFrozenShardServesNoReadsAtFollowers(t *testing.T) {
	a := &asker{}
	c := newPair(t, 3, func(cfg *Config) { cfg.Indexes = a })
	a.c = c
	c.put(8, "x", "old")
	got := newAnswers(t)
	proved := c.anyRead(c.nodes[2], 8, 1, time.Minute, got)
	a.hold = true
	asked := c.anyRead(c.nodes[3], 8, 1, 0, got)
	c.mustFreeze(1, 8, 7)
	if got.code(proved) != wire.OK {
		t.Fatal(got.code(proved))
	}
	a.release()
	for name, req := range map[string]uint64{
		"a question that came after the freeze": asked,
		"a read with a proof":                   c.anyRead(c.nodes[2], 8, 1, time.Minute, got),
	} {
		if got.code(req) != wire.Busy {
			t.Errorf("%s: %s", name, got.code(req))
		}
	}
}

func TestAMergedShardSendsItsReadersToTheOneThatTookItIn(t *testing.T) {
	a := &asker{}
	c := newPair(t, 3, func(cfg *Config) { cfg.Indexes = a })
	a.c = c
	c.put(8, "x", "old")
	got := newAnswers(t)
	a.hold = true
	asked := c.anyRead(c.nodes[2], 8, 1, 0, got)
	c.mustMerge(1, 8, 7)
	if got.code(asked) != wire.EpochMismatch {
		t.Errorf("a read that waited: %s", got.code(asked))
	}
	a.release() // nobody waits for it any more
	a.hold = false
	req := c.anyRead(c.nodes[2], 7, version(c.nodes[2], 7), time.Second, got)
	if v, ok := c.local(c.nodes[2], 7, "x"); got.code(req) != wire.OK || !ok || v != "old" {
		t.Errorf("%s, %q", got.code(req), v)
	}
}

func TestReadsAtAFollowerThatEndsAreAnswered(t *testing.T) {
	c, q := newFollowers(t, 3)
	c.create(desc(7, "", "", 1, 2, 3))
	a := newAnswers(t)
	q.hold = true
	c.anyRead(c.nodes[2], 7, 1, 0, a)
	next := c.anyRead(c.nodes[2], 7, 1, 0, a)
	c.stop(c.nodes[2])
	if a.missing() != 0 || a.code(next) != wire.Unavailable {
		t.Errorf("%d reads without an answer; %s", a.missing(), a.code(next))
	}
	q.release() // an answer for a replica that is gone
}

func TestReadsAtFollowersAreBounded(t *testing.T) {
	q := &asker{hold: true}
	c := newCluster(t, 3, func(cfg *Config) { cfg.Indexes = q; cfg.Limits.GroupReads = 4 })
	q.c = c
	c.create(desc(7, "", "", 1, 2, 3))
	a := newAnswers(t)
	for range 4 {
		c.anyRead(c.nodes[2], 7, 1, 0, a)
	}
	if req := c.anyRead(c.nodes[2], 7, 1, 0, a); a.code(req) != wire.Busy {
		t.Errorf("beyond the limit: %s", a.code(req))
	}
	q.release()
	q.release()
	if n := c.nodes[2].store.used.reads.Load(); a.missing() != 0 || n != 0 {
		t.Errorf("%d reads without an answer, %d on the accounts", a.missing(), n)
	}
}
