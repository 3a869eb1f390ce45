package shard

import (
	"fmt"
	"math"
	"testing"
	"time"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
)

// pass moves the clock alone.
func (c *manualClock) pass(d time.Duration) { c.now.Add(int64(d)) }

func near(got, want, part float64) bool { return math.Abs(got-want) <= part*want }

func TestRatesFollowWhatIsDoneAndDoNotDependOnHowOftenTheyAreAskedFor(t *testing.T) {
	for _, every := range []time.Duration{time.Second, 3 * time.Second, 20 * time.Second} {
		var l load
		l.begin(0)
		var now time.Duration
		for now < 2*time.Minute { // 100 reads of 50 bytes and 10 writes of 1000 a second
			now += every
			n := uint64(every / time.Second)
			l.reads.Add(100 * n)
			l.readBytes.Add(5000 * n)
			l.writes.Add(10 * n)
			l.writeBytes.Add(10_000 * n)
			l.nanos.Add(2_000_000 * n)
			l.fold(now)
		}
		want := Load{Reads: 100, Writes: 10, ReadBytes: 5000, WriteBytes: 10_000, CPUMicros: 2000}
		got := l.fold(now)
		if !near(got.Reads, want.Reads, 0.01) || !near(got.WriteBytes, want.WriteBytes, 0.01) ||
			!near(got.CPUMicros, want.CPUMicros, 0.01) || !near(got.Requests(), 110, 0.01) || !near(got.Bytes(), 15_000, 0.01) {
			t.Errorf("every %s: %+v, want %+v", every, got, want)
		}
		// A half-life later without requests it is half, whatever the steps.
		for range loadHalfLife / time.Second {
			now += time.Second
			l.fold(now)
		}
		if got := l.fold(now); !near(got.Reads, 50, 0.02) {
			t.Errorf("every %s: %f reads after a half-life of silence, want 50", every, got.Reads)
		}
		now += 10 * time.Minute
		if got := l.fold(now); got.Requests() > 0.01 {
			t.Errorf("%+v after ten silent minutes", got)
		}
	}
}

func TestASplitGivesPartOfTheRatesToEachSideAndAMergeAddsThem(t *testing.T) {
	var left, right load
	left.begin(0)
	left.reads.Add(10_000_000)
	all := left.fold(time.Hour).Reads
	left.sampler.Store(newSampler(1, 0))
	right.begin(time.Hour)
	right.inherit(&left, time.Hour, 0.25)
	left.share(time.Hour, 0.75)
	if l, r := left.fold(time.Hour).Reads, right.fold(time.Hour).Reads; !near(l, 0.75*all, 1e-9) || !near(r, 0.25*all, 1e-9) {
		t.Errorf("%f and %f of %f", l, r, all)
	}
	if left.sampler.Load() != nil {
		t.Error("what was sampled of the whole is kept for the left side")
	}
	// What the left has done before is not counted at the right, nor again.
	if l := left.fold(time.Hour + loadHalfLife).Reads; !near(l, 0.75*all/2, 1e-6) {
		t.Errorf("%f a half-life later", l)
	}
	right.reads.Add(uint64(math.Round(0.25 * all * 10)))
	if r := right.fold(time.Hour + loadHalfLife).Reads; !near(r, 0.25*all, 0.05) {
		t.Errorf("%f with as many reads as before", r)
	}
	now := time.Hour + loadHalfLife
	want := left.fold(now).Reads + right.fold(now).Reads
	left.absorb(&right, now)
	if got := left.fold(now).Reads; !near(got, want, 1e-9) {
		t.Errorf("%f after the merge, want %f", got, want)
	}
}

func TestOneInSoManyRequestsIsSampledInNoPattern(t *testing.T) {
	const n = 1 << 16
	for _, period := range []uint64{2, 3, 32, 64} { // a client that asks for keys in turn
		hits := make([]int, period)
		for i := range uint64(n) {
			if picked(i) {
				hits[i%period]++
			}
		}
		for phase, h := range hits {
			if want := float64(n) / sampleEvery / float64(period); math.Abs(float64(h)-want) > 6*math.Sqrt(want) {
				t.Errorf("period %d, phase %d: %d samples, want about %.0f", period, phase, h, want)
			}
		}
	}
}

