package plan

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/shardd/shardd/internal/base"
)

// Scatter spreads the replicas and leaders of some shards evenly over the stores that may have them, whatever else those
// hold: what a table that was just split beforehand needs, which balance alone leaves in a heap. It returns what to start
// next within the limits; it is called again until it returns nothing and nothing of it runs. A move needs two stores whose
// numbers of these shards differ by two or more and makes no placement worse, so it ends as balance does.
func (p *Planner) Scatter(v *View, cfg Config, shards []base.ShardID, running []*Operator) []Operator {
	cfg = cfg.WithDefaults()
	if v.rules == nil || p.waiting {
		return nil
	}
	r := p.rehearse(v, &cfg, running)
	r.by, r.part = "scatter", PartReplicas
	in := make(map[base.ShardID]bool, len(shards))
	var list []*Shard
	for _, id := range shards {
		if sh := v.shards[id]; sh != nil && !in[id] {
			in[id] = true
			list = append(list, sh)
		}
	}
	slices.SortFunc(list, func(a, b *Shard) int { return cmp.Compare(a.ID, b.ID) })
	s := &scatter{round: r, replicas: make([]int, len(r.ahead)), leaders: make([]int, len(r.ahead))}
	for _, sh := range list {
		for _, q := range sh.Listed() {
			s.replicas[v.stores[q.Store].at]++
		}
		if st := v.stores[sh.Leader]; st != nil {
			s.leaders[st.at]++
		}
	}
	for _, op := range running {
		if in[op.Shard] {
			for _, e := range op.Effects(v) {
				if st := v.stores[e.Store]; st != nil {
					s.replicas[st.at] += e.Replicas
					s.leaders[st.at] += e.Leaders
				}
			}
		}
	}
	for _, sh := range list {
		if r.full() {
			break
		}
		if !r.movable(sh) || !s.moveOne(sh) {
			s.transferOne(sh)
		}
	}
	return r.out
}

// scatter is a round that counts the shards in question only; its numbers are by Store.at.
type scatter struct {
	*round
	replicas, leaders []int
}

// moveOne moves the replica on the store with the most of these shards to the one with the fewest that can have it.
func (s *scatter) moveOne(sh *Shard) bool {
	peers := slices.Clone(sh.Listed())
	slices.SortFunc(peers, func(a, b Peer) int {
		x, y := s.v.stores[a.Store], s.v.stores[b.Store]
		return cmp.Or(cmp.Compare(s.replicas[y.at], s.replicas[x.at]), cmp.Compare(a.Store, b.Store))
	})
	takers := s.takers()
	slices.SortFunc(takers, func(a, b *ahead) int { // the emptiest last, as target wants it
		return cmp.Or(cmp.Compare(s.replicas[b.Store.at], s.replicas[a.Store.at]), cmp.Compare(b.replicas, a.replicas), cmp.Compare(b.ID, a.ID))
	})
	look := &search{r: s.round, idle: &idle{}, left: s.cfg.ScanPerRound}
	for i := range peers {
		q := &peers[i]
		from := s.round.at(s.v.stores[q.Store])
		if from.out >= s.cfg.StoreSnapshots || q.Role != base.RoleVoter && q.Role != base.RoleLearner {
			continue
		}
		n := s.replicas[from.Store.at]
		to := s.target(look, sh, q, takers, func(a *ahead) bool { return n-s.replicas[a.Store.at] >= 2 })
		if to == nil {
			continue
		}
		s.replicas[from.Store.at]--
		s.replicas[to.Store.at]++
		if q.Store == sh.Leader {
			s.leaders[from.Store.at]--
			s.leaders[to.Store.at]++
		}
		s.move(sh, from, to, fmt.Sprintf("%s has %d of these shards, %s %d", from.ID, n, to.ID, s.replicas[to.Store.at]-1))
		return true
	}
	return false
}

// transferOne moves the leadership to the voter's store that leads the fewest of these shards.
func (s *scatter) transferOne(sh *Shard) {
	st := s.v.stores[sh.Leader]
	if st == nil {
		return
	}
	from := s.round.at(st)
	if !s.leadable(sh, from) || from.transfers >= s.cfg.StoreTransfers {
		return
	}
	var to *ahead
	for i := range sh.Listed() {
		q := &sh.Peers[i]
		if !s.heir(sh, q) {
			continue
		}
		if a := s.round.at(s.v.stores[q.Store]); to == nil || s.leaders[a.Store.at] < s.leaders[to.Store.at] {
			to = a
		}
	}
	if to == nil || s.leaders[st.at]-s.leaders[to.Store.at] < 2 {
		return
	}
	n, m := s.leaders[st.at], s.leaders[to.Store.at]
	s.leaders[st.at]--
	s.leaders[to.Store.at]++
	s.transfer(sh, from, to, fmt.Sprintf("%s leads %d of these shards, %s %d", from.ID, n, to.ID, m))
}
