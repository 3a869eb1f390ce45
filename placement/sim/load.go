package sim

import (
	"cmp"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/shardd/shardd/placement/plan"
)

// density says how requests, or new data, are spread over the line of keys. hi 0 stands for the end of all keys.
type density interface {
	// share is the part of all that falls into [lo, hi).
	share(lo, hi uint64) float64
	// middle is a position that halves what falls into [lo, hi), and false if there is none inside.
	middle(lo, hi uint64) (uint64, bool)
	// hottest is the position of the single hottest key in [lo, hi) and its part of all, if single keys matter.
	hottest(lo, hi uint64) (uint64, float64)
}

func width(lo, hi uint64) float64 {
	if lo == 0 && hi == 0 {
		return 1
	}
	return float64(hi-lo) / (1 << 64) // wraps where hi stands for 2^64
}

// uniform spreads evenly.
type uniform struct{}

func (uniform) share(lo, hi uint64) float64              { return width(lo, hi) }
func (uniform) hottest(uint64, uint64) (uint64, float64) { return 0, 0 }

func (uniform) middle(lo, hi uint64) (uint64, bool) {
	at := lo + (hi-lo)/2
	if lo == 0 && hi == 0 {
		at = 1 << 63
	}
	return at, at != lo
}

// spot spreads evenly over a part of the line.
type spot struct{ at, wide uint64 }

func (s spot) clip(lo, hi uint64) (uint64, uint64, bool) {
	end := s.at + s.wide
	if hi == 0 {
		hi = math.MaxUint64
	}
	lo, hi = max(lo, s.at), min(hi, end)
	return lo, hi, lo < hi
}

func (s spot) share(lo, hi uint64) float64 {
	lo, hi, ok := s.clip(lo, hi)
	if !ok {
		return 0
	}
	return float64(hi-lo) / float64(s.wide)
}

func (s spot) middle(lo, hi uint64) (uint64, bool) {
	a, b, ok := s.clip(lo, hi)
	at := a + (b-a)/2
	return at, ok && at > lo
}

func (spot) hottest(uint64, uint64) (uint64, float64) { return 0, 0 }

// points is all on single keys, with the weights of a Zipf distribution, scattered over the line.
type points struct {
	at  []uint64
	sum []float64 // of the weights before each
}

func newZipf(rng *rand.Rand, n int, theta float64) *points {
	type point struct {
		at uint64
		w  float64
	}
	ps := make([]point, n)
	total := 0.0
	for i := range ps {
		ps[i] = point{rng.Uint64() | 1, 1 / math.Pow(float64(i+1), theta)}
		total += ps[i].w
	}
	slices.SortFunc(ps, func(a, b point) int { return cmp.Compare(a.at, b.at) })
	p := &points{sum: []float64{0}}
	sum := 0.0
	for _, q := range ps {
		sum += q.w / total
		p.at, p.sum = append(p.at, q.at), append(p.sum, sum)
	}
	return p
}

func (p *points) span(lo, hi uint64) (int, int) {
	i, _ := slices.BinarySearch(p.at, lo)
	j := len(p.at)
	if hi != 0 {
		j, _ = slices.BinarySearch(p.at, hi)
	}
	return i, j
}

func (p *points) share(lo, hi uint64) float64 {
	i, j := p.span(lo, hi)
	return p.sum[j] - p.sum[i]
}

func (p *points) middle(lo, hi uint64) (uint64, bool) {
	i, j := p.span(lo, hi)
	half := (p.sum[i] + p.sum[j]) / 2
	k, _ := slices.BinarySearch(p.sum[i:j], half)
	k += i
	// The split whose halves differ least: before k or before k-1.
	if k > i+1 && half-p.sum[k-1] < p.sum[k]-half {
		k--
	}
	if k <= i || k >= j {
		return 0, false
	}
	return p.at[k], p.at[k] != lo
}

func (p *points) hottest(lo, hi uint64) (at uint64, most float64) {
	i, j := p.span(lo, hi)
	for ; i < j; i++ {
		if w := p.sum[i+1] - p.sum[i]; w > most {
			at, most = p.at[i], w
		}
	}
	return at, most
}

