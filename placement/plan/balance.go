package plan

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/shardd/shardd/internal/base"
)

// Balance moves replicas and leaders between stores that could hold them as well. It comes to rest, and never moves
// anything back and forth, since each of its moves makes one number smaller that no later move makes larger:
//
//  1. Placement. No move of balance makes the fit of a shard worse (what the rule demands, then the spread, then what it
//     prefers), and each move of the checker for spread makes one better. A fit has few values, so these end.
//  2. Counts. With fits as they are, a replica moves from a store with a replicas to one with b only if a - b >= 2, work in
//     flight counted as done. That makes the sum of the squares of all counts smaller, by 2(a-b-1) > 0. So moves for
//     counts end; the scheduler acts only while the largest and the smallest count differ by more than the tolerance (2
//     at least), so that one shard more or less starts nothing.
//  3. Bytes. A move for bytes must leave all counts within the tolerance, so it never gives (2) a reason, and moves n bytes
//     from a store to one with more than 2n less: the sum of the squares of bytes gets smaller.
//  4. Space. A store that is short of space loses replicas until it no longer is, and gets new ones for balance only
//     when it has half as much again free.
//
// Leaders do the same one level up: (1) no move makes the rank that the rule gives the leader's store worse, (2) counts of
// leaders, (3) load, for the sum of the squares of load. Work that fails leaves its shard alone for a time that doubles.
//
// TestBalanceComesToRest draws clusters at random and checks it.

// tolerance is the difference of counts that is left alone.
func (r *round) tolerance(total, stores int) int {
	if stores == 0 {
		return r.cfg.Tolerance
	}
	return max(r.cfg.Tolerance, total/stores*r.cfg.TolerancePercent/100)
}

// takers are the stores that balance may give replicas to, room for a shard and limits aside.
func (r *round) takers() []*ahead {
	var out []*ahead
	for i := range r.ahead {
		if a := &r.ahead[i]; a.takesReplicas() && a.alive && !a.slow && a.hasRoom(0, r.cfg, true) {
			out = append(out, a)
		}
	}
	return out
}

// leadTakers are the stores that may be given leaders.
func (r *round) leadTakers() []*ahead {
	var out []*ahead
	for i := range r.ahead {
		if a := &r.ahead[i]; a.alive && a.mayLead() {
			out = append(out, a)
		}
	}
	return out
}

// counts sums up the number that by gives of each store.
func counts(stores []*ahead, by func(*ahead) int) (lo, hi, total int) {
	for i, a := range stores {
		n := by(a)
		if i == 0 || n < lo {
			lo = n
		}
		hi = max(hi, n)
		total += n
	}
	return lo, hi, total
}

func byReplicas(a *ahead) int { return a.replicas }
func byLeaders(a *ahead) int  { return a.leaders }

func (r *round) spreads() (replicas, leaders int) {
	lo, hi, _ := counts(r.takers(), byReplicas)
	ll, lh, _ := counts(r.leadTakers(), byLeaders)
	return hi - lo, lh - ll
}

// keeps reports whether counts stay within the tolerance if one goes from one store to another.
func keeps(of []*ahead, by func(*ahead) int, from, to *ahead, tol int) bool {
	lo, hi, _ := counts(of, by)
	return max(hi, by(to)+1)-min(lo, by(from)-1) <= tol
}

// movable reports whether balance may move a replica of a shard.
func (r *round) movable(sh *Shard) bool {
	const first = NeedLeaveJoint | NeedRepair | NeedPlace | NeedTrim | NeedUnavailable
	return sh.need&first == 0 && !sh.covered && sh.End != "" && !sh.Meta() && sh.class&classFrozen == 0 && sh.rule != nil &&
		!sh.Joint() && r.calm(sh) && !r.reshapes(sh)
}

// reshapes reports whether a shard is about to be split or merged, with the right neighbour or into the left one: it is
// left where it is for that.
func (r *round) reshapes(sh *Shard) bool {
	if sh.need&NeedSplit != 0 && r.cfg.Off&PartSplit == 0 {
		return true
	}
	if !sh.ready || r.cfg.Off&PartMerge != 0 {
		return false
	}
	l := r.v.Left(sh)
	return sh.need&NeedMerge != 0 || l != nil && l.need&NeedMerge != 0
}

// search bounds what a scheduler looks at in a round and remembers that it found nothing, so that a cluster at rest costs
// nothing.
type search struct {
	r     *round
	idle  *idle
	left  int
	found bool
	key   uint64
}

