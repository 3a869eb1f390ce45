package shard

import (
	"math"
	"reflect"
	"testing"

	"go.etcd.io/etcd/raft/v3"
	"go.etcd.io/etcd/raft/v3/raftpb"

	"github.com/shardd/shardd/internal/base"
)

// What one more byte in a replica would cost: the runtime gives an object the next of its sizes, here 1,792 bytes, of which 8 are
// its own; the one after that is 2,048.
func TestAReplicaThatSleepsTakesLittleMemory(t *testing.T) {
	const size, header = 1792, 8
	if n := reflect.TypeFor[replica]().Size() + header; n > size {
		t.Errorf("a replica takes %d bytes, want at most %d", n, size)
	}
	c, _ := liveShard(t, nil)
	c.untilAsleep(7)
	c.each(func(n *testNode) {
		r := n.store.lookup(7)
		if _, _, err := r.worker.log.InitialState(); err == nil {
			t.Errorf("%s keeps what raft has started from", n.id)
		}
		if got := cap(r.worker.peers); got != len(r.desc.Load().Replicas) {
			t.Errorf("%s has room for %d peers", n.id, got)
		}
		if r.worker.history.changes[0].conf != r.worker.conf {
			t.Errorf("%s keeps its configuration twice", n.id)
		}
	})
}

func TestAReplicaThatSleepsKeepsNoEmptyQueues(t *testing.T) {
	r := &replica{}
	in, rw := &r.in, &r.worker
	in.msgs, in.writes, in.reads = make([]inMessage, 0, 1), make([]WriteRequest, 0, 1), make([]ReadRequest, 0, 1)
	r.handed.tasks = make([]applyTask, 0, 1)
	rw.held, rw.notices = make([]raftpb.Message, 0, 1), make([]notice, 0, 1)
	rw.writes, rw.reads = make([]WriteRequest, 0, 1), make([]ReadRequest, 0, 1)
	rw.unbound, rw.pending, rw.tracked = make([]*proposal, 0, 1), make([]*proposal, 0, 1), make([]*tracked, 0, 1)
	rw.indexes, rw.sending, rw.reports = make([]readIndex, 0, 1), make([]sendingSnapshot, 0, 1), make([]snapshotReport, 0, 1)
	rw.calls, rw.asked = make([]func(*replica), 0, 1), make([]transferRequest, 0, 1)
	r.slim()
	for i, kept := range []bool{
		in.msgs != nil, in.writes != nil, in.reads != nil, r.handed.tasks != nil, rw.held != nil, rw.notices != nil,
		rw.writes != nil, rw.reads != nil, rw.unbound != nil, rw.pending != nil, rw.tracked != nil, rw.indexes != nil,
		rw.sending != nil, rw.reports != nil, rw.calls != nil, rw.asked != nil,
	} {
		if kept {
			t.Errorf("queue %d is kept", i)
		}
	}
	rw.notices = make([]notice, 1)
	r.handed.tasks = make([]applyTask, 1)
	if r.slim(); len(rw.notices) != 1 || len(r.handed.tasks) != 1 {
		t.Error("what is queued is given up")
	}
}

func TestRaftsLoggerTakesNoMemoryOfItsOwn(t *testing.T) {
	r := &replica{}
	var l raft.Logger
	if n := testing.AllocsPerRun(100, func() { l = raftLogger{r} }); n != 0 || l == nil {
		t.Errorf("%v allocations", n)
	}
}

func TestTheSeldomPartOfAnInboxIsTakenWhole(t *testing.T) {
	var in inbox
	if got := in.takeSeldomLocked(); len(got.calls)+len(got.unreachable) > 0 || in.seldom != nil {
		t.Fatalf("something in an empty inbox: %+v", got)
	}
	in.seldomLocked().unreachable = []base.ReplicaID{2}
	in.seldomLocked().calls = []func(*replica){func(*replica) {}}
	got := in.takeSeldomLocked()
	if len(got.calls) != 1 || len(got.unreachable) != 1 || in.seldom != nil {
		t.Fatalf("took %+v, left %+v", got, in.seldom)
	}
}

func TestAShardThatNobodyUsesKeepsNoRates(t *testing.T) {
	var l load
	l.begin(0)
	if got := l.fold(10 * foldAfter); got != (Load{}) || l.rates.known != nil {
		t.Fatalf("rates %+v of nothing", got)
	}
	l.share(11*foldAfter, 0.5)
	l.absorb(&load{}, 12*foldAfter)
	l.inherit(&load{}, 13*foldAfter, 0.5)
	if l.rates.known != nil {
		t.Fatal("a split and a merge of nothing are kept")
	}
	// The quiet time does not count as a part of the first interval.
	l.reads.Add(100)
	want := 100 / foldAfter.Seconds() * (1 - math.Exp2(-foldAfter.Seconds()/loadHalfLife.Seconds()))
	if got := l.fold(14 * foldAfter).Reads; math.Abs(got-want) > 1e-6 {
		t.Fatalf("%v reads per second, want %v", got, want)
	}
}
