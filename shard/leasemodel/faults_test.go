package leasemodel

import (
	"math/rand"
	"slices"
	"time"

	"go.etcd.io/etcd/raft/v3"
	"go.etcd.io/etcd/raft/v3/raftpb"
	"go.etcd.io/etcd/raft/v3/tracker"

	"github.com/shardd/shardd/internal/base"
)

// What may happen to a cluster. Each run has a mix of its own, from which some are missing: what never happens beside
// something else cannot hide it.
const (
	opPause = iota
	opPauseLeader
	opRestart
	opRestartQuick
	opCut
	opIsolate
	opMute
	opFlap
	opStray
	opLastWord
	opAmnesia
	opTransfer
	opChange
	opSplit
	opCampaign
	opSlow
	ops
)

// newWorld makes a cluster and its faults; all of it follows from the seed.
func newWorld(seed int64, removed rule) *world {
	seedRaft(seed)
	w := &world{
		seed: seed, rng: rand.New(rand.NewSource(seed)), removed: removed,
		oracle: newOracle(removed == 0), births: map[base.ShardID]machine{}, nextRep: 1, lastShard: 1,
	}
	n := 3 + w.rng.Intn(3)
	for id := 1; id <= n; id++ {
		w.stores = append(w.stores, &store{
			w: w, id: base.StoreID(id), gone: map[base.ShardID]uint64{},
			// No clock is slower than (1 - margin) times any other.
			rate: 1 + margin*(w.rng.Float64()-0.5),
			base: time.Duration(w.rng.Int63n(int64(time.Hour))),
		})
		w.stores[id-1].quick()
	}
	if ends := w.chance(0.3); ends || w.without(Margin) { // the ends of what is allowed
		for _, st := range w.stores {
			st.rate = 1 + margin/2*float64(1-2*w.rng.Intn(2))
		}
	}
	voters := n
	if w.chance(0.5) {
		voters = min(n, 3)
	}
	m := machine{hi: keys, applied: birthIndex}
	for _, i := range w.rng.Perm(n)[:voters] {
		m.conf.Voters = append(m.conf.Voters, w.nextRep*storesMax+uint64(i+1))
	}
	w.nextRep++
	m.count()
	const first = base.ShardID(1)
	w.births[first] = m
	w.oracle.groups[first] = &history{m: m}
	for _, id := range m.conf.Voters {
		st := w.store(storeOf(id))
		st.disks = append(st.disks, newDisk(first, id, m, birthTerm))
	}
	f := &w.faults
	f.cuts = map[link]time.Duration{}
	if w.chance(0.7) {
		f.loss, f.dup = 0.1*w.rng.Float64(), 0.1*w.rng.Float64()
		f.slow, f.tail = 0.1*w.rng.Float64(), w.between(10*time.Millisecond, 2*time.Second)
	}
	for i := range f.weights {
		f.weights[i] = []int{0, 0, 1, 1, 5}[w.rng.Intn(5)]
	}
	f.gap = w.between(50*time.Millisecond, 600*time.Millisecond)
	f.readGap = w.between(4*time.Millisecond, 30*time.Millisecond)
	f.writeGap = w.between(10*time.Millisecond, 4*time.Second)
	for _, st := range w.stores {
		st.start()
	}
	w.every(func() time.Duration { return f.gap }, w.fault)
	w.every(func() time.Duration { return f.readGap }, w.readSomewhere)
	w.every(func() time.Duration { return f.writeGap }, w.writeSomewhere)
	w.every(func() time.Duration { return 300 * time.Millisecond }, w.leaveJoint)
	w.every(func() time.Duration { return 300 * time.Millisecond }, w.removeOrphans)
	return w
}

// every does something again and again, after random times of that mean.
func (w *world) every(mean func() time.Duration, do func()) {
	w.in(time.Duration(w.rng.ExpFloat64()*float64(mean())), nil, func() {
		do()
		w.every(mean, do)
	})
}

