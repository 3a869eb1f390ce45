package shard

import (
	"bytes"
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/shardd/shardd/engine"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
)

func TestAReservoirEstimatesWeightsAndIsBounded(t *testing.T) {
	// Spans of weights from 1 to 10,000; the estimate of a part of them is right on average.
	const rounds, n = 200, 3000
	var got, want float64
	rng := rand.New(rand.NewPCG(1, 2))
	for range rounds {
		var r reservoir
		for i := range n {
			w := math.Pow(10, float64(i%5))
			key := fmt.Appendf(nil, "key%05d", i)
			if i%3 == 0 {
				want += w
			}
			r.add(key, nil, w, rng)
		}
		if len(r.spans) != windowSpans || r.bytes > windowBytes {
			t.Fatalf("%d spans of %d bytes", len(r.spans), r.bytes)
		}
		for i := range r.spans {
			var k int
			if _, err := fmt.Sscanf(string(r.spans[i].lo), "key%d", &k); err != nil {
				t.Fatal(err)
			}
			if k%3 == 0 {
				got += r.estimate(&r.spans[i])
			}
		}
	}
	if !near(got, want, 0.05) {
		t.Errorf("a third of the keys is estimated at %.0f, it weighs %.0f", got/rounds, want/rounds)
	}
	// What is not turned away counts exactly.
	var few reservoir
	for i := range 50 {
		few.add([]byte{byte(i)}, nil, float64(1+i), rng)
	}
	for i := range few.spans {
		if e := few.estimate(&few.spans[i]); e != few.spans[i].weight {
			t.Fatalf("%f for a weight of %f", e, few.spans[i].weight)
		}
	}
}

func TestLongKeysTakeNoMoreThanTheirShareOfMemory(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	var r reservoir
	for range 3 {
		for i := range 2000 {
			r.add(bytes.Repeat([]byte{byte(i)}, base.MaxKeySize), bytes.Repeat([]byte{byte(i + 1)}, base.MaxKeySize), 1, rng)
			if r.bytes > windowBytes {
				t.Fatalf("%d bytes", r.bytes)
			}
		}
		if len(r.spans) < 2 {
			t.Fatalf("%d spans", len(r.spans))
		}
		r.reset()
	}
	kept := 0
	for _, s := range r.free {
		kept += cap(s.lo) + cap(s.hi)
	}
	if kept > windowBytes {
		t.Errorf("%d bytes are kept for the next window", kept)
	}
	var s sketch
	for range 2000 {
		s.add(bytes.Repeat([]byte{byte(rng.Uint32())}, base.MaxKeySize))
	}
	if len(s.counters) != 0 || s.total != 2000 {
		t.Errorf("%d counters, %d in total", len(s.counters), s.total)
	}
}

func TestASketchNamesTheBusiestKeysAndNeverUndercounts(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	zipf := rand.NewZipf(rng, 1.2, 1, 9999)
	var s sketch
	truth := map[string]uint64{}
	for range 50_000 {
		k := fmt.Appendf(nil, "key%d", zipf.Uint64())
		truth[string(k)]++
		s.add(k)
	}
	if len(s.counters) != sketchKeys || s.total != 50_000 {
		t.Fatalf("%d counters, %d in total", len(s.counters), s.total)
	}
	in := map[string]keyCount{}
	for _, c := range s.counters {
		in[string(c.key)] = c
		if n := truth[string(c.key)]; c.count < n || c.count-c.owed > n {
			t.Errorf("%s: counted %d, of which %d may be others', it came %d times", c.key, c.count, c.owed, n)
		}
	}
	for k, n := range truth {
		if _, ok := in[k]; !ok && n > s.total/sketchKeys {
			t.Errorf("%s came %d times and is not named", k, n)
		}
	}
	s.reset()
	s.add([]byte("x"))
	if len(s.counters) != 1 || string(s.counters[0].key) != "x" || s.counters[0].count != 1 || s.total != 1 {
		t.Errorf("after a reset: %+v", s)
	}
}

