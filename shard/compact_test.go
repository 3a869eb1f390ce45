package shard

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"go.etcd.io/etcd/raft/v3/raftpb"

	"github.com/shardd/shardd/engine"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
)

// small is a budget that a test fills with a few hundred writes.
func small(cfg *Config) {
	cfg.EntryBytes = 1
	cfg.Compaction = Compaction{FloorBytes: 16 << 10, ShardCapBytes: 64 << 10, StoreCapBytes: 1 << 20, Factor: 4}
}

// fill writes about so many bytes through the leader, all in entries of about half a KiB.
func (c *cluster) fill(shard base.ShardID, bytes int) {
	c.t.Helper()
	c.until("a leader", func() bool { return c.leader(shard) != nil })
	a := newAnswers(c.t)
	value := strings.Repeat("v", 450)
	n := c.leader(shard)
	for i := range bytes / 512 {
		c.write(n, op(wire.OpPut, shard, fmt.Sprintf("k%d", i%20), value), a, time.Hour)
	}
	c.until("the writes", func() bool { return a.missing() == 0 })
}

// settled waits until a new leader truncates.
func (c *cluster) settled() {
	for range 15 {
		c.tick()
	}
}

func (n *testNode) log(shard base.ShardID) (first, last, bytes uint64) {
	l := n.store.lookup(shard).worker.log
	first, last = l.Bounds()
	return first, last, l.Bytes()
}

// checkLogs checks on every store that the log reaches from above what is applied to its end, and that disk and memory
// agree.
func (c *cluster) checkLogs(shard base.ShardID) {
	c.t.Helper()
	c.each(func(n *testNode) {
		r := n.store.serving(shard)
		if r == nil {
			return
		}
		first, _, _ := n.log(shard)
		if first > r.applied.Load()+1 {
			c.t.Errorf("%s truncated up to %d, applied is %d", n.id, first-1, r.applied.Load())
		}
		st, ok, err := n.eng.ReplicaState(shard)
		if err != nil || !ok {
			c.t.Fatalf("%s: %t %v", n.id, ok, err)
		}
		if st.Truncated.Index+1 != first || st.Applied.Index < st.Truncated.Index {
			c.t.Errorf("%s: on disk truncated at %d and applied to %d, in memory from %d",
				n.id, st.Truncated.Index, st.Applied.Index, first)
		}
	})
}

func counted(t *testing.T, c prometheus.Counter) float64 {
	t.Helper()
	var m dto.Metric
	if err := c.Write(&m); err != nil {
		t.Fatal(err)
	}
	return m.GetCounter().GetValue()
}

func TestALongRunOfWritesKeepsTheLogBounded(t *testing.T) {
	c := newCluster(t, 3, small)
	c.create(desc(7, "", "", 1, 2, 3))
	c.settled()
	for round := range 30 {
		c.fill(7, 16<<10)
		c.tick()
		c.each(func(n *testNode) {
			if first, last, bytes := n.log(7); bytes > 3*(16<<10) {
				t.Errorf("round %d: the log of %s holds %d bytes, entries %d to %d", round, n.id, bytes, first, last)
			}
		})
		c.checkLogs(7)
	}
	c.everywhere(7, "k0", strings.Repeat("v", 450))
	c.each(func(n *testNode) {
		if first, _, bytes := n.log(7); first < 500 || bytes < 4<<10 {
			t.Errorf("%s: log from %d, %d bytes: it is not cut in large pieces down to half of the floor", n.id, first, bytes)
		}
		if got := counted(t, n.store.metrics.truncations); got == 0 || got > 60 {
			t.Errorf("%s: %g truncations for about 1000 entries", n.id, got)
		}
	})
	for _, id := range c.ids() {
		c.crash(c.nodes[id], 50)
		c.start(c.nodes[id])
	}
	c.until("a leader", func() bool { return c.leader(7) != nil })
	c.put(7, "end", "x")
	c.everywhere(7, "end", "x")
}