// quick makes a store as fast as a good one.
func (st *store) quick() { st.applyLag, st.syncLag = time.Millisecond, 2*time.Millisecond }

// leaders returns the replicas that believe that they lead, of a shard, or of all for 0.
func (w *world) leaders(shard base.ShardID) (out []*replica) {
	for _, st := range w.stores {
		for _, r := range st.replicas {
			if r.leads != 0 && (shard == 0 || r.shard == shard) {
				out = append(out, r)
			}
		}
	}
	return out
}

func pick[T any](w *world, from []T) (x T) {
	if len(from) > 0 {
		x = from[w.rng.Intn(len(from))]
	}
	return x
}

// readSomewhere reads at any store that has a leader for a key, however old its news.
func (w *world) readSomewhere() {
	if r := pick(w, w.leaders(0)); r != nil && r.m.hi > r.m.lo {
		key := r.m.lo + w.rng.Intn(r.m.hi-r.m.lo)
		w.in(0, r.st, func() { r.st.read(key) })
	}
}

func (w *world) writeSomewhere() {
	if r := pick(w, w.leaders(0)); r != nil {
		w.nextRep++
		c := command{key: r.m.lo + w.rng.Intn(r.m.hi-r.m.lo), id: w.nextRep}
		w.in(0, r.st, func() { r.propose(c) })
	}
}

func (r *replica) propose(c command) {
	r.do(func() {
		// One on its way out takes no writes: what it appends after its own demotion could keep all others from being
		// elected while it may not be.
		if r.leads != 0 && r.stays() {
			r.wake()
			_ = r.rn.Propose(c.encode()) // dropped during a transfer
		}
	})
}

// leaveJoint is what every leader does; one that is on its way out hands over first.
func (w *world) leaveJoint() {
	for _, r := range w.leaders(0) {
		switch {
		case len(r.m.conf.VotersOutgoing) == 0:
		case r.stays():
			w.in(0, r.st, func() { r.change(raftpb.ConfChangeV2{}) })
		default:
			to := pick(w, r.m.conf.Voters)
			w.in(0, r.st, func() { r.do(func() { r.transfer(to) }) })
		}
	}
}

// removeOrphans is I5: a replica that knows no leader, or sometimes one that does, asks the others of its shard, and goes if
// the applied state of one shows that it is no member any more. Until then it may stand in the way of what was split off
// without it.
func (w *world) removeOrphans() {
	for _, st := range w.stores {
		for _, r := range slices.Clone(st.replicas) {
			if r.rn.BasicStatus().Lead != 0 && !w.chance(0.2) {
				continue
			}
			for _, o := range w.stores {
				cut := max(w.faults.cuts[link{st.id, o.id, laneRaft}], w.faults.cuts[link{o.id, st.id, laneRaft}])
				if other := o.replica(r.shard); o != st && cut <= w.now && other != nil && other.m.removed(r.id) {
					w.in(0, st, func() { r.do(r.destroy) })
					break
				}
			}
		}
	}
}

// stays reports whether a replica will be a voter when its group has left a joint configuration.
func (r *replica) stays() bool { return slices.Contains(r.m.conf.Voters, r.id) }

func (r *replica) change(cc raftpb.ConfChangeV2) {
	r.do(func() {
		if r.leads != 0 && r.m.applied >= r.first {
			r.wake()
			_ = r.rn.ProposeConfChange(cc)
		}
	})
}