// load offers requests to a sampler for one whole window and judges it.
func judge(t *testing.T, d *base.Descriptor, groups []engine.KeyGroup, offer func(s *sampler, now time.Duration)) LoadSplit {
	t.Helper()
	s := newSampler(1, 0)
	offer(s, time.Second)
	if v := s.divide(d, groups, 2*time.Second); v.Samples != 0 {
		t.Error("judged before the window is whole")
	}
	v := s.divide(d, groups, windowLength)
	if v.Key != nil && !inside(v.Key, d) {
		t.Errorf("%q is not inside the shard", v.Key)
	}
	return v
}

func TestTheLoadIsDividedWhereBothHalvesGetSome(t *testing.T) {
	key := func(i int) []byte { return fmt.Appendf(base.UserStart(), "key%05d", i) }
	d := desc(7, "", "", 1)
	for name, c := range map[string]struct {
		draw         func(rng *rand.Rand) (lo, hi []byte, weight float64)
		left, across [2]float64 // bounds; both 0: no key
		from, to     int        // of the key
		hot          int        // 0: none
		groups       []engine.KeyGroup
	}{
		"even": {
			draw: func(rng *rand.Rand) ([]byte, []byte, float64) { return key(rng.IntN(10_000)), nil, 1000 },
			left: [2]float64{0.4, 0.6}, from: 3500, to: 6500,
		},
		"the end is busy": { // as with keys that only grow
			draw: func(rng *rand.Rand) ([]byte, []byte, float64) { return key(9000 + rng.IntN(1000)), nil, 1000 },
			left: [2]float64{0.4, 0.6}, from: 9350, to: 9650,
		},
		"a few keys, none of them half": {
			draw: func(rng *rand.Rand) ([]byte, []byte, float64) { return key(100 * (1 + rng.IntN(3))), nil, 1000 },
			left: [2]float64{0.2, 0.8}, from: 200, to: 300,
		},
		"large requests weigh more": { // a twentieth of the requests, at the end, has 90 % of the bytes
			draw: func(rng *rand.Rand) ([]byte, []byte, float64) {
				if rng.IntN(20) == 0 {
					return key(5000 + rng.IntN(5000)), nil, 171_000
				}
				return key(rng.IntN(5000)), nil, 1000
			},
			left: [2]float64{0.35, 0.65}, from: 6000, to: 8500,
		},
		"short scans": {
			draw: func(rng *rand.Rand) ([]byte, []byte, float64) {
				i := rng.IntN(10_000)
				return key(i), key(i + 500), 1000
			},
			left: [2]float64{0.3, 0.6}, across: [2]float64{0, 0.15}, from: 3500, to: 6500,
		},
		"scans of all": {
			draw: func(*rand.Rand) ([]byte, []byte, float64) { return key(0), key(10_000), 1000 },
		},
		"scans of half": { // every key is in the middle of most of them
			draw: func(rng *rand.Rand) ([]byte, []byte, float64) {
				i := rng.IntN(5000)
				return key(i), key(i + 5000), 1000
			},
		},
		"one key": {
			draw: func(*rand.Rand) ([]byte, []byte, float64) { return key(77), nil, 1000 },
			hot:  77,
		},
		"one key and some others": {
			draw: func(rng *rand.Rand) ([]byte, []byte, float64) {
				if rng.IntN(10) < 7 {
					return key(77), nil, 1000
				}
				return key(rng.IntN(10_000)), nil, 1000
			},
			hot: 77,
		},
		"one heavy key among many requests": {
			draw: func(rng *rand.Rand) ([]byte, []byte, float64) {
				if rng.IntN(50) == 0 {
					return key(4711), nil, 500_000
				}
				return key(rng.IntN(10_000)), nil, 1000
			},
			hot: 4711,
		},
		"one group": {
			draw:   func(rng *rand.Rand) ([]byte, []byte, float64) { return key(rng.IntN(10_000)), nil, 1000 },
			groups: []engine.KeyGroup{{Delimiter: []byte("y"), Count: 1}},
		},
		"groups of a thousand": { // key0 .. key9
			draw:   func(rng *rand.Rand) ([]byte, []byte, float64) { return key(rng.IntN(100_000)), nil, 1000 },
			groups: []engine.KeyGroup{{Prefix: []byte("key5"), Delimiter: []byte("y"), Count: 1}},
			left:   [2]float64{0.3, 0.7}, from: 40_000, to: 65_000,
		},
	} {
		t.Run(name, func(t *testing.T) {
			rng := rand.New(rand.NewPCG(5, 6))
			v := judge(t, d, c.groups, func(s *sampler, now time.Duration) {
				for range 2000 {
					lo, hi, w := c.draw(rng)
					s.offer(lo, hi, w, now)
				}
			})
			if v.Samples < minSpans {
				t.Fatalf("%d samples", v.Samples)
			}
			if c.hot > 0 {
				if !bytes.Equal(v.HotKey, key(c.hot)) || v.HotShare < hotShare || v.Key != nil {
					t.Errorf("%+v, want %q to be hot", v, key(c.hot))
				}
				return
			}
			if v.HotKey != nil {
				t.Errorf("%q is hot with %f", v.HotKey, v.HotShare)
			}
			if c.left == [2]float64{} {
				if v.Key != nil {
					t.Errorf("divided at %q: %+v", v.Key, v)
				}
				return
			}
			if v.Key == nil {
				t.Fatalf("not divided: %+v", v)
			}
			if sum := v.Left + v.Right + v.Across; math.Abs(sum-1) > 1e-6 {
				t.Errorf("shares add up to %f", sum)
			}
			if v.Left < c.left[0] || v.Left > c.left[1] || v.Across < c.across[0]-1e-9 || v.Across > c.across[1]+1e-9 {
				t.Errorf("%+v", v)
			}
			if bytes.Compare(v.Key, key(c.from)) < 0 || bytes.Compare(v.Key, key(c.to)) > 0 {
				t.Errorf("divided at %q, want %d to %d", v.Key, c.from, c.to)
			}
			if at, _ := engine.GroupStart(v.Key, c.groups); !bytes.Equal(at, v.Key) {
				t.Errorf("%q lies in the group of %q", v.Key, at)
			}
		})
	}
}

