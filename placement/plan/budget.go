package plan

import (
	"fmt"

	"github.com/shardd/shardd/internal/base"
)

// ahead is a store as it will be once all work in flight is done, and how much of that touches it.
type ahead struct {
	*Store
	replicas, leaders  int
	bytes              int64
	load               LoadSum
	in, out, transfers int
	incoming           uint64 // bytes on their way to it
}

// round is the state of one planning round. Nothing in it outlives the round.
type round struct {
	v     *View
	cfg   *Config
	p     *Planner
	ahead []ahead // by Store.at
	busy  map[base.ShardID]*Operator
	// ops and boundaries count what runs and what this round has proposed.
	ops, boundaries int
	out             []Operator
	notes           []Decision
	by              string // the checker or scheduler at work
	part            Parts
	scanned         int
	swaps           int // shards looked at for a swap of leaderships
}

func newRound(p *Planner, v *View, cfg *Config, running []*Operator) *round {
	r := &round{v: v, cfg: cfg, p: p, ahead: make([]ahead, len(v.order)), busy: make(map[base.ShardID]*Operator, len(running))}
	for i, s := range v.order {
		r.ahead[i] = ahead{Store: s, replicas: s.Replicas, leaders: s.Leaders, bytes: int64(s.Bytes), load: s.Load}
	}
	for _, op := range running {
		r.start(op)
	}
	return r
}

// start counts an operator as in flight.
func (r *round) start(op *Operator) {
	r.ops++
	if op.Kind == OpSplit || op.Kind == OpMerge {
		r.boundaries++
	}
	r.busy[op.Shard] = op
	if op.Other != 0 {
		r.busy[op.Other] = op
	}
	for _, e := range op.Effects(r.v) {
		s := r.v.stores[e.Store]
		if s == nil {
			continue
		}
		a := &r.ahead[s.at]
		a.replicas += e.Replicas
		a.leaders += e.Leaders
		a.bytes += e.Bytes
		a.incoming += e.Arriving
		a.load.Requests += e.Load.Requests
		a.load.Bytes += e.Load.Bytes
		a.load.CPUMicros += e.Load.CPUMicros
		a.in += e.In
		a.out += e.Out
		a.transfers += e.Transfers
	}
}

func (r *round) at(s *Store) *ahead { return &r.ahead[s.at] }

// full reports whether no more operators may be proposed by the checker or scheduler at work. A quarter is kept for what
// does not wait: balance never stands in the way of a repair.
func (r *round) full() bool {
	limit := r.cfg.Operators
	if r.part&(PartMerge|PartReplicas|PartLeaders|PartHot) != 0 && r.by != "evict" {
		limit -= limit / 4
	}
	return r.ops >= limit
}

// propose adds an operator to the round's outcome and counts it as in flight.
func (r *round) propose(op Operator, candidates []Candidate) {
	sh := r.v.shards[op.Shard]
	op.Epoch, op.Created = sh.Epoch, r.v.now
	op.Maker, op.Part = r.by, r.part
	if op.Kind == OpMove || op.Kind == OpRemove {
		op.Replica = sh.ListedOn(op.From).Replica
	}
	if op.Kind == OpMove || op.Kind == OpAdd {
		op.Bytes = sh.Size
	}
	op.Deadline = r.v.now + deadline(&op, r.cfg)
	r.out = append(r.out, op)
	r.start(&r.out[len(r.out)-1])
	r.notes = append(r.notes, Decision{
		At: r.v.now, By: r.by, Shard: op.Shard, Stores: [2]base.StoreID{op.From, op.To},
		Outcome: op.String(), Candidates: candidates, op: len(r.out),
	})
}

// nothing takes down that a shard's need could not be served, and has it wait.
func (r *round) nothing(sh *Shard, why string, candidates []Candidate) {
	r.notes = append(r.notes, Decision{At: r.v.now, By: r.by, Shard: sh.ID, Outcome: "nothing: " + why, Candidates: candidates})
	r.p.wait(sh.ID, r.v.now, r.cfg)
}

// hasRoom reports whether a store may get n more bytes: after it and all that is on its way, some of the disk must stay
// free. Balance asks for half as much again, so that a store that is short and one that has just enough do not swap shards.
func (a *ahead) hasRoom(n uint64, cfg *Config, balance bool) bool {
	if a.Disk != DiskOK {
		return false
	}
	if a.DiskCapacity == 0 {
		return true
	}
	return a.DiskFree >= a.keepFree(cfg, balance)+n+a.incoming
}

// keepFree is what must stay free of a store's disk. On a large one a percentage is more than the store could need.
func (s *Store) keepFree(cfg *Config, balance bool) uint64 {
	keep := min(s.DiskCapacity/100*uint64(cfg.LowSpacePercent), cfg.LowSpaceBytes)
	if balance {
		keep += keep / 2
	}
	return keep
}

// noRoom counts the stores whose disk is too full for balance to give them replicas.
func (r *round) noRoom() (n int) {
	for i := range r.ahead {
		if a := &r.ahead[i]; a.takesReplicas() && a.alive && !a.hasRoom(0, r.cfg, true) {
			n++
		}
	}
	return n
}

// shortOfSpace reports whether a store should lose replicas for want of room.
func (a *ahead) shortOfSpace(cfg *Config) bool {
	return a.Disk != DiskOK || a.DiskCapacity > 0 && a.DiskFree < a.keepFree(cfg, false)
}