// fault does one thing of the run's mix.
func (w *world) fault() {
	sum := 0
	for _, n := range w.faults.weights {
		sum += n
	}
	if sum == 0 || w.faults.over {
		return
	}
	n, op := w.rng.Intn(sum), 0
	for ; n >= w.faults.weights[op]; op++ {
		n -= w.faults.weights[op]
	}
	st, r := pick(w, w.stores), pick(w, w.leaders(0))
	switch op {
	case opPause:
		st.pause(w.between(promise/20, 3*promise))
	case opPauseLeader:
		if r != nil {
			r.st.pause(w.between(promise/4, 3*promise))
		}
	case opRestart:
		w.restart(st, w.between(time.Millisecond, 2*promise))
	case opRestartQuick:
		w.restart(st, w.between(time.Millisecond, promise/4))
		if w.chance(0.3) {
			w.restart(pick(w, w.stores), w.between(time.Millisecond, promise/4))
		}
	case opCut:
		w.cut(st.id, pick(w, w.stores).id)
	case opIsolate:
		w.cutAll(st, w.between(promise/4, 4*promise), laneRaft, laneLive)
	case opMute: // a leader's raft messages are lost, while its store is well
		if r != nil {
			w.cutAll(r.st, w.between(promise/4, 4*promise), laneRaft)
		}
	case opFlap: // support of a leader lapses and comes back while its raft messages are still lost
		if r != nil {
			w.cutAll(r.st, w.between(promise, 2*promise), laneLive)
			w.cutAll(r.st, w.between(2*promise, 4*promise), laneRaft)
		}
	case opStray: // followers get late news of a higher term, their leader does not
		if r == nil {
			return
		}
		w.cutAll(r.st, w.between(promise/4, 2*promise), laneRaft)
		for _, st := range w.stores {
			if st.up && st != r.st {
				w.in(0, st, func() { st.stray(r) })
				w.in(w.between(promise/50, promise), nil, func() { w.campaignOn(st) })
			}
		}
	case opLastWord: // the next leader that commits something is cut off before it can tell
		w.faults.lastWord = true
	case opAmnesia: // a leader is cut off while all others forget what they have promised
		if r == nil {
			return
		}
		w.cutAll(r.st, w.between(promise/4, 4*promise), laneRaft, laneLive)
		for _, other := range w.stores {
			if other != r.st {
				w.in(w.between(promise/50, promise/2), nil, func() {
					w.restart(other, w.between(time.Millisecond, promise/20))
				})
				w.in(w.between(promise/10, promise), nil, func() { w.campaignOn(other) })
			}
		}
	case opTransfer:
		if r != nil {
			to := pick(w, r.m.conf.Voters)
			w.in(0, r.st, func() { r.do(func() { r.transfer(to) }) })
			if to != 0 && w.chance(0.3) { // and the old leader hears nothing of the new one
				w.faults.cuts[link{storeOf(to), r.st.id, laneRaft}] = w.now + w.between(promise/8, promise)
			}
		}
	case opChange:
		if r != nil {
			for i := range 1 + w.rng.Intn(5) {
				w.in(time.Duration(i)*w.between(promise/50, promise/2), r.st, func() {
					r.do(func() { w.changeSomehow(r) })
				})
			}
		}
	case opSplit:
		if r != nil && r.m.hi-r.m.lo > 1 {
			w.lastShard++
			c := command{split: true, key: r.m.lo + 1 + w.rng.Intn(r.m.hi-r.m.lo-1), id: w.lastShard}
			w.in(0, r.st, func() { r.propose(c) })
			if w.chance(0.5) { // and the right-hand side is elected where it is not slow
				w.slow(r.st)
				for _, st := range w.stores {
					w.in(w.between(promise/50, promise/4), nil, func() { w.campaignOn(st) })
				}
			}
		}
	case opCampaign:
		w.campaignOn(st)
	case opSlow:
		if r != nil && w.chance(0.5) {
			st = r.st
		}
		w.slow(st)
	}
}

// slow makes a store's apply or its disk slow for a while.
func (w *world) slow(st *store) {
	if w.chance(0.5) {
		st.applyLag = w.between(10*time.Millisecond, 3*promise)
	} else {
		st.syncLag = w.between(10*time.Millisecond, promise)
	}
	w.in(w.between(promise/2, 3*promise), nil, st.quick)
}

// stray tells a follower of a term that nobody has: as if it came with the refusal of a vote that it asked for long
// ago.
func (st *store) stray(leader *replica) {
	if r := st.replica(leader.shard); r != nil {
		m := raftpb.Message{Type: raftpb.MsgPreVoteResp, Reject: true, From: leader.id, To: r.id,
			Term: r.rn.BasicStatus().Term + 1}
		r.inbox = append(r.inbox, &message{from: leader.st.id, to: st.id, life: leader.st.life, shard: r.shard, m: m})
		r.visit()
	}
}

