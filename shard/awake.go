package shard

import (
	"go.etcd.io/etcd/raft/v3"
	"go.etcd.io/etcd/raft/v3/raftpb"
	"go.etcd.io/etcd/raft/v3/tracker"

	"github.com/shardd/shardd/engine"
	"github.com/shardd/shardd/internal/base"
)

// Sleep (rule V9). A worker ticks and sweeps only the replicas that are awake; one that sleeps costs no tick, no message
// and no time. Wake: whatever makes the worker look at the replica, a message, a request, a call, something that apply or
// the disk has finished; and what concerns all groups of a store (liveness.go). Doze: a heartbeat, or the answer to one,
// that finds nothing to do for the replica is taken in its sleep. A leader may fall asleep right behind the heartbeat that
// it has sent, and would be woken by the answers otherwise to send the next one, for ever. Sleep, decided behind a tick: a follower
// with nothing to do whose promise binds it; a leader with nothing to do whose lease holds, once every follower on a store
// that supports this one has all of the log and knows that all of it is committed. A follower that is down keeps nobody
// awake: when its store comes back, its leaders are woken. Without a Monitor nothing sleeps.

const (
	// idleTicks is for how many ticks a replica has to be idle before it sleeps.
	idleTicks = 2
	// longLogTicks is the same if its log is over its budget, which is looked after on ticks: by then it was cut if it can be.
	longLogTicks = 30
	// manyAwake is how many replicas of a worker have to be awake for it to look at half of them only with each tick, and
	// give them two then: most of what a tick costs is the look at the replica. See tickDue and decision 0019.
	manyAwake = 128
)

// wake puts a replica on the list of those that are ticked.
func (w *worker) wake(r *replica) {
	rw := &r.worker
	if rw.rests {
		rw.rests, rw.idle = false, 0
	}
	if rw.awake || rw.disposed {
		return
	}
	rw.awake, rw.idle = true, 0
	r.wakeUp()
	w.store.note(r)
	if !rw.listed {
		rw.listed = true
		w.awake = append(w.awake, r)
	}
}

// dozes reports whether a sleeping replica may look at what has come for it without waking: heartbeats and their answers
// at most, or nothing, if it was dealt with in the pass in which the replica fell asleep.
func (r *replica) dozes() bool {
	if r.worker.awake || r.worker.disposed || r.store.live == nil || r.store.cfg.NoSleep || r.parking.Load() {
		return false
	}
	in := &r.in
	in.Lock()
	defer in.Unlock()
	if len(in.writes)+len(in.reads) > 0 || in.seldom != nil || in.campaign {
		return false
	}
	for i := range in.msgs {
		if t := in.msgs[i].msg.Type; t != raftpb.MsgHeartbeat && t != raftpb.MsgHeartbeatResp {
			return false
		}
	}
	return true
}

// wakeUnlessDone ends the visit of a replica that sleeps: if it has something to do now it wakes up.
func (w *worker) wakeUnlessDone(r *replica) {
	defer w.recoverFault(r)
	rw := &r.worker
	if rw.disposed {
		return
	}
	if rw.inflight || rw.still || r.uninitialised() || !w.mayRest(r) {
		w.wake(r)
		return
	}
	r.slim()
}

// trySleep lets the replica sleep if it may. It is called at the end of a visit that has ticked it.
func (w *worker) trySleep(r *replica) {
	rw := &r.worker
	if w.store.live == nil {
		return
	}
	if rw.inflight || rw.still || rw.disposed || r.uninitialised() {
		rw.rests = false
		return
	}
	if w.store.live.Promise() == 0 {
		return // no leases: there is nothing to sleep on
	}
	if rw.idle < idleTicks || !w.mayRest(r) {
		rw.rests = false
		return
	}
	if rw.rests {
		return
	}
	w.countLog(r)
	rw.compaction.follow(rw.leads, rw.term, w.store.cfg.ElectionTick+1) // everybody who lives has been heard of
	// Whoever lives has them all; and an entry keeps the frame alive that it came in, with those of other shards.
	rw.log.Uncache()
	r.slim()
	if w.store.cfg.NoSleep {
		rw.rests = true
		return
	}
	rw.awake = false // the list forgets it with the next tick
	r.fallAsleep()
}

