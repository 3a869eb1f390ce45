package shard

import (
	"math"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/raft/v3/raftpb"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
)

// Load. Count: reads at the leader that serves them, writes on every replica as they are applied; a few atomic adds, no
// clock, no allocation. Sample: one read in sampleEvery, and every run of apply, is timed, and on busy shards its keys
// go to the sampler (sampler.go). Fold: who asks for the rates, or a sample that comes a second after the last fold,
// turns what was counted since then into decayed rates. Nothing runs for a shard that does nothing. All of it is in
// memory: a restart, a snapshot or a new leader begins at zero.

// Load is what a replica does per second, averaged with weights that halve every loadHalfLife.
type Load struct {
	Reads, Writes         float64 // requests
	ReadBytes, WriteBytes float64 // of answers, and of log entries
	// CPUMicros is an estimate of the processor's microseconds: time in reads, by samples, and in apply. It includes
	// waits for the disk in there, and not the work of raft and of the network.
	CPUMicros float64
}

// Requests returns reads and writes per second.
func (l Load) Requests() float64 { return l.Reads + l.Writes }

// Bytes returns bytes read and written per second.
func (l Load) Bytes() float64 { return l.ReadBytes + l.WriteBytes }

// Plus adds two loads.
func (l Load) Plus(o Load) Load {
	return Load{
		Reads: l.Reads + o.Reads, Writes: l.Writes + o.Writes, ReadBytes: l.ReadBytes + o.ReadBytes,
		WriteBytes: l.WriteBytes + o.WriteBytes, CPUMicros: l.CPUMicros + o.CPUMicros,
	}
}

// Times scales a load.
func (l Load) Times(f float64) Load {
	return Load{
		Reads: l.Reads * f, Writes: l.Writes * f, ReadBytes: l.ReadBytes * f, WriteBytes: l.WriteBytes * f,
		CPUMicros: l.CPUMicros * f,
	}
}

const (
	// loadHalfLife is how long ago a request counts half.
	loadHalfLife = 10 * time.Second
	// foldAfter is the least time between two folds: rates over less are noise.
	foldAfter = time.Second
	// sampleEvery is one in how many requests is looked at closely, a power of two. Two looks at the clock cost about as
	// much as a read from memory.
	sampleEvery = 32
)

// load counts what a replica does.
type load struct {
	reads, readBytes, writes, writeBytes, nanos atomic.Uint64

	folded  atomic.Int64            // when, on Clock.Boot
	sampler atomic.Pointer[sampler] // nil on shards that are not busy

	rates struct {
		sync.Mutex
		known *rates // nil: there was nothing to count yet
	}
}

type rates struct {
	counted Load // totals at the last fold
	now     Load
}

func (k *rates) load() Load {
	if k == nil {
		return Load{}
	}
	return k.now
}

// knownLocked returns the rates, to change them.
func (l *load) knownLocked() *rates {
	if l.rates.known == nil {
		l.rates.known = &rates{}
	}
	return l.rates.known
}

func (l *load) begin(now time.Duration) { l.folded.Store(int64(now)) }

// totals are sums, where Load otherwise has rates.
func (l *load) totals() Load {
	return Load{
		Reads: float64(l.reads.Load()), Writes: float64(l.writes.Load()), ReadBytes: float64(l.readBytes.Load()),
		WriteBytes: float64(l.writeBytes.Load()), CPUMicros: float64(l.nanos.Load()) / 1000,
	}
}

// fold returns the rates, brought up to date.
//
// It is the exponential moving average over uneven intervals (A. Eckner, "Algorithms for Unevenly Spaced Time Series:
// Moving Averages and Other Rolling Operators"): what happened in an interval d counts as an even rate over it, and
// whatever was known before keeps the weight 2^(-d/halfLife). So it does not matter how often somebody asks.
func (l *load) fold(now time.Duration) Load {
	l.rates.Lock()
	defer l.rates.Unlock()
	d := now - time.Duration(l.folded.Load())
	if d < foldAfter {
		return l.rates.known.load()
	}
	total := l.totals()
	l.folded.Store(int64(now))
	if l.rates.known == nil && total == (Load{}) {
		return Load{}
	}
	k := l.knownLocked()
	keep := math.Exp2(-float64(d) / float64(loadHalfLife))
	fresh := total.Plus(k.counted.Times(-1)).Times(float64(time.Second) / float64(d))
	k.now = k.now.Times(keep).Plus(fresh.Times(1 - keep))
	k.counted = total
	return k.now
}

// share scales the rates to a part of what they are, as a split does; what was sampled concerns another range.
func (l *load) share(now time.Duration, part float64) {
	l.fold(now)
	l.rates.Lock()
	if k := l.rates.known; k != nil {
		k.now = k.now.Times(part)
	}
	l.rates.Unlock()
	l.sampler.Store(nil)
}

