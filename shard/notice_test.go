package shard

import (
	"testing"
	"time"

	"go.etcd.io/etcd/raft/v3/raftpb"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
)

const testNotice = 10 * time.Millisecond

// noticing is a cluster whose leader of shard 7 holds commit notices, and the appends that it sends after the set-up.
func noticing(t *testing.T, notice time.Duration) (c *cluster, lead *testNode, sent *[]raftpb.Message) {
	c, lead = liveShard(t, func(cfg *Config) { cfg.CommitNotice = notice })
	sent = &[]raftpb.Message{}
	lead.tap(func(_ base.StoreID, msgs []wire.RaftMessage) {
		for _, m := range msgs {
			if m.Shard == 7 && m.Msg.Type == raftpb.MsgApp {
				*sent = append(*sent, m.Msg)
			}
		}
	})
	w := lead.store.workerOf(7)
	w.sendNotices(lead.store.lookup(7)) // what the set-up has left
	lead.store.pool.Enqueue(w.control)
	c.drain()
	*sent = nil
	return c, lead, sent
}

func countNotices(msgs []raftpb.Message) (notices, appends int) {
	for i := range msgs {
		if len(msgs[i].Entries) == 0 {
			notices++
		} else {
			appends++
		}
	}
	return notices, appends
}

func TestTheNextWriteTellsOfTheCommitOfTheOneBefore(t *testing.T) {
	const notice = time.Hour // however many ticks the writes take, none is due
	c, lead, sent := noticing(t, notice)
	for range 5 {
		c.put(7, "k", "v")
	}
	if notices, appends := countNotices(*sent); notices > 0 || appends != 10 {
		t.Fatalf("%d notices, %d appends for 5 writes", notices, appends)
	}
	r := lead.store.lookup(7)
	if len(r.worker.notices) != 2 || !r.noticing.Load() {
		t.Fatalf("%d notices are held", len(r.worker.notices))
	}
	// The last one has nothing after it.
	*sent = nil
	c.clock.now.Add(int64(notice))
	lead.store.pool.Enqueue(lead.store.workerOf(7).control)
	lead.passes()
	if notices, _ := countNotices(*sent); notices != 2 || r.noticing.Load() || len(lead.store.workerOf(7).noticed) > 0 {
		t.Fatalf("%d notices when they were due", notices)
	}
	c.everywhere(7, "k", "v")
}

// Among many shards the next append is far away: the heartbeat tells of the commit, and no notice follows it.
func TestAHeartbeatTellsOfTheCommitInTheNoticesPlace(t *testing.T) {
	c, lead, sent := noticing(t, time.Hour)
	c.put(7, "k", "v")
	r := lead.store.lookup(7)
	if len(r.worker.notices) != 2 {
		t.Fatalf("%d notices are held", len(r.worker.notices))
	}
	c.until("the followers have applied it", func() bool {
		all := true
		c.each(func(n *testNode) { all = all && n.store.lookup(7).applied.Load() == r.applied.Load() })
		return all
	})
	if notices, appends := countNotices(*sent); notices != 0 || appends != 2 {
		t.Fatalf("%d notices, %d appends", notices, appends)
	}
	c.clock.now.Add(int64(time.Hour))
	lead.store.pool.Enqueue(lead.store.workerOf(7).control)
	lead.passes()
	if notices, _ := countNotices(*sent); notices > 0 || len(r.worker.notices) > 0 || r.noticing.Load() {
		t.Fatalf("%d notices when they were due, %d held", notices, len(r.worker.notices))
	}
}

// The heartbeat may be waiting for others on its way, or be lost.
func TestWhoAsksGetsTheNoticeThatAHeartbeatHasSaid(t *testing.T) {
	c, lead, sent := noticing(t, time.Hour)
	c.put(7, "k", "v")
	*sent = nil
	r := lead.store.lookup(7)
	for _, n := range r.worker.notices {
		r.dropNotice(&raftpb.Message{Type: raftpb.MsgHeartbeat, To: n.To, Term: n.Term, Commit: n.Commit})
	}
	a := newAnswers(t)
	a.expect(1)
	lead.store.ReadIndex([]ReadRequest{{Shard: 7, Req: 1, Waiter: a, IndexOnly: true}})
	lead.passes()
	if notices, _ := countNotices(*sent); notices != 2 || r.noticing.Load() {
		t.Fatalf("%d notices after the index was asked for", notices)
	}
}

