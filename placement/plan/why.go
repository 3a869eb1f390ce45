package plan

import (
	"fmt"
	"maps"
	"math/bits"
	"strings"
	"time"

	"github.com/shardd/shardd/internal/base"
)

// Why answers why something is as it is.
type Why struct {
	// Summary is the state in one line, Lines what was found, in order.
	Summary string
	Lines   []Line
	// Now is what would be decided now, tried with a trace; Past what was decided, the newest first.
	Now, Past []Decision
}

// rehearse returns a planner and a round that leave no trace on p.
func (p *Planner) rehearse(v *View, cfg *Config, running []*Operator) *round {
	q := *p
	q.waits = make(map[base.ShardID]*wait, len(p.waits))
	q.cursors = maps.Clone(p.cursors)
	for id, w := range p.waits {
		c := *w
		q.waits[id] = &c
	}
	return newRound(&q, v, cfg, running)
}

// WhyShard explains a shard: the checks and what serves its needs are run again with a trace. Nothing is changed. False
// means that the view does not know the shard; decisions about it may be left all the same.
func (p *Planner) WhyShard(v *View, cfg Config, id base.ShardID, running []*Operator, limit int) (*Why, bool) {
	cfg = cfg.WithDefaults()
	w := &Why{Past: p.journal.newest(limit, func(d *Decision) bool { return d.Shard == id })}
	sh := v.shards[id]
	if sh == nil {
		w.Summary = fmt.Sprintf("%s is not known: merged away, or no store has reported it", id)
		return w, false
	}
	if v.rules == nil {
		w.Summary = "no round has been planned yet"
		return w, true
	}
	tr := &trace{}
	need, _ := v.check(&cfg, sh, tr)
	w.Lines = tr.lines
	w.Summary = sh.String() + ": all is well"
	if names := need.Names(); len(names) > 0 {
		w.Summary = sh.String() + ": " + strings.Join(names, ", ")
	}
	r := p.rehearse(v, &cfg, running)
	if op := r.busy[id]; op != nil {
		w.Lines = append(w.Lines, Line{"running", op.String() + ": nothing else is planned meanwhile"})
		return w, true
	}
	if x := r.p.waits[id]; x != nil && v.now < x.until {
		w.Lines = append(w.Lines, Line{"waits", fmt.Sprintf("left alone for %s, after %d tries", (x.until - v.now).Round(time.Second), x.tries)})
		delete(r.p.waits, id)
	}
	if p.waiting {
		w.Lines = append(w.Lines, Line{"driver", "waits for reports: nothing is started yet"})
	}
	served := false
	for _, k := range r.kinds() {
		if need&k.need == 0 {
			continue
		}
		served = true
		if cfg.Off&k.part != 0 {
			w.Lines = append(w.Lines, Line{k.by, "paused"})
			continue
		}
		t := &trace{}
		r.by, r.part = k.by, k.part
		before := len(r.notes)
		k.serve(sh, t)
		d := Decision{At: v.now, By: k.by, Shard: id, Outcome: "nothing: limits are used up, or it waits for another shard"}
		if len(r.notes) > before {
			d = r.notes[before]
		}
		if len(t.candidates) > 0 {
			d.Candidates = t.candidates
		}
		for _, l := range t.lines {
			d.Outcome += "; " + l.Detail
		}
		w.Now = append(w.Now, d)
		break
	}
	if !served {
		w.Now = append(w.Now, r.atRest(sh))
	}
	return w, true
}

// kind is how one kind of need is served.
type kind struct {
	need  Need
	part  Parts
	by    string
	serve func(*Shard, *trace)
}

// kinds are the needs in the order in which a round serves them; what has no server is only reported.
func (r *round) kinds() []kind {
	return []kind{
		{NeedLeaveJoint, 0, "joint", r.leaveJoint},
		{NeedSplit, PartSplit, "splits", r.split},
		{NeedRepair, PartRepair, "replicas", r.repair},
		{NeedPlace, PartRepair, "rules", r.place},
		{NeedTrim, PartRepair, "rules", r.trim},
		{NeedLeader, PartLeaders, "rules", r.prefer},
		{NeedMerge, PartMerge, "merges", r.merge},
		{NeedSpread, PartReplicas, "spread", r.spread},
	}
}

// atRest says of a shard that needs nothing why its replicas are not on other stores.
func (r *round) atRest(sh *Shard) Decision {
	d := Decision{At: r.v.now, By: "balance", Shard: sh.ID, Outcome: "nothing: it is where it should be"}
	if sh.rule == nil || len(sh.Listed()) == 0 {
		return d
	}
	now := sh.rule.Fit(r.v.placed(sh, nil))
	for i := range r.ahead {
		a := &r.ahead[i]
		if f, no := r.refuses(sh, a.Store, true); no {
			what := filterWhy[f]
			if f == filterHolds {
				what = r.why(sh, a)
			}
			d.Candidates = append(d.Candidates, Candidate{What: a.ID.String(), Verdict: f.String(), Detail: what})
			continue
		}
		c := Candidate{What: a.ID.String(), Verdict: filterFit.String(), Detail: filterWhy[filterFit]}
		for _, p := range sh.Listed() {
			from := r.at(r.v.stores[p.Store])
			f := sh.rule.Fit(append(r.v.placed(sh, nil, p.Store), Placed{a.Store, p.Role == base.RoleLearner}))
			if f.Compare(now) < 0 {
				continue
			}
			c.Verdict, c.Score = filterFuller.String(), f.Isolation
			c.Detail = fmt.Sprintf("as good, but with %d replicas not emptier by 2 than %s with %d", a.replicas, from.ID, from.replicas)
			if from.replicas-a.replicas >= 2 {
				c.Detail = fmt.Sprintf("as good and emptier than %s by %d; moves wait until the largest difference passes the tolerance, "+
					"and any other shard will do as well", from.ID, from.replicas-a.replicas)
				break
			}
		}
		d.Candidates = append(d.Candidates, c)
	}
	return d
}