// begin returns false if the scheduler found nothing in the same view before.
func (r *round) begin(which int) (*search, bool) {
	s := &search{r: r, idle: &r.p.idle[which], left: 10 * r.cfg.ScanPerRound}
	s.key = mix(r.v.structure ^ mix(uint64(len(r.busy))<<32^uint64(len(r.p.waits))))
	if s.idle.structure == s.key && s.idle.fruitless >= fruitlessRounds && r.v.now < s.idle.until {
		return nil, false
	}
	if s.idle.structure != s.key {
		s.idle.fruitless = 0
	}
	s.idle.structure = s.key
	s.idle.cursor++
	return s, true
}

// fruitlessRounds is after how many rounds that looked at only a part and found nothing a scheduler gives up.
const fruitlessRounds = 32

// idleFor is how long a scheduler that found nothing sleeps in a view that does not change: waits run out meanwhile.
const idleFor = time.Minute

// step counts a look at something and reports whether there may be more.
func (s *search) step() bool {
	s.left--
	return s.left > 0
}

// end takes down how it went.
func (s *search) end() {
	s.r.scanned += 10*s.r.cfg.ScanPerRound - s.left
	switch {
	case s.found:
		s.idle.structure, s.idle.fruitless = 0, 0
	case s.left > 0: // all was looked at
		s.idle.fruitless, s.idle.until = fruitlessRounds, s.r.v.now+idleFor
	default:
		s.idle.fruitless, s.idle.until = s.idle.fruitless+1, s.r.v.now+idleFor
	}
}

// each visits the shards of a store from a place that changes from round to round, and that is the same for the same input.
func (s *search) each(a *ahead, f func(*Shard) bool) {
	n := len(a.shards)
	if n == 0 {
		return
	}
	from := int(mix(s.idle.cursor^uint64(a.ID)<<20) % uint64(n))
	for i := range n {
		if !s.step() || !f(a.shards[(from+i)%n]) {
			return
		}
	}
}

func (r *round) balanceReplicas() {
	r.by, r.part = "balance", PartReplicas
	if r.cfg.Off&PartReplicas != 0 || r.full() {
		return
	}
	takers := r.takers()
	r.relieve(takers)
	lo, hi, total := counts(takers, byReplicas)
	tol := r.tolerance(total, len(takers))
	if hi-lo <= tol {
		r.balanceBytes(takers, tol)
		return
	}
	s, ok := r.begin(schedReplicas)
	if !ok {
		return
	}
	defer s.end()
	spent := make(map[base.StoreID]bool) // nothing on it can move now
	for !r.full() && s.left > 0 {
		slices.SortFunc(takers, func(a, b *ahead) int {
			return cmp.Or(cmp.Compare(b.replicas, a.replicas), cmp.Compare(b.bytes, a.bytes), cmp.Compare(a.ID, b.ID))
		})
		lo := takers[len(takers)-1].replicas
		if takers[0].replicas-lo <= tol {
			return
		}
		moved := false
		for _, from := range takers {
			if from.replicas-lo < 2 {
				break
			}
			if spent[from.ID] || from.out >= r.cfg.StoreSnapshots {
				continue
			}
			if moved = r.moveFrom(s, from, takers); moved {
				break
			}
			spent[from.ID] = true
		}
		if !moved {
			return
		}
		s.found = true
	}
}

// moveFrom moves one replica off a store, to the emptiest store that can have one of those on it. takers are sorted by
// count, the fullest first.
func (r *round) moveFrom(s *search, from *ahead, takers []*ahead) bool {
	var pick *Shard
	var to *ahead
	good := 0
	s.each(from, func(sh *Shard) bool {
		p := sh.ListedOn(from.ID)
		if p == nil || p.Role != base.RoleVoter && p.Role != base.RoleLearner || !r.movable(sh) {
			return true
		}
		a := r.target(s, sh, p, takers, func(a *ahead) bool { return from.replicas-a.replicas >= 2 })
		if a == nil {
			return true
		}
		if pick == nil || a.replicas < to.replicas || a.replicas == to.replicas && r.rather(sh, pick, from, a) {
			pick, to = sh, a
		}
		good++
		return good < 16 // one of these will do
	})
	if pick == nil {
		return false
	}
	r.move(pick, from, to, fmt.Sprintf("%s has %d replicas, %s %d", from.ID, from.replicas, to.ID, to.replicas))
	return true
}

// rather reports whether a is the better shard to move than b: not the leader, and the size that evens out bytes.
func (r *round) rather(a, b *Shard, from, to *ahead) bool {
	if la, lb := a.Leader == from.ID, b.Leader == from.ID; la != lb {
		return lb
	}
	if a.Size != b.Size {
		return (a.Size > b.Size) == (from.bytes > to.bytes)
	}
	return a.ID < b.ID
}