func TestTooFewSamplesSayNothing(t *testing.T) {
	v := judge(t, desc(7, "", "", 1), nil, func(s *sampler, now time.Duration) {
		for i := range minSpans - 1 {
			s.offer(fmt.Appendf(base.UserStart(), "k%d", i), nil, 1, now)
		}
	})
	if v.Key != nil || v.HotKey != nil {
		t.Errorf("%+v", v)
	}
}

func TestAVerdictRestsOnTheLastWholeWindowOnly(t *testing.T) {
	d := desc(7, "", "", 1)
	s := newSampler(1, 0)
	fill := func(prefix string, now time.Duration) {
		for i := range 500 {
			s.offer(fmt.Appendf(base.UserStart(), "%s%03d", prefix, i), nil, 1, now)
		}
	}
	fill("a", time.Second)
	fill("b", windowLength+time.Second)
	if v := s.divide(d, nil, windowLength+2*time.Second); v.Key == nil || v.Key[1] != 'a' {
		t.Errorf("the first window is divided at %q", v.Key)
	}
	if v := s.divide(d, nil, 2*windowLength+2*time.Second); v.Key == nil || v.Key[1] != 'b' {
		t.Errorf("the second window is divided at %q", v.Key)
	}
	if keys, n := s.hotKeys(3, 2*windowLength+3*time.Second); len(keys) != 3 || n != 500 || keys[0].Key[1] != 'b' {
		t.Errorf("%d keys of %d requests", len(keys), n)
	}
	if v := s.divide(d, nil, 9*windowLength); v.Key != nil || v.Samples != 0 {
		t.Errorf("long after the last request: %+v", v)
	}
	// A key outside of what is left of the range is not proposed.
	fill("c", 9*windowLength+time.Second)
	if v := s.divide(d, nil, 10*windowLength+2*time.Second); v.Key == nil {
		t.Fatalf("%+v", v)
	}
	if v := s.divide(desc(7, "", "c", 1), nil, 10*windowLength+3*time.Second); v.Key != nil {
		t.Errorf("divided at %q, the range ends at c", v.Key)
	}
}

