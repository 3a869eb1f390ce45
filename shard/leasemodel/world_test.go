package leasemodel

import (
	"fmt"
	"math"
	"math/rand"
	"slices"
	"time"

	"go.etcd.io/etcd/raft/v3/raftpb"

	"github.com/shardd/shardd/internal/base"
)

// The protocol's settings, as a cluster has them by default.
const (
	promise  = 800 * time.Millisecond // D
	margin   = 0.05                   // bound on the ratio of the rates of any two clocks
	beat     = 250 * time.Millisecond // between beats of stores
	interval = 100 * time.Millisecond // between ticks
	election = 10                     // ElectionTick
)

// world is one run: all stores, the network between them, and what is yet to happen. It moves by run only, on one
// goroutine, and everything in it follows from the seed. Times are real time, which no store sees: each has a clock of
// its own.
type world struct {
	seed      int64
	rng       *rand.Rand
	removed   rule // what this run goes without
	now       time.Duration
	events    events
	seq       uint64
	stores    []*store // by id, from 1
	faults    faults
	oracle    *oracle
	births    map[base.ShardID]machine
	nextRep   uint64 // replica ids and values are given out across all shards
	lastShard uint64
	breach    string // the first one ends the run
	done      bool
	trace     []string // nil: off
	stats     stats
}

// stats shows that runs do what they are for.
type stats struct {
	events, elections, leases, reads, answered, transfers, changes, splits, restarts, lapses, sleeps, fresh int
}

func (s *stats) add(o stats) {
	s.events += o.events
	s.elections += o.elections
	s.leases += o.leases
	s.reads += o.reads
	s.answered += o.answered
	s.transfers += o.transfers
	s.changes += o.changes
	s.splits += o.splits
	s.restarts += o.restarts
	s.lapses += o.lapses
	s.sleeps += o.sleeps
	s.fresh += o.fresh
}

// event is something to do at a time. One of a store waits while the store is paused, and is void once it has died,
// unless it is of any life.
type event struct {
	at   time.Duration
	seq  uint64
	st   *store // nil: of nobody
	life uint64 // 0: of whichever there is
	do   func()
}

// events is a heap, the next one first.
type events []*event

func (a *event) before(b *event) bool { return a.at < b.at || a.at == b.at && a.seq < b.seq }

func (q *events) push(ev *event) {
	h := append(*q, ev)
	i := len(h) - 1
	for i > 0 {
		up := (i - 1) / 2
		if !ev.before(h[up]) {
			break
		}
		h[i], i = h[up], up
	}
	h[i] = ev
	*q = h
}

func (q *events) pop() *event {
	h := *q
	first, last := h[0], h[len(h)-1]
	h[len(h)-1] = nil
	h = h[:len(h)-1]
	i := 0
	for {
		down := 2*i + 1
		if down+1 < len(h) && h[down+1].before(h[down]) {
			down++
		}
		if down >= len(h) || !h[down].before(last) {
			break
		}
		h[i], i = h[down], down
	}
	if len(h) > 0 {
		h[i] = last
	}
	*q = h
	return first
}

// in does something after a while of real time; on a store, in its present life, if one is given.
func (w *world) in(d time.Duration, st *store, do func()) {
	life := uint64(0)
	if st != nil {
		life = st.life
	}
	w.inLife(d, st, life, do)
}

func (w *world) inLife(d time.Duration, st *store, life uint64, do func()) {
	w.seq++
	w.events.push(&event{at: w.now + d, seq: w.seq, st: st, life: life, do: do})
}

// until lets the world run until a time, the end, or a breach.
func (w *world) until(end time.Duration) {
	for w.breach == "" && !w.done && len(w.events) > 0 && w.events[0].at <= end {
		ev := w.events.pop()
		w.now = ev.at
		if st := ev.st; st != nil {
			if !st.up || ev.life != 0 && st.life != ev.life {
				continue
			}
			if w.now < st.paused {
				st.deferred = append(st.deferred, ev)
				continue
			}
		}
		w.stats.events++
		ev.do()
		w.oracle.look(w)
	}
	if w.breach == "" && !w.done {
		w.now = end
	}
}

// between returns a duration in [lo, hi); each order of magnitude is as likely as any other.
func (w *world) between(lo, hi time.Duration) time.Duration {
	return time.Duration(float64(lo) * math.Pow(float64(hi)/float64(lo), w.rng.Float64()))
}

func (w *world) chance(p float64) bool { return w.rng.Float64() < p }

func (w *world) without(r rule) bool { return w.removed&r != 0 }

func (w *world) store(id base.StoreID) *store { return w.stores[id-1] }

