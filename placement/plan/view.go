package plan

import (
	"cmp"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"time"

	"github.com/google/btree"

	"github.com/shardd/shardd/internal/base"
)

// ErrStale marks a report that came behind a later one of its store, of the same incarnation or the next.
var ErrStale = errors.New("stale report")

// View is the cluster as its stores report it. It changes only through SetMember, Forget, Report and Tick.
//
// INVARIANT(index): the numbers of each Store equal what a walk over all shards would count, every shard with a range is
// in the order by key, and Peer.pos is the peer's place in Store.shards. Check tests it.
type View struct {
	// Events takes what happens to shards, as far as the reports show it; nil: nobody listens. It must not call back.
	Events func(Event)

	stores map[base.StoreID]*Store
	order  []*Store // by id
	shards map[base.ShardID]*Shard
	byKey  *btree.BTreeG[*Shard] // shards with a range, by start, then id

	dirty []*Shard
	needs [needKinds]*btree.BTreeG[*Shard] // shards that need something, by urgency and id
	// wake holds shards whose checks must run again at a time, by the time in units of wakeUnit.
	wake map[int64][]base.ShardID

	limits thresholds
	rules  Rules
	now    time.Duration
	// Mismatches counts full reports whose digest was not that of what they said: the two sides disagree how to count.
	Mismatches uint64
	// structure rises with every change that schedulers may have something to do after.
	structure uint64
	// bests are the best fits, of the stores that bestsOf stands for; labelled rises when labels change.
	bests    map[bestKey]Fit
	bestsOf  uint64
	labelled uint64
}

// thresholds are the settings on which class depends.
type thresholds struct {
	splitSize, mergeSize         uint64
	splitRequests, splitBytes    uint64
	splitCPU                     uint64
	mergeRequests, mergeBytesSec uint64
}

// NewView returns an empty view.
func NewView() *View {
	v := &View{
		stores: make(map[base.StoreID]*Store), shards: make(map[base.ShardID]*Shard),
		byKey: btree.NewG(64, keyLess), wake: make(map[int64][]base.ShardID),
		bests: make(map[bestKey]Fit),
	}
	for i := range v.needs {
		v.needs[i] = btree.NewG(64, urgencyLess)
	}
	return v
}

func keyLess(a, b *Shard) bool {
	if a.Start != b.Start {
		return a.Start < b.Start
	}
	return a.ID < b.ID
}

// Store returns a store, nil if nothing is known of it.
func (v *View) Store(id base.StoreID) *Store { return v.stores[id] }

// Stores returns all stores by id. The slice belongs to the view.
func (v *View) Stores() []*Store { return v.order }

// Shard returns a shard, nil if nothing is known of it.
func (v *View) Shard(id base.ShardID) *Shard { return v.shards[id] }

// Len is the number of shards.
func (v *View) Len() int { return len(v.shards) }

// Now is the time of the last report or tick.
func (v *View) Now() time.Duration { return v.now }

// Shards returns the shards whose start is at or above a routing key, in the order of their keys. The view must not change
// meanwhile. Merged ones that a lagging store still holds are left out.
func (v *View) Shards(from string) iter.Seq[*Shard] {
	return func(yield func(*Shard) bool) {
		v.byKey.AscendGreaterOrEqual(&Shard{Start: from}, func(s *Shard) bool { return s.covered || yield(s) })
	}
}

// Find returns the shard that owns a routing key: of two that claim it, the one with the newer range. Nil if none is known.
func (v *View) Find(key string) *Shard {
	var found *Shard
	n := 0
	v.byKey.DescendLessOrEqual(&Shard{Start: key, ID: ^base.ShardID(0)}, func(s *Shard) bool {
		if s.End > key && (found == nil || s.Epoch.Version > found.Epoch.Version) {
			found = s
		}
		n++
		return n < 8 // older ranges that have not shrunk yet may lie before it
	})
	return found
}

// Right returns the shard that begins where this one ends, nil if none is known.
func (v *View) Right(s *Shard) *Shard {
	var right *Shard
	v.byKey.AscendGreaterOrEqual(&Shard{Start: s.End}, func(o *Shard) bool {
		if o.Start != s.End {
			return false
		}
		if !o.covered {
			right = o
		}
		return right == nil
	})
	return right
}

// Left returns the shard that ends where this one begins, nil if none is known.
func (v *View) Left(s *Shard) *Shard {
	var left *Shard
	n := 0
	v.byKey.DescendLessOrEqual(&Shard{Start: s.Start}, func(o *Shard) bool {
		if o.End == s.Start && !o.covered {
			left = o
		}
		n++
		return left == nil && n < 8
	})
	return left
}

// store returns a store, made if need be.
func (v *View) store(id base.StoreID) *Store {
	s := v.stores[id]
	if s == nil {
		s = &Store{Member: Member{ID: id}, Seen: v.now}
		v.stores[id] = s
		at, _ := slices.BinarySearchFunc(v.order, id, func(s *Store, id base.StoreID) int { return cmp.Compare(s.ID, id) })
		v.order = slices.Insert(v.order, at, s)
		v.reorder()
		v.structure++
	}
	return s
}

