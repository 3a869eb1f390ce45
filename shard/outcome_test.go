package shard

import (
	"fmt"
	"testing"
	"time"

	"github.com/shardd/shardd/internal/wire"
)

func TestAWriteThatAnotherLeaderDisplacedIsDefinitelyNotDone(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.create(desc(7, "", "", 1, 2, 3))
	c.put(7, "a", "1")
	old := c.leader(7)
	c.net.Isolate(old.id)
	a := newAnswers(t)
	var lost []uint64
	for i := range 3 { // several entries, so that the log has a tail to cut
		lost = append(lost, c.write(old, op(wire.OpPut, 7, "lost", fmt.Sprint(i)), a, time.Hour))
		c.settle()
	}
	c.until("another leader", func() bool { n := c.leader(7); return n != nil && n != old })
	c.put(7, "won", "x")
	if a.missing() != 3 {
		t.Fatal("a cut-off leader decided its writes")
	}
	c.net.HealAll()
	c.until("the writes are decided", func() bool { return a.missing() == 0 })
	for _, req := range lost {
		if ans, _ := a.of(req); ans.Code != wire.NotLeader {
			t.Fatalf("displaced write: %s", ans.Code)
		}
	}
	c.everywhere(7, "won", "x")
	if v, ok := c.get(7, "lost"); ok {
		t.Fatalf("a write answered as not done is there: %q", v)
	}
}

func TestAWriteOfALostLeaderThatTheNextOneCommitsIsAcknowledged(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.create(desc(7, "", "", 1, 2, 3))
	c.put(7, "a", "1")
	old := c.leader(7)
	for _, id := range c.ids() { // its appends reach the others, no answer comes back
		if id != old.id {
			c.net.Cut(id, old.id)
		}
	}
	a := newAnswers(t)
	req := c.write(old, op(wire.OpPut, 7, "k", "v"), a, time.Hour)
	c.until("another leader", func() bool { n := c.leader(7); return n != nil && n != old })
	if _, ok := a.of(req); ok {
		t.Fatal("decided without hearing from anybody")
	}
	c.net.HealAll()
	c.until("the answer", func() bool { return a.missing() == 0 })
	if ans, _ := a.of(req); ans.Code != wire.OK {
		t.Fatalf("%s, want ok", ans.Code)
	}
	c.mustGet(7, "k", "v")
}

func TestDeadlinesAreAmbiguousOnceProposedAndDefiniteBefore(t *testing.T) {
	c := newPlainCluster(t, 3, nil)
	c.create(desc(7, "", "", 1, 2, 3))
	c.put(7, "a", "1")
	lead := c.leader(7)
	release := c.holdSyncs(lead)
	a := newAnswers(t)
	for _, id := range c.ids() {
		if id != lead.id {
			c.net.Cut(id, lead.id)
		}
	}
	proposed := c.write(lead, op(wire.OpPut, 7, "p", "1"), a, 300*time.Millisecond)
	c.drain() // in a Ready that waits for its sync
	queued := c.write(lead, op(wire.OpPut, 7, "q", "1"), a, 300*time.Millisecond)
	read := c.readIndex(lead, 7, a, 300*time.Millisecond)
	for i := range 4 {
		if i < 3 && a.missing() != 3 {
			t.Fatal("answered before the deadline")
		}
		c.clock.now.Add(int64(100 * time.Millisecond))
		c.each(func(n *testNode) { n.store.TickAll() })
		c.drain()
	}
	for req, want := range map[uint64]wire.Code{proposed: wire.Ambiguous, queued: wire.TimedOut, read: wire.TimedOut} {
		if ans, ok := a.of(req); !ok || ans.Code != want {
			t.Errorf("request %d: %v %s, want %s", req, ok, ans.Code, want)
		}
	}
	release()
	c.net.HealAll()
	c.until("a leader", func() bool { return c.leader(7) != nil })
	if v, ok := c.get(7, "q"); ok {
		t.Fatalf("a write that timed out unproposed is there: %q", v)
	}
}

func TestAStoppingStoreAnswersEverybodyOnce(t *testing.T) {
	c := newPlainCluster(t, 3, nil)
	c.create(desc(7, "", "", 1, 2, 3))
	c.put(7, "a", "1")
	lead := c.leader(7)
	c.net.Isolate(lead.id)
	release := c.holdSyncs(lead)
	a := newAnswers(t)
	proposed := c.write(lead, op(wire.OpPut, 7, "p", "1"), a, time.Hour)
	c.drain()
	queued := c.write(lead, op(wire.OpPut, 7, "q", "1"), a, time.Hour)
	read := c.readIndex(lead, 7, a, time.Hour)
	lead.store.stop()
	late := c.write(lead, op(wire.OpPut, 7, "late", "1"), a, time.Hour)
	release()
	for req, want := range map[uint64]wire.Code{
		proposed: wire.Ambiguous, queued: wire.Unavailable, read: wire.Unavailable, late: wire.Unavailable,
	} {
		if ans, ok := a.of(req); !ok || ans.Code != want {
			t.Errorf("request %d: %v %s, want %s", req, ok, ans.Code, want)
		}
	}
	if err := lead.store.Create(desc(9, "x", "", lead.id), nil, false); err == nil {
		t.Error("a stopped store created a replica")
	}
}

func TestAReadWaitsUntilWhatWasCommittedBeforeItIsApplied(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.create(desc(7, "", "", 1, 2, 3))
	c.put(7, "a", "1")
	lead := c.leader(7)
	lead.hold = true
	a := newAnswers(t)
	w := c.write(lead, op(wire.OpPut, 7, "a", "2"), a, time.Hour)
	c.settle()
	r := c.readIndex(lead, 7, a, time.Hour)
	late := c.readIndex(lead, 7, a, 200*time.Millisecond)
	c.settle()
	if a.missing() != 3 || lead.store.lookup(7).commit.Load() <= lead.store.lookup(7).applied.Load() {
		t.Fatalf("%d requests wait at commit %d, applied %d", a.missing(),
			lead.store.lookup(7).commit.Load(), lead.store.lookup(7).applied.Load())
	}
	for range 3 {
		c.tick()
	}
	if ans, ok := a.of(late); !ok || ans.Code != wire.TimedOut {
		t.Fatalf("a confirmed read past its deadline: %v %s", ok, ans.Code)
	}
	lead.hold = false
	c.settle()
	for _, req := range []uint64{w, r} {
		if ans, ok := a.of(req); !ok || ans.Code != wire.OK {
			t.Fatalf("request %d: %v %s", req, ok, ans.Code)
		}
	}
	if v, _ := c.local(lead, 7, "a"); v != "2" {
		t.Fatalf("read %q", v)
	}
}