// breaks records that a rule was broken.
func (w *world) breaks(format string, args ...any) {
	if w.breach == "" {
		w.breach = fmt.Sprintf(format, args...)
		w.logf("BREACH: %s", w.breach)
	}
}

func (w *world) logf(format string, args ...any) {
	if w.trace != nil {
		at := fmt.Sprintf("%9.3fms ", float64(w.now)/float64(time.Millisecond))
		w.trace = append(w.trace, at+fmt.Sprintf(format, args...))
	}
}

// tracing is asked before a line is put together that costs something.
func (w *world) tracing() bool { return w.trace != nil }

// store is one store: what is on its disk, and what the process of its present life holds.
type store struct {
	w    *world
	id   base.StoreID
	rate float64       // of its clock against real time
	base time.Duration // what its clock showed at the start of the world

	disks []*disk                 // by shard
	gone  map[base.ShardID]uint64 // the highest replica id destroyed here

	up       bool
	life     uint64        // incarnation
	born     time.Duration // on its own clock
	paused   time.Duration // until then, in real time
	deferred []*event
	replicas []*replica // by shard
	live     *support
	seen     map[base.StoreID]uint64 // the highest incarnation heard of

	applyLag time.Duration // what applying a run of entries takes at least
	syncLag  time.Duration
}

// clock is what the store's clock shows. It runs on through pauses and restarts, like CLOCK_BOOTTIME.
func (st *store) clock() time.Duration { return st.base + time.Duration(float64(st.w.now)*st.rate) }

// real is how much real time passes while the store's clock moves by d.
func (st *store) real(d time.Duration) time.Duration { return time.Duration(float64(d) / st.rate) }

func (st *store) String() string { return st.id.String() }

func (st *store) replica(shard base.ShardID) *replica {
	for _, r := range st.replicas {
		if r.shard == shard {
			return r
		}
	}
	return nil
}

// start begins a life of the store from its disk.
func (st *store) start() {
	w := st.w
	st.up = true
	st.life++
	st.born = st.clock()
	st.paused, st.deferred = 0, nil
	st.seen = map[base.StoreID]uint64{}
	st.replicas = nil
	st.live = newSupport(st)
	for _, d := range st.disks {
		st.load(d)
	}
	st.tick(st.life)
	w.logf("%s starts its life %d", st, st.life)
}

// stop ends a life at once. Of a sync under way nobody knows whether it happened.
func (st *store) stop() {
	st.w.stats.restarts++
	for _, r := range st.replicas {
		if r.inflight && !r.synced && st.w.chance(0.5) {
			r.persist()
		}
	}
	st.up, st.replicas, st.live = false, nil, nil
	st.w.logf("%s dies", st)
}

// pause stops the process for a while; its clock runs on.
func (st *store) pause(d time.Duration) {
	w := st.w
	st.paused = max(st.paused, w.now+d)
	life := st.life
	w.logf("%s is paused for %s", st, d)
	w.in(d, nil, func() {
		if st.life != life || w.now < st.paused {
			return
		}
		late := st.deferred
		st.deferred = nil
		for _, ev := range late { // in any order: threads, sockets and timers wake as they like
			w.in(time.Duration(w.rng.Int63n(int64(2*time.Millisecond))), st, ev.do)
		}
	})
}

// tick is the store's ticker.
func (st *store) tick(life uint64) {
	st.w.in(st.real(interval), st, func() {
		if st.life == life {
			st.live.tick()
			if st.w.chance(0.05) {
				st.live.ask()
			}
			for _, r := range slices.Clone(st.replicas) {
				r.ticks = min(r.ticks+1, election/2)
				r.visit()
			}
			st.tick(life)
		}
	})
}

// quarantined is V7: the store may have promised something in its previous life that still binds it.
func (st *store) quarantined() bool {
	return st.life > 1 && st.clock() < st.born+promise && !st.w.without(V7)
}

// message is one raft message on the wire.
type message struct {
	from, to base.StoreID
	life     uint64 // of the sender
	shard    base.ShardID
	m        raftpb.Message
	stamp    stamp
}

// receive hands a raft message to its replica, which may have to be made for it.
func (st *store) receive(m *message) {
	if m.life < st.seen[m.from] {
		return // V13: frames of an older incarnation
	}
	st.seen[m.from] = m.life
	r := st.replica(m.shard)
	if r == nil {
		if r = st.create(m.from, m.shard, m.m.To); r == nil {
			return
		}
	}
	if r.id != m.m.To {
		return
	}
	r.inbox = append(r.inbox, m)
	r.visit()
}