func (v *View) reorder() {
	for i, s := range v.order {
		s.at = int32(i)
	}
}

// SetMember takes over what the meta shard's records say of a node. A node that has not reported counts as last seen when
// it was first set.
func (v *View) SetMember(m Member, now time.Duration) {
	v.advance(now)
	s := v.store(m.ID)
	if !s.Listed || !s.sameLabels(m.Labels) {
		v.labelled++
	}
	same := s.Listed && s.Commission == m.Commission && s.Drain == m.Drain && s.sameLabels(m.Labels)
	if s.sameLabels(m.Labels) && s.Labels != nil {
		m.Labels = s.Labels // rules remember what they made of a map
	} else if m.Labels = maps.Clone(m.Labels); m.Labels == nil {
		m.Labels = map[string]string{}
	}
	s.Member, s.Listed = m, true
	if !same {
		v.touchStore(s)
	}
}

// Forget drops a node that no longer is a member; what it held counts no more.
func (v *View) Forget(id base.StoreID) {
	s := v.stores[id]
	if s == nil {
		return
	}
	for _, sh := range slices.Clone(s.shards) {
		v.unreport(s, sh)
	}
	s.Member, s.Listed, s.Known, s.Full = Member{ID: id}, false, false, false
	v.touchStore(s)
	if len(s.shards) == 0 { // else descriptors list it still
		delete(v.stores, id)
		v.order = slices.DeleteFunc(v.order, func(o *Store) bool { return o == s })
		v.reorder()
	}
}

// touchStore has the checks of all its shards run again.
func (v *View) touchStore(s *Store) {
	v.structure++
	for _, sh := range s.shards {
		v.touch(sh)
	}
}

// touch has the checks of a shard run again in the next round.
func (v *View) touch(sh *Shard) {
	if !sh.dirty {
		sh.dirty = true
		v.dirty = append(v.dirty, sh)
	}
}

// wakeAt has the checks of a shard run again once a time is reached.
func (v *View) wakeAt(sh *Shard, at time.Duration) {
	slot := int64((at + wakeUnit - 1) / wakeUnit)
	v.wake[slot] = append(v.wake[slot], sh.ID)
}

const wakeUnit = time.Second

// coarse is the time that checks go by: whole units, so that a shard that waits is looked at when its time has come.
func (v *View) coarse() time.Duration { return v.now / wakeUnit * wakeUnit }

func (v *View) advance(now time.Duration) { v.now = max(v.now, now) }

// Tick brings the view to a time: stores that have become silent for too long are down from here on.
func (v *View) Tick(cfg *Config, now time.Duration) {
	v.advance(now)
	v.setLimits(cfg)
	for _, s := range v.order {
		down, alive := v.isDown(s, cfg), v.Alive(s, cfg)
		if down != s.down || alive != s.alive {
			s.down, s.alive = down, alive
			v.touchStore(s)
		}
		if slow := s.SlowEver && v.now-s.SlowSeen < cfg.SlowFor; slow != s.slow {
			s.slow = slow
			v.structure++
		}
	}
	v.renewBests()
	for slot, ids := range v.wake {
		if int64(v.now/wakeUnit) < slot {
			continue
		}
		delete(v.wake, slot)
		for _, id := range ids {
			if sh := v.shards[id]; sh != nil {
				v.touch(sh)
			}
		}
	}
	slices.SortFunc(v.dirty, func(a, b *Shard) int { return cmp.Compare(a.ID, b.ID) })
}

// Forgive takes a time in which nobody listened, as of a process that was suspended, off the silence of all stores: they
// are not down for it. Call it before Tick.
func (v *View) Forgive(deaf, now time.Duration) {
	for _, s := range v.order {
		s.Seen = min(s.Seen+deaf, max(now, s.Seen))
	}
}

// isDown reports whether the replicas of a store must be replaced.
func (v *View) isDown(s *Store, cfg *Config) bool {
	return s.Commission == Removed || v.now-s.Seen > cfg.DownAfter
}

// Alive reports whether a store has reported lately.
func (v *View) Alive(s *Store, cfg *Config) bool {
	return s.Known && s.Commission != Removed && v.now-s.Seen <= cfg.AliveFor
}

// Down reports whether a store's replicas are to be replaced, as of the last Tick.
func (s *Store) Down() bool { return s.down }

func (v *View) setLimits(cfg *Config) {
	l := thresholds{
		splitSize: cfg.SplitBytes, mergeSize: cfg.MergeBytes,
		splitRequests: cfg.SplitRequests, splitBytes: cfg.SplitByteRate, splitCPU: cfg.SplitCPUMicros,
		mergeRequests: cfg.MergeRequests, mergeBytesSec: cfg.MergeByteRate,
	}
	rules := cfg.Rules
	if sameUniform(rules, v.rules) {
		rules = v.rules // defaults are filled in anew each time
	}
	if l == v.limits && v.rules == rules {
		return
	}
	if v.rules != rules {
		clear(v.bests)
	}
	v.limits, v.rules = l, rules
	v.structure++
	for _, sh := range v.shards {
		v.setRule(sh)
		v.classify(sh)
		v.touch(sh)
	}
}

