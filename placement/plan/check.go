package plan

import (
	"fmt"
	"time"

	"github.com/shardd/shardd/internal/base"
)

// The checks of a shard run when something about it changed, or when a time that they wait for has come. They look at the
// shard, its stores and its right neighbour, and leave behind what the shard needs; a round then serves the needs.

// refresh runs the checks of every shard that changed. It returns how many that were.
func (v *View) refresh(cfg *Config) int {
	n := 0
	// Checks touch neighbours; what they touch is looked at in the same go, as readiness settles after two steps.
	for range 3 {
		list := v.dirty
		if len(list) == 0 {
			break
		}
		v.dirty = nil
		for _, sh := range list {
			sh.dirty = false
			if v.shards[sh.ID] != sh {
				continue
			}
			n++
			need, spare := v.check(cfg, sh, nil)
			v.setNeedSpare(sh, need, spare)
		}
	}
	return n
}

// wakeUnless is wakeAt, unless the check is only run to be explained.
func (v *View) wakeUnless(tr *trace, sh *Shard, at time.Duration) {
	if !tr.on() {
		v.wakeAt(sh, at)
	}
}

// health is what a shard's replicas are worth.
type health struct {
	voters int // of the descriptor, those that are becoming one included and those that leave left out
	live   int // of them on stores that report, not faulted, with state
	quorum int
	lost   []*Peer // to be replaced: faulted, or on a store that is down
	leave  []*Peer // on a store that must lose its replicas
}

func (v *View) health(sh *Shard) health {
	var h health
	peers := sh.Listed()
	for i := range peers {
		p := &peers[i]
		s := v.stores[p.Store]
		lost := s.down || p.Flags&PeerFaulted != 0
		if p.Role == base.RoleVoter || p.Role == base.RoleIncoming {
			h.voters++
			if s.alive && !lost && p.Flags&PeerUninitialised == 0 {
				h.live++
			}
		}
		switch {
		case lost:
			h.lost = append(h.lost, p)
		case s.leaving():
			h.leave = append(h.leave, p)
		}
	}
	h.quorum = h.voters/2 + 1
	return h
}

// leaving reports whether a store must lose its replicas.
func (s *Store) leaving() bool { return s.Commission != Active || s.Drain == DrainReplicas }

// placed returns the placement of the listed replicas without some stores.
func (v *View) placed(sh *Shard, buf []Placed, without ...base.StoreID) []Placed {
	buf = buf[:0]
next:
	for _, p := range sh.Listed() {
		for _, w := range without {
			if p.Store == w {
				continue next
			}
		}
		if p.Role == base.RoleOutgoing {
			continue
		}
		buf = append(buf, Placed{v.stores[p.Store], p.Role == base.RoleLearner})
	}
	return buf
}

// check returns what a shard needs and how many live voters it has above its quorum. tr, if not nil, is told why.
func (v *View) check(cfg *Config, sh *Shard, tr *trace) (need Need, spare int8) {
	if sh.End == "" || len(sh.Listed()) == 0 {
		tr.note("range", "no store has told its range yet: nothing is planned for it")
		return 0, 0
	}
	if sh.covered {
		tr.note("range", "its range belongs to a newer shard: merged away")
		return 0, 0
	}
	h := v.health(sh)
	spare = int8(h.live - h.quorum)
	tr.notef("voters", "%d voters, %d of them live, %d make a quorum", h.voters, h.live, h.quorum)
	if spare < 0 {
		tr.note("quorum", "no quorum lives: no change can be made until a node comes back, or the quorum is recovered by hand")
		need |= NeedUnavailable
	}
	if sh.Joint() {
		// A new leader has the same time to leave it.
		since := max(sh.ConfChanged, sh.Led)
		if at := since + cfg.JointPatience; v.coarse() >= at {
			tr.notef("joint", "between two configurations for %s", (v.now - since).Round(time.Second))
			return need | NeedLeaveJoint, spare
		} else {
			v.wakeUnless(tr, sh, at)
		}
		tr.note("joint", "between two configurations: nothing else is planned until that is left")
		return need, spare
	}
	if sh.class&classFrozen != 0 {
		into, _ := sh.MergingInto()
		tr.notef("frozen", "frozen to be merged into %s: nothing else is planned until that is decided", into)
		if !tr.on() {
			v.setReady(sh, false)
		}
		return need, spare
	}
	need |= v.checkPlacement(sh, &h, tr)
	need |= v.checkSplit(cfg, sh, tr)
	need |= v.checkMerge(cfg, sh, need, tr)
	return need, spare
}

