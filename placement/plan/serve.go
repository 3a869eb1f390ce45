package plan

import (
	"fmt"
	"math/bits"

	"github.com/shardd/shardd/internal/base"
)

// Serving the needs of shards: one function for each kind, each of which proposes at most one operator for the shard.

// serve goes through the shards with a need, the most urgent first.
func (r *round) serve(k kind) {
	if r.cfg.Off&k.part != 0 {
		return
	}
	need := k.need
	r.by, r.part = k.by, k.part
	set := r.v.needs[bits.TrailingZeros(uint(need))]
	if set.Len() == 0 {
		return
	}
	looked, skipped := 0, 0
	cursor := r.p.cursors[need]
	delete(r.p.cursors, need)
	visit := func(sh *Shard) bool {
		if r.full() {
			return false
		}
		if !r.free(sh) {
			// Those that wait cost little, but a million of them in each round would.
			if skipped++; skipped >= 20*r.cfg.ScanPerRound {
				r.p.cursors[need] = &Shard{ID: sh.ID, spare: sh.spare}
				return false
			}
			return true
		}
		if looked++; looked > r.cfg.ScanPerRound {
			r.p.cursors[need] = &Shard{ID: sh.ID, spare: sh.spare}
			return false
		}
		k.serve(sh, nil)
		return true
	}
	if cursor != nil {
		set.AscendGreaterOrEqual(cursor, visit)
	} else {
		set.Ascend(visit)
	}
	r.scanned += looked
}

func priority(sh *Shard) Priority {
	if sh.spare <= 0 {
		return Urgent
	}
	return Repair
}

// leaveJoint: every new leader leaves a joint configuration by itself; one that does not is replaced.
func (r *round) leaveJoint(sh *Shard, tr *trace) {
	if sh.Leader == 0 || sh.need&NeedUnavailable != 0 {
		r.nothing(sh, "no leader is known", nil)
		return
	}
	to, t := r.pickLeader(sh, tr)
	if to == nil {
		r.nothing(sh, "no other voter could lead", t.candidates(nil, ""))
		return
	}
	r.propose(Operator{
		Kind: OpTransfer, Shard: sh.ID, From: sh.Leader, To: to.ID, Priority: Urgent,
		Reason: "its leader does not leave Joint",
	}, t.candidates(to, ""))
	r.p.wait(sh.ID, r.v.now, r.cfg) // the new one is given time, more each time
}

func (r *round) split(sh *Shard, tr *trace) {
	if r.boundaries >= r.cfg.Boundaries {
		return
	}
	op := Operator{Kind: OpSplit, Shard: sh.ID, Priority: Shape}
	limit := r.v.splitSize(sh)
	switch b := r.v.rules.Boundary(sh.Start, sh.End); {
	case sh.need&NeedUnavailable != 0 || sh.Leader == 0:
		return
	case b != "":
		op.Keys, op.Reason = []string{b}, "another rule begins inside"
	case sh.class&classBig != 0:
		// Parts of about 0.6 of the size: they have room to grow, and a shard far over is cut up at once.
		op.By, op.Parts = "size", int(min(max(2, (sh.Size+limit*3/5-1)/(limit*3/5)), 64))
		op.Reason = fmt.Sprintf("%s is above %s", size(sh.Size), size(limit))
	default:
		op.By, op.Parts = "load", 2
		op.Reason = fmt.Sprintf("%d requests and %s per second", sh.Load.Requests(), size(sh.Load.Bytes()))
	}
	r.propose(op, nil)
}