// setRule looks up the rule of a shard's range.
func (v *View) setRule(sh *Shard) {
	if v.rules != nil && sh.End != "" {
		sh.rule = v.rules.For(sh.Start, sh.End)
	}
}

// splitSize is the size above which a shard splits.
func (v *View) splitSize(sh *Shard) uint64 {
	if sh.rule != nil {
		if n := sh.rule.SplitBytes(); n > 0 {
			return n
		}
	}
	return v.limits.splitSize
}

// classify keeps a shard's class up; a change has its checks run again.
func (v *View) classify(sh *Shard) {
	l, c := &v.limits, class(0)
	over := func(x, limit uint64) bool { return limit > 0 && x > limit }
	if over(sh.Size, v.splitSize(sh)) {
		c |= classBig
	}
	if over(sh.Load.Requests(), l.splitRequests) || over(sh.Load.Bytes(), l.splitBytes) ||
		over(uint64(sh.Load.CPUMicros), l.splitCPU) {
		c |= classBusy
	}
	if sh.Size <= l.mergeSize && l.mergeSize > 0 {
		c |= classSmall
	}
	if sh.Load.Requests() <= l.mergeRequests && sh.Load.Bytes() <= l.mergeBytesSec {
		c |= classCold
	}
	if sh.HotKey() != "" {
		c |= classHotKey
	}
	if sh.SplitKey() != "" {
		c |= classHasSpot
	}
	if _, id := sh.MergingInto(); id != 0 {
		c |= classFrozen
	}
	if c == sh.class {
		return
	}
	if c&classCold != 0 && sh.class&classCold == 0 {
		sh.Cold = v.now
	}
	sh.class = c
	v.touch(sh)
	if l := v.Left(sh); l != nil {
		v.touch(l) // whether it merges hangs on this one
	}
}

// Clone returns a copy that shares nothing that changes, for trying things out. Its checks all run anew. Events are not
// passed on.
func (v *View) Clone() *View {
	c := NewView()
	c.now, c.Mismatches = v.now, v.Mismatches
	for _, s := range v.order {
		t := *s
		t.shards = make([]*Shard, len(s.shards))
		c.stores[t.ID] = &t
		c.order = append(c.order, &t)
	}
	for _, sh := range v.shards {
		d := *sh
		d.Peers = slices.Clone(sh.Peers)
		if sh.rare != nil {
			r := *sh.rare
			r.faults = maps.Clone(r.faults)
			d.rare = &r
		}
		d.need, d.dirty = 0, false
		c.shards[d.ID] = &d
		for i := range d.Peers {
			c.stores[d.Peers[i].Store].shards[d.Peers[i].pos] = &d
		}
		c.touch(&d)
	}
	v.byKey.Ascend(func(sh *Shard) bool {
		c.byKey.ReplaceOrInsert(c.shards[sh.ID])
		return true
	})
	c.limits, c.rules = v.limits, v.rules
	return c
}

// Check compares the indexes with a walk over everything; for tests.
func (v *View) Check() error {
	type sums struct {
		replicas, leaders, held int
		bytes, digest           uint64
		load                    LoadSum
	}
	want := make(map[base.StoreID]*sums)
	at := func(id base.StoreID) *sums {
		if want[id] == nil {
			want[id] = &sums{}
		}
		return want[id]
	}
	ranged := 0
	for _, sh := range v.shards {
		if sh.End != "" {
			ranged++
			if got, ok := v.byKey.Get(sh); !ok || got != sh {
				return fmt.Errorf("%s is not in the order by key", sh.ID)
			}
		}
		for i, p := range sh.Peers {
			s := v.stores[p.Store]
			if s == nil || int(p.pos) >= len(s.shards) || s.shards[p.pos] != sh {
				return fmt.Errorf("%s: place %d on %s is not its own", sh, p.pos, p.Store)
			}
			if i > 0 && p.Role != 0 && sh.Peers[i-1].Role == 0 {
				return fmt.Errorf("%s: a stray before a listed peer", sh)
			}
			w := at(p.Store)
			w.held++
			w.digest += p.hash
			if p.Role != 0 && !sh.covered && sh.End != "" {
				w.replicas++
				w.bytes += sh.Size
			}
		}
		if sh.Leader != 0 && !sh.covered && sh.End != "" {
			w := at(sh.Leader)
			w.leaders++
			w.load.add(sh.Load, 1)
		}
	}
	if ranged != v.byKey.Len() {
		return fmt.Errorf("%d shards in the order by key, want %d", v.byKey.Len(), ranged)
	}
	for _, s := range v.order {
		w := at(s.ID)
		got := sums{s.Replicas, s.Leaders, len(s.shards), s.Bytes, s.digest, s.Load}
		if got != *w {
			return fmt.Errorf("%s counts %+v, want %+v", s.ID, got, *w)
		}
	}
	return nil
}