// why says what a replica on a store is.
func (r *round) why(sh *Shard, a *ahead) string {
	p := sh.On(a.ID)
	switch {
	case p.Role == 0:
		return "holds a replica that is not listed any more"
	case sh.Leader == a.ID:
		return fmt.Sprintf("has the leader; %d leaders in all", a.leaders)
	}
	return "has a " + p.Role.String()
}

// WhyNode explains a store: what it may get, how full it is beside the others, and what keeps it from rest.
func (p *Planner) WhyNode(v *View, cfg Config, id base.StoreID, running []*Operator, limit int) (*Why, bool) {
	cfg = cfg.WithDefaults()
	w := &Why{Past: p.journal.newest(limit, func(d *Decision) bool { return d.Stores[0] == id || d.Stores[1] == id })}
	s := v.stores[id]
	if s == nil {
		w.Summary = id.String() + " is not known"
		return w, false
	}
	r := p.rehearse(v, &cfg, running)
	a := r.at(s)
	add := func(what, format string, args ...any) {
		w.Lines = append(w.Lines, Line{what, fmt.Sprintf(format, args...)})
	}
	w.Summary = fmt.Sprintf("%s: %d replicas, %d leaders, %s; %s", id, s.Replicas, s.Leaders, size(s.Bytes), v.state(s))
	if a.replicas != s.Replicas || a.leaders != s.Leaders {
		add("in flight", "%d replicas and %d leaders once all that runs is done; %d snapshots come, %d go, %d transfers", a.replicas,
			a.leaders, a.in, a.out, a.transfers)
	}
	takers, leads := r.takers(), r.leadTakers()
	compare := func(what string, of []*ahead, by func(*ahead) int) {
		lo, hi, total := counts(of, by)
		if len(of) > 0 {
			add(what, "%d here; of the %d nodes that may get some: %d to %d, %d on average, differences up to %d are left alone",
				by(a), len(of), lo, hi, total/len(of), r.tolerance(total, len(of)))
		}
	}
	compare("replicas", takers, byReplicas)
	compare("leaders", leads, byLeaders)
	if !a.takesReplicas() || !a.alive || a.slow || !a.hasRoom(0, &cfg, true) {
		add("replicas", "gets none: %s", r.whyNone(a))
	}
	if !a.alive || !a.mayLead() {
		add("leaders", "gets none: %s", r.whyNone(a))
	}
	if a.in >= cfg.StoreSnapshots || a.out >= cfg.StoreSnapshots {
		add("limits", "%d snapshots come and %d go, of %d", a.in, a.out, cfg.StoreSnapshots)
	}
	if r.p.evicting == id {
		add("leaders", "they are taken off it, since it is slow")
	}
	needs := make([]int, needKinds)
	for _, sh := range s.shards {
		for m := uint(sh.need); m != 0; m &= m - 1 {
			needs[bits.TrailingZeros(m)]++
		}
	}
	for i, n := range needs {
		if n > 0 {
			add("shards", "%d of its shards: %s", n, needNames[i])
		}
	}
	for _, op := range running {
		if op.From == id || op.To == id {
			add("running", "%s", op)
		}
	}
	return w, true
}

// state says in words how a store is.
func (v *View) state(s *Store) string {
	var out []string
	if c := s.Commission.String(); c != "" {
		out = append(out, c)
	}
	switch {
	case s.down:
		out = append(out, "down")
	case !s.Known:
		out = append(out, "has not reported yet")
	case !s.alive:
		out = append(out, fmt.Sprintf("silent for %s", (v.now-s.Seen).Round(time.Second)))
	}
	if s.Drain != DrainNone {
		out = append(out, "drained")
	}
	if s.Unhealthy != "" {
		out = append(out, "unhealthy: "+s.Unhealthy)
	}
	if s.Slow != "" {
		out = append(out, "slow: "+s.Slow)
	}
	if s.Disk != DiskOK {
		out = append(out, "short of disk space")
	}
	if len(out) == 0 {
		return "well"
	}
	return strings.Join(out, ", ")
}

func (r *round) whyNone(a *ahead) string {
	switch {
	case !a.Listed:
		return "it is no member of the cluster"
	case a.leaving() || a.Drain != DrainNone:
		return filterWhy[filterLeaving]
	case !a.alive:
		return filterWhy[filterDead]
	case a.slow:
		return filterWhy[filterUnhealthy]
	}
	if a.DiskCapacity == 0 {
		return filterWhy[filterSpace]
	}
	return fmt.Sprintf("%s: %s free, %s are kept so", filterWhy[filterSpace], size(a.DiskFree), size(a.keepFree(r.cfg, true)))
}

// WhyOperator returns what is in the journal about an operator, the newest first; false if nothing is left.
func (p *Planner) WhyOperator(id uint64, limit int) (*Why, bool) {
	w := &Why{Past: p.journal.newest(limit, func(d *Decision) bool { return d.Operator == id && id != 0 })}
	if len(w.Past) == 0 {
		w.Summary = fmt.Sprintf("nothing is left in the journal about operator %d", id)
		return w, false
	}
	w.Summary = w.Past[0].Outcome
	return w, true
}