// inherit starts with a part of another replica's rates, as the right-hand side of a split does.
func (l *load) inherit(from *load, now time.Duration, part float64) {
	begin := rates{counted: l.totals(), now: from.fold(now).Times(part)}
	l.rates.Lock()
	if l.rates.known = nil; begin != (rates{}) {
		l.rates.known = &begin
	}
	l.folded.Store(int64(now))
	l.rates.Unlock()
}

// absorb adds another replica's rates, as a merge does.
func (l *load) absorb(from *load, now time.Duration) {
	add := from.fold(now)
	l.fold(now)
	l.rates.Lock()
	if k := l.rates.known; k != nil || add != (Load{}) {
		k = l.knownLocked()
		k.now = k.now.Plus(add)
	}
	l.rates.Unlock()
	l.sampler.Store(nil)
}

// Splits and merges tell what becomes of load and size with these three; sizes are measured anew.

// inheritLoad makes a right-hand side, not published yet, start with its part of the left's load. It comes before
// shareLoad.
func (r *replica) inheritLoad(left *replica, part float64) {
	r.load.inherit(&left.load, r.store.clock.Boot(), part)
	r.size.takeUnflushed(&left.size, part, r.store.engine.FlushEpoch())
}

// shareLoad leaves the left side of a split, whose new descriptor is published, with part of its load.
func (r *replica) shareLoad(part float64) {
	r.load.share(r.store.clock.Boot(), part)
	r.size.shareUnflushed(part)
	r.forgetSize()
}

// absorbLoad adds the load of a shard that was merged into this one, whose new descriptor is published.
func (r *replica) absorbLoad(right *replica) {
	r.load.absorb(&right.load, r.store.clock.Boot())
	r.size.takeUnflushed(&right.size, 1, r.store.engine.FlushEpoch())
	r.forgetSize()
}

// foldLoad returns the replica's rates and decides whether its requests are sampled.
func (r *replica) foldLoad(now time.Duration) Load {
	rate := r.load.fold(now)
	lim := r.store.splitLimits()
	switch sm := r.load.sampler.Load(); {
	case r.shard == base.MetaShard: // it never splits
	case sm == nil && lim.watched(rate, 1):
		r.load.sampler.CompareAndSwap(nil, newSampler(uint64(r.shard), now))
	case sm != nil && !lim.watched(rate, 2): // half, or it would come and go
		r.load.sampler.CompareAndSwap(sm, nil)
	}
	return rate
}

// timed is a read under way; start is not 0 if it is sampled.
type timed struct{ start time.Duration }

func (r *replica) beginRead() timed {
	r.store.note(r)
	if !picked(r.load.reads.Add(1)) {
		return timed{}
	}
	return timed{start: r.store.clock.Boot()}
}

// endRead takes what a read has appended: a whole answer.
func (r *replica) endRead(t timed, op *wire.Op, answer []byte) {
	l := &r.load
	l.readBytes.Add(uint64(len(answer)))
	if t.start == 0 {
		return
	}
	now := r.store.clock.Boot()
	l.nanos.Add(uint64(now-t.start) * sampleEvery)
	if now-time.Duration(l.folded.Load()) >= foldAfter {
		r.foldLoad(now)
	}
	if sm := l.sampler.Load(); sm != nil {
		sm.read(op, answer, now)
	}
}

// picked says which requests are sampled, by their numbers: one in sampleEvery, without a pattern that a client's own
// could fall in step with. The mix is the finaliser of splitmix64 (Steele, Lea, Flood, "Fast Splittable Pseudorandom
// Number Generators", 2014).
func picked(n uint64) bool {
	n *= 0x9e3779b97f4a7c15
	n = (n ^ n>>30) * 0xbf58476d1ce4e5b9
	n = (n ^ n>>27) * 0x94d049bb133111eb
	return (n^n>>31)&(sampleEvery-1) == 0
}

// countApplied counts the log entries of a committed run, and the time that they took.
func (r *replica) countApplied(ents []raftpb.Entry, took, now time.Duration) {
	var ops, bytes uint64
	for i := range ents {
		if len(ents[i].Data) == 0 || ents[i].Type != raftpb.EntryNormal {
			continue
		}
		if h, _, err := wire.DecodeEntry(ents[i].Data); err == nil {
			ops += uint64(h.Count)
			bytes += uint64(len(ents[i].Data))
		}
	}
	if ops == 0 {
		return
	}
	l := &r.load
	l.writes.Add(ops)
	l.writeBytes.Add(bytes)
	l.nanos.Add(uint64(max(took, 0)))
	if now-time.Duration(l.folded.Load()) >= foldAfter {
		r.foldLoad(now)
	}
}