// Raft hands out so many bytes of committed entries at once: behind them there may be a boundary, which others wait for.
func TestTheCommitOfEntriesThatAreNotSeenYetIsToldAtOnce(t *testing.T) {
	c, lead, _ := noticing(t, time.Hour)
	c.put(7, "k", "v")
	r := lead.store.lookup(7)
	w := lead.store.workerOf(7)
	held := r.worker.notices[0].Message
	h := wire.EntryHeader{Kind: wire.EntryData, Count: 1, Stamp: 1}
	committed := []raftpb.Entry{{Index: held.Commit, Term: held.Term, Data: h.Append(nil)}}
	if msgs := w.holdNotices(r, []raftpb.Message{held}, committed); len(msgs) > 0 {
		t.Fatal("not held")
	}
	held.Commit++
	if msgs := w.holdNotices(r, []raftpb.Message{held}, committed); len(msgs) != 1 {
		t.Fatal("held, though it tells of an entry that nobody has looked at")
	}
}

// A heartbeat tells a follower no more than what that one is known to have.
func TestAHeartbeatWithAnEarlierCommitLeavesTheNoticeHeld(t *testing.T) {
	c, lead, _ := noticing(t, time.Hour)
	c.put(7, "k", "v")
	r := lead.store.lookup(7)
	held := r.worker.notices[0]
	r.dropNotice(&raftpb.Message{Type: raftpb.MsgHeartbeat, To: held.To, Term: held.Term, Commit: held.Commit - 1})
	if len(r.worker.notices) != 2 {
		t.Fatalf("%d notices are held", len(r.worker.notices))
	}
}

func TestAReadElsewhereDoesNotWaitForTheCommitNotice(t *testing.T) {
	c, lead, sent := noticing(t, testNotice)
	c.put(7, "k", "v")
	if notices, _ := countNotices(*sent); notices > 0 {
		t.Fatalf("%d notices", notices)
	}
	a := newAnswers(t)
	a.expect(1)
	lead.store.ReadIndex([]ReadRequest{{Shard: 7, Req: 1, Waiter: a, IndexOnly: true}})
	lead.passes()
	if notices, _ := countNotices(*sent); notices != 2 {
		t.Fatalf("%d notices after the index was asked for", notices)
	}
}

// Others wait for what is not a client's plain write: the stores that are to have the new shard, above all.
func TestTheCommitOfABoundaryIsToldAtOnce(t *testing.T) {
	c, lead, sent := noticing(t, testNotice)
	c.put(7, "k", "v")
	*sent = nil
	lead.store.call(lead.store.lookup(7), func(r *replica) {
		if err := r.worker.rn.Propose(nil); err != nil {
			t.Error(err)
		}
	})
	index := lead.store.lookup(7).applied.Load() + 1
	c.until("the entry is applied everywhere", func() bool {
		all := true
		c.each(func(n *testNode) { all = all && n.store.lookup(7).applied.Load() >= index })
		return all
	})
	if notices, appends := countNotices(*sent); notices != 2 || appends != 2 {
		t.Fatalf("%d notices, %d appends", notices, appends)
	}
	if lead.store.lookup(7).noticing.Load() {
		t.Fatal("the notice before it is still held")
	}
}

func TestANoticeThatItsLeaderOutlivesIsNotSent(t *testing.T) {
	c, lead, sent := noticing(t, testNotice)
	c.put(7, "k", "v")
	r := lead.store.lookup(7)
	r.worker.term++ // as if raft had gone on
	*sent = nil
	lead.store.workerOf(7).sendNotices(r)
	r.worker.term--
	if len(*sent) > 0 || r.noticing.Load() || len(r.worker.notices) > 0 {
		t.Fatalf("%d sent, %d held", len(*sent), len(r.worker.notices))
	}
	c.everywhere(7, "k", "v") // with a heartbeat
}