// repair gives a shard the replica that it lacks, in place of a lost one if there is one.
func (r *round) repair(sh *Shard, tr *trace) {
	h := r.v.health(sh)
	if h.live < h.quorum {
		r.nothing(sh, "no quorum lives", nil)
		return
	}
	var lost []base.StoreID
	for _, p := range h.lost {
		lost = append(lost, p.Store)
	}
	var buf [16]Placed
	keep := r.v.placed(sh, buf[:0], lost...)
	fit := sh.rule.Fit(keep)
	// A learner that the rule does not ask for is the quickest way to a voter.
	if fit.Voters > 0 && fit.Learners < 0 {
		for i := range sh.Listed() {
			p := &sh.Peers[i]
			if p.Role == base.RoleLearner && p.Flags == 0 && r.v.stores[p.Store].alive && !r.v.stores[p.Store].leaving() {
				if ok, _ := sh.rule.Allows(r.v.stores[p.Store]); ok {
					r.propose(Operator{
						Kind: OpPromote, Shard: sh.ID, To: p.Store, Priority: priority(sh), Reason: "it is short of voters",
					}, nil)
					return
				}
			}
		}
	}
	learner := fit.Voters <= 0
	if learner && fit.Learners <= 0 {
		// More were there than the rule asks for: the lost one just goes.
		r.remove(sh, h.lost[0].Store, priority(sh), "it is lost, and one too many")
		return
	}
	// The one to replace has the same role as the new one.
	var from *Peer
	for _, p := range h.lost {
		if (p.Role == base.RoleLearner) == learner {
			from = p
			break
		}
	}
	to, _, t := r.pick(sh, keep, learner, nil, tr)
	if to == nil {
		// Where every node has a replica already, a faulted one can only be made anew in its place.
		// That makes nothing worse: it counts among the voters, but not among the live ones.
		if from != nil && from.Flags&PeerFaulted != 0 && r.v.stores[from.Store].alive && t.rejected[filterLimit] == 0 {
			r.remove(sh, from.Store, priority(sh), "it is faulted, and no other node could have it: it is made anew there")
			return
		}
		if t.rejected[filterLimit] == 0 { // a limit passes soon
			r.nothing(sh, "no node could have the replica that it lacks", t.candidates(nil, ""))
		}
		return
	}
	op := Operator{Kind: OpAdd, Shard: sh.ID, To: to.ID, Learner: learner, Priority: priority(sh), Reason: "it is short of replicas"}
	if from != nil {
		op.Kind, op.From, op.Reason = OpMove, from.Store, "replaces a lost replica: "+r.v.whyLost(sh, from)
	}
	r.propose(op, t.candidates(to, r.store(to)))
}

func (r *round) store(s *Store) string {
	a := r.at(s)
	return fmt.Sprintf("%d replicas, %s", a.replicas, size(uint64(max(a.bytes, 0))))
}

func (r *round) remove(sh *Shard, from base.StoreID, pr Priority, why string) {
	r.propose(Operator{Kind: OpRemove, Shard: sh.ID, From: from, Priority: pr, Reason: why}, nil)
}

// place moves one replica that is on the wrong store.
func (r *round) place(sh *Shard, tr *trace) {
	if sh.need&NeedUnavailable != 0 {
		return
	}
	var buf [16]Placed
	now := r.v.placed(sh, buf[:0])
	fit := sh.rule.Fit(now)
	h := r.v.health(sh)
	// Stores that must lose theirs first; the new place need only be as good as can be had.
	for _, p := range h.leave {
		if r.at(r.v.stores[p.Store]).out >= r.cfg.StoreSnapshots {
			continue
		}
		learner := p.Role == base.RoleLearner
		keep := r.v.placed(sh, nil, p.Store)
		if f := sh.rule.Fit(keep); learner && f.Learners <= 0 || !learner && f.Voters <= 0 {
			r.remove(sh, p.Store, Comply, p.Store.String()+" must lose its replicas, and this is one too many")
			return
		}
		to, _, t := r.pick(sh, keep, learner, nil, tr)
		if to == nil {
			if t.rejected[filterLimit] == 0 {
				r.nothing(sh, "no other node could have the replica on "+p.Store.String(), t.candidates(nil, ""))
			}
			return
		}
		s := r.v.stores[p.Store]
		why := p.Store.String() + " is " + s.Commission.String()
		if s.Commission == Active {
			why = p.Store.String() + " is drained"
		}
		r.propose(Operator{
			Kind: OpMove, Shard: sh.ID, From: p.Store, To: to.ID, Learner: learner, Priority: Comply, Reason: why,
		}, t.candidates(to, r.store(to)))
		return
	}
	if len(h.leave) > 0 || fit.Misplaced == 0 {
		return // the limits of those stores are used up
	}
	from, to, t := r.better(sh, now, fit, tr)
	if to == nil {
		if t.rejected[filterLimit] == 0 {
			r.nothing(sh, "no node would meet rule "+sh.rule.Name()+" better", t.candidates(nil, ""))
		}
		return
	}
	r.propose(Operator{
		Kind: OpMove, Shard: sh.ID, From: from.Store.ID, To: to.ID, Learner: from.Learner, Priority: Comply,
		Reason: fmt.Sprintf("rule %s does not want it on %s", sh.rule.Name(), from.Store.ID),
	}, t.candidates(to, r.store(to)))
}