func TestTheSpanOfARequestIsWhatItTouched(t *testing.T) {
	key := func(k string) []byte { return base.UserKey([]byte(k)) }
	page := func(more bool, keys ...string) []byte {
		a := wire.Answer{Code: wire.OK}
		if more {
			a.Flags = wire.FlagMore
		}
		for _, k := range keys {
			a.Payload = (&wire.Row{Key: key(k), Value: []byte("v")}).Append(a.Payload)
		}
		return a.Append(nil)
	}
	steps := func(subs ...wire.Sub) (out []byte) {
		for i := range subs {
			out = subs[i].Append(out)
		}
		return out
	}
	scan := wire.Op{Code: wire.OpScan, Key: key("a"), Value: key("z")}
	back := scan
	back.Flags = wire.FlagReverse
	for name, c := range map[string]struct {
		op     wire.Op
		answer []byte // of reads
		lo, hi string // hi empty: a key
	}{
		"get":                     {wire.Op{Code: wire.OpGet, Key: key("k")}, (&wire.Answer{Code: wire.NotFound}).Append(nil), "k", ""},
		"whole scan":              {scan, page(false, "b", "c"), "a", "z"},
		"page":                    {scan, page(true, "b", "c"), "a", "c\x00"},
		"reverse page":            {back, page(true, "y", "x"), "x", "z"},
		"put":                     {wire.Op{Code: wire.OpPut, Key: key("k")}, nil, "k", ""},
		"range deletion":          {wire.Op{Code: wire.OpDeleteRange, Key: key("k"), Value: key("m")}, nil, "k", "m"},
		"batch on one key":        {wire.Op{Code: wire.OpBatch, Key: key("k"), Value: steps(wire.Sub{Code: wire.OpPut, Key: key("k")})}, nil, "k", ""},
		"batch":                   {wire.Op{Code: wire.OpBatch, Key: key("k"), Value: steps(wire.Sub{Code: wire.OpPut, Key: key("k")}, wire.Sub{Code: wire.OpPut, Key: key("c")}, wire.Sub{Code: wire.OpDelete, Key: key("p")})}, nil, "c", "p\x00"},
		"batch with a deletion":   {wire.Op{Code: wire.OpBatch, Key: key("k"), Value: steps(wire.Sub{Code: wire.OpDeleteRange, Key: key("b"), Value: key("t")}, wire.Sub{Code: wire.OpPut, Key: key("k")})}, nil, "b", "t"},
		"batch beyond a deletion": {wire.Op{Code: wire.OpBatch, Key: key("k"), Value: steps(wire.Sub{Code: wire.OpDeleteRange, Key: key("b"), Value: key("c")}, wire.Sub{Code: wire.OpPut, Key: key("k")})}, nil, "b", "k\x00"},
	} {
		s := newSampler(1, 0)
		if c.answer != nil {
			s.read(&c.op, c.answer, 0)
		} else {
			for range 1000 { // one in so many
				s.write(&c.op, 100, 0)
			}
			if n := s.mu.cur.requests; n < 5 || n > 100 {
				t.Errorf("%s: %d samples of 1000", name, n)
			}
		}
		if len(s.mu.cur.spans) == 0 {
			t.Errorf("%s: not sampled", name)
			continue
		}
		sp := s.mu.cur.spans[0]
		if !bytes.Equal(sp.lo, key(c.lo)) || (sp.hi == nil) != (c.hi == "") || sp.hi != nil && !bytes.Equal(sp.hi, key(c.hi)) {
			t.Errorf("%s: [%q, %q), want [%q, %q)", name, sp.lo, sp.hi, c.lo, c.hi)
		}
	}
	s := newSampler(1, 0)
	s.read(&scan, (&wire.Answer{Code: wire.EpochMismatch}).Append(nil), 0)
	if s.mu.cur.requests != 0 {
		t.Error("a refused read counts")
	}
}

