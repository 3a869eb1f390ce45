package shard

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/raft/v3/raftpb"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
)

// tikv#14929, cockroach#90314: followers or state machines that are slow, a little for each of many groups, eat all
// memory. The limits per group cannot help there; each buffer has one budget for the whole store as well.

const (
	budgetGroups = 16
	budgetLimit  = 32 << 10
	budgetSize   = 1000
	budgetItem   = 2 << 10 // an entry, and a message: every group may always hold one, whatever the others hold
)

func groupKey(i int) string { return fmt.Sprintf("%02d", i) }

// newBudgetCluster has many groups, all led by the first store, with one limit for all of them together.
func newBudgetCluster(t *testing.T, stores int, limits Limits) (c *cluster, lead *testNode) {
	c = newPlainCluster(t, stores, func(cfg *Config) {
		cfg.Limits, cfg.EntryBytes, cfg.MaxSizePerMsg = limits, budgetItem, budgetItem
	})
	on := []base.StoreID{1, 2, 3}[:stores]
	for i := range budgetGroups {
		c.create(desc(shardID(100+i), groupKey(i), groupKey(i+1), on...))
		if c.leader(shardID(100+i)) != c.nodes[1] {
			t.Fatalf("%s is not led by the first store", shardID(100+i))
		}
	}
	c.settle()
	return c, c.nodes[1]
}

// flood sends rounds writes to every group of a store, without waiting for answers.
func (c *cluster) flood(n *testNode, rounds int, move func()) (a *answers, reqs []uint64) {
	a = newAnswers(c.t)
	for range rounds {
		for i := range budgetGroups {
			o := op(wire.OpPut, shardID(100+i), groupKey(i), strings.Repeat("v", budgetSize))
			reqs = append(reqs, c.write(n, o, a, time.Hour))
		}
		move()
	}
	return a, reqs
}

// busyFor counts the requests that were refused for a reason; another refusal is an error.
func (a *answers) busyFor(reqs []uint64, reason string) (n int) {
	a.t.Helper()
	for _, req := range reqs {
		ans, ok := a.of(req)
		switch {
		case !ok || ans.Code == wire.OK:
		case ans.Code == wire.Busy && string(ans.Payload) == reason && ans.Arg > 0:
			n++
		default:
			a.t.Fatalf("request %d: %s %q", req, ans.Code, ans.Payload)
		}
	}
	return n
}

func TestQueuedWritesOfAllGroupsShareOneBudget(t *testing.T) {
	c, lead := newBudgetCluster(t, 3, Limits{StoreQueue: budgetLimit})
	release := c.holdSyncs(lead)
	a, reqs := c.flood(lead, 20, c.drain)
	if used := lead.store.used.queue.Load(); used > budgetLimit+budgetGroups*budgetItem {
		t.Errorf("%d bytes queued under a limit of %d", used, budgetLimit)
	}
	if n := a.busyFor(reqs, "store-queue"); n < len(reqs)/2 {
		t.Errorf("only %d of %d writes were refused", n, len(reqs))
	}
	release()
	c.until("the others", func() bool { return a.missing() == 0 })
	a.busyFor(reqs, "store-queue")
	if used := lead.store.used.queue.Load(); used != 0 {
		t.Errorf("%d bytes still counted", used)
	}
	c.put(100, groupKey(0), "end")
}

func TestUncommittedWritesOfAllGroupsShareOneBudget(t *testing.T) {
	c, lead := newBudgetCluster(t, 3, Limits{StoreUncommitted: budgetLimit, StoreQueue: budgetLimit})
	c.net.Isolate(lead.id)
	before := logBytes(lead)
	a, reqs := c.flood(lead, 20, c.settle)
	// Each group may have one entry of its own under way, and one write queued.
	if used := lead.store.used.uncommitted.Load(); used > budgetLimit+budgetGroups*budgetItem {
		t.Errorf("%d uncommitted bytes under a limit of %d", used, budgetLimit)
	}
	if grown := logBytes(lead) - before; grown > 2*(budgetLimit+budgetGroups*budgetItem) {
		t.Errorf("the logs grew by %d bytes", grown)
	}
	if n := a.busyFor(reqs, "store-queue"); n < len(reqs)/2 {
		t.Errorf("only %d of %d writes were refused", n, len(reqs))
	}
	c.net.HealAll()
	c.until("every request is answered", func() bool { return a.missing() == 0 })
	c.until("nothing is counted any more", func() bool {
		return lead.store.used.uncommitted.Load() == 0 && lead.store.used.queue.Load() == 0
	})
}

