package shard

import (
	"fmt"
	"runtime/debug"
	"slices"

	"go.etcd.io/etcd/raft/v3"
	"go.etcd.io/etcd/raft/v3/raftpb"

	"github.com/shardd/shardd/internal/base"
)

// visit steps one group and takes its Ready. A panic of raft stops this replica only (R9).
func (w *worker) visit(r *replica) {
	defer w.recoverFault(r)
	if r.worker.still {
		return // whoever parked it has it
	}
	if _, bad := r.faultReason(); bad {
		w.cleanUp(r)
	}
	if r.worker.disposed {
		w.tryPark(r)
		return
	}
	if r.worker.inflight {
		w.takeConfResults(r)
		if r.worker.inflight {
			w.tryParkHalted(r)
			return // R1: the inbox buffers
		}
	}
	if w.tryPark(r) {
		return
	}
	ticked := r.worker.ticks > 0
	w.step(r)
	w.ready(r)
	if ticked || r.worker.rests {
		w.trySleep(r)
	}
}

// finishSynced is finish for a Ready whose sync is done.
func (w *worker) finishSynced(r *replica) {
	defer w.recoverFault(r)
	if _, bad := r.faultReason(); bad || r.worker.disposed {
		return // visit cleans up
	}
	r.worker.synced = true
	w.finish(r)
}

// recoverFault is deferred around everything that calls into raft.
func (w *worker) recoverFault(r *replica) {
	if v := recover(); v != nil {
		w.store.fault(r, fmt.Sprintf("panic: %v", v), debug.Stack())
		w.cleanUp(r)
	}
}

// step puts into raft what has come in since the last Ready: messages, then ticks (an old heartbeat must count
// before the clock that it resets), then proposals, then reads.
func (w *worker) step(r *replica) {
	rn := r.worker.rn
	in := &r.in
	in.Lock()
	w.msgs, in.msgs = in.msgs, w.msgs[:0]
	bytes := in.msgBytes
	in.msgBytes = 0
	seldom, campaign := in.takeSeldomLocked(), in.campaign
	in.campaign = false
	// A panic of raft must not lose their callers.
	r.worker.calls = append(r.worker.calls, seldom.calls...)
	r.worker.asked = append(r.worker.asked, seldom.transfers...)
	r.takeRequestsLocked()
	in.Unlock()
	w.store.used.inbox.Add(-bytes)

	for i := range w.msgs {
		m := &w.msgs[i]
		r.learnPeer(base.ReplicaID(m.msg.From), m.store)
		if m.msg.Type == raftpb.MsgVote || m.msg.Type == raftpb.MsgPreVote {
			r.worker.idle = 0 // V12: whoever looks for a leader gets a heartbeat
		}
		if w.store.live != nil && !w.admits(r, m) {
			continue
		}
		if fromLeader(m.msg.Type) && m.msg.Term >= r.worker.term {
			r.silent.Store(0)
		}
		// The errors are a response from a replica that was removed, or a refused proposal, which is never sent to us.
		_ = rn.Step(m.msg)
		if w.store.live != nil {
			w.stepped(r, m)
		}
	}
	clear(w.msgs)
	for _, id := range seldom.unreachable {
		rn.ReportUnreachable(uint64(id))
	}
	if len(seldom.sent) > 0 {
		w.takeSent(r, seldom.sent)
	}
	if len(r.worker.reports) > 0 {
		w.report(r, r.worker.ticks)
	}
	if r.worker.ticks > 0 {
		r.worker.idle += r.worker.ticks
		w.tickRaft(r, r.worker.ticks)
	}
	if r.worker.transfer != nil {
		w.tickTransfer(r, r.worker.ticks)
	}
	if r.worker.ticks > 0 {
		w.tickMembership(r, r.worker.ticks)
	}
	if r.worker.ticks > 0 && w.stalled {
		w.handOver(r)
	}
	r.worker.ticks = 0
	if campaign {
		r.worker.stand = standAlone
	}
	if r.worker.stand != standNot {
		w.standNow(r)
	}
	for len(r.worker.asked) > 0 {
		req := r.worker.asked[0]
		r.worker.asked = r.worker.asked[1:]
		w.startTransfer(r, req)
	}
	for len(r.worker.calls) > 0 {
		f := r.worker.calls[0]
		r.worker.calls = r.worker.calls[1:]
		f(r)
	}
	if len(r.worker.writes) > 0 {
		w.propose(r)
	}
	if len(r.worker.reads) > 0 {
		w.askIndex(r)
	}
}

