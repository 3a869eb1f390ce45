package leasemodel

import (
	"slices"
	"time"

	"go.etcd.io/etcd/raft/v3"
	"go.etcd.io/etcd/raft/v3/raftpb"
	"go.etcd.io/etcd/raft/v3/tracker"

	"github.com/shardd/shardd/shard/liveness"
)

// The rules as the worker of a shard keeps them. Each place at which one can be left out asks whether it is.

// campaignTransfer is the context of the votes that a transfer asks for.
const campaignTransfer = "CampaignTransfer"

// lease is what a leader publishes to readers: whoever has it can say at any time, without a lock, whether it holds. It
// never changes.
type lease struct {
	term  uint64
	first uint64     // index of the term's first entry
	self  uint64     // the leader's own id
	halfs [2][]voter // of the configuration; the second one is empty outside a joint change
}

// voter is one voter of a half; epoch is 0 if it is not counted.
type voter struct {
	id    uint64
	epoch uint64
}

// holds is V3, at this moment on the store's clock.
func (l *lease) holds(s *support) bool {
	if l == nil {
		return false
	}
	for i, half := range l.halfs {
		n := 0
		for _, v := range half {
			if v.id == l.self || v.epoch != 0 && s.held(storeOf(v.id)) == v.epoch {
				n++
			}
		}
		if n < len(half)/2+1 && (i == 0 || len(half) > 0) {
			return false
		}
	}
	return true
}

// binds says whether the replica's promise binds it now (V1).
func (r *replica) binds() bool {
	p := r.promise
	if p.epoch == 0 || r.st.w.without(V1) || !r.st.live.supports(p.store, p.epoch) {
		return false
	}
	return !r.st.w.without(V1Lead) || storeOf(r.rn.BasicStatus().Lead) == p.store
}

// step gives one message to raft, or drops it.
func (r *replica) step(m *message) {
	r.wake()
	switch m.m.Type {
	case raftpb.MsgVote, raftpb.MsgPreVote:
		// A transfer's votes pass, V7 or not, and so does the order to campaign: the leader of the term before has
		// given up its lease for good, and the leases of earlier terms ended with its election.
		if string(m.m.Context) != campaignTransfer && (r.binds() || r.quarantined()) {
			return // V1, V7
		}
	}
	if err := r.rn.Step(m.m); err != nil && err != raft.ErrStepPeerNotFound && err != raft.ErrProposalDropped {
		panic(err)
	}
	st := r.rn.BasicStatus()
	if m.m.Term != st.Term {
		return
	}
	switch m.m.Type {
	case raftpb.MsgApp, raftpb.MsgHeartbeat:
		// The promise begins, or goes on: this replica now follows the leader of the term.
		if p := r.promise; p.term < st.Term {
			r.promise = given{}
		}
		if e := r.st.live.epoch(m.from); e != 0 && st.RaftState == raft.StateFollower {
			r.promise = given{store: m.from, epoch: e, term: st.Term}
		}
	case raftpb.MsgAppResp, raftpb.MsgHeartbeatResp:
		if st.RaftState != raft.StateLeader || m.stamp.epoch == 0 {
			return
		}
		old, s := r.stamps[m.m.From], m.stamp
		if s.epoch > old.epoch || s.epoch == old.epoch && s.commit > old.commit {
			r.stamps[m.m.From] = m.stamp
		}
	}
}

// send gives a message to the network, stamped if it answers the leader that was promised something.
func (r *replica) send(m raftpb.Message) {
	var s stamp
	if m.Type == raftpb.MsgAppResp || m.Type == raftpb.MsgHeartbeatResp {
		if p := r.promise; p.term == m.Term && p.store == storeOf(m.To) && p.epoch != 0 {
			s = stamp{epoch: p.epoch, commit: r.commit}
		}
	}
	if m.Type == raftpb.MsgTimeoutNow {
		r.st.w.stats.transfers++
	}
	m.Entries = slices.Clone(m.Entries) // raft keeps and changes the slices that it is given
	r.st.sendRaft(&message{from: r.st.id, to: storeOf(m.To), life: r.st.life, shard: r.shard, m: m, stamp: s})
}