// checkPlacement compares the replicas with the rule.
func (v *View) checkPlacement(sh *Shard, h *health, tr *trace) (need Need) {
	if len(h.lost) > 0 {
		for _, p := range h.lost {
			tr.notef("replicas", "the replica on %s is lost: %s", p.Store, v.whyLost(sh, p))
		}
		need |= NeedRepair
	}
	for _, p := range h.leave {
		tr.notef("replicas", "%s must lose its replicas", p.Store)
		need |= NeedPlace
	}
	var buf [16]Placed
	placed := v.placed(sh, buf[:0])
	fit := sh.rule.Fit(placed)
	tr.notef("rule", "rule %s: voters %+d, learners %+d off, %d misplaced, isolation %.3f", sh.rule.Name(), -fit.Voters,
		-fit.Learners, fit.Misplaced, fit.Isolation)
	if fit.Voters > 0 || fit.Learners > 0 {
		need |= NeedRepair
	}
	if fit.Voters < 0 || fit.Learners < 0 {
		need |= NeedTrim
	}
	if fit.Misplaced > 0 {
		need |= NeedPlace
	}
	if need == 0 {
		if best := v.best(sh.rule, len(placed)); fit.Isolation < best.Isolation-1e-9 ||
			fit.Isolation < best.Isolation+1e-9 && fit.Preferred < best.Preferred-1e-9 {
			tr.notef("spread", "isolation %.3f, %.3f could be had", fit.Isolation, best.Isolation)
			need |= NeedSpread
		}
	}
	if sh.Leader != 0 && v.stores[sh.Leader] != nil {
		if to := v.preferredLeader(sh); to != nil {
			tr.notef("leader", "rule %s prefers %s to %s as leader", sh.rule.Name(), to.ID, sh.Leader)
			need |= NeedLeader
		}
	}
	return need
}

// whyLost says why a replica is to be replaced.
func (v *View) whyLost(sh *Shard, p *Peer) string {
	s := v.stores[p.Store]
	switch {
	case s.Commission == Removed:
		return p.Store.String() + " was removed"
	case s.down && !s.Known:
		return p.Store.String() + " has never reported to this driver"
	case s.down:
		return fmt.Sprintf("%s has been silent for %s", p.Store, (v.now - s.Seen).Round(time.Second))
	}
	return "faulted: " + sh.Fault(p.Store)
}

// preferredLeader returns the best voter's store if the rule ranks it above the present leader's, else nil.
func (v *View) preferredLeader(sh *Shard) *Store {
	rank := func(s *Store) int {
		if r := sh.rule.Leads(s); r >= 0 {
			return r
		}
		return 1 << 30
	}
	best, at := (*Store)(nil), rank(v.stores[sh.Leader])
	for _, p := range sh.Listed() {
		s := v.stores[p.Store]
		if p.Role == base.RoleVoter && !s.down && s.mayLead() && p.Flags&(PeerFaulted|PeerUninitialised) == 0 {
			if r := rank(s); r < at {
				best, at = s, r
			}
		}
	}
	return best
}

// mayLead reports whether a store may be given leaders, its liveness aside.
func (s *Store) mayLead() bool {
	return s.Listed && s.Commission == Active && s.Drain == DrainNone && s.Disk != DiskCritical && !s.slow
}

func (v *View) checkSplit(cfg *Config, sh *Shard, tr *trace) (need Need) {
	if sh.Meta() {
		return 0
	}
	// In the order of age: a shard whose range has just changed is judged by numbers of before.
	age := v.coarse() - sh.Changed
	if b := v.rules.Boundary(sh.Start, sh.End); b != "" {
		tr.notef("split", "another rule begins at %q", b)
		need |= NeedSplit
	}
	if sh.class&classBig != 0 {
		if age >= cfg.Settle/12 {
			tr.notef("split", "%s, to split above %s", size(sh.Size), size(v.splitSize(sh)))
			need |= NeedSplit
		} else {
			v.wakeUnless(tr, sh, sh.Changed+cfg.Settle/12)
		}
	}
	if sh.class&classBusy != 0 {
		switch {
		case sh.class&classHotKey != 0:
			tr.notef("split", "busy, but key %q carries the load: no split would help", sh.HotKey())
			need |= NeedHotKey
		case sh.class&classHasSpot == 0:
			tr.note("split", "busy, but its leader knows no key that would divide the load")
		case age < cfg.Settle:
			tr.note("split", "busy, but its range has just changed")
			v.wakeUnless(tr, sh, sh.Changed+cfg.Settle)
		default:
			tr.notef("split", "busy: %d requests, %s per second", sh.Load.Requests(), size(sh.Load.Bytes()))
			need |= NeedSplit
		}
	}
	return need
}