// workload is what clients do to the cluster.
type workload struct {
	density
	requests float64 // per second
	// every, if not 0, moves a spot on by its width that often.
	every, moved time.Duration
}

// SetLoad has clients send requests per second, half of them reads, spread uniform, zipf (1,000 keys), or spot (a
// hundredth of the keys, that moves on every so often if every is not 0).
func (c *Cluster) SetLoad(requests float64, spread string, every time.Duration) error {
	w := &workload{requests: requests, every: every, moved: c.now}
	var err error
	if w.density, err = c.density(spread); err != nil {
		return err
	}
	c.load = w
	c.loadAll()
	return nil
}

func (c *Cluster) density(name string) (density, error) {
	switch name {
	case "uniform":
		return uniform{}, nil
	case "zipf":
		return newZipf(c.rng, 1000, 0.99), nil
	case "spot":
		const wide = math.MaxUint64 / 100
		return spot{c.rng.Uint64() / 2, wide}, nil
	}
	return nil, fmt.Errorf("unknown spread %q: want uniform, zipf or spot", name)
}

// bytesPerRequest and microsPerRequest are what a request costs.
const (
	bytesPerRequest  = 1 << 10
	microsPerRequest = 40
)

// loadOf works out the load of a shard.
func (c *Cluster) loadOf(sh *shard) {
	var load plan.Load
	hot, at := "", ""
	if c.load != nil && sh.desc.Start[0] == keyAt(0)[0] {
		lo, hi := sh.lo(), sh.hi()
		share := c.load.share(lo, hi)
		n := share * c.load.requests
		load = plan.Load{
			Reads: uint32(n / 2), Writes: uint32(n / 2), ReadBytes: uint32(n / 2 * bytesPerRequest),
			WriteBytes: uint32(n / 2 * bytesPerRequest), CPUMicros: uint32(n * microsPerRequest),
		}
		if n >= 100 {
			if key, most := c.load.hottest(lo, hi); most > share/2 {
				hot = string(keyAt(key))
			} else if key, ok := c.load.middle(lo, hi); ok {
				at = string(keyAt(key))
			}
		}
	}
	if load == sh.load && hot == sh.hot && at == sh.spot {
		return
	}
	sh.load, sh.hot, sh.spot = load, hot, at
	if s := c.stores[sh.leader]; s != nil {
		s.dirty[sh.id()] = true
	}
}

func (c *Cluster) loadAll() {
	for _, sh := range c.sortedShards() {
		c.loadOf(sh)
	}
}

// growth is data on its way in.
type growth struct {
	density
	perSecond float64
	until     time.Duration
}

// Grow has clients write bytes of new data within a time, spread uniform, zipf or spot.
func (c *Cluster) Grow(bytes uint64, within time.Duration, spread string) error {
	d, err := c.density(spread)
	if err != nil {
		return err
	}
	c.growth = append(c.growth, &growth{d, float64(bytes) / within.Seconds(), c.now + within})
	return nil
}

// Churn deletes a part of the data of every shard at once.
func (c *Cluster) Churn(keep float64) {
	for _, sh := range c.sortedShards() {
		c.resize(sh, uint64(float64(sh.size)*keep))
	}
}

// change lets load and growth of one tick happen.
func (c *Cluster) change() {
	if w := c.load; w != nil && w.every > 0 && c.now-w.moved >= w.every {
		s := w.density.(spot)
		s.at += s.wide
		w.density, w.moved = s, c.now
		c.loadAll()
	}
	for _, g := range c.growth {
		for _, sh := range c.sortedShards() {
			if n := uint64(g.perSecond * c.opt.Tick.Seconds() * g.share(sh.lo(), sh.hi())); n > 0 && sh.desc.Start[0] == keyAt(0)[0] {
				c.resize(sh, sh.size+n)
			}
		}
	}
	c.growth = slices.DeleteFunc(c.growth, func(g *growth) bool { return c.now >= g.until })
}
