package shard

import (
	"fmt"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/shardd/shardd/engine"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
)

// histogram reads one of the store's histograms.
func histogram(t *testing.T, h prometheus.Histogram) (count uint64, sum float64) {
	t.Helper()
	var m dto.Metric
	if err := h.Write(&m); err != nil {
		t.Fatal(err)
	}
	return m.GetHistogram().GetSampleCount(), m.GetHistogram().GetSampleSum()
}

func TestOnePassMakesOneCommitAndOneFramePerPeer(t *testing.T) {
	const groups, writes = 16, 8
	c := newCluster(t, 3, nil)
	for i := range groups {
		from, to := fmt.Sprintf("%02d", i), fmt.Sprintf("%02d", i+1)
		c.create(desc(shardID(10+i), from, to, 1, 2, 3))
	}
	for i := range groups {
		if n := c.leader(shardID(10 + i)); n.id != 1 {
			c.outcome(c.transfer(n, shardID(10+i), 1))
		}
	}
	c.settle()
	n := c.nodes[1]
	frames := map[base.StoreID]int{}
	entries := 0
	n.tap(func(to base.StoreID, msgs []wire.RaftMessage) {
		frames[to]++
		for i := range msgs {
			entries += len(msgs[i].Msg.Entries)
		}
	})
	commits, groupSum := histogram(t, n.store.metrics.commitGroups)
	_, writeSum := histogram(t, n.store.metrics.commitWrites)
	a := newAnswers(t)
	var reqs []WriteRequest
	for i := range groups {
		for j := range writes {
			c.next++
			a.expect(c.next)
			o := op(wire.OpPut, shardID(10+i), fmt.Sprintf("%02d-%d", i, j), "v")
			reqs = append(reqs, WriteRequest{
				Shard: o.Shard, Version: 1, Req: c.next, Raw: o.Append(nil), Waiter: a,
				Deadline: c.clock.Boot() + time.Hour,
			})
		}
	}
	n.store.Write(reqs)
	n.store.pool.Poll(0)
	if frames[2] != 1 || frames[3] != 1 || entries != 2*groups {
		t.Fatalf("frames %v with %d entries, want one to each peer with %d in all", frames, entries, 2*groups)
	}
	c.settle()
	commits2, groupSum2 := histogram(t, n.store.metrics.commitGroups)
	_, writeSum2 := histogram(t, n.store.metrics.commitWrites)
	if commits2-commits != 1 || groupSum2-groupSum != groups || writeSum2-writeSum != groups*writes {
		t.Fatalf("%d commits with %g groups and %g writes, want 1, %d, %d",
			commits2-commits, groupSum2-groupSum, writeSum2-writeSum, groups, groups*writes)
	}
	if a.missing() != 0 {
		t.Fatalf("%d writes without an answer", a.missing())
	}
}

func TestALargeQueueIsCutIntoEntriesOfBoundedSize(t *testing.T) {
	c := newCluster(t, 3, func(cfg *Config) { cfg.EntryBytes = 4 << 10 })
	c.create(desc(7, "", "", 1, 2, 3))
	n := c.leader(7)
	largest, count := 0, 0
	n.tap(func(to base.StoreID, msgs []wire.RaftMessage) {
		for i := range msgs {
			for _, e := range msgs[i].Msg.Entries {
				largest = max(largest, len(e.Data))
				count++
			}
		}
	})
	a := newAnswers(t)
	for i := range 100 {
		c.write(n, op(wire.OpPut, 7, fmt.Sprint("k", i), fmt.Sprintf("%0500d", i)), a, 0)
	}
	c.settle()
	if a.missing() != 0 || largest > 4<<10+wire.EntryHeaderSize || largest < 3<<10 {
		t.Fatalf("%d missing, largest entry %d", a.missing(), largest)
	}
	last := uint64(0)
	for i := range 100 {
		ans, _ := a.of(c.next - 99 + uint64(i))
		if ans.Code != wire.OK || ans.Arg <= last {
			t.Fatalf("write %d: %s version %d after %d", i, ans.Code, ans.Arg, last)
		}
		last = ans.Arg
	}
}

func TestWaitingReadsShareOneReadIndex(t *testing.T) {
	c := newPlainCluster(t, 3, nil)
	c.create(desc(7, "", "", 1, 2, 3))
	c.put(7, "a", "1")
	n := c.leader(7)
	before := n.store.contexts.Load()
	a := newAnswers(t)
	for range 50 {
		c.readIndex(n, 7, a, 0)
	}
	c.settle()
	if a.missing() != 0 || n.store.contexts.Load() != before+1 {
		t.Fatalf("%d missing, %d read indexes", a.missing(), n.store.contexts.Load()-before)
	}
}

// BenchmarkIdleTick is the cost of one tick of 1,000 followers: what an idle store pays ten times a second. They are
// learners, so that no election disturbs the peace.
func BenchmarkIdleTick(b *testing.B) {
	eng, err := engine.Open(engine.Options{Dir: "data", FS: engine.NewMemFS()})
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = eng.Close() }()
	s, err := New(Config{Store: 1, Incarnation: 1, Engine: eng, Sender: &lateSender{}, Workers: 1})
	if err != nil {
		b.Fatal(err)
	}
	defer s.stop()
	for i := range 1000 {
		d := desc(shardID(10+i), fmt.Sprintf("%04d", i), fmt.Sprintf("%04d", i+1), 1, 2)
		d.Replicas[0].Role = base.RoleLearner
		if err := s.Create(d, nil, false); err != nil {
			b.Fatal(err)
		}
	}
	for s.Poll() {
	}
	b.ReportAllocs()
	for b.Loop() {
		s.TickAll()
		s.Poll()
	}
}