// campaignOn has some replica of a store call an election, if it may and knows no leader.
func (w *world) campaignOn(st *store) {
	if st.up && len(st.replicas) > 0 {
		w.in(0, st, pick(w, st.replicas).campaignAlone)
	}
}

// cutAll cuts a store off from all others for a while.
func (w *world) cutAll(st *store, d time.Duration, lanes ...int) {
	until := w.now + d
	for _, other := range w.stores {
		if other != st {
			for _, lane := range lanes {
				w.faults.cuts[link{st.id, other.id, lane}] = until
				w.faults.cuts[link{other.id, st.id, lane}] = until
			}
		}
	}
	w.logf("%s is cut off for %s, lanes %v", st, d, lanes)
}

func (w *world) restart(st *store, down time.Duration) {
	if !st.up {
		return
	}
	st.stop()
	w.in(down, nil, st.start)
}

// cut cuts a link for a while, in one direction or both, on one lane or both.
func (w *world) cut(a, b base.StoreID) {
	until := w.now + w.between(promise/4, 4*promise)
	which := 1 + w.rng.Intn(3)
	both := w.chance(0.5)
	for lane := range lanes {
		if which&(1<<lane) != 0 {
			w.faults.cuts[link{a, b, lane}] = until
			if both {
				w.faults.cuts[link{b, a, lane}] = until
			}
		}
	}
	w.logf("%s to %s is cut, lanes %b, both directions: %v", a, b, which, both)
}

// changeSomehow proposes a change of the group's members at its leader.
func (w *world) changeSomehow(r *replica) {
	c := &r.m.conf
	if r.leads == 0 || len(c.VotersOutgoing) > 0 {
		return
	}
	var fit []uint64 // learners that have everything
	st := r.rn.BasicStatus()
	r.rn.WithProgress(func(id uint64, _ raft.ProgressType, pr tracker.Progress) {
		if pr.IsLearner && pr.Match >= st.Commit {
			fit = append(fit, id)
		}
	})
	single := func(t raftpb.ConfChangeType, id uint64) raftpb.ConfChangeSingle {
		return raftpb.ConfChangeSingle{Type: t, NodeID: id}
	}
	const add, learn, remove = raftpb.ConfChangeAddNode, raftpb.ConfChangeAddLearnerNode, raftpb.ConfChangeRemoveNode
	cc := raftpb.ConfChangeV2{Transition: raftpb.ConfChangeTransitionJointExplicit}
	victim := pick(w, c.Voters)
	switch n := w.rng.Intn(10); {
	case len(fit) > 0 && n < 6: // one comes for another
		cc.Changes = append(cc.Changes, single(add, pick(w, fit)), single(learn, victim))
	case len(fit) > 0 && n < 8: // one comes
		cc.Changes = append(cc.Changes, single(add, pick(w, fit)))
	case len(c.Learners) > 0 && n == 8:
		cc = raftpb.ConfChangeV2{Changes: []raftpb.ConfChangeSingle{single(remove, pick(w, c.Learners))}}
	case len(c.Voters) > 1 && n == 9:
		// One goes: never at once, as in shard/change.go. It might destroy itself before those whose vote counts still need
		// its own have durably applied the change.
		cc.Changes = append(cc.Changes, single(learn, victim))
	default:
		to := pick(w, w.stores)
		for _, ids := range [][]uint64{c.Voters, c.Learners} {
			for _, id := range ids {
				if storeOf(id) == to.id {
					return
				}
			}
		}
		cc = raftpb.ConfChangeV2{Changes: []raftpb.ConfChangeSingle{single(learn, w.nextRep*storesMax+uint64(to.id))}}
		w.nextRep++
	}
	r.wake()
	_ = r.rn.ProposeConfChange(cc)
}
