package plan

import (
	"fmt"
	"time"

	"github.com/shardd/shardd/internal/base"
)

// Planner is what planning remembers from round to round: which shards wait after a failure, where searches go on, and
// the journal. All of it may be lost; a new leader of the meta shard starts with none. It never changes the view's facts.
type Planner struct {
	began   time.Duration
	waiting bool

	waits   map[base.ShardID]*wait
	stores  uint64 // the view's stores when waits was last cleared of those for want of room
	cursors map[Need]*Shard
	idle    [schedulers]idle
	// evicting is the slow store that leaders are being taken off.
	evicting base.StoreID

	journal journal
	rounds  uint64
}

// wait is why a shard is left alone for a while.
type wait struct {
	until time.Duration
	tries uint8
	room  bool // nothing could be done; other stores may change that
	avoid base.StoreID
}

// idle says that a scheduler found nothing to do in the view as it was.
type idle struct {
	structure uint64
	until     time.Duration
	fruitless int
	cursor    uint64
}

// Schedulers with a memory.
const (
	schedReplicas = iota
	schedLeaders
	schedBytes
	schedulers
)

// NewPlanner returns a planner that waits for the stores' reports first.
func NewPlanner(now time.Duration) *Planner {
	return &Planner{began: now, waiting: true, waits: make(map[base.ShardID]*wait), cursors: make(map[Need]*Shard)}
}

// Round is what one round of planning came to.
type Round struct {
	// Waiting is set while nothing is proposed after a change of the driver, with the reason.
	Waiting string
	// Ops are the operators to start, the most urgent first. Whoever does sets their ID and calls Started.
	Ops []Operator
	// Checked is how many shards were checked because they had changed, Scanned how many that need something were looked at.
	Checked, Scanned int
	// ReplicaSpread and LeaderSpread are the largest less the smallest number per store, of the stores that may have them,
	// work in flight counted as done.
	ReplicaSpread, LeaderSpread int
	// NoRoom counts the stores whose disk is too full for balance to give them replicas.
	NoRoom int
}

// Plan works out what should be done next in a view of which nothing is remembered: every shard is checked. The driver
// keeps a Planner instead, which checks what changed; both come to the same.
func Plan(v *View, cfg Config, now time.Duration, running ...*Operator) *Round {
	p := NewPlanner(now)
	p.waiting = false
	return p.Round(v, cfg, now, running)
}

// Round works out what should be done next. running are all operators in flight, those that people started included; what
// they are about to change counts as done. Of the view it changes only what Tick and the checks of shards keep there.
func (p *Planner) Round(v *View, cfg Config, now time.Duration, running []*Operator) *Round {
	cfg = cfg.WithDefaults()
	p.rounds++
	v.Tick(&cfg, now)
	out := &Round{Checked: v.refresh(&cfg)}
	if p.waiting {
		if out.Waiting = p.waitsFor(v, &cfg); out.Waiting != "" {
			return out
		}
		p.waiting = false
	}
	p.forgetWaits(v)
	r := newRound(p, v, &cfg, running)
	r.run()
	out.Ops, out.Scanned = r.out, r.scanned
	out.ReplicaSpread, out.LeaderSpread = r.spreads()
	out.NoRoom = r.noRoom()
	for i := range r.notes {
		d := &r.notes[i]
		d.seq = p.journal.add(*d, cfg.JournalBytes)
		if d.op > 0 {
			out.Ops[d.op-1].decision = d.seq
		}
	}
	return out
}

// run serves the needs of shards in their order, then balances stores.
func (r *round) run() {
	for _, k := range r.kinds() {
		if k.need == NeedLeader {
			r.evict()
		}
		r.serve(k)
	}
	r.balanceReplicas()
	r.balanceLeaders()
	r.balanceLoad()
}

// waitsFor says which stores a new driver still waits for; empty if it may begin. Stores that were down before do not
// report: the grace period ends that.
func (p *Planner) waitsFor(v *View, cfg *Config) string {
	if v.now-p.began >= cfg.Grace {
		return ""
	}
	missing, listed := 0, 0
	var first base.StoreID
	for _, s := range v.order {
		if !s.Listed || s.Commission == Removed || s.Commission == Decommissioned {
			continue
		}
		listed++
		if !s.Full {
			if missing++; first == 0 {
				first = s.ID
			}
		}
	}
	if missing == 0 && listed > 0 {
		return ""
	}
	if missing == 0 {
		return "no node is known yet"
	}
	return fmt.Sprintf("%d of %d nodes have not reported yet, %s first of them; begins without them in %s", missing, listed,
		first, (cfg.Grace - (v.now - p.began)).Round(time.Second))
}

// Started tells the planner that an operator was started, under the ID that it has now.
func (p *Planner) Started(op *Operator) { p.journal.name(op.decision, op.ID) }

// Ended tells the planner what came of an operator. After a failure its shard is left alone for a while that doubles each
// time, and the store that was to get something is avoided for the shard.
func (p *Planner) Ended(op *Operator, failed string, now time.Duration, cfg Config) {
	cfg = cfg.WithDefaults()
	outcome := "done: " + op.String()
	if failed == "" {
		delete(p.waits, op.Shard)
	} else {
		outcome = "failed: " + op.String() + ": " + failed
		w := p.wait(op.Shard, now, &cfg)
		w.room, w.avoid = false, op.To
	}
	p.journal.add(Decision{
		At: now, By: op.Maker, Shard: op.Shard, Stores: [2]base.StoreID{op.From, op.To}, Outcome: outcome, Operator: op.ID,
	}, cfg.JournalBytes)
}

// wait has a shard left alone for a while.
func (p *Planner) wait(id base.ShardID, now time.Duration, cfg *Config) *wait {
	w := p.waits[id]
	if w == nil {
		w = &wait{}
		p.waits[id] = w
	}
	w.until = now + min(cfg.Backoff<<min(w.tries, 16), cfg.MaxBackoff)
	w.tries = min(w.tries+1, 16)
	w.room = true
	return w
}

// avoids reports whether a store failed to get something of a shard not long ago.
func (p *Planner) avoids(id base.ShardID, s base.StoreID) bool {
	w := p.waits[id]
	return w != nil && w.avoid == s
}

// forgetWaits drops what is long over, and if other stores may have replicas than before, all waits for want of room.
func (p *Planner) forgetWaits(v *View) {
	room := p.stores != v.bestsOf
	p.stores = v.bestsOf
	if !room && p.rounds%64 != 0 {
		return
	}
	for id, w := range p.waits {
		if w.room && room || v.now > w.until+time.Hour || v.shards[id] == nil {
			delete(p.waits, id)
		}
	}
}

// deadline is how long an operator may take: a fixed part, and what its bytes take at the least rate, twice.
func deadline(op *Operator, cfg *Config) time.Duration {
	copying := 2 * time.Duration(float64(op.Bytes)/float64(cfg.SnapshotRate)*float64(time.Second))
	switch op.Kind {
	case OpTransfer:
		return 30 * time.Second
	case OpSplit:
		return 5 * time.Minute
	case OpMerge:
		return 10 * time.Minute
	}
	return 5*time.Minute + copying
}