// target returns the emptiest of the stores that want says, at which the shard would be placed as well as now.
func (r *round) target(s *search, sh *Shard, p *Peer, takers []*ahead, want func(*ahead) bool) *ahead {
	var buf, with [17]Placed
	now := sh.rule.Fit(r.v.placed(sh, buf[:0]))
	keep := append(r.v.placed(sh, with[:0], p.Store), Placed{})
	for i := len(takers) - 1; i >= 0; i-- {
		a := takers[i]
		if !want(a) {
			return nil
		}
		if !s.step() {
			return nil
		}
		if _, no := r.refuses(sh, a.Store, true); no {
			continue
		}
		keep[len(keep)-1] = Placed{a.Store, p.Role == base.RoleLearner}
		if p.Store == sh.Leader && sh.rule.Leads(a.Store) > sh.rule.Leads(r.v.stores[p.Store]) {
			continue
		}
		if sh.rule.Fit(keep).Compare(now) >= 0 {
			return a
		}
	}
	return nil
}

func (r *round) move(sh *Shard, from, to *ahead, why string) {
	p := sh.ListedOn(from.ID)
	r.propose(Operator{
		Kind: OpMove, Shard: sh.ID, From: from.ID, To: to.ID, Learner: p.Role == base.RoleLearner, Priority: Balance, Reason: why,
	}, nil)
}

// relieve moves replicas off stores that are short of space.
func (r *round) relieve(takers []*ahead) {
	for i := range r.ahead {
		from := &r.ahead[i]
		if !from.alive || from.leaving() || !from.shortOfSpace(r.cfg) {
			continue
		}
		for from.out < r.cfg.StoreSnapshots && !r.full() {
			s := &search{r: r, idle: &r.p.idle[schedBytes], left: r.cfg.ScanPerRound}
			byRoom := slices.Clone(takers)
			slices.SortFunc(byRoom, func(a, b *ahead) int {
				return cmp.Or(cmp.Compare(a.DiskFree, b.DiskFree), cmp.Compare(b.replicas, a.replicas), cmp.Compare(a.ID, b.ID))
			})
			var pick *Shard
			var to *ahead
			s.each(from, func(sh *Shard) bool {
				p := sh.ListedOn(from.ID)
				if p == nil || sh.Size == 0 || !r.movable(sh) || pick != nil && sh.Size <= pick.Size {
					return true
				}
				if a := r.target(s, sh, p, byRoom, func(a *ahead) bool { return a != from }); a != nil {
					pick, to = sh, a
				}
				return true
			})
			if pick == nil {
				break
			}
			r.move(pick, from, to, fmt.Sprintf("%s is short of disk space: %s free", from.ID, size(from.DiskFree)))
		}
	}
}

// balanceBytes evens out bytes without unsettling counts.
func (r *round) balanceBytes(takers []*ahead, tol int) {
	if len(takers) < 2 || r.full() {
		return
	}
	s, ok := r.begin(schedBytes)
	if !ok {
		return
	}
	defer s.end()
	for !r.full() && s.left > 0 {
		var total int64
		for _, a := range takers {
			total += a.bytes
		}
		mean := total / int64(len(takers))
		slack := max(mean*int64(r.cfg.ByteTolerancePercent)/100, int64(r.cfg.SplitBytes))
		slices.SortFunc(takers, func(a, b *ahead) int {
			return cmp.Or(cmp.Compare(b.bytes, a.bytes), cmp.Compare(a.ID, b.ID))
		})
		from := takers[0]
		if from.bytes-mean <= slack || from.out >= r.cfg.StoreSnapshots {
			return
		}
		var pick *Shard
		var to *ahead
		s.each(from, func(sh *Shard) bool {
			p := sh.ListedOn(from.ID)
			if p == nil || p.Role != base.RoleVoter || sh.Size == 0 || pick != nil && sh.Size <= pick.Size || !r.movable(sh) {
				return true
			}
			a := r.target(s, sh, p, takers, func(a *ahead) bool { return from.bytes-a.bytes > 2*int64(sh.Size) })
			if a != nil && keeps(takers, byReplicas, from, a, tol) {
				pick, to = sh, a
			}
			return true
		})
		if pick == nil {
			return
		}
		r.move(pick, from, to, fmt.Sprintf("%s has %s, %s %s", from.ID, size(uint64(from.bytes)), to.ID, size(uint64(max(to.bytes, 0)))))
		s.found = true
	}
}
