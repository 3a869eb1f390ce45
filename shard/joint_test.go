package shard

import (
	"testing"
	"time"

	"go.etcd.io/etcd/raft/v3/raftpb"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
)

// leads makes a store lead a shard.
func (c *cluster) leads(shard base.ShardID, s base.StoreID) {
	c.t.Helper()
	c.until("a leader", func() bool { return c.leader(shard) != nil })
	if n := c.leader(shard); n.id != s {
		c.outcome(c.transfer(n, shard, s))
	}
}

// etcd#10563: the leader of a group of two leaves, and one message is lost.
func TestInAGroupOfTwoTheLeaderLeavesWhateverMessageIsLost(t *testing.T) {
	for _, lost := range []raftpb.MessageType{
		raftpb.MsgTimeoutNow, raftpb.MsgApp, raftpb.MsgAppResp, raftpb.MsgVote, raftpb.MsgVoteResp, raftpb.MsgHeartbeat,
	} {
		for nth := range 6 {
			c := newCluster(t, 2, nil)
			c.create(desc(7, "", "", 1, 2))
			c.put(7, "a", "1")
			c.leads(7, 1)
			c.settle()
			seen := 0
			c.each(func(n *testNode) {
				n.filter(func(m *wire.RaftMessage) bool {
					if m.Msg.Type == lost {
						seen++
					}
					return m.Msg.Type != lost || seen != nth+1
				})
			})
			c.change(c.nodes[1], 7, 0, demote(1)) // whose answer may be ambiguous
			c.shapes(7, "3 next 3: 1l 2v")
			c.until("the other leads", func() bool { n := c.leader(7); return n != nil && n.id == 2 })
			c.put(7, "b", "2")
			c.each(func(n *testNode) { n.filter(nil) })
			c.mustChange(7, remove(1))
			c.put(7, "c", "3")
			c.until("the replica is gone", func() bool { return c.nodes[1].store.lookup(7) == nil })
		}
	}
}

// etcd#10998: the learner has not heard that it is a voter, and without its vote nobody can be elected.
func TestAPromotedLearnerThatDoesNotKnowItVotes(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.create(learners(desc(7, "", "", 1, 2, 3), 3))
	c.put(7, "a", "1")
	c.leads(7, 1)
	c.everywhere(7, "a", "1")
	c.settle()
	c.nodes[1].filter(func(m *wire.RaftMessage) bool { return m.To != 3 || len(m.Msg.Entries) == 0 })
	c.mustChange(7, promote(3))
	c.until("the joint configuration is left", func() bool {
		d, _ := c.nodes[2].store.Descriptor(7)
		return shape(d) == "3 next 4: 1v 2v 3v"
	})
	if d, _ := c.nodes[3].store.Descriptor(7); shape(d) != "1 next 4: 1v 2v 3l" {
		t.Fatalf("the learner knows already: %s", d)
	}
	c.stop(c.nodes[1])
	c.until("the other voter leads", func() bool {
		_, _, ok := c.nodes[2].store.Leader(7)
		st, _ := c.nodes[2].store.Status(7)
		return ok && st.Leads
	})
	c.put(7, "b", "2")
	c.everywhere(7, "b", "2")
	c.shapes(7, "3 next 4: 1v 2v 3v")
}

// V13: a leader whose membership ended serves nobody, feeds the others, and goes.
func TestALeaderThatIsNoVoterAnyMoreServesNobodyAndHandsOver(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.create(desc(7, "", "", 1, 2, 3))
	c.put(7, "a", "1")
	c.leads(7, 1)
	n := c.nodes[1]
	n.filter(func(m *wire.RaftMessage) bool { return m.Msg.Type != raftpb.MsgTimeoutNow }) // no transfer succeeds
	if d := c.mustChange(7, demote(1)); shape(d) != "2 next 4: 1o 2v 3v" {
		t.Fatalf("%s", d)
	}
	ticks := 0
	r := n.store.lookup(7)
	for ; !r.worker.nonvoter; ticks++ {
		c.tick()
		if ticks > 4*n.store.cfg.ElectionTick {
			t.Fatal("the leader does not leave the joint configuration without a transfer")
		}
	}
	if ticks < 2*n.store.cfg.ElectionTick {
		t.Errorf("left after %d ticks: too soon for a transfer", ticks)
	}
	if !r.worker.leads || r.lead.Load().leads {
		t.Fatalf("raft leads %t, published %t", r.worker.leads, r.lead.Load().leads)
	}
	a := newAnswers(t)
	for _, req := range []uint64{
		c.write(n, op(wire.OpPut, 7, "b", "2"), a, time.Hour), c.readIndex(n, 7, a, time.Hour),
	} {
		if ans, ok := a.of(req); !ok || ans.Code != wire.NotLeader || ans.Arg == 1 {
			t.Errorf("request at a leader without a vote: %t %s %d", ok, ans.Code, ans.Arg)
		}
	}
	n.filter(nil)
	c.until("a voter leads", func() bool { l := c.leader(7); return l != nil && l.id != 1 })
	c.put(7, "b", "2")
	c.everywhere(7, "b", "2")
	c.shapes(7, "3 next 4: 1l 2v 3v")
}

// Whoever leads while the shard is joint leaves, at whatever point the leader before was lost.
func TestNoShardStaysJointWhenItsLeadersDie(t *testing.T) {
	for after := range 12 {
		for _, target := range []base.StoreID{1, 2} { // the leader itself, or a follower, is demoted
			c := newCluster(t, 4, nil)
			c.create(learners(desc(7, "", "", 1, 2, 3, 4), 4))
			c.put(7, "a", "1")
			c.leads(7, 1)
			c.everywhere(7, "a", "1")
			ch := c.change(c.nodes[1], 7, 0, promote(4), demote(target))
			for range after { // so many messages get through
				c.each(func(n *testNode) {
					for n.store.Poll() {
						for n.store.workers[0].syncing > 0 && !n.store.Poll() {
						}
					}
				})
				c.net.Step()
			}
			c.crash(c.nodes[1], 0)
			c.until("another leader", func() bool { return c.leader(7) != nil })
			joint := 0
			for d := c.desc(7); isJoint(d); d = c.desc(7) {
				c.tick()
				if joint++; joint > 300 {
					t.Fatalf("after %d messages: joint for 30 s: %s", after, d)
				}
			}
			c.put(7, "b", "2")
			c.start(c.nodes[1])
			c.everywhere(7, "b", "2")
			want := shape(c.desc(7))
			if want != "1 next 5: 1v 2v 3v 4l" && want != "3 next 5: 1l 2v 3v 4v" && want != "3 next 5: 1v 2l 3v 4v" {
				t.Errorf("after %d messages: %s", after, want)
			}
			c.shapes(7, want)
			select {
			case out := <-ch: // of a store that crashed: whatever it was told is true
				if out.err == nil && want == "1 next 5: 1v 2v 3v 4l" {
					t.Errorf("after %d messages: acknowledged and lost", after)
				}
			default:
				t.Errorf("after %d messages: no answer", after)
			}
		}
	}
}

// desc is the newest descriptor that a leader has applied.
func (c *cluster) desc(shard base.ShardID) *base.Descriptor {
	c.t.Helper()
	c.until("a leader", func() bool { return c.leader(shard) != nil })
	d, _ := c.leader(shard).store.Descriptor(shard)
	return d
}
