package node

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/placement"
	"github.com/shardd/shardd/placement/plan"
	"github.com/shardd/shardd/placement/rules"
)

// ruleBook is what people have set for the cluster, as the meta shard has it: the driver's settings and the placement
// rules. It is read on the meta leader, at most ruleFresh old.
type ruleBook struct {
	mu sync.Mutex
	policy
	read bool
	at   time.Duration // Boot time
}

// policy is never changed, only replaced.
type policy struct {
	balance  placement.Balance
	revision uint64
	yaml     string
	set      *rules.Set
	// forPlan is the set as the planner takes it. Only for use under the lock of the view.
	forPlan *rules.Planner
}

const ruleFresh = time.Second

func newPolicy() policy {
	set := rules.Default()
	return policy{set: set, forPlan: rules.NewPlanner(set)}
}

// get returns the policy as last read; the built-in one if it was never read.
func (b *ruleBook) get() policy {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.set == nil {
		b.policy = newPolicy()
	}
	return b.policy
}

// known returns the policy, and whether it was ever read.
func (b *ruleBook) known() (policy, bool) {
	p := b.get()
	b.mu.Lock()
	defer b.mu.Unlock()
	return p, b.read
}

// refresh reads the policy if what is known is old, or in any case. Rules that cannot be read leave the old ones in
// force, and an error.
func (b *ruleBook) refresh(ctx context.Context, dir *placement.Directory, now time.Duration, always bool) (policy, error) {
	old := b.get()
	b.mu.Lock()
	fresh := b.read && now-b.at < ruleFresh && !always
	b.mu.Unlock()
	if fresh {
		return old, nil
	}
	next := old
	var err error
	if next.balance, err = dir.Balance(ctx); err != nil {
		return old, fmt.Errorf("read the driver's settings: %w", err)
	}
	rec, err := dir.Rules(ctx)
	if err != nil {
		return old, err
	}
	switch {
	case rec.Revision == 0 && old.revision != 0:
		bal := next.balance
		next = newPolicy()
		next.balance = bal
	case rec.Revision != old.revision:
		set, perr := rules.Parse("placement rules", []byte(rec.YAML))
		if perr != nil {
			return old, fmt.Errorf("placement rules of revision %d: %w", rec.Revision, perr)
		}
		next.revision, next.yaml, next.set, next.forPlan = rec.Revision, rec.YAML, set, rules.NewPlanner(set)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.policy, b.read, b.at = next, true, now
	return next, nil
}

// effective is what the rules say of a shard that starts at a routing key.
func (p *policy) effective(start []byte) rules.Effective { return p.set.Rule(p.set.For(start)) }

// limits are the driver's limits: what people have set, else what this node is set to; 0 leaves it to the planner.
func (m *member) limits(b *placement.Balance) placement.BalanceLimits {
	s := &m.n.cfg.Settings
	own := placement.BalanceLimits{DownAfter: s.DownAfter, MergeAge: s.MergeAge}
	if s.MergeBytes > 0 {
		own.MergeBytes = uint64(s.MergeBytes)
	}
	lim := s.splitLimits().WithDefaults()
	own.SplitBytes, own.SplitRequests = uint64(neverIfNegative(float64(lim.Bytes))), neverIfNegative(lim.Requests)
	if lim.Bytes < 0 && own.MergeBytes == 0 {
		own.MergeBytes = plan.Config{}.WithDefaults().MergeBytes // not a tenth of never
	}
	return b.BalanceLimits.Or(own)
}

// planConfig is what the planner is set to under a policy.
func (m *member) planConfig(p *policy) plan.Config {
	l := m.limits(&p.balance)
	own := m.n.cfg.Settings.splitLimits().WithDefaults()
	cfg := plan.Config{
		Rules: p.forPlan, Operators: int(l.Operators), StoreSnapshots: int(l.NodeSnapshots),
		StoreTransfers: int(l.NodeTransfers), DownAfter: l.DownAfter, SplitBytes: l.SplitBytes,
		SplitRequests: uint64(l.SplitRequests), SplitByteRate: uint64(neverIfNegative(own.RequestBytes)),
		SplitCPUMicros: uint64(neverIfNegative(own.CPUMicros)), MergeBytes: l.MergeBytes, MergeAge: l.MergeAge, Off: m.pausedParts(p),
		SnapshotRate: max(m.n.cfg.Settings.SnapshotSendBytes/8, 1<<20),
	}
	cfg = cfg.WithDefaults()
	cfg.AliveFor = min(cfg.AliveFor, cfg.DownAfter)
	// A split size that was lowered alone takes the merge size with it.
	cfg.MergeBytes = min(cfg.MergeBytes, cfg.SplitBytes/4)
	return cfg
}

// neverIfNegative is a limit on splits as the planner takes it.
func neverIfNegative(limit float64) float64 {
	if limit < 0 {
		return neverSplit
	}
	return limit
}

// pausedParts are the parts of the planner that do nothing.
func (m *member) pausedParts(p *policy) plan.Parts {
	var off plan.Parts
	for _, name := range p.balance.Paused.Names() {
		part, err := plan.ParsePart(name)
		if err == nil {
			off |= part
		}
	}
	if m.n.cfg.Settings.NoBalance {
		off = plan.PartAll
	}
	if m.n.cfg.Settings.MergeBytes < 0 && p.balance.MergeBytes == 0 {
		off |= plan.PartMerge
	}
	return off
}

// picker chooses among the nodes as the rules want: the best fit, then the fewest replicas, then the lowest id.
func (w memberWorld) picker(from base.StoreID) func(*base.Descriptor, map[base.StoreID]placement.NodeNow) (
	base.StoreID, string) {
	p := w.m.rules.get()
	labels := make(map[base.StoreID]map[string]string)
	for id, st := range w.m.reports.view.Stores() {
		labels[id] = st.Node.Labels
	}
	fitters := make(map[int]*rules.Fitter)
	return func(d *base.Descriptor, nodes map[base.StoreID]placement.NodeNow) (base.StoreID, string) {
		e := p.effective(d.Start)
		f := fitters[e.Index]
		if f == nil {
			f = rules.NewFitter(e)
			fitters[e.Index] = f
		}
		var placed []rules.Placed
		learner := false
		for _, r := range d.Replicas {
			if r.Store == from {
				learner = r.Role == base.RoleLearner
				continue
			}
			placed = append(placed, rules.Placed{
				Store: rules.Store{ID: r.Store, Labels: labels[r.Store]}, Learner: r.Role == base.RoleLearner,
			})
		}
		var best base.StoreID
		var bestFit rules.Fit
		var wrong []string
		for _, id := range sortedNodes(nodes) {
			n := nodes[id]
			s := rules.Store{ID: id, Labels: labels[id]}
			if id == from {
				continue
			}
			if _, has := d.ReplicaOn(id); has {
				wrong = append(wrong, id.String()+" has one")
				continue
			}
			if why := n.Unfit(); why != "" {
				wrong = append(wrong, id.String()+" "+why)
				continue
			}
			if ok, why := f.Allows(s); !ok {
				wrong = append(wrong, fmt.Sprintf("rule %s keeps it off %s: %s", e.Name, id, why))
				continue
			}
			fit := f.Fit(append(slices.Clip(placed), rules.Placed{Store: s, Learner: learner}))
			c := fit.Compare(bestFit)
			if best == 0 || c > 0 || c == 0 && n.Replicas < nodes[best].Replicas {
				best, bestFit = id, fit
			}
		}
		if best != 0 {
			return best, ""
		}
		return 0, strings.Join(wrong, ", ")
	}
}

func sortedNodes(nodes map[base.StoreID]placement.NodeNow) []base.StoreID {
	ids := make([]base.StoreID, 0, len(nodes))
	for id := range nodes {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

// listing returns the shards that list a node as far as the reports say.
func (w memberWorld) listing(id base.StoreID) (out []*base.Descriptor) {
	c := &w.m.plan
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.view == nil {
		return nil
	}
	if s := c.view.Store(id); s != nil {
		s.Shards(func(sh *plan.Shard) bool {
			if sh.ListedOn(id) != nil && sh.End != "" {
				out = append(out, sh.Desc())
			}
			return true
		})
	}
	return out
}

func (w memberWorld) leader(d *base.Descriptor) base.StoreID { return w.m.leaderOf(d) }

// fits judges by the rules whether a replica may go to another node.
func (w memberWorld) fits() func(d *base.Descriptor, from, to base.StoreID) bool {
	p := w.m.rules.get()
	labels := make(map[base.StoreID]map[string]string)
	for id, st := range w.m.reports.view.Stores() {
		labels[id] = st.Node.Labels
	}
	fitters := make(map[int]*rules.Fitter)
	return func(d *base.Descriptor, from, to base.StoreID) bool {
		e := p.effective(d.Start)
		f := fitters[e.Index]
		if f == nil {
			f = rules.NewFitter(e)
			fitters[e.Index] = f
		}
		var now, then []rules.Placed
		for _, r := range d.Replicas {
			at := rules.Placed{Store: rules.Store{ID: r.Store, Labels: labels[r.Store]}, Learner: r.Role == base.RoleLearner}
			now = append(now, at)
			if r.Store == from {
				at.Store = rules.Store{ID: to, Labels: labels[to]}
			}
			then = append(then, at)
		}
		ok, _ := f.Allows(rules.Store{ID: to, Labels: labels[to]})
		return ok && f.Fit(then).Compare(f.Fit(now)) >= 0
	}
}
