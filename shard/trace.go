package shard

import (
	"slices"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/raft/v3/raftpb"
)

// Trace follows one sampled request through the store. Who sends the request makes it and reads it after Complete; a
// request without one costs a comparison with nil at each stage. Times are on Clock.Boot, and that of a pass is when it
// began: no clock is read for a request that is not followed.
//
//	write   Arrived --queue--> proposed --propose--> handed --commit--> committed --apply--> applied
//	                                                   |-- sync ------> synced      both inside commit
//	                                                   |-- replicate -> acked       (the second of three replicas)
//	read    Arrived --queue--> asked --replicate--> confirmed --apply--> applied
type Trace struct {
	Arrived time.Duration // when the node had the request

	proposed  mark // its pass began; of a read, the one that asked for a read index
	handed    mark // to the disk, and to the other stores
	synced    mark // durable here
	acked     mark // the first of the other stores said that it has it
	committed mark // a quorum has it: taken out of raft; of a read, its index is known
	applied   mark // visible, answered
}

// mark is a time that is set once.
type mark struct{ at atomic.Int64 }

func (m *mark) set(now time.Duration) { m.at.CompareAndSwap(0, int64(now)) }

// Stage is a part of a request's time; see Trace.
type Stage uint8

// The stages, in order. Answer is from there until the answer has left, and Total is all of it: those two are the
// caller's to measure, as is Read, the look-up itself.
const (
	StageQueue Stage = iota
	StagePropose
	StageReplicate
	StageSync
	StageCommit
	StageApply
	StageRead
	StageAnswer
	StageTotal

	NumStages
)

var stageNames = [NumStages]string{"queue", "propose", "replicate", "sync", "commit", "apply", "read", "answer", "total"}

// String returns the word used in metrics and tables.
func (s Stage) String() string { return stageNames[s] }

// Stages calls f with each stage whose beginning and end are known. Applied is when the last of them ended, 0 if the
// request was refused before.
func (t *Trace) Stages(f func(Stage, time.Duration)) (applied time.Duration) {
	at := func(m *mark) time.Duration { return time.Duration(m.at.Load()) }
	span := func(s Stage, from, to time.Duration) {
		if from != 0 && to != 0 {
			f(s, max(to-from, 0)) // a pass's time is from its beginning
		}
	}
	proposed, handed, committed, applied := at(&t.proposed), at(&t.handed), at(&t.committed), at(&t.applied)
	span(StageQueue, t.Arrived, proposed)
	if handed == 0 {
		span(StageReplicate, proposed, committed)
	}
	span(StagePropose, proposed, handed)
	span(StageReplicate, handed, at(&t.acked))
	span(StageSync, handed, at(&t.synced))
	span(StageCommit, handed, committed)
	span(StageApply, committed, applied)
	return applied
}

// watched is a traced proposal whose acknowledgement by another store is waited for.
type watched struct {
	index uint64
	trace *Trace
}

// maxWatched bounds those of a group: whatever ends without an answer leaves one behind.
const maxWatched = 4

// watch has the first acknowledgement of a bound proposal noticed when it arrives: raft sees it only after the sync.
func (r *replica) watch(p *proposal) {
	r.in.Lock()
	defer r.in.Unlock()
	if len(r.in.watched) == maxWatched {
		r.in.watched = slices.Delete(r.in.watched, 0, 1)
	}
	r.in.watched = append(r.in.watched, watched{p.index, p.trace})
}

// acknowledgedLocked takes an acknowledgement as it arrives; r.in is locked.
func (r *replica) acknowledgedLocked(m *raftpb.Message) {
	if m.Type != raftpb.MsgAppResp || m.Reject {
		return
	}
	now := r.store.clock.Boot()
	r.in.watched = slices.DeleteFunc(r.in.watched, func(w watched) bool {
		if w.index > m.Index {
			return false
		}
		w.trace.acked.set(now)
		return true
	})
}

// markReads sets a mark of those of the reads that are followed.
func markReads(reqs []ReadRequest, of func(*Trace) *mark, now time.Duration) {
	for i := range reqs {
		if t := reqs[i].Trace; t != nil {
			of(t).set(now)
		}
	}
}