func TestReadsAreCountedWhereTheyAreServedAndWritesOnEveryReplica(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.create(desc(7, "", "", 1, 2, 3))
	value := string(make([]byte, 1000))
	for i := range 50 {
		c.put(7, fmt.Sprint("key", i), value)
	}
	lead := c.leader(7)
	get := op(wire.OpGet, 7, "key1", "")
	scan := op(wire.OpScan, 7, "key", string(base.UserKey([]byte("kez"))))
	for range 100 {
		lead.store.Read(&get, nil)
	}
	lead.store.Read(&scan, nil)
	c.until("all writes are applied", func() bool {
		all := true
		c.each(func(n *testNode) {
			r := n.store.lookup(7)
			all = all && r.applied.Load() == lead.store.lookup(7).applied.Load()
		})
		return all
	})
	c.each(func(n *testNode) {
		r := n.store.lookup(7)
		got := r.load.totals()
		if got.Writes != 50 || got.WriteBytes < 50*1000 || got.WriteBytes > 50*1200 {
			t.Errorf("%s: %f writes of %f bytes", n.id, got.Writes, got.WriteBytes)
		}
		reads, bytes := got.Reads, got.ReadBytes
		if n == lead && (reads != 101 || bytes < 150*1000) || n != lead && reads > 0 {
			t.Errorf("%s: %f reads of %f bytes", n.id, reads, bytes)
		}
	})
	// The summary has rates.
	c.clock.pass(5 * time.Second)
	c.each(func(n *testNode) {
		for _, sum := range n.store.Summaries() {
			if rate := sum.Load.Writes; rate <= 0 || rate > 50 {
				t.Errorf("%s: %f writes a second", n.id, rate)
			}
		}
	})
}

func TestCPUIsEstimatedFromSamplesOfReadsAndAllOfApply(t *testing.T) {
	var tick steppingClock
	tick.step = time.Microsecond
	c := newCluster(t, 1, func(cfg *Config) { cfg.Clock = &tick })
	c.create(desc(7, "", "", 1))
	c.put(7, "a", "1")
	r := c.nodes[1].store.lookup(7)
	if got := r.load.totals().CPUMicros; got == 0 {
		t.Error("apply took no time")
	}
	before := r.load.totals().CPUMicros
	get := op(wire.OpGet, 7, "a", "")
	for range 3200 { // each look at the clock takes a microsecond: so does a read, as far as it is timed
		c.nodes[1].store.Read(&get, nil)
	}
	if got := r.load.totals().CPUMicros - before; !near(got, 3200, 0.4) {
		t.Errorf("%f us for 3200 reads", got)
	}
}

// steppingClock goes on by a step with each look.
type steppingClock struct {
	manualClock
	step time.Duration
}

func (c *steppingClock) Boot() time.Duration { return time.Duration(c.now.Add(int64(c.step))) }

func TestCountingAReadAllocatesNothing(t *testing.T) {
	c := newCluster(t, 1, nil)
	c.create(desc(7, "", "", 1))
	c.put(7, "a", "1")
	s := c.nodes[1].store
	get := op(wire.OpGet, 7, "a", "")
	buf := make([]byte, 0, 1024)
	r := s.lookup(7)
	r.load.sampler.Store(newSampler(1, c.clock.Boot()))
	read := func() { buf = s.Read(&get, buf[:0]) }
	for range 100 * sampleEvery { // the sampler's buffers
		read()
	}
	counted := testing.AllocsPerRun(20*sampleEvery, read)
	bare := testing.AllocsPerRun(20*sampleEvery, func() { buf = s.get(r, &get, buf[:0]) })
	if counted > bare {
		t.Errorf("%f allocations per read, %f without counting", counted, bare)
	}
}

func TestTheSidesOfASplitStartWithTheirPartOfLoadAndSize(t *testing.T) {
	c := newCluster(t, 1, nil)
	c.create(desc(7, "", "m", 1))
	c.create(desc(8, "m", "", 1))
	s := c.nodes[1].store
	left, right := s.lookup(7), s.lookup(8)
	left.load.writes.Add(1000)
	left.size.wrote(1<<20, s.engine.FlushEpoch())
	whole, _ := left.sizeNow(c.clock.Boot())
	c.clock.pass(10 * time.Second)
	all := left.foldLoad(c.clock.Boot()).Writes
	right.inheritLoad(left, 0.4)
	left.shareLoad(0.6)
	if l, r := left.foldLoad(c.clock.Boot()).Writes, right.foldLoad(c.clock.Boot()).Writes; !near(l, 0.6*all, 0.01) ||
		!near(r, 0.4*all, 0.01) {
		t.Errorf("%f and %f of %f", l, r, all)
	}
	size, age := left.sizeNow(c.clock.Boot())
	if !near(float64(size), 0.6*float64(whole), 0.01) || age != 0 {
		t.Errorf("%d bytes of %d as of %s ago", size, whole, age)
	}
	if size, _ := right.sizeNow(c.clock.Boot()); !near(float64(size), 0.4*float64(whole), 0.01) {
		t.Errorf("%d bytes of %d on the right", size, whole)
	}
	left.absorbLoad(right)
	if size, _ := left.sizeNow(c.clock.Boot()); !near(float64(size), float64(whole), 0.01) {
		t.Errorf("%d bytes of %d after the merge", size, whole)
	}
	if l := left.foldLoad(c.clock.Boot()).Writes; !near(l, all, 0.01) {
		t.Errorf("%f after the merge", l)
	}
}