// tick moves raft's clock, if it may move.
func (r *replica) tick() {
	st := r.rn.BasicStatus()
	switch {
	case st.RaftState != raft.StateLeader:
		if !r.binds() && !r.quarantined() {
			r.rn.Tick()
		}
		return
	case r.asleep:
		return
	}
	r.rn.Tick()
	if r.rn.BasicStatus().RaftState != raft.StateLeader {
		return
	}
	if r.deadline > 0 {
		if r.deadline--; r.deadline == 0 {
			r.resign() // V4: the transfer led to nothing, and the lease is gone for good
		}
		return
	}
	if !voterOf(&r.m.conf, r.id) {
		r.leave()
		return
	}
	r.sleep()
}

// resign gives the leadership up, to nobody: a message of a higher term makes raft follow. There may be no other replica that
// it could come from.
func (r *replica) resign() {
	m := raftpb.Message{Type: raftpb.MsgAppResp, From: r.id, To: r.id, Term: r.rn.BasicStatus().Term + 1}
	if err := r.rn.Step(m); err != nil {
		panic(err)
	}
}

// leave is V13: a leader that is no voter hands over once a voter has everything, commit index included.
func (r *replica) leave() {
	last, _ := r.disk.log.LastIndex()
	st := r.rn.BasicStatus()
	var to uint64
	r.rn.WithProgress(func(id uint64, typ raft.ProgressType, pr tracker.Progress) {
		if typ == raft.ProgressTypePeer && pr.Match == last && st.Commit == last && r.stamps[id].commit >= st.Commit {
			to = id
		}
	})
	if to != 0 {
		r.transfer(to)
	}
}

// transfer starts to hand the leadership to a voter.
func (r *replica) transfer(to uint64) {
	st := r.rn.BasicStatus()
	if st.RaftState != raft.StateLeader || to == r.id || !voterOf(&r.m.conf, to) || r.deadline > 0 {
		return
	}
	r.asleep = false
	if !r.st.w.without(V4) {
		r.givenUp = st.Term // V4: before MsgTimeoutNow leaves
		r.withdraw()
	}
	r.deadline = 2 * election
	r.st.w.logf("%s/%d hands over to %d", r.shard, r.id, to)
	r.rn.TransferLeader(to)
}

// withdraw ends the published lease.
func (r *replica) withdraw() { r.lease = nil }

// withdrawLate is what a run without V4Late does instead.
func (r *replica) withdrawLate() {
	if r.leads == 0 {
		r.withdraw()
	}
}

// publish follows what a Ready says about the leadership, before anything of that Ready is sent.
func (r *replica) publish(rd *raft.Ready) {
	w := r.st.w
	st := r.rn.BasicStatus()
	leads := st.RaftState == raft.StateLeader
	if r.leads != 0 && (!leads || r.leads != st.Term) {
		g := liveness.Group{Shard: r.shard, Term: r.leads}
		if !w.without(V4Late) {
			r.withdraw() // V4
		}
		r.leads, r.deadline, r.asleep = 0, 0, false
		w.logf("%s/%d does not lead in term %d any more: %s in term %d", r.shard, r.id, g.Term, st.RaftState, st.Term)
		r.st.live.release(g) // V8
	}
	if leads && r.leads == 0 {
		i := slices.IndexFunc(rd.Entries, func(e raftpb.Entry) bool { return e.Term == st.Term })
		r.leads, r.first = st.Term, rd.Entries[i].Index
		r.stamps, r.promise = map[uint64]stamp{}, given{}
		w.stats.elections++
		w.logf("%s/%d leads in term %d", r.shard, r.id, st.Term)
		for key := r.m.lo; key < r.m.hi; key++ { // the first reads come before anything is committed in the term
			w.in(w.between(10*time.Microsecond, 10*time.Millisecond), r.st, func() { r.st.read(key) })
		}
	}
}