// slim gives up the arrays of empty queues: of thousands of replicas that sleep they would be a good part of the memory.
func (r *replica) slim() {
	in, rw := &r.in, &r.worker
	in.Lock()
	if len(in.msgs) == 0 {
		in.msgs = nil
	}
	if len(in.writes) == 0 {
		in.writes = nil
	}
	if len(in.reads) == 0 {
		in.reads = nil
	}
	in.Unlock()
	r.handed.Lock()
	if len(r.handed.tasks) == 0 {
		r.handed.tasks = nil
	}
	r.handed.Unlock()
	if len(rw.held) == 0 {
		rw.held = nil
	}
	if len(rw.notices) == 0 {
		rw.notices = nil
	}
	// A replica that sleeps has nothing in these: mayRest.
	rw.writes, rw.unbound, rw.pending, rw.tracked, rw.asked, rw.calls = nil, nil, nil, nil, nil, nil
	rw.reads, rw.indexes, rw.sending, rw.reports = nil, nil, nil, nil
}

func (r *replica) fallAsleep() {
	if !r.asleep.Swap(true) {
		r.store.sleeping.Add(1)
	}
}

func (r *replica) wakeUp() {
	if r.asleep.Swap(false) {
		r.store.sleeping.Add(-1)
	}
}

// mayRest reports whether nothing is left to do for a replica but to keep the group together, and nothing for that.
func (w *worker) mayRest(r *replica) bool {
	rw := &r.worker
	st := rw.rn.BasicStatus()
	switch {
	case rw.runOut.queued || rw.stand != standNot || rw.ticks > 0,
		len(rw.writes)+len(rw.unbound)+len(rw.pending)+len(rw.tracked)+len(rw.asked)+len(rw.calls) > 0,
		r.in.readCount.Load() > 0 || len(rw.reads)+len(rw.indexes) > 0,
		rw.transfer != nil || rw.change != nil || rw.withheld || len(rw.sending)+len(rw.reports) > 0,
		r.handed.bytes.Load() > 0 || st.Applied < st.Commit || rw.rn.HasReady(),
		rw.idle < longLogTicks && w.logIsLong(r):
		return false
	case st.RaftState == raft.StateLeader:
		return w.mayRestLeading(r, &st)
	}
	p := r.bound(w.now)
	return p != nil && st.RaftState == raft.StateFollower && st.Lead == uint64(p.replica) && st.Term == p.term
}

// mayRestLeading is mayRest for what only a leader has to do.
func (w *worker) mayRestLeading(r *replica, st *raft.BasicStatus) bool {
	rw, s := &r.worker, w.store
	d := r.desc.Load()
	last := r.lastIndex()
	switch {
	case r.frozen.Load() != nil || rw.freezing || rw.thaw != nil, isJoint(d) || rw.confEntry > r.applied.Load(),
		s.paused.Load() || s.stalled.Load() || s.spaceLevel() != engine.SpaceOK,
		st.LeadTransferee != 0 || st.Commit != last || r.leaseAt(w.now) == nil:
		return false
	}
	behind := false
	rw.rn.WithProgress(func(id uint64, _ raft.ProgressType, pr tracker.Progress) {
		rid := base.ReplicaID(id)
		if rid == r.id || behind {
			return
		}
		held := s.live.Held(r.storeOf(rid))
		if held == nil || held.Until <= w.now {
			return // it is down; the lease holds, so a quorum is not
		}
		stamp := rw.leading.stampOf(rid)
		behind = stamp.epoch != held.Epoch || stamp.commit != st.Commit || pr.Match != last || !pr.RecentActive
	})
	return !behind
}