func logBytes(n *testNode) (sum uint64) {
	for i := range budgetGroups {
		sum += n.store.lookup(shardID(100 + i)).worker.log.Bytes()
	}
	return sum
}

func TestAFollowerThatFallsBehindInAllGroupsKeepsToOneBudget(t *testing.T) {
	c, lead := newBudgetCluster(t, 3, Limits{StoreInbox: budgetLimit})
	slow := c.nodes[3]
	release := c.holdSyncs(slow)
	a, _ := c.flood(lead, 20, c.drain)
	for i := 0; a.missing() > 0; i++ {
		if i == 1000 {
			t.Fatalf("%d writes wait for a follower that is behind", a.missing())
		}
		c.tickDraining(slow)
	}
	one := int64(budgetItem + budgetSize + 2*messageOverhead)
	if used := slow.store.used.inbox.Load(); used > budgetLimit+budgetGroups*one || used < budgetLimit/2 {
		t.Errorf("%d bytes in the inboxes under a limit of %d", used, budgetLimit)
	}
	release()
	for i := range budgetGroups {
		c.put(shardID(100+i), groupKey(i), "end")
		c.everywhere(shardID(100+i), groupKey(i), "end")
	}
	if used := slow.store.used.inbox.Load(); used != 0 {
		t.Errorf("%d bytes still counted", used)
	}
}

func TestStateMachinesThatFallBehindKeepToOneBudget(t *testing.T) {
	c, lead := newBudgetCluster(t, 3, Limits{StoreApply: budgetLimit})
	slow := c.nodes[3]
	slow.hold = true
	a, _ := c.flood(lead, 20, c.settle)
	c.tick()
	if a.missing() != 0 {
		t.Fatalf("%d writes wait for a follower's state machines", a.missing())
	}
	lag := uint64(0)
	for i := range budgetGroups {
		r := slow.store.lookup(shardID(100 + i))
		lag += r.commit.Load() - r.applied.Load()
	}
	if used := slow.store.used.apply.Load(); used > budgetLimit+budgetGroups*2*budgetItem || lag < budgetGroups*10 {
		t.Errorf("%d bytes handed to apply under a limit of %d, %d entries behind", used, budgetLimit, lag)
	}
	slow.hold = false
	for i := range budgetGroups {
		c.everywhere(shardID(100+i), groupKey(i), strings.Repeat("v", budgetSize))
	}
	if used := slow.store.used.apply.Load(); used != 0 {
		t.Errorf("%d bytes still counted", used)
	}
}

func TestWaitingReadsOfAllGroupsShareOneBudget(t *testing.T) {
	const limit = 40
	c, lead := newBudgetCluster(t, 3, Limits{StoreReads: limit})
	c.each(func(n *testNode) {
		n.filter(func(m *wire.RaftMessage) bool { return m.Msg.Type != raftpb.MsgHeartbeatResp })
	})
	a := newAnswers(t)
	var reqs []uint64
	for range 10 {
		for i := range budgetGroups {
			reqs = append(reqs, c.readIndex(lead, shardID(100+i), a, time.Hour))
		}
		c.settle()
	}
	if open := a.missing(); open > limit+budgetGroups || open < limit {
		t.Errorf("%d reads wait under a limit of %d", open, limit)
	}
	a.busyFor(reqs, "store-reads")
	c.each(func(n *testNode) { n.filter(nil) })
	c.until("the reads", func() bool { return a.missing() == 0 })
	a.busyFor(reqs, "store-reads")
}