func TestAnActiveFollowerThatLagsIsFedFromTheLogWithinTheBudget(t *testing.T) {
	c := newCluster(t, 3, small)
	c.create(desc(7, "", "", 1, 2, 3))
	c.leads(7, 1)
	c.fill(7, 4<<10)
	c.everywhere(7, "k0", strings.Repeat("v", 450))
	c.settled()
	// It is alive and takes nothing in.
	c.nodes[1].filter(func(m *wire.RaftMessage) bool { return m.To != 3 || len(m.Msg.Entries) == 0 })
	_, has, _ := c.nodes[3].log(7)
	for range 3 {
		c.fill(7, 3<<10)
		c.tick()
		if first, _, bytes := c.nodes[1].log(7); first > has+1 {
			t.Fatalf("the log starts at %d, %d bytes, the follower has %d", first, bytes, has)
		}
	}
	c.fill(7, 128<<10)
	c.tick()
	first, _, bytes := c.nodes[1].log(7)
	if first <= has+1 || bytes > 3*(16<<10) {
		t.Fatalf("beyond the budget the log starts at %d, %d bytes, the follower has %d", first, bytes, has)
	}
	c.checkLogs(7)
	c.nodes[1].filter(nil)
	c.everywhere(7, "k0", strings.Repeat("v", 450)) // by a snapshot
	c.checkLogs(7)
}

// roomy is a budget of which little may be spare.
func roomy(cfg *Config) {
	cfg.EntryBytes = 1
	cfg.Compaction = Compaction{FloorBytes: 256 << 10, ShardCapBytes: 1 << 20, StoreCapBytes: 2 << 20, SpareBytes: 32 << 10}
}

// installs counts the snapshots that all stores have installed.
func (c *cluster) installs() (n float64) {
	c.each(func(t *testNode) { n += counted(c.t, t.store.metrics.installed) })
	return n
}

func TestALogThatAllMembersHaveIsKeptShort(t *testing.T) {
	c := newCluster(t, 3, roomy)
	c.create(desc(7, "", "", 1, 2, 3))
	c.settled()
	for range 15 {
		c.fill(7, 16<<10)
		c.tick()
	}
	// What was written a moment ago a follower keeps, for one that is a little behind.
	c.each(func(n *testNode) {
		r := n.store.lookup(7)
		if first, last, _ := n.log(7); !r.lead.Load().leads && (first > r.worker.compaction.old+1 || last-first < 2*32) {
			t.Errorf("%s keeps entries %d to %d only", n.id, first, last)
		}
	})
	for range 3 * c.nodes[1].store.cfg.ElectionTick {
		c.tick()
	}
	c.each(func(n *testNode) {
		if first, last, bytes := n.log(7); bytes > leastSpare {
			t.Errorf("%s keeps %d bytes that nobody lacks, entries %d to %d", n.id, bytes, first, last)
		}
	})
	c.checkLogs(7)
}

// Whoever leads, and whether it did before the member stopped or not, has what that one lacks, within the budget.
func TestALogThatAStoppedMemberLacksIsKept(t *testing.T) {
	for _, c := range []struct {
		name string
		stop base.StoreID
	}{{"follower", 3}, {"leader", 1}} {
		t.Run(c.name, func(t *testing.T) {
			stop := c.stop
			c := newCluster(t, 3, roomy)
			c.create(desc(7, "", "", 1, 2, 3))
			c.leads(7, 1)
			c.settled()
			for range 10 {
				c.fill(7, 16<<10)
				c.tick()
			}
			_, has, _ := c.nodes[stop].log(7)
			c.stop(c.nodes[stop])
			c.until("a leader", func() bool { n := c.leader(7); return n != nil && n.id != stop })
			for range 8 {
				c.fill(7, 16<<10)
				c.settled()
			}
			lead := c.leader(7)
			if first, _, bytes := lead.log(7); first > has+1 || bytes < 120<<10 {
				t.Fatalf("the log of the leader starts at %d, %d bytes; %s had %d", first, bytes, stop, has)
			}
			before := c.installs()
			c.start(c.nodes[stop])
			c.put(7, "end", "x")
			c.everywhere(7, "end", "x")
			if n := c.installs() - before; n > 0 {
				t.Fatalf("%g snapshots", n)
			}
			for range 5 {
				c.fill(7, 1<<10)
				c.settled()
			}
			c.each(func(n *testNode) {
				if _, _, bytes := n.log(7); bytes > leastSpare {
					t.Errorf("%s keeps %d bytes after all are back", n.id, bytes)
				}
			})
			c.checkLogs(7)
		})
	}
}

