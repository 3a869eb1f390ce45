package shard

import (
	"strings"
	"testing"
	"time"

	"github.com/shardd/shardd/internal/wire"
)

func TestR7QueuedWritesPastTheLimitAreBusyAndTheRestGoesOn(t *testing.T) {
	const limit = 4 << 10
	c := newCluster(t, 3, func(cfg *Config) { cfg.Limits.GroupQueue = limit })
	c.create(desc(7, "", "", 1, 2, 3))
	c.put(7, "a", "1")
	lead := c.leader(7)
	release := c.holdSyncs(lead)
	a := newAnswers(t)
	value := strings.Repeat("v", 1000)
	var reqs []uint64
	for range 20 { // the first makes a Ready that waits for its sync; nothing is stepped meanwhile
		reqs = append(reqs, c.write(lead, op(wire.OpPut, 7, "k", value), a, time.Hour))
		c.drain()
	}
	busy := 0
	for _, req := range reqs {
		ans, ok := a.of(req)
		if !ok {
			continue
		}
		if busy++; ans.Code != wire.Busy || string(ans.Payload) != "group-queue" || ans.Arg == 0 {
			t.Fatalf("over the limit: %s %q back-off %d", ans.Code, ans.Payload, ans.Arg)
		}
	}
	if held := lead.store.used.queue.Load(); held > limit || busy < 20-1-limit/1000 {
		t.Fatalf("%d bytes queued, %d busy", held, busy)
	}
	release()
	c.until("the others", func() bool { return a.missing() == 0 })
	c.put(7, "b", "2")
	if n := lead.store.used.queue.Load(); n != 0 {
		t.Fatalf("%d bytes still counted", n)
	}
}

func TestR7UncommittedBytesAreBoundedWithoutAQuorum(t *testing.T) {
	const limit = 16 << 10
	c := newCluster(t, 3, func(cfg *Config) {
		cfg.Limits.GroupUncommitted, cfg.Limits.GroupQueue = limit, limit
		cfg.EntryBytes = 2 << 10
	})
	c.create(desc(7, "", "", 1, 2, 3))
	c.put(7, "a", "1")
	lead := c.leader(7)
	c.net.Isolate(lead.id)
	_, before := lead.store.lookup(7).worker.log.Bounds()
	a := newAnswers(t)
	value := strings.Repeat("v", 1000)
	const writes = 100
	for range writes {
		c.write(lead, op(wire.OpPut, 7, "k", value), a, time.Hour)
		c.settle()
	}
	_, last := lead.store.lookup(7).worker.log.Bounds()
	if grown := (last - before) * 1000; grown > 2*limit || grown < limit/2 {
		t.Fatalf("the log grew by %d entries of 1 KB under a limit of %d bytes", last-before, limit)
	}
	if n := lead.store.used.uncommitted.Load(); n > limit {
		t.Fatalf("%d uncommitted bytes", n)
	}
	if open := a.missing(); open > 2*limit/1000 || open == 0 {
		t.Fatalf("%d of %d writes wait", open, writes)
	}
	c.net.HealAll()
	c.until("every request is answered", func() bool { return a.missing() == 0 })
	c.put(7, "b", "2")
	if n := lead.store.used.uncommitted.Load(); n != 0 {
		t.Fatalf("%d bytes still counted", n)
	}
}

func TestR7CommittedEntriesWaitInTheLogWhileApplyIsFull(t *testing.T) {
	const limit = 8 << 10
	c := newCluster(t, 3, func(cfg *Config) { cfg.Limits.GroupApply = limit; cfg.EntryBytes = 2 << 10 })
	c.create(desc(7, "", "", 1, 2, 3))
	c.put(7, "a", "1")
	lead := c.leader(7)
	var slow *testNode
	c.each(func(n *testNode) {
		if n != lead {
			slow = n
		}
	})
	slow.hold = true
	a := newAnswers(t)
	value := strings.Repeat("v", 1000)
	for range 60 {
		c.write(lead, op(wire.OpPut, 7, "k", value), a, time.Hour)
		c.settle()
	}
	c.tick()
	r := slow.store.lookup(7)
	if n := r.handed.bytes.Load(); n > 2*limit {
		t.Fatalf("%d bytes in apply's queue", n)
	}
	if r.commit.Load()-r.applied.Load() < 50 {
		t.Fatalf("commit %d applied %d: apply does not lag", r.commit.Load(), r.applied.Load())
	}
	if s, _, ok := slow.store.Leader(7); !ok || s != lead.id {
		t.Fatal("a store with a slow apply lost its leader")
	}
	if a.missing() != 0 {
		t.Fatalf("%d writes wait for a follower's apply", a.missing())
	}
	slow.hold = false
	c.everywhere(7, "k", value)
	if n := slow.store.used.apply.Load(); n != 0 {
		t.Fatalf("%d bytes still counted", n)
	}
}

func TestR7AFullInboxDropsMessagesAndRecovers(t *testing.T) {
	const limit = 8 << 10
	c := newCluster(t, 3, func(cfg *Config) { cfg.Limits.GroupInbox = limit; cfg.EntryBytes = 2 << 10 })
	c.create(desc(7, "", "", 1, 2, 3))
	c.put(7, "a", "1")
	lead := c.leader(7)
	var slow *testNode
	c.each(func(n *testNode) {
		if n != lead {
			slow = n
		}
	})
	release := c.holdSyncs(slow)
	a := newAnswers(t)
	value := strings.Repeat("v", 1000)
	for range 60 {
		c.write(lead, op(wire.OpPut, 7, "k", value), a, time.Hour)
		for a.missing() > 0 {
			c.drain()
		}
	}
	if n := slow.store.used.inbox.Load(); n > limit || n < limit/4 {
		t.Fatalf("%d bytes in the inbox", n)
	}
	release()
	c.put(7, "z", "end")
	c.everywhere(7, "z", "end")
	if n := slow.store.used.inbox.Load(); n != 0 {
		t.Fatalf("%d bytes still counted", n)
	}
}

func TestAnOperationLargerThanEveryLimitStillPassesAlone(t *testing.T) {
	c := newCluster(t, 3, func(cfg *Config) {
		cfg.EntryBytes = 1 << 10
		cfg.Limits = Limits{GroupInbox: 1 << 10, GroupQueue: 1 << 10, GroupUncommitted: 1 << 10, GroupApply: 1 << 10}
	})
	c.create(desc(7, "", "", 1, 2, 3))
	value := strings.Repeat("v", 100_000)
	c.put(7, "a", value)
	c.everywhere(7, "a", value)
}
