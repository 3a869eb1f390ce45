package shard

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/shardd/shardd/engine"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
)

// measures returns how often a store has looked at a size.
func (n *testNode) measures(t *testing.T) float64 { return counted(t, n.store.metrics.measures) }

// incompressible returns bytes that no table makes smaller.
func incompressible(n, seed int) string {
	b := make([]byte, n)
	x := uint64(seed)*0x9e3779b97f4a7c15 + 1
	for i := range b {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		b[i] = byte(x >> 32)
	}
	return string(b)
}

func (n *testNode) size(shard base.ShardID) (bytes uint64, age time.Duration) {
	for _, sum := range n.store.Summaries() {
		if sum.Shard == shard {
			return sum.SizeBytes, sum.SizeAge
		}
	}
	return 0, 0
}

func TestTheSizeFollowsWritesInMemtablesAndTables(t *testing.T) {
	c := newCluster(t, 1, nil)
	c.create(desc(7, "", "m", 1))
	c.create(desc(8, "m", "", 1))
	n := c.nodes[1]
	if got, _ := n.size(7); got != 0 {
		t.Fatalf("a new shard has %d bytes", got)
	}
	const one = 16 << 10
	var want uint64
	for i := range 800 { // 12.5 MiB, through several memtables of 4 MiB
		c.put(7, fmt.Sprintf("a%05d", i), incompressible(one, i))
		want += one
		if i%50 == 0 {
			if got, _ := n.size(7); got < want*9/10 || got > want*13/10 {
				t.Fatalf("%d bytes written, the size is %d", want, got)
			}
		}
	}
	if e := n.eng.FlushEpoch(); e.Flushed == 0 {
		t.Fatal("nothing was flushed: the test says nothing about tables")
	}
	if got := n.measures(t); got < 3 || got > 100 {
		t.Errorf("measured %g times for 800 writes", got)
	}
	if got, _ := n.size(8); got > 64<<10 { // a block at the border
		t.Errorf("the neighbour has %d bytes", got)
	}
}

func TestNobodyMeasuresWhatNobodyWrites(t *testing.T) {
	c := newCluster(t, 1, nil)
	c.create(desc(7, "", "", 1))
	c.put(7, "a", "1")
	n := c.nodes[1]
	n.size(7)
	before := n.measures(t)
	for range 100 {
		c.tick()
	}
	if got := n.measures(t); got != before {
		t.Errorf("%g measurements by ticks", got-before)
	}
	for range 24 * 3600 { // asked each second for a day
		c.clock.pass(time.Second)
		n.size(7)
	}
	if got := n.measures(t) - before; got < 20 || got > 40 {
		t.Errorf("%g measurements in an idle day", got)
	}
	if _, age := n.size(7); age > remeasureLast+time.Second {
		t.Errorf("the size is of %s ago", age)
	}
}

func TestAfterARangeDeletionTheSizeShrinks(t *testing.T) {
	c := newCluster(t, 1, nil)
	c.create(desc(7, "", "m", 1))
	c.create(desc(8, "m", "", 1))
	n := c.nodes[1]
	for i := range 600 {
		c.put(7, fmt.Sprintf("a%05d", i), incompressible(16<<10, i))
	}
	full, _ := n.size(7)
	if full < 8<<20 {
		t.Fatalf("%d bytes", full)
	}
	a := newAnswers(t)
	c.write(n, op(wire.OpDeleteRange, 7, "a", string(base.UserKey([]byte("b")))), a, 0)
	c.until("the deletion", func() bool { return a.missing() == 0 })
	deadline := time.Now().Add(time.Minute)
	for i := 0; ; i++ {
		// Fills the memtable that has the tombstone, or Pebble would flush it in ten seconds of its own; and then those whose
		// flushes start compactions, if the tables with the rows hold something else too and cannot just be dropped.
		c.put(8, fmt.Sprintf("m%05d", i), incompressible(16<<10, i))
		c.clock.pass(time.Minute)
		got, _ := n.size(7)
		if got < full/10 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d bytes of %d a minute later", got, full)
		}
	}
}

