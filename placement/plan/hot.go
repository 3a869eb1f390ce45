package plan

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/shardd/shardd/internal/base"
)

// measure is one measure of load.
type measure struct {
	name  string
	of    func(Load) int64
	sum   func(*LoadSum) int64
	floor func(*Config) int64 // of a store, below which it is no reason
}

var measures = [...]measure{
	{"requests", func(l Load) int64 { return int64(l.Requests()) }, func(s *LoadSum) int64 { return s.Requests },
		func(c *Config) int64 { return int64(c.HotFloor) }},
	{"bytes", func(l Load) int64 { return int64(l.Bytes()) }, func(s *LoadSum) int64 { return s.Bytes },
		func(c *Config) int64 { return int64(c.HotFloor) << 12 }},
	{"CPU", func(l Load) int64 { return int64(l.CPUMicros) }, func(s *LoadSum) int64 { return s.CPUMicros },
		func(c *Config) int64 { return int64(c.HotFloor) * 100 }},
}

// balanceLoad moves the leadership of busy shards off the busiest store, without unsettling the counts of leaders: by
// itself, or against that of a quiet shard. Where all other voters are busy as well, the replica moves. It deals with the
// measure that is furthest off, one shard in a round: loads are averages and follow late.
func (r *round) balanceLoad() {
	r.by, r.part = "hot", PartHot
	if r.cfg.Off&PartHot != 0 || r.full() {
		return
	}
	takers := r.leadTakers()
	if len(takers) < 2 {
		return
	}
	var worst *measure
	ratio := 1 + float64(r.cfg.HotTolerancePercent)/100
	for i := range measures {
		m := &measures[i]
		mean, hi := m.over(takers)
		if hi > m.floor(r.cfg) && mean > 0 && float64(hi)/mean > ratio {
			worst, ratio = m, float64(hi)/mean
		}
	}
	if worst == nil {
		return
	}
	from := slices.MaxFunc(takers, func(a, b *ahead) int {
		return cmp.Or(cmp.Compare(worst.sum(&a.load), worst.sum(&b.load)), cmp.Compare(b.ID, a.ID))
	})
	if from.transfers >= r.cfg.StoreTransfers {
		return
	}
	var hot []*Shard
	mean, _ := worst.over(takers)
	least := max(1, (worst.sum(&from.load)-int64(mean))/10) // less is not worth a transfer
	for _, sh := range from.shards {
		if sh.Leader == from.ID && worst.of(sh.Load) >= least && r.v.now-sh.Led >= r.cfg.Cooldown && r.leadable(sh, from) {
			hot = append(hot, sh)
		}
	}
	slices.SortFunc(hot, func(a, b *Shard) int {
		return cmp.Or(cmp.Compare(worst.of(b.Load), worst.of(a.Load)), cmp.Compare(a.ID, b.ID))
	})
	_, _, total := counts(takers, byLeaders)
	tol := r.tolerance(total, len(takers))
	for _, sh := range hot[:min(len(hot), 64)] {
		if r.cool(worst, sh, from, takers, tol) {
			return
		}
	}
}

// over returns the mean and the largest of a measure.
func (m *measure) over(stores []*ahead) (mean float64, hi int64) {
	for _, a := range stores {
		n := m.sum(&a.load)
		mean += float64(n) / float64(len(stores))
		hi = max(hi, n)
	}
	return mean, hi
}

// helps reports whether it is an improvement if load goes from one store to another: by a margin, and without making the
// other the busiest by another measure.
func (r *round) helps(m *measure, load Load, from, to *ahead, takers []*ahead) bool {
	if 4*m.of(load) > 3*(m.sum(&from.load)-m.sum(&to.load)) {
		return false
	}
	for i := range measures {
		o := &measures[i]
		if o == m {
			continue
		}
		mean, _ := o.over(takers)
		after := o.sum(&to.load) + o.of(load)
		if after > o.floor(r.cfg) && float64(after) > mean*(1+float64(r.cfg.HotTolerancePercent)/100) {
			return false
		}
	}
	return true
}