// better finds the replica and the store to move it to that improve a placement most; to is nil if none does.
func (r *round) better(sh *Shard, now []Placed, fit Fit, tr *trace) (from Placed, to *Store, t tally) {
	best := fit
	limited := uint16(0) // what a limit kept from being looked at may do later
	for i := range now {
		if r.at(now[i].Store).out >= r.cfg.StoreSnapshots {
			limited++
			continue
		}
		keep := r.v.placed(sh, nil, now[i].Store.ID)
		s, f, tt := r.pick(sh, keep, now[i].Learner, &best, nil)
		limited += tt.rejected[filterLimit]
		if s == nil || f.Compare(best) <= 0 {
			if to == nil {
				t = tt
			}
			continue
		}
		from, to, best, t = now[i], s, f, tt
	}
	if to == nil {
		t.rejected[filterLimit] = limited
	}
	if to != nil && tr.on() {
		r.pick(sh, r.v.placed(sh, nil, from.Store.ID), from.Learner, &fit, tr)
	}
	return from, to, t
}

// spread moves one replica so that they are spread better.
func (r *round) spread(sh *Shard, tr *trace) {
	if sh.need&(NeedUnavailable|NeedRepair) != 0 || r.reshapes(sh) {
		return
	}
	var buf [16]Placed
	now := r.v.placed(sh, buf[:0])
	fit := sh.rule.Fit(now)
	from, to, t := r.better(sh, now, fit, tr)
	if to == nil {
		if t.rejected[filterLimit] == 0 {
			r.nothing(sh, "no move would spread its replicas better", t.candidates(nil, ""))
		}
		return
	}
	r.propose(Operator{
		Kind: OpMove, Shard: sh.ID, From: from.Store.ID, To: to.ID, Learner: from.Learner, Priority: Comply,
		Reason: fmt.Sprintf("spreads it better than %s does", from.Store.ID),
	}, t.candidates(to, r.store(to)))
}

// trim removes a replica that is too many: one that is lost, leaves or is misplaced, else that without which the rest is
// spread best, on the fullest store; the leader last.
func (r *round) trim(sh *Shard, tr *trace) {
	if sh.need&(NeedUnavailable|NeedRepair) != 0 {
		return
	}
	var buf [16]Placed
	fit := sh.rule.Fit(r.v.placed(sh, buf[:0]))
	learner := fit.Voters >= 0
	h := r.v.health(sh)
	if !learner && h.live-1 < (h.voters-1)/2+1 {
		r.nothing(sh, "too few of its voters live to take one out", nil)
		return
	}
	var pick *ahead
	var pickFit Fit
	rank := -1
	for i := range sh.Listed() {
		p := &sh.Peers[i]
		if (p.Role == base.RoleLearner) != learner {
			continue
		}
		s := r.v.stores[p.Store]
		k := 1
		switch {
		case s.down || p.Flags&PeerFaulted != 0:
			k = 4
		case s.leaving():
			k = 3
		case p.Store == sh.Leader:
			k = 0
		}
		f := sh.rule.Fit(r.v.placed(sh, nil, p.Store))
		a := r.at(s)
		tr.candidate(p.Store, outdone, fmt.Sprintf("isolation %.3f without it, %d replicas", f.Isolation, a.replicas), f.Isolation)
		if pick == nil || k > rank || k == rank && less(pick, f, a, pickFit) {
			pick, pickFit, rank = a, f, k
		}
	}
	if pick == nil {
		return
	}
	// One that does not answer may be lost, or come back: until that is known, those that do are not too many.
	if gone := sh.ListedOn(pick.ID); !learner && rank < 4 && pick.alive && gone.Flags&PeerUninitialised == 0 &&
		h.live-1 < h.voters+fit.Voters {
		r.nothing(sh, "a voter does not answer: none that does is too many", nil)
		return
	}
	why := "one replica too many"
	if learner {
		why = "a learner that the rule does not ask for"
	}
	r.remove(sh, pick.ID, Comply, why)
}