// refresh publishes the lease anew, from what is counted now. It is called whenever that may have changed, before
// anything leaves that follows from the change.
func (r *replica) refresh() {
	w := r.st.w
	if r.leads == 0 || r.destroyed {
		return
	}
	switch {
	case r.leads == r.givenUp, // V4
		r.m.applied < r.first && !w.without(V3),
		!voterOf(&r.m.conf, r.id): // V13
		r.withdraw()
		return
	}
	l := &lease{term: r.leads, first: r.first, self: r.id}
	match := map[uint64]uint64{}
	r.rn.WithProgress(func(id uint64, _ raft.ProgressType, pr tracker.Progress) { match[id] = pr.Match })
	count := func(ids []uint64) (half []voter) {
		for _, id := range ids {
			v := voter{id: id}
			switch s := r.stamps[id]; {
			case id == r.id:
			case w.without(V2):
				v.epoch = r.st.live.held(storeOf(id))
			case s.epoch == 0 || match[id] < r.first:
			case w.without(V2Epoch):
				v.epoch = r.st.live.held(storeOf(id))
			default:
				v.epoch = s.epoch // V2
			}
			half = append(half, v)
		}
		return half
	}
	l.halfs = [2][]voter{count(r.m.conf.Voters), count(r.m.conf.VotersOutgoing)}
	if r.lease == nil {
		w.stats.leases++
	}
	r.lease = l
}

// sleep is V9.
func (r *replica) sleep() {
	st := r.rn.BasicStatus()
	last, _ := r.disk.log.LastIndex()
	if r.inflight || st.Commit != last || r.m.applied != last || len(r.m.conf.VotersOutgoing) > 0 ||
		!r.lease.holds(r.st.live) {
		return
	}
	ready := true
	r.rn.WithProgress(func(id uint64, _ raft.ProgressType, pr tracker.Progress) {
		if id == r.id {
			return
		}
		held := r.st.live.held(storeOf(id))
		if held == 0 {
			return // it is down
		}
		s := r.stamps[id]
		ready = ready && s.epoch == held && pr.Match == last && s.commit == st.Commit
	})
	if ready {
		r.asleep = true
		r.st.w.stats.sleeps++
	}
}

func (r *replica) wake() { r.asleep = false }

// runOut ends what raft itself remembers of the leader, after a lapse or a release: it neither refuses others nor waits
// any longer itself.
func (r *replica) runOut() {
	r.do(func() {
		if r.binds() || r.quarantined() || r.rn.BasicStatus().RaftState == raft.StateLeader {
			return // V13
		}
		for range election {
			r.rn.Tick()
		}
		w, was := r.st.w, r.rn.BasicStatus()
		w.in(w.between(time.Millisecond, 100*time.Millisecond), r.st, func() { r.campaign(was.Term, was.Lead) })
	})
}

// campaign calls an election, unless a term or a leader has come that the caller did not know (V13).
func (r *replica) campaign(term, lead uint64) {
	r.do(func() {
		st := r.rn.BasicStatus()
		if !r.binds() && !r.quarantined() && st.RaftState == raft.StateFollower && st.Term == term && st.Lead == lead {
			_ = r.rn.Campaign() // refused for what raft logs
		}
	})
}

// campaignAlone calls an election if the replica knows no leader.
func (r *replica) campaignAlone() { r.campaign(r.rn.BasicStatus().Term, raft.None) }

// quarantined is V7, with its exception: the only voter of a group has nobody to break a promise to.
func (r *replica) quarantined() bool {
	if !r.st.quarantined() {
		return false
	}
	c := &r.disk.saved.conf
	if len(c.Voters) != 1 || c.Voters[0] != r.id || len(c.VotersOutgoing) != 0 {
		return true
	}
	last, _ := r.disk.log.LastIndex()
	if last <= r.m.applied {
		return false
	}
	ents, err := r.disk.log.Entries(r.m.applied+1, last+1, 1<<30)
	if err != nil {
		panic(err)
	}
	return slices.ContainsFunc(ents, func(e raftpb.Entry) bool { return e.Type != raftpb.EntryNormal })
}

func voterOf(c *raftpb.ConfState, id uint64) bool {
	return slices.Contains(c.Voters, id) || slices.Contains(c.VotersOutgoing, id)
}