// cool moves the load of one shard off a store.
func (r *round) cool(m *measure, sh *Shard, from *ahead, takers []*ahead, tol int) bool {
	why := func(to *ahead) string {
		return fmt.Sprintf("%s has %d %s per second, %s %d", from.ID, m.sum(&from.load), m.name, to.ID, m.sum(&to.load))
	}
	var heirs []*ahead
	for i := range sh.Listed() {
		p := &sh.Peers[i]
		if a := r.at(r.v.stores[p.Store]); r.heir(sh, p) && r.helps(m, sh.Load, from, a, takers) {
			heirs = append(heirs, a)
		}
	}
	slices.SortFunc(heirs, func(a, b *ahead) int {
		return cmp.Or(cmp.Compare(m.sum(&a.load), m.sum(&b.load)), cmp.Compare(a.ID, b.ID))
	})
	for _, to := range heirs {
		if keeps(takers, byLeaders, from, to, tol) {
			r.transfer(sh, from, to, why(to))
			return true
		}
		// Counts allow no more: a quiet shard comes back for it, or comes from a store with more leaders.
		if r.swap(m, sh, from, to, to) {
			return true
		}
		for _, x := range takers {
			if x != from && x != to && keeps(takers, byLeaders, x, to, tol) && r.swap(m, sh, from, to, x) {
				return true
			}
		}
	}
	if len(heirs) > 0 || !r.movable(sh) || from.out >= r.cfg.StoreSnapshots {
		return false
	}
	p := sh.ListedOn(from.ID)
	if p == nil || p.Role != base.RoleVoter {
		return false
	}
	holders := r.takers()
	_, _, total := counts(holders, byReplicas)
	rtol := r.tolerance(total, len(holders))
	cold := slices.Clone(takers)
	slices.SortFunc(cold, func(a, b *ahead) int {
		return cmp.Or(cmp.Compare(m.sum(&b.load), m.sum(&a.load)), cmp.Compare(a.ID, b.ID))
	})
	s := &search{r: r, idle: &r.p.idle[schedLeaders], left: r.cfg.ScanPerRound}
	to := r.target(s, sh, p, cold, func(a *ahead) bool { return r.helps(m, sh.Load, from, a, takers) })
	if to == nil || !keeps(holders, byReplicas, from, to, rtol) || !keeps(takers, byLeaders, from, to, tol) {
		return false
	}
	r.move(sh, from, to, why(to))
	return true
}

// swap transfers a busy shard, and a quiet one from a third store, or from the one that gets the busy one, in return.
func (r *round) swap(m *measure, sh *Shard, from, to, giver *ahead) bool {
	if r.ops+2 > r.cfg.Operators || from.transfers+2 > r.cfg.StoreTransfers || giver.transfers+1 > r.cfg.StoreTransfers ||
		giver == to && to.transfers+2 > r.cfg.StoreTransfers {
		return false
	}
	for _, back := range giver.shards {
		if r.swaps++; r.swaps > 10*r.cfg.ScanPerRound {
			return false
		}
		if !r.leadable(back, giver) || 2*m.of(back.Load) > m.of(sh.Load) || r.v.now-back.Led < r.cfg.Cooldown {
			continue
		}
		if p := back.ListedOn(from.ID); p == nil || !r.heir(back, p) || !r.evens(m, sh, back, from, to, giver) {
			continue
		}
		r.transfer(sh, from, to, fmt.Sprintf("%s has %d %s per second, %s %d", from.ID, m.sum(&from.load), m.name, to.ID,
			m.sum(&to.load)))
		r.transfer(back, giver, from, "comes for "+sh.ID.String()+", which is busier")
		return true
	}
	return false
}

// evens reports whether a swap makes the sum of the squares of load smaller.
func (r *round) evens(m *measure, sh, back *Shard, from, to, giver *ahead) bool {
	load := map[*ahead]float64{from: 0, to: 0, giver: 0}
	sum := func() (out float64) {
		for _, x := range load {
			out += x * x
		}
		return out
	}
	for a := range load {
		load[a] = float64(m.sum(&a.load))
	}
	before := sum()
	load[from] += float64(m.of(back.Load) - m.of(sh.Load))
	load[to] += float64(m.of(sh.Load))
	load[giver] -= float64(m.of(back.Load))
	return sum() < before
}