// checkMerge finds out whether the shard is ready for a merge, and whether its right neighbour is too.
func (v *View) checkMerge(cfg *Config, sh *Shard, need Need, tr *trace) Need {
	ready := v.mergeReady(cfg, sh, need, tr)
	if !tr.on() {
		v.setReady(sh, ready)
	}
	if !ready {
		return 0
	}
	right := v.Right(sh)
	if why := v.mergeable(cfg, sh, right); why != "" {
		tr.note("merge", why)
		return 0
	}
	tr.notef("merge", "with its right neighbour %s", right.ID)
	return NeedMerge
}

func (v *View) setReady(sh *Shard, ready bool) {
	if sh.ready == ready {
		return
	}
	sh.ready = ready
	if l := v.Left(sh); l != nil {
		v.touch(l)
	}
}

func (v *View) mergeReady(cfg *Config, sh *Shard, need Need, tr *trace) bool {
	const asWell = classSmall | classCold
	switch {
	case sh.Meta():
		return false
	case sh.class&asWell != asWell:
		tr.notef("merge", "%s, %d requests per second: not small and cold", size(sh.Size), sh.Load.Requests())
		return false
	case need&(NeedRepair|NeedPlace|NeedTrim|NeedUnavailable|NeedSplit|NeedHotKey) != 0:
		tr.note("merge", "other things come first")
		return false
	case !sh.rule.Merges():
		tr.notef("merge", "rule %s keeps shards apart", sh.rule.Name())
		return false
	case v.coarse() < sh.Changed+cfg.MergeAge:
		tr.notef("merge", "its range changed %s ago, too short a time", (v.now - sh.Changed).Round(time.Second))
		v.wakeUnless(tr, sh, sh.Changed+cfg.MergeAge)
		return false
	case v.coarse() < sh.Cold+cfg.MergeColdFor:
		tr.notef("merge", "cold for %s only", (v.now - sh.Cold).Round(time.Second))
		v.wakeUnless(tr, sh, sh.Cold+cfg.MergeColdFor)
		return false
	}
	for _, p := range sh.Listed() {
		if p.Role != base.RoleVoter || p.Flags != 0 || !v.stores[p.Store].alive {
			tr.notef("merge", "the replica on %s is not a healthy voter", p.Store)
			return false
		}
	}
	return true
}

// mergeable says why two neighbours, the left one ready, are not merged; empty if they are.
func (v *View) mergeable(cfg *Config, l, r *Shard) string {
	switch {
	case r == nil:
		return "no right neighbour is known"
	case !r.ready:
		return fmt.Sprintf("its right neighbour %s is not ready", r.ID)
	case l.rule != r.rule:
		return fmt.Sprintf("its right neighbour %s is under rule %s", r.ID, r.rule.Name())
	case len(l.Listed()) != len(r.Listed()):
		return fmt.Sprintf("its right neighbour %s has another number of replicas", r.ID)
	case v.rules.Boundary(l.Start, r.End) != "":
		return fmt.Sprintf("a rule begins between it and its right neighbour %s", r.ID)
	case l.Size+r.Size > v.splitSize(l)/2 || l.Size+r.Size > v.splitSize(r)/2:
		return fmt.Sprintf("with its right neighbour %s it would soon split again", r.ID)
	case l.Load.Requests()+r.Load.Requests() > cfg.SplitRequests/2:
		return fmt.Sprintf("with its right neighbour %s it would be too busy", r.ID)
	}
	return ""
}

// size writes bytes for people.
func size(n uint64) string {
	switch {
	case n >= 10<<30:
		return fmt.Sprintf("%d GiB", n>>30)
	case n >= 10<<20:
		return fmt.Sprintf("%d MiB", n>>20)
	case n >= 10<<10:
		return fmt.Sprintf("%d KiB", n>>10)
	}
	return fmt.Sprintf("%d B", n)
}