// What follows on a snapshot is kept until its receiver has said that it has it, also when the sender knows that before.
func TestTheLogBehindAnInstalledSnapshotIsKept(t *testing.T) {
	c := newCluster(t, 3, roomy)
	c.create(desc(7, "", "", 1, 2, 3))
	c.leads(7, 1)
	c.fill(7, 4<<10)
	c.everywhere(7, "k0", strings.Repeat("v", 450))
	lead, late := c.nodes[1], c.nodes[3]
	_, has, _ := late.log(7)
	c.stop(late)
	for first := uint64(0); first <= has+1; first, _, _ = lead.log(7) {
		c.fill(7, 32<<10)
		c.settled()
	}
	c.start(late)
	late.filter(func(m *wire.RaftMessage) bool { return m.Msg.Type != raftpb.MsgAppResp || m.Msg.Reject })
	c.until("a snapshot", func() bool { return counted(t, late.store.metrics.installed) > 0 })
	applied := late.store.lookup(7).applied.Load()
	for range 6 {
		c.fill(7, 16<<10)
		c.settled()
	}
	if first, last, bytes := lead.log(7); first > applied+1 || bytes < 90<<10 {
		t.Fatalf("the log of the leader holds %d to %d, %d bytes; the snapshot ends at %d", first, last, bytes, applied)
	}
	late.filter(nil)
	c.put(7, "end", "x")
	c.everywhere(7, "end", "x")
	if n := counted(t, late.store.metrics.installed); n != 1 {
		t.Fatalf("%g snapshots", n)
	}
}

func TestASnapshotInFlightPinsTheLogUntilItsTimeOut(t *testing.T) {
	c := newCluster(t, 2, func(cfg *Config) {
		small(cfg)
		cfg.Compaction.PinTimeout = 5 * time.Second
	})
	c.create(desc(7, "", "", 1))
	c.fill(7, 4<<10)
	n := c.nodes[1]
	r := n.store.lookup(7)
	pin := r.applied.Load()
	n.store.call(r, func(r *replica) {
		r.worker.sending = append(r.worker.sending, sendingSnapshot{To: 9, Index: pin, Started: c.clock.Boot()})
	})
	start := c.clock.Boot()
	for c.clock.Boot()-start < 4*time.Second {
		c.fill(7, 8<<10)
		c.tick()
		if first, _, _ := n.log(7); first > pin+1 {
			t.Fatalf("after %s the log starts at %d, the snapshot is at %d", c.clock.Boot()-start, first, pin)
		}
	}
	for c.clock.Boot()-start < 6*time.Second {
		c.tick()
	}
	if first, _, bytes := n.log(7); first <= pin+1 || bytes > 16<<10 {
		t.Fatalf("after the time-out the log starts at %d, %d bytes", first, bytes)
	}
}

func TestNothingIsTruncatedThatIsNotApplied(t *testing.T) {
	c := newCluster(t, 1, small)
	c.create(desc(7, "", "", 1))
	c.fill(7, 2<<10)
	c.settled()
	n := c.nodes[1]
	applied := n.store.lookup(7).applied.Load()
	n.hold = true
	a := newAnswers(t)
	for range 200 {
		c.write(n, op(wire.OpPut, 7, "k", strings.Repeat("v", 450)), a, time.Hour)
	}
	for range 5 {
		c.tick()
	}
	if first, last, _ := n.log(7); first > applied+1 || last < applied+200 {
		t.Fatalf("log from %d to %d, applied %d", first, last, applied)
	}
	n.hold = false
	c.until("the writes", func() bool { return a.missing() == 0 })
	c.tick()
	c.checkLogs(7)
	if _, _, bytes := n.log(7); bytes > 2*(16<<10) {
		t.Fatalf("%d bytes of log once it is applied", bytes)
	}
}