// greet sends the followers on a store that has begun to support this one a heartbeat ahead of its time: raft sends one that
// it has lost nothing before that has answered one. It is what raft would send.
func (w *worker) greet(r *replica, store base.StoreID) {
	if r.worker.still {
		return
	}
	rn := r.worker.rn
	st := rn.BasicStatus()
	if st.RaftState != raft.StateLeader {
		return
	}
	rn.WithProgress(func(id uint64, _ raft.ProgressType, pr tracker.Progress) {
		if rid := base.ReplicaID(id); rid == r.id || r.storeOf(rid) != store {
			return
		}
		w.send(r, &raftpb.Message{
			Type: raftpb.MsgHeartbeat, From: uint64(r.id), To: id, Term: st.Term, Commit: min(pr.Match, st.Commit),
		})
	})
}

// logIsLong reports whether the log is over its budget, which only ticks look after.
func (w *worker) logIsLong(r *replica) bool {
	bytes := r.worker.log.Bytes()
	return bytes > min(w.store.cfg.Compaction.FloorBytes, w.logLevel) && bytes > w.budget(r)
}

// countLog keeps the sum of the logs' sizes, which change only while a replica is awake.
func (w *worker) countLog(r *replica) {
	rw := &r.worker
	if rw.retired {
		return
	}
	bytes := r.logBytes()
	w.logTotal += bytes - rw.logSeen
	rw.logSeen = bytes
}

// tick gives all that are awake their ticks, and forgets those that are not any more.
func (w *worker) tick(ticks int) {
	// More than half an election timeout at once would start elections that only our own delay is to blame for.
	limit := w.store.cfg.ElectionTick / 2
	ok, _ := w.store.SyncHealthy()
	w.stalled = !ok
	w.store.stalled.Store(!ok)
	w.turns++
	keep := w.awake[:0]
	for _, r := range w.awake {
		rw := &r.worker
		if !rw.rests || w.looksAt(r) {
			w.countLog(r)
		}
		if rw.disposed || !rw.awake {
			rw.listed, rw.awake = false, false
			continue
		}
		keep = append(keep, r)
	}
	clear(w.awake[len(keep):])
	w.awake = keep
	w.levelLogs()
	w.levelSpare()
	many := len(w.awake) >= w.manyAwake && w.store.cfg.HeartbeatTick > 1
	for _, r := range w.awake {
		if r.worker.rests && !w.looksAt(r) {
			continue
		}
		if r.lead.Load().leads {
			r.silent.Store(0)
		} else if r.silent.Add(int64(ticks)) > w.store.silence() {
			w.store.doubt(r)
		}
		r.worker.ticks = min(r.worker.ticks+ticks, limit)
		r.worker.beat = r.worker.beat || r.worker.rests && w.beats(r)
		due, turn := true, true
		if many && !r.worker.rests {
			due, turn = w.tickDue(r)
		}
		if turn {
			w.sweep(r)
		}
		if due {
			w.activate(r)
		}
	}
	w.pace(ticks)
	w.fire()
}

// tickDue says, of one of many awake replicas that has ticks pending, whether it has to be visited for them and whether it
// is its turn to be swept, which comes with every second tick. One that is idle is visited in its turn. One that is busy
// takes a tick with whatever else it is visited for, and is visited for its ticks only once two have come together.
func (w *worker) tickDue(r *replica) (due, turn bool) {
	rw := &r.worker
	turn = w.turnOf(r)%2 == 0
	if rw.idle < idleTicks {
		return rw.ticks >= 2, turn
	}
	return turn, turn
}

// startAsleep is for replicas that were here when the store started: their leaders are somewhere else, if there are any,
// and send them word. Those that hear nothing stand for election, in their turn, one promise after this store may vote
// again (V12).
func (w *worker) startAsleep(r *replica) {
	r.fallAsleep()
	w.queueAt(r, 0, max(w.store.live.QuietUntil(), w.now)+w.store.live.Promise())
}

// sleepsAtStart reports whether a replica that was loaded may wait for word of a leader.
func (r *replica) sleepsAtStart() bool {
	d := r.desc.Load()
	return r.store.live != nil && d != nil && r.worker.rn != nil && !onlyVoter(d, r.id)
}
