package ycsb

import (
	"math"
	"math/rand/v2"
	"sync"
	"sync/atomic"
)

// ZipfianConstant is the skew of all zipfian choices, as published.
const ZipfianConstant = 0.99

// YCSB's ScrambledZipfianGenerator draws from this many items, whatever the number of records, with zeta worked out in
// advance, and hashes the draw onto the records: which records are popular does not depend on their number.
const (
	scrambledItems = 10_000_000_000
	scrambledZeta  = 26.46902820178302
)

// numbers is a stream of whole numbers with some distribution. One is shared by all workers, each with its own source
// of randomness.
type numbers interface {
	next(r *rand.Rand) int64
}

// constant is always the same number.
type constant int64

func (c constant) next(*rand.Rand) int64 { return int64(c) }

// uniform picks from lo to hi, both included.
type uniform struct{ lo, hi int64 }

func (u uniform) next(r *rand.Rand) int64 { return u.lo + r.Int64N(u.hi-u.lo+1) }

// sequential counts from lo to hi and begins again.
type sequential struct {
	lo, hi int64
	n      atomic.Int64
}

func (s *sequential) next(*rand.Rand) int64 { return s.lo + (s.n.Add(1)-1)%(s.hi-s.lo+1) }

// hotspot picks from the first hotCount of the records with a given probability, else from the others.
type hotspot struct {
	lo, hotCount, coldCount int64
	hotOperations           float64
}

func (h hotspot) next(r *rand.Rand) int64 {
	if r.Float64() < h.hotOperations {
		return h.lo + r.Int64N(h.hotCount)
	}
	return h.lo + h.hotCount + r.Int64N(h.coldCount)
}

// exponential is a distance, most often short: percentile percent of them are below span.
type exponential struct{ gamma float64 }

func newExponential(percentile, span float64) exponential {
	return exponential{gamma: -math.Log(1-percentile/100) / span}
}

func (e exponential) next(r *rand.Rand) int64 {
	return int64(min(-math.Log(1-r.Float64())/e.gamma, math.MaxInt64/2))
}

// zipfian picks 0, 1, 2... with falling probability, by Gray et al., "Quickly Generating Billion-Record Synthetic
// Databases", SIGMOD 1994. The number of items may grow; zeta is then extended by the new items alone.
type zipfian struct {
	base, items int64
	theta       float64
	alpha       float64
	zeta2       float64
	second      float64 // upper end of the draws that mean item 1
	growing     sync.Mutex
	params      atomic.Pointer[zipfParams]
}

// zipfParams depend on the number of items.
type zipfParams struct {
	items     int64
	zeta, eta float64
}

// newZipfian picks from lo to hi, both included; lo most often.
func newZipfian(lo, hi int64) *zipfian {
	return newZipfianZeta(lo, hi-lo+1, zeta(0, hi-lo+1, ZipfianConstant, 0))
}

// newZipfianZeta takes a zeta that is known.
func newZipfianZeta(base, items int64, zetan float64) *zipfian {
	z := &zipfian{base: base, items: items, theta: ZipfianConstant}
	z.alpha = 1 / (1 - z.theta)
	z.zeta2 = zeta(0, 2, z.theta, 0)
	z.second = 1 + math.Pow(0.5, z.theta)
	z.params.Store(z.paramsFor(items, zetan))
	return z
}

func (z *zipfian) paramsFor(items int64, zetan float64) *zipfParams {
	return &zipfParams{items: items, zeta: zetan,
		eta: (1 - math.Pow(2/float64(items), 1-z.theta)) / (1 - z.zeta2/zetan)}
}

func (z *zipfian) next(r *rand.Rand) int64 { return z.nextOf(r, z.items) }

// nextOf picks among items, which may be more than before; fewer are taken as an old count that is just read late.
func (z *zipfian) nextOf(r *rand.Rand, items int64) int64 {
	p := z.params.Load()
	if items > p.items {
		p = z.grow(items)
	}
	u := r.Float64()
	uz := u * p.zeta
	switch {
	case uz < 1 || items < 2:
		return z.base
	case uz < z.second || items < 3:
		return z.base + 1
	}
	// The power can round to 1.
	return z.base + min(int64(float64(items)*math.Pow(p.eta*u-p.eta+1, z.alpha)), items-1)
}

// grow extends zeta. A worker that finds another at it goes on with the old one: the head of the distribution is the
// same, and only the head is noticeable.
func (z *zipfian) grow(items int64) *zipfParams {
	if !z.growing.TryLock() {
		return z.params.Load()
	}
	defer z.growing.Unlock()
	p := z.params.Load()
	if items > p.items {
		p = z.paramsFor(items, zeta(p.items, items, z.theta, p.zeta))
		z.params.Store(p)
	}
	return p
}

// zeta is the sum of 1/i^theta over from < i <= to, added to sum.
func zeta(from, to int64, theta, sum float64) float64 {
	for i := from; i < to; i++ {
		sum += 1 / math.Pow(float64(i+1), theta)
	}
	return sum
}

// scrambled spreads a zipfian choice over lo to hi, both included, by a hash.
type scrambled struct {
	lo, count int64
	zipf      *zipfian
}

func newScrambled(lo, hi int64) *scrambled {
	return &scrambled{lo: lo, count: hi - lo + 1, zipf: newZipfianZeta(0, scrambledItems+1, scrambledZeta)}
}

func (s *scrambled) next(r *rand.Rand) int64 { return s.lo + hash64(s.zipf.next(r))%s.count }

// latest picks the newest record most often: the newest acknowledged one less a zipfian distance.
type latest struct {
	lo   int64
	ack  *counter
	zipf *zipfian
}

func newLatest(lo int64, ack *counter) *latest {
	return &latest{lo: lo, ack: ack, zipf: newZipfian(0, ack.last()-lo)}
}

func (l *latest) next(r *rand.Rand) int64 {
	newest := l.ack.last()
	return newest - l.zipf.nextOf(r, newest-l.lo+1)
}

// hash64 is YCSB's Utils.fnvhash64: FNV-1a of the eight bytes of v, lowest first, without its sign.
func hash64(v int64) int64 {
	h := uint64(0xCBF29CE484222325)
	for range 8 {
		h ^= uint64(v) & 0xff
		h *= 1099511628211
		v >>= 8
	}
	n := int64(h)
	if n < 0 {
		n = -n
	}
	return max(n, 0) // the smallest number has no positive counterpart
}