// prefer moves the leadership to where the rule wants it.
func (r *round) prefer(sh *Shard, tr *trace) {
	if sh.need&NeedUnavailable != 0 || sh.Leader == 0 {
		return
	}
	from := r.v.stores[sh.Leader]
	to, t := r.pickLeader(sh, tr)
	if to == nil || r.at(from).transfers >= r.cfg.StoreTransfers {
		return
	}
	if a, b := sh.rule.Leads(to), sh.rule.Leads(from); b >= 0 && a >= b {
		return // the one that is preferred cannot lead just now
	}
	r.propose(Operator{
		Kind: OpTransfer, Shard: sh.ID, From: from.ID, To: to.ID, Priority: Comply,
		Reason: fmt.Sprintf("rule %s prefers %s as leader", sh.rule.Name(), to.ID),
	}, t.candidates(to, ""))
}

// merge merges a shard with its right neighbour, or first moves the replicas of the smaller one to the stores of the
// other.
func (r *round) merge(l *Shard, tr *trace) {
	right := r.v.Right(l)
	if right == nil || !r.free(right) || r.boundaries >= r.cfg.Boundaries || l.Leader == 0 || right.Leader == 0 ||
		right.need&(NeedRepair|NeedPlace|NeedTrim|NeedUnavailable|NeedLeaveJoint) != 0 {
		return
	}
	if why := r.v.mergeable(r.cfg, l, right); why != "" {
		tr.note("merge", why)
		return
	}
	mover, stays := right, l
	if l.Size < right.Size {
		mover, stays = l, right
	}
	var from, to *Peer
	for i := range mover.Listed() {
		if p := &mover.Peers[i]; stays.ListedOn(p.Store) == nil && (from == nil || p.Store != mover.Leader) {
			from = p
		}
	}
	if from == nil {
		r.propose(Operator{
			Kind: OpMerge, Shard: l.ID, Other: right.ID, Priority: Shape,
			Reason: fmt.Sprintf("both are cold, together %s", size(l.Size+right.Size)),
		}, nil)
		return
	}
	for i := range stays.Listed() {
		p := &stays.Peers[i]
		if mover.On(p.Store) != nil {
			continue
		}
		if f, no := r.refuses(mover, r.v.stores[p.Store], false); no {
			tr.candidate(p.Store, f.String(), filterWhy[f], 0)
			continue
		}
		if to == nil || r.at(r.v.stores[p.Store]).in < r.at(r.v.stores[to.Store]).in {
			to = p
		}
	}
	if to == nil || r.at(r.v.stores[from.Store]).out >= r.cfg.StoreSnapshots {
		return
	}
	op := Operator{
		Kind: OpMove, Shard: mover.ID, From: from.Store, To: to.Store, Priority: Shape,
		Reason: fmt.Sprintf("brings it to the stores of %s for a merge", stays.ID),
	}
	r.propose(op, nil)
	r.busy[stays.ID] = &r.out[len(r.out)-1] // nothing else moves it meanwhile
}