// ready takes the group's Ready, if it has one, and either finishes it at once or puts it into the pass.
func (w *worker) ready(r *replica) {
	rn := r.worker.rn
	if !rn.HasReady() {
		return
	}
	rd := rn.Ready()
	if !raft.IsEmptySnap(rd.Snapshot) {
		panic("raft took a snapshot that is not on disk") // it is only ever told of one that is
	}
	termOrVote := false
	if !raft.IsEmptyHardState(rd.HardState) {
		termOrVote = rd.HardState.Term != r.worker.term || rd.HardState.Vote != r.worker.vote
		if !termOrVote && len(rd.Entries) == 0 && r.worker.leads && w.store.cfg.CommitNotice > 0 {
			r.noticing.Store(true) // who is told this index from now on asks for the notices of it
		}
		// V5: before any message that carries the commit index leaves.
		r.commit.Store(rd.HardState.Commit)
	}
	if len(rd.Entries)+len(rd.CommittedEntries)+len(rd.ReadStates) > 0 {
		r.worker.idle = 0
	}
	writes := w.bind(r, rd.Entries)
	if len(r.worker.tracked) > 0 {
		w.bindTracked(r, rd.Entries)
	}
	w.publishLeader(r, &rd)
	if r.worker.leading.first != 0 && slices.ContainsFunc(rd.Messages, isTimeoutNow) {
		r.giveUpLease() // V4: before it leaves
	}
	for i := range rd.ReadStates {
		w.confirm(r, &rd.ReadStates[i])
	}
	rd.Messages = thin(rd.Messages)
	r.worker.ready = underWay{hard: rd.HardState, entries: rd.Entries, committed: rd.CommittedEntries}
	r.worker.inflight, r.worker.synced = true, false

	if !termOrVote && len(rd.Entries) == 0 {
		// Nothing to sync, and nothing to write: the commit index alone is not worth a write, since it is found
		// again by the leader of the next term, and boot raises it to the applied index (R3). See keepsCommit.
		rd.Messages = w.holdNotices(r, rd.Messages, rd.CommittedEntries)
		r.noticing.Store(len(r.worker.notices) > 0)
		w.sendAll(r, rd.Messages)
		r.worker.synced = true
		w.finish(r)
		return
	}

	if w.pass == nil {
		w.pass = w.newPass()
	}
	p := w.pass
	p.writes += writes
	if termOrVote {
		r.worker.term, r.worker.vote = rd.HardState.Term, rd.HardState.Vote
	}
	if r.keepsCommit(rd.Entries) || termOrVote {
		r.worker.keptCommit = r.commit.Load()
		p.batch.SetHardState(r.shard, raftpb.HardState{
			Term: r.worker.term, Vote: r.worker.vote, Commit: r.worker.keptCommit,
		})
	}
	if len(rd.Entries) > 0 {
		r.worker.log.Append(p.batch, rd.Entries)
	}
	w.sendEarly(r, rd.Messages, termOrVote, rd.Entries)
	p.groups = append(p.groups, r)
}

// keepsCommit reports whether the commit index has to be written with these entries, because the log has a conf change
// that is not applied. Whoever acknowledges the end of a joint change knows by then that its beginning is committed,
// and must not forget that in a crash: raft lets it campaign in the old configuration otherwise, and win with a
// majority of that one alone, beside the leader that the new one has (R2).
func (r *replica) keepsCommit(ents []raftpb.Entry) bool {
	rw := &r.worker
	for i := range ents {
		if ents[i].Type != raftpb.EntryNormal {
			rw.confEntry = max(rw.confEntry, ents[i].Index)
		}
	}
	return len(ents) > 0 && rw.confEntry > r.applied.Load() && r.commit.Load() > rw.keptCommit
}

// sendEarly sends what may leave before the sync and holds the rest (R1): nothing if Term or Vote are not on disk yet;
// otherwise appends and heartbeats, which promise nothing about our disk, unless they carry a commit index that counts
// entries of this very Ready: raft 3.5 counts the leader's own append before its sync, so that a leader that is the
// only voter would tell its learners of a commit that a crash undoes.
func (w *worker) sendEarly(r *replica, msgs []raftpb.Message, termOrVote bool, ents []raftpb.Entry) {
	held := r.worker.held[:0]
	for i := range msgs {
		m := &msgs[i]
		early := !termOrVote && (m.Type == raftpb.MsgApp || m.Type == raftpb.MsgHeartbeat)
		if early && len(ents) > 0 && m.Commit >= ents[0].Index {
			early = false
		}
		if early {
			w.send(r, m)
		} else {
			held = append(held, *m)
		}
	}
	r.worker.held = held
}

// finish does what has to wait for the sync, and advances raft. With a conf change among the committed entries it is
// called again once apply has decided it.
func (w *worker) finish(r *replica) {
	rw := &r.worker
	if len(rw.held) > 0 {
		w.sendAll(r, rw.held)
		clear(rw.held)
		rw.held = rw.held[:0]
	}
	rd := &rw.ready
	rw.withheld = false
	if len(rd.committed) > 0 {
		if w.overApply(r) {
			rw.withheld = true
			rd.committed = nil // Advance then does not move raft's applied index: it offers them again
		} else if rw.confs = w.hand(r, rd.committed); rw.confs > 0 {
			return // R2: not advanced until applied
		}
	}
	w.advance(r)
}

func (w *worker) advance(r *replica) {
	rw := &r.worker
	rw.rn.Advance(rw.ready.advances())
	rw.ready = underWay{}
	rw.inflight = false
	if !rw.withheld && rw.rn.HasReady() {
		w.store.pool.Enqueue(uint64(r.shard))
	}
}

func (w *worker) sendAll(r *replica, msgs []raftpb.Message) {
	for i := range msgs {
		w.send(r, &msgs[i])
	}
}

func isTimeoutNow(m raftpb.Message) bool { return m.Type == raftpb.MsgTimeoutNow }

// fromLeader reports whether only a leader sends such messages.
func fromLeader(t raftpb.MessageType) bool {
	return t == raftpb.MsgApp || t == raftpb.MsgHeartbeat || t == raftpb.MsgSnap
}