// refuses returns the filter that keeps a replica of a shard off a store, and false if none does. Fit is not looked at.
func (r *round) refuses(sh *Shard, s *Store, balance bool) (filter, bool) {
	a := r.at(s)
	switch {
	case sh.On(s.ID) != nil:
		return filterHolds, true
	case s.leaving() || s.Drain != DrainNone || !s.Listed:
		return filterLeaving, true
	case !s.alive:
		return filterDead, true
	case s.slow:
		return filterUnhealthy, true
	case !a.hasRoom(sh.Size, r.cfg, balance):
		return filterSpace, true
	case a.in >= r.cfg.StoreSnapshots:
		return filterLimit, true
	case r.p.avoids(sh.ID, s.ID):
		return filterFailed, true
	}
	if ok, _ := sh.rule.Allows(s); !ok {
		return filterRule, true
	}
	return 0, false
}

// pick chooses the store for a new replica of a shard beside those that it keeps: the best fit, then the fewest replicas,
// then the fewest bytes, then the lowest id. atLeast, if not nil, is the fit below which no store will do.
func (r *round) pick(sh *Shard, keep []Placed, learner bool, atLeast *Fit, tr *trace) (*Store, Fit, tally) {
	var best *ahead
	var bestFit Fit
	var t tally
	var buf [17]Placed
	with := append(append(buf[:0], keep...), Placed{})
	for i := range r.ahead {
		a := &r.ahead[i]
		if f, no := r.refuses(sh, a.Store, false); no {
			t.rejected[f]++
			tr.candidate(a.ID, f.String(), filterWhy[f], 0)
			continue
		}
		with[len(keep)] = Placed{a.Store, learner}
		fit := sh.rule.Fit(with)
		if atLeast != nil && fit.Compare(*atLeast) < 0 {
			t.rejected[filterFit]++
			tr.candidate(a.ID, filterFit.String(), filterWhy[filterFit], fit.Isolation)
			continue
		}
		t.passed++
		if tr.on() {
			tr.candidate(a.ID, outdone, fmt.Sprintf("isolation %.3f, %d misplaced, %d replicas, %s", fit.Isolation, fit.Misplaced,
				a.replicas, size(uint64(max(a.bytes, 0)))), fit.Isolation)
		}
		if best == nil || less(a, fit, best, bestFit) {
			best, bestFit = a, fit
		}
	}
	if best == nil {
		return nil, Fit{}, t
	}
	if tr.on() {
		for i := range tr.candidates {
			if c := &tr.candidates[i]; c.What == best.ID.String() {
				c.Verdict = chosen
			}
		}
	}
	return best.Store, bestFit, t
}

func less(a *ahead, fa Fit, b *ahead, fb Fit) bool {
	if c := fa.Compare(fb); c != 0 {
		return c > 0
	}
	if a.replicas != b.replicas {
		return a.replicas < b.replicas
	}
	if a.bytes != b.bytes {
		return a.bytes < b.bytes
	}
	return a.ID < b.ID
}

// canLead reports whether a listed peer could take over the leadership of its shard now.
func (r *round) canLead(sh *Shard, p *Peer) (filter, bool) {
	s := r.v.stores[p.Store]
	switch {
	case p.Role != base.RoleVoter || p.Flags&(PeerFaulted|PeerUninitialised|PeerSilent|PeerBehind) != 0:
		return filterUnhealthy, false
	case !s.alive:
		return filterDead, false
	case s.leaving() || s.Drain != DrainNone || !s.Listed:
		return filterLeaving, false
	case s.slow:
		return filterUnhealthy, false
	case s.Disk == DiskCritical:
		return filterSpace, false
	case r.at(s).transfers >= r.cfg.StoreTransfers:
		return filterLimit, false
	case sh.rule.Leads(s) < 0:
		return filterRule, false
	}
	return 0, true
}

// pickLeader chooses the voter that takes over from the leader: as the rule ranks them, then the fewest leaders.
func (r *round) pickLeader(sh *Shard, tr *trace) (*Store, tally) {
	var best *ahead
	rank := 0
	var t tally
	for i := range sh.Listed() {
		p := &sh.Peers[i]
		if p.Store == sh.Leader {
			continue
		}
		if f, ok := r.canLead(sh, p); !ok {
			t.rejected[f]++
			tr.candidate(p.Store, f.String(), filterWhy[f], 0)
			continue
		}
		t.passed++
		a := r.at(r.v.stores[p.Store])
		k := sh.rule.Leads(a.Store)
		if tr.on() {
			tr.candidate(p.Store, outdone, fmt.Sprintf("%d leaders", a.leaders), float64(-k))
		}
		if best == nil || k < rank || k == rank && (a.leaders < best.leaders || a.leaders == best.leaders && a.ID < best.ID) {
			best, rank = a, k
		}
	}
	if best == nil {
		return nil, t
	}
	return best.Store, t
}

// free reports whether an operator may be planned for what a shard needs.
func (r *round) free(sh *Shard) bool {
	w := r.p.waits[sh.ID]
	return r.busy[sh.ID] == nil && (w == nil || r.v.now >= w.until)
}

// calm reports whether an operator may be planned for a shard though what it needs may not be had: nothing runs, and
// nothing has failed lately.
func (r *round) calm(sh *Shard) bool {
	w := r.p.waits[sh.ID]
	return r.busy[sh.ID] == nil && (w == nil || w.room || r.v.now >= w.until)
}