func TestTheStoreCapLowersTheLargestLogsFirst(t *testing.T) {
	c := newCluster(t, 1, func(cfg *Config) {
		small(cfg)
		cfg.Compaction.FloorBytes, cfg.Compaction.StoreCapBytes = 64<<10, 96<<10
	})
	sizes := map[base.ShardID]int{10: 4 << 10, 11: 8 << 10, 12: 60 << 10, 13: 60 << 10}
	for i, id := range []base.ShardID{10, 11, 12, 13} {
		c.create(desc(id, string(rune('a'+i)), string(rune('b'+i)), 1))
	}
	n := c.nodes[1]
	for round := range 60 {
		for id, size := range sizes {
			if round*512 < size {
				key := string(rune('a' + int(id-10)))
				a := newAnswers(t)
				c.write(n, op(wire.OpPut, id, key, strings.Repeat("v", 900)), a, time.Hour)
			}
		}
		c.tick()
	}
	for range 20 {
		c.tick()
	}
	var total uint64
	for id := range sizes {
		_, _, bytes := n.log(id)
		total += bytes
	}
	if total > 96<<10 {
		t.Errorf("%d bytes of log in all", total)
	}
	for _, id := range []base.ShardID{10, 11} {
		if first, _, _ := n.log(id); first != engine.InitialIndex+1 {
			t.Errorf("the small log of %s was cut, it starts at %d", id, first)
		}
	}
	for _, id := range []base.ShardID{12, 13} {
		if first, _, bytes := n.log(id); first == engine.InitialIndex+1 {
			t.Errorf("the large log of %s was not cut: %d bytes", id, bytes)
		}
	}
}

func TestLevelIsTheHighestThatKeepsTheSumWithinTheLimit(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 3))
	sum := func(sizes []uint64, level uint64) (n uint64) {
		for _, s := range sizes {
			n += min(s, level)
		}
		return n
	}
	for range 1000 {
		sizes := make([]uint64, rng.IntN(12))
		for i := range sizes {
			sizes[i] = rng.Uint64N(100)
		}
		limit := rng.Uint64N(500)
		l := level(slices.Clone(sizes), limit)
		if sum(sizes, l) > limit && len(sizes) > 0 && sum(sizes, 1<<40) > limit {
			t.Fatalf("%v at level %d is more than %d", sizes, l, limit)
		}
		if sum(sizes, 1<<40) > limit && sum(sizes, l+1) <= limit {
			t.Fatalf("%v: level %d is too low for %d", sizes, l, limit)
		}
	}
}

// The truncated state says which configuration was in force at its index, conf changes or not (hazard: a snapshot right
// after a conf change lacks it).
func TestATruncationKeepsTheConfigurationAtItsIndex(t *testing.T) {
	c := newCluster(t, 3, small)
	c.create(learners(desc(7, "", "", 1, 2, 3), 3))
	c.leads(7, 1)
	confs := map[string]int{} // truncations by the configuration that they kept
	changes := [][]ReplicaChange{{promote(3)}, {demote(3)}, {promote(3)}, {demote(3)}}
	history := map[uint64]raftpb.ConfState{}
	record := func() {
		c.each(func(n *testNode) {
			st, _, err := n.eng.ReplicaState(7)
			if err != nil {
				t.Fatal(err)
			}
			history[st.Applied.Index] = st.Applied.Conf
		})
	}
	for i := range 40 {
		if i%10 == 5 {
			c.mustChange(7, changes[i/10]...)
			c.shapes(7, []string{"3 next 4: 1v 2v 3v", "5 next 4: 1v 2v 3l", "7 next 4: 1v 2v 3v", "9 next 4: 1v 2v 3l"}[i/10])
		}
		a := newAnswers(t)
		for range 8 {
			c.write(c.leader(7), op(wire.OpPut, 7, "k", strings.Repeat("v", 450)), a, time.Hour)
			c.settle()
			record()
		}
		c.tick()
		record()
		c.each(func(n *testNode) {
			st, _, err := n.eng.ReplicaState(7)
			if err != nil {
				t.Fatal(err)
			}
			want, ok := history[st.Truncated.Index]
			if !ok || st.Truncated.Index == engine.InitialIndex {
				return
			}
			if err := want.Equivalent(st.Truncated.Conf); err != nil {
				t.Errorf("%s: at %d: %v", n.id, st.Truncated.Index, err)
			}
			confs[st.Truncated.Conf.String()]++
		})
		if i == 20 { // what an earlier life knew is not known any more
			c.crash(c.nodes[2], 100)
			c.start(c.nodes[2])
			c.until("a leader", func() bool { return c.leader(7) != nil })
		}
	}
	if len(confs) < 2 {
		t.Fatalf("truncations kept %v: too few to prove anything", confs)
	}
	c.checkLogs(7)
}