func TestAnotherRangeIsMeasuredAtOnce(t *testing.T) {
	c := newCluster(t, 1, nil)
	c.create(desc(7, "", "", 1))
	n := c.nodes[1]
	for i := range 600 {
		c.put(7, fmt.Sprintf("a%05d", i), incompressible(16<<10, i))
	}
	full, _ := n.size(7)
	r := n.store.lookup(7)
	d := r.desc.Load().Clone()
	d.End = base.UserKey([]byte("a00100")) // a split publishes such a descriptor
	r.desc.Store(d)
	if half, _ := n.size(7); half > full/2 {
		t.Errorf("%d bytes of %d after five sixths went away", half, full)
	}
}

func TestAShardOfTwiceItsSplitSizeTakesNothingButDeletesUntilItIsSplitOrShrinks(t *testing.T) {
	c := newCluster(t, 1, func(cfg *Config) { cfg.Split.Bytes = 2 << 20 })
	c.create(desc(7, "", "", 1))
	n := c.nodes[1]
	ask := func(o wire.Op) wire.Answer {
		t.Helper()
		a := newAnswers(t)
		req := c.write(n, o, a, 0)
		c.until("the answer", func() bool { return a.missing() == 0 })
		ans, _ := a.of(req)
		return ans
	}
	put := func(i int) wire.Answer {
		return ask(op(wire.OpPut, 7, fmt.Sprintf("a%05d", i), incompressible(16<<10, i)))
	}
	last := 0
	var full wire.Answer
	for ; full.Code == wire.OK; last++ {
		if last > 1000 {
			t.Fatal("16 MiB written, and no refusal")
		}
		full = put(last)
		c.clock.pass(10 * time.Millisecond)
	}
	if last < 240 || last > 280 {
		t.Errorf("refused after %d values of 16 KiB, twice the split size is 256 of them", last)
	}
	if why := string(full.Payload); full.Code != wire.Busy || full.Arg == 0 || !strings.HasPrefix(why, "shard-size: s7 has ") ||
		!strings.Contains(why, "4194304") {
		t.Fatalf("%s, %d ms, %q", full.Code, full.Arg, why)
	}
	if got := counted(t, n.store.metrics.busy.WithLabelValues("shard-size")); got != 1 {
		t.Errorf("%g refusals counted", got)
	}
	// What frees bytes passes, and so do reads.
	del := (&wire.Sub{Code: wire.OpDelete, Key: base.UserKey([]byte("x00001"))}).Append(nil)
	for what, o := range map[string]wire.Op{
		"delete": op(wire.OpDelete, 7, "x00000", ""), "batch of deletes": op(wire.OpBatch, 7, "x00001", string(del)),
		"range deletion": op(wire.OpDeleteRange, 7, "x", string(base.UserKey([]byte("y")))),
	} {
		if a := ask(o); a.Code != wire.OK {
			t.Errorf("%s: %s %s", what, a.Code, a.Payload)
		}
	}
	if _, ok := c.get(7, "a00002"); !ok {
		t.Error("a read finds nothing")
	}
	// A refusal does not end by itself.
	c.clock.pass(time.Hour)
	if a := put(last); a.Code != wire.Busy {
		t.Fatalf("an hour later: %s", a.Code)
	}
	// Part of the range is given away, as by a split. The machine keeps the range; only what is published counts here.
	r := n.store.lookup(7)
	whole := r.desc.Load()
	d := whole.Clone()
	d.Start = base.UserKey([]byte("a00200"))
	r.desc.Store(d)
	if a := put(last); a.Code != wire.OK {
		t.Errorf("after three quarters of the range are gone: %s %s", a.Code, a.Payload)
	}
	r.desc.Store(whole)
	again := wire.OK
	for i := 0; again == wire.OK && i < 20; i++ { // it was at the very limit
		c.clock.pass(2 * time.Second)
		again = put(last + i).Code
	}
	if again != wire.Busy {
		t.Errorf("with all of the range again: %s", again)
	}
	n.store.SetSplitLimits(SplitLimits{Bytes: 4 << 20})
	if a := put(last); a.Code != wire.OK {
		t.Errorf("with a higher limit: %s", a.Code)
	}
	n.store.SetSplitLimits(SplitLimits{Bytes: -1})
	if a := put(last); a.Code != wire.OK {
		t.Errorf("without a limit: %s", a.Code)
	}
}

