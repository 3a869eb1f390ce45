package plan

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/shardd/shardd/internal/base"
)

// evict takes leaders off stores that must not or should not lead: all that leave, are drained or have no disk space left,
// and of those that are slow one at a time, so that a fault which all share does not chase leaders around.
func (r *round) evict() {
	if r.cfg.Off&PartLeaders != 0 {
		return
	}
	r.by, r.part = "evict", PartLeaders
	if s := r.v.stores[r.p.evicting]; s == nil || !s.slow || !s.alive {
		r.p.evicting = 0
	}
	for i := range r.ahead {
		a := &r.ahead[i]
		if a.slow && a.alive && a.Listed && r.p.evicting == 0 && a.Leaders > 0 {
			r.p.evicting = a.ID
		}
	}
	for i := range r.ahead {
		a := &r.ahead[i]
		why := ""
		switch {
		case a.Leaders == 0 || !a.alive:
			continue
		case a.leaving() || a.Drain != DrainNone:
			why = a.ID.String() + " gives its leaderships away"
		case a.Disk == DiskCritical:
			why = a.ID.String() + " has no disk space left"
		case a.ID == r.p.evicting:
			why = fmt.Sprintf("%s is slow: %s", a.ID, cmp.Or(a.Unhealthy, a.Slow, "it was a moment ago"))
		default:
			continue
		}
		for _, sh := range a.shards {
			if r.full() || a.transfers >= r.cfg.StoreTransfers {
				break
			}
			if sh.Leader != a.ID || sh.covered || sh.rule == nil || !r.calm(sh) {
				continue
			}
			to, t := r.pickLeader(sh, nil)
			if to == nil {
				continue
			}
			r.propose(Operator{
				Kind: OpTransfer, Shard: sh.ID, From: a.ID, To: to.ID, Priority: Comply, Reason: why,
			}, t.candidates(to, ""))
		}
	}
}

func (r *round) balanceLeaders() {
	r.by, r.part = "leaders", PartLeaders
	if r.cfg.Off&PartLeaders != 0 || r.full() {
		return
	}
	takers := r.leadTakers()
	lo, hi, total := counts(takers, byLeaders)
	tol := r.tolerance(total, len(takers))
	if hi-lo <= tol {
		return
	}
	s, ok := r.begin(schedLeaders)
	if !ok {
		return
	}
	defer s.end()
	spent := make(map[base.StoreID]bool)
	for !r.full() && s.left > 0 {
		slices.SortFunc(takers, func(a, b *ahead) int {
			return cmp.Or(cmp.Compare(b.leaders, a.leaders), cmp.Compare(a.ID, b.ID))
		})
		lo := takers[len(takers)-1].leaders
		if takers[0].leaders-lo <= tol {
			return
		}
		moved := false
		for _, from := range takers {
			if from.leaders-lo < 2 {
				break
			}
			if spent[from.ID] || from.transfers >= r.cfg.StoreTransfers {
				continue
			}
			if moved = r.transferFrom(s, from, lo); moved {
				break
			}
			spent[from.ID] = true
		}
		if !moved && !r.transferChain(s, takers, lo) {
			return
		}
		s.found = true
	}
}

// leadable reports whether balance may move the leadership of a shard from a store.
func (r *round) leadable(sh *Shard, from *ahead) bool {
	// The meta shard's leader is the driver itself.
	return sh.Leader == from.ID && !sh.Meta() && !sh.covered && sh.rule != nil && sh.class&classFrozen == 0 &&
		sh.need&(NeedUnavailable|NeedLeaveJoint) == 0 && !sh.Joint() && r.calm(sh) && !r.reshapes(sh)
}

// heir reports whether a listed peer may lead in balance: it can, and the rule likes it as well as the present one.
func (r *round) heir(sh *Shard, p *Peer) bool {
	if p.Store == sh.Leader {
		return false
	}
	if _, ok := r.canLead(sh, p); !ok {
		return false
	}
	return sh.rule.Leads(r.v.stores[p.Store]) <= sh.rule.Leads(r.v.stores[sh.Leader])
}

// transferFrom moves one leadership off a store, to the store with the fewest that can have one.
func (r *round) transferFrom(s *search, from *ahead, lo int) bool {
	var pick *Shard
	var to *ahead
	s.each(from, func(sh *Shard) bool {
		if !r.leadable(sh, from) {
			return true
		}
		for i := range sh.Listed() {
			p := &sh.Peers[i]
			if !r.heir(sh, p) {
				continue
			}
			a := r.at(r.v.stores[p.Store])
			if from.leaders-a.leaders >= 2 && (to == nil || a.leaders < to.leaders) {
				pick, to = sh, a
			}
		}
		return to == nil || to.leaders > lo
	})
	if pick == nil {
		return false
	}
	r.transfer(pick, from, to, fmt.Sprintf("%s has %d leaders, %s %d", from.ID, from.leaders, to.ID, to.leaders))
	return true
}

func (r *round) transfer(sh *Shard, from, to *ahead, why string) {
	r.propose(Operator{Kind: OpTransfer, Shard: sh.ID, From: from.ID, To: to.ID, Priority: Balance, Reason: why}, nil)
}

// transferChain is for when the fullest store shares no shard with an empty one: it finds the shortest chain of stores,
// each of which can hand a leadership to the next, to one with two fewer. All on the way keep their number.
func (r *round) transferChain(s *search, takers []*ahead, lo int) bool {
	from := takers[0]
	type hop struct {
		to  *ahead
		by  *Shard
		via int // index of the hop before, -1 for the first
	}
	seen := map[base.StoreID]bool{from.ID: true}
	hops := []hop{{to: from, via: -1}}
	for at := 0; at < len(hops); at++ {
		h := hops[at]
		if limit := r.cfg.StoreTransfers; h.to.transfers >= limit || at > 0 && h.to.transfers+2 > limit {
			continue
		}
		done := -1
		s.each(h.to, func(sh *Shard) bool {
			if !r.leadable(sh, h.to) {
				return true
			}
			for i := range sh.Listed() {
				p := &sh.Peers[i]
				if seen[p.Store] || !r.heir(sh, p) {
					continue
				}
				seen[p.Store] = true
				to := r.at(r.v.stores[p.Store])
				end := from.leaders-to.leaders >= 2
				// On the way one comes and one goes.
				if !end && to.transfers+2 > r.cfg.StoreTransfers {
					continue
				}
				hops = append(hops, hop{to, sh, at})
				if end {
					done = len(hops) - 1
					return false
				}
			}
			return true
		})
		if done < 0 {
			continue
		}
		length := 0
		for i := done; hops[i].via >= 0; i = hops[i].via {
			length++
		}
		if r.ops+length > r.cfg.Operators {
			return false
		}
		end := hops[done].to
		why := fmt.Sprintf("%s has %d leaders, %s %d", from.ID, from.leaders, end.ID, end.leaders)
		for i := done; hops[i].via >= 0; i = hops[i].via {
			r.transfer(hops[i].by, hops[hops[i].via].to, hops[i].to, why)
		}
		return true
	}
	return false
}