func TestABusyShardSaysWhereToSplitAndAQuietOneForgets(t *testing.T) {
	c := newCluster(t, 1, func(cfg *Config) { cfg.Split.Requests = 1000 })
	c.create(desc(7, "", "", 1))
	n := c.nodes[1]
	summary := func() Summary { return n.store.Summaries()[0] }
	second := func(reads int, key func(i int) string) {
		for i := range reads {
			get := op(wire.OpGet, 7, key(i), "")
			n.store.Read(&get, nil)
		}
		c.clock.pass(time.Second)
	}
	even := func(i int) string { return fmt.Sprintf("k%03d", i*7%1000) }
	if r := n.store.lookup(7); r.load.sampler.Load() != nil {
		t.Fatal("a quiet shard is sampled")
	}
	for range 5 {
		second(50, even)
	}
	if _, sampled, err := n.store.HotKeys(7, 5); err != nil || sampled != 0 || n.store.lookup(7).load.sampler.Load() != nil {
		t.Errorf("50 requests a second are sampled: %d, %v", sampled, err)
	}
	for range 40 {
		second(600, even)
	}
	sum := summary()
	if !near(sum.Load.Reads, 600, 0.1) || sum.LoadSplitKey != nil {
		t.Errorf("%.0f reads a second, split at %q, the limit is 1000", sum.Load.Reads, sum.LoadSplitKey)
	}
	if v, err := n.store.LoadSplit(7); err != nil || v.Key == nil { // who asks is told all the same
		t.Errorf("%+v, %v", v, err)
	}
	for range 40 {
		second(2000, even)
	}
	if sum = summary(); sum.LoadSplitKey == nil || sum.HotKey != nil {
		t.Fatalf("%.0f reads a second: %+v", sum.Load.Reads, sum)
	}
	if k := string(sum.LoadSplitKey[1:]); k < "k300" || k > "k700" {
		t.Errorf("split at %q", k)
	}
	for range 30 {
		second(2000, func(i int) string {
			if i%4 == 0 {
				return even(i)
			}
			return "k123"
		})
	}
	sum = summary()
	if sum.LoadSplitKey != nil || string(sum.HotKey) != string(base.UserKey([]byte("k123"))) || !near(sum.HotShare, 0.75, 0.15) {
		t.Errorf("with one hot key: split at %q, hot %q with %.2f", sum.LoadSplitKey, sum.HotKey, sum.HotShare)
	}
	keys, sampled, err := n.store.HotKeys(7, 3)
	if err != nil || len(keys) != 3 || sampled < 200 || string(keys[0].Key[1:]) != "k123" || !near(keys[0].Share, 0.75, 0.15) {
		t.Errorf("%+v of %d, %v", keys, sampled, err)
	}
	for range 300 {
		c.clock.pass(time.Second)
		sum = summary()
	}
	if sum.HotKey != nil || n.store.lookup(7).load.sampler.Load() != nil {
		t.Error("five quiet minutes later it is still sampled")
	}
	if _, _, err := n.store.HotKeys(99, 3); err == nil {
		t.Error("a shard that is not here has hot keys")
	}
}

func TestWritesCountForTheSplitAtTheLeader(t *testing.T) {
	c := newCluster(t, 3, func(cfg *Config) { cfg.Split.Requests = 40 })
	c.create(desc(7, "", "", 1, 2, 3))
	for i := range 2500 { // less than a window
		c.put(7, fmt.Sprintf("k%03d", i*7%1000), "v")
		c.clock.pass(2 * time.Millisecond)
	}
	c.clock.pass(windowLength)
	lead := c.leader(7)
	c.each(func(n *testNode) {
		v, err := n.store.LoadSplit(7)
		if n != lead {
			if err == nil {
				t.Errorf("%s does not lead: %+v", n.id, v)
			}
			if sum := n.store.Summaries()[0]; sum.LoadSplitKey != nil || sum.Load.Writes == 0 {
				t.Errorf("%s: %+v", n.id, sum)
			}
			return
		}
		if err != nil || v.Key == nil || v.Samples < minSpans {
			t.Errorf("%+v, %v", v, err)
		}
	})
}