func TestTheMetaShardIsNeverRefusedForItsSize(t *testing.T) {
	c := newCluster(t, 1, func(cfg *Config) { cfg.Split.Bytes = 64 << 10 })
	d := desc(base.MetaShard, "", "", 1)
	d.Start, d.End = base.SystemStart(), base.SystemEnd()
	c.create(d)
	n := c.nodes[1]
	for i := range 20 {
		o := wire.Op{Code: wire.OpPut, Shard: base.MetaShard, Version: 1,
			Key: append(base.SystemStart(), byte(i)), Value: []byte(incompressible(16<<10, i))}
		a := newAnswers(t)
		req := c.write(n, o, a, 0)
		c.until("the answer", func() bool { return a.missing() == 0 })
		if ans, _ := a.of(req); ans.Code != wire.OK {
			t.Fatalf("write %d: %s %s", i, ans.Code, ans.Payload)
		}
		c.clock.pass(time.Second)
	}
}

func TestBytesInMemtablesAreForgottenOnceTheyAreFlushed(t *testing.T) {
	var s shardSize
	e := func(now, flushed uint64) engine.FlushEpoch { return engine.FlushEpoch{Now: now, Flushed: flushed} }
	s.wrote(10, e(1, 0))
	s.wrote(20, e(1, 0))
	s.wrote(5, e(2, 0))
	s.wrote(7, e(3, 1)) // epoch 1 is not flushed: what is flushed is below the number
	for _, c := range []struct{ flushed, want uint64 }{{0, 42}, {1, 42}, {2, 42}, {3, 7}, {4, 0}} {
		if got := s.unflushed(e(4, c.flushed)); got != c.want {
			t.Errorf("flushed up to %d: %d bytes in memory, want %d", c.flushed, got, c.want)
		}
	}
	s.wrote(1, e(9, 8)) // all that went before is in tables
	if got := s.unflushed(e(9, 8)); got != 1 {
		t.Errorf("%d bytes, want the last one", got)
	}
}

func TestMetricsShowSizesAndFullShardsWithoutNamingAny(t *testing.T) {
	reg := prometheus.NewRegistry()
	c := newCluster(t, 1, func(cfg *Config) { cfg.Registerer, cfg.Split.Bytes = reg, 1<<20 })
	c.create(desc(7, "", "m", 1))
	c.create(desc(8, "m", "", 1))
	n := c.nodes[1]
	for i := range 200 {
		a := newAnswers(t)
		c.write(n, op(wire.OpPut, 7, fmt.Sprintf("a%05d", i), incompressible(16<<10, i)), a, 0)
		c.until("the answer", func() bool { return a.missing() == 0 })
	}
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for _, f := range families {
		if len(f.Metric) != 1 {
			continue
		}
		switch m := f.Metric[0]; f.GetName() {
		case "shardd_shard_size_bytes":
			seen++
			h := m.GetHistogram()
			if h.GetSampleCount() != 2 || h.GetSampleSum() < 1<<20 || h.Bucket[0].GetCumulativeCount() != 1 || len(m.Label) != 0 {
				t.Errorf("%v", m)
			}
		case "shardd_shard_full_shards":
			seen++
			if m.GetGauge().GetValue() != 1 {
				t.Errorf("%v full shards", m.GetGauge())
			}
		case "shardd_shard_sampled_shards", "shardd_shard_size_measurements_total":
			seen++
		}
	}
	if seen != 4 {
		t.Errorf("%d of the metrics", seen)
	}
}

func TestAShardOfFewLargeValuesIsCountedAndNotGuessed(t *testing.T) {
	c := newCluster(t, 1, func(cfg *Config) { cfg.Split.Bytes = 1 << 20 })
	c.create(desc(7, "", "", 1))
	n := c.nodes[1]
	for i := range 120 {
		c.put(7, fmt.Sprintf("a%05d", i), incompressible(16<<10, i))
	}
	r := n.store.lookup(7)
	d := r.desc.Load().Clone()
	d.End = base.UserKey([]byte("a00010"))
	r.desc.Store(d)
	// In memtables and, after a flush, in one block of keys: neither tells the ten from the rest.
	if got, _ := n.size(7); got < 160<<10 || got > 200<<10 {
		t.Errorf("10 values of 16 KiB are %d bytes", got)
	}
}
