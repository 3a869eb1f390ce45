package plan

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/shardd/shardd/internal/base"
)

// Trial is a change to a cluster that Simulate tries out.
type Trial struct {
	// Add are labels of nodes to add; they get the largest capacity that there is.
	Add []map[string]string
	// Remove are nodes to decommission.
	Remove []base.StoreID
	// Lose are nodes that are lost at once; they count as down from the first moment.
	Lose []base.StoreID
	// Rules, if not nil, are tried instead of those in the settings. The rules that a simulation runs with must not be in use
	// elsewhere meanwhile if they remember what they see.
	Rules Rules
	// Rate is the bytes per second of one snapshot (32 MiB).
	Rate uint64
	// Limit ends the simulation (7 days of simulated time), MaxRounds as well (100,000).
	Limit     time.Duration
	MaxRounds int
	// MaxMoves bounds the list of moves (1,000); all are counted.
	MaxMoves int
}

// Tried is what a simulation came to.
type Tried struct {
	// Moves are in the order in which they end; those past the limit are only counted in Total.
	Moves []TriedMove
	Total int
	Bytes uint64
	Took  time.Duration
	Nodes []TriedNode
	// Problems stay wrong at the end, one line each.
	Problems []string
	// Unfinished: it did not come to rest within the limits.
	Unfinished bool
}

// TriedMove is one operator that was done.
type TriedMove struct {
	At       time.Duration // since the change
	Kind     OpKind
	Shard    base.ShardID
	From, To base.StoreID
	Bytes    uint64
	Reason   string
}

// TriedNode is a node before and after.
type TriedNode struct {
	ID            base.StoreID
	Labels        map[string]string
	Before, After TriedCounts
	Note          string
}

// TriedCounts is what a node holds.
type TriedCounts struct {
	Replicas, Leaders int
	Bytes             uint64
}

// Simulate runs the planner on a copy of the view with a change, until nothing is proposed any more: what a cluster would
// do, in which order, and how long it would take. Loads and sizes stay as they are; merges are off.
func Simulate(v *View, cfg Config, t Trial) *Tried {
	set(&t.Rate, 32<<20)
	set(&t.Limit, 7*24*time.Hour)
	set(&t.MaxRounds, 100_000)
	set(&t.MaxMoves, 1000)
	cfg.Off |= PartMerge
	if t.Rules != nil {
		cfg.Rules = t.Rules
	}
	out := &Tried{}
	w := newWorld(v.Clone(), cfg, float64(t.Rate))
	began := w.now
	nodes := w.begin(&t)
	w.done = func(op *Operator) {
		out.Total++
		out.Bytes += op.Bytes
		if len(out.Moves) < t.MaxMoves {
			out.Moves = append(out.Moves, TriedMove{w.now - began, op.Kind, op.Shard, op.From, op.To, op.Bytes, op.Reason})
		}
	}
	// At rest nothing runs and nothing is proposed, not even later, when no shard is left alone any more.
	still := 0
	naps := []time.Duration{w.cfg.SlowFor, w.cfg.Cooldown, w.cfg.MaxBackoff, idleFor, w.cfg.MaxBackoff}
	last, nap := w.now, time.Duration(0)
	for rounds := 0; still < len(naps); rounds++ {
		if rounds >= t.MaxRounds || w.now-began > t.Limit {
			out.Unfinished = true
			break
		}
		r := w.round()
		switch {
		case len(w.running) > 0:
			still, nap = 0, 0
			// A second of planning at a time, and not before something ends.
			w.to(max(w.running[0].ends, w.now+time.Second))
			last = w.now
		case len(r.Ops) == 0:
			if nap == 0 {
				nap = w.now + naps[still]
			}
			w.to(w.waked(nap))
			if w.now >= nap {
				still, nap = still+1, 0
			}
		}
	}
	out.Took = last - began
	w.finish(out, nodes)
	return out
}

// waked is when the first shard that is left alone now no longer is, at most a time.
func (w *world) waked(at time.Duration) time.Duration {
	soon := w.now + time.Second
	for _, x := range w.p.waits {
		if x.until > w.now {
			at = min(at, max(x.until, soon))
		}
	}
	return at
}

// begin makes the change and returns the nodes as they were before.
func (w *world) begin(t *Trial) map[base.StoreID]*TriedNode {
	nodes := make(map[base.StoreID]*TriedNode)
	var capacity uint64
	var highest base.StoreID
	for _, s := range w.v.order {
		n := &TriedNode{ID: s.ID, Labels: s.Labels, Before: TriedCounts{s.Replicas, s.Leaders, s.Bytes}}
		nodes[s.ID] = n
		capacity, highest = max(capacity, s.DiskCapacity), max(highest, s.ID)
		if !w.v.Alive(s, &w.cfg) {
			w.dead[s.ID] = true
			n.Note = "down"
		}
	}
	for _, labels := range t.Add {
		highest++
		w.v.SetMember(Member{ID: highest, Labels: maps.Clone(labels)}, w.now)
		s := w.v.stores[highest]
		s.Known, s.Full, s.DiskCapacity, s.DiskFree = true, true, capacity, capacity
		nodes[highest] = &TriedNode{ID: highest, Labels: labels, Note: "added"}
	}
	for _, id := range t.Remove {
		if s := w.v.stores[id]; s != nil {
			m := s.Member
			m.Commission = Decommissioning
			w.v.SetMember(m, w.now)
			nodes[id].Note = "removed"
		}
	}
	for _, id := range t.Lose {
		if s := w.v.stores[id]; s != nil {
			w.dead[id] = true
			s.Seen = w.now - w.cfg.DownAfter - time.Second
			nodes[id].Note = "lost"
		}
	}
	w.v.Tick(&w.cfg, w.now)
	w.elect()
	return nodes
}

// finish takes down how the nodes are, and what is wrong.
func (w *world) finish(out *Tried, nodes map[base.StoreID]*TriedNode) {
	for _, s := range w.v.order {
		n := nodes[s.ID]
		if n == nil {
			continue
		}
		n.After = TriedCounts{s.Replicas, s.Leaders, s.Bytes}
		out.Nodes = append(out.Nodes, *n)
		if s.leaving() && s.Replicas > 0 {
			out.Problems = append(out.Problems, fmt.Sprintf("%s keeps %d replicas", s.ID, s.Replicas))
		}
	}
	slices.SortFunc(out.Nodes, func(a, b TriedNode) int { return cmp.Compare(a.ID, b.ID) })
	for i, set := range w.v.needs {
		if n := set.Len(); n > 0 && Need(1<<i) != NeedHotKey && Need(1<<i) != NeedMerge {
			first, _ := set.Min()
			out.Problems = append(out.Problems, fmt.Sprintf("%d shards: %s, %s first of them", n, needNames[i], first.ID))
		}
	}
}
