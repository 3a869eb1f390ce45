package shard

import (
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/raft/v3"
	"go.etcd.io/etcd/raft/v3/raftpb"

	"github.com/shardd/shardd/engine"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
	"github.com/shardd/shardd/shard/apply"
)

// replica is one member of one raft group on this store, in one of its states (life.go): a snapshot puts another object
// in its place. A store has tens of thousands, most of which sleep: what few of them need is behind a pointer, and flags
// stand together (TestAReplicaThatSleepsTakesLittleMemory).
//
// INVARIANT(still): while worker.still, raft and log belong to whoever parked the replica.
// INVARIANT(home): only the worker that owns the shard touches worker. The machine, while it is not halted, is the apply
// worker's; the worker's if nothing is handed to apply, or if what is stands in worker.run.
// INVARIANT(inflight): while worker.inflight, nothing is stepped into worker.rn (R1).
// INVARIANT(applied): applied never exceeds the index of the last committed batch of the state machine.
type replica struct {
	store *Store
	shard base.ShardID
	id    base.ReplicaID
	born  time.Duration // this object, on Clock.Boot

	// Published: written by the owner, read by anyone.
	desc     atomic.Pointer[base.Descriptor] // nil for ever: uninitialised
	ruled    atomic.Pointer[base.Descriptor] // of the configuration that its worker goes by, and so its lease; nil as desc
	lead     atomic.Pointer[leadership]
	commit   atomic.Uint64
	applied  atomic.Uint64
	faulted  atomic.Pointer[string]        // reason; set once
	frozen   atomic.Pointer[engine.Freeze] // nil: it is not
	merged   atomic.Pointer[wire.Answer]   // merged away: what to tell who still waits; set once
	promised atomic.Pointer[promise]       // what it owes a leader, nil: nothing; written by its worker
	lease    atomic.Pointer[lease]         // what it may count on as a leader, nil: nothing
	silent   atomic.Int64                  // ticks since the last word from a leader, or since this one led
	newer    atomic.Bool                   // somebody writes to a newer replica of the shard on this store
	asleep   atomic.Bool                   // it is not ticked
	noticing atomic.Bool                   // worker.notices is not empty
	noted    atomic.Bool                   // in Store.news.list
	doubted  atomic.Bool                   // in Store.doubts.list
	parking  atomic.Bool                   // in.park is set
	leaving  atomic.Bool                   // its data is being removed or replaced: what is read now proves nothing

	size shardSize
	load load

	in     inbox
	wait   waiting
	far    far
	handed handed

	state struct {
		sync.Mutex
		applied engine.AppliedState // of the last committed apply batch
	}

	machine *apply.Machine // apply worker only, or the step of a halt; nil if uninitialised

	worker replicaWorker
}

// replicaWorker is what only the replica's worker touches.
type replicaWorker struct {
	rn    *raft.RawNode
	log   *engine.Log
	peers []peer // where replicas live: the descriptor's, and those learned from messages

	disposed  bool // faulted and cleaned up, replaced, removed or stopped
	still     bool // parked: nothing is stepped
	awake     bool // ticks are given to it
	listed    bool // in worker.awake
	rests     bool // awake, though it could sleep: it is ticked seldom
	beat      bool // rests, and its heartbeat is due
	waking    bool // in worker.wakes
	retired   bool
	starting  bool // loaded at the start of the store: it sleeps until it hears something
	parked    bool
	inflight  bool // a Ready waits for its sync, or for its conf change
	synced    bool // of the Ready in flight
	withheld  bool // committed entries wait until apply has room
	blocked   bool // writes wait for uncommitted entries to commit
	inRunOuts bool // in worker.runOuts
	freezing  bool // a Freeze is proposed: writes wait for what becomes of it
	leads     bool // raft says so; lead is what requests are told
	nonvoter  bool // by the applied configuration (V13)
	stand     standing

	noticeQueued bool // in worker.noticed

	term          uint64 // raft's current term
	vote          uint64
	keptCommit    uint64 // commit index on disk, or on its way there
	confEntry     uint64 // highest index in the log at which a conf change may stand
	committedTerm uint64 // highest term of a committed entry seen; reads need it to be term
	lastStamp     uint64 // highest version stamp proposed

	wakeFor base.StoreID     // why it is in worker.wakes: because of a follower there, 0: in any case
	idle    int              // ticks since something happened
	logSeen uint64           // bytes of it in worker.logTotal
	over    *replica         // whose promises it has to take over at its worker, nil: nobody's
	ticks   int              // pending
	visited uint64           // number of the pass that last picked the replica up
	confs   int              // conf changes of the Ready in flight that apply has not decided
	ready   underWay         // the Ready in flight
	held    []raftpb.Message // of the Ready in flight: leave after the sync
	notices []notice         // of commits, that wait for an append to say the same
	run     *applyRun        // of this pass: its worker applies it at the end

	noticeDue time.Duration // of notices

	writes      []WriteRequest // not proposed
	unbound     []*proposal    // proposed in this step, before Ready
	pending     []*proposal    // in (term, index) order
	uncommitted int64          // bytes of pending and unbound
	reads       []ReadRequest  // on no read index yet
	indexes     []readIndex    // asked for, oldest first
	transfer    *transfer
	sending     []sendingSnapshot
	reports     []snapshotReport
	asked       []transferRequest // taken from the inbox, not started
	calls       []func(*replica)  // taken from the inbox, not run

	conf     *raftpb.ConfState // that raft goes by; never changed, only replaced
	leading  leading           // of the leadership at hand
	released releasedBy        // who has given up leading it last
	runOut   runOut            // that it waits for
	retries  int               // of a campaign that nobody has answered
	retryIn  int               // ticks
	yielding int               // ticks for which another candidate goes first
	reminded int               // ticks until a leader of an earlier term is told again

	thaw       *thawing       // what this leader does about the freeze
	change     *changeRequest // waits for its checks to pass
	tracked    []*tracked     // conf changes and verifications proposed here
	confIndex  uint64         // of the last conf change proposed here
	joint      *jointState    // nil unless it leads, or has led, in a joint configuration
	shedWait   int            // ticks until the leadership is given away again
	compaction compaction
	history    confHistory
}

// underWay is what is needed of a Ready until it is advanced. A whole one is four times as large, since it has room for a
// snapshot, which no Ready here ever brings.
type underWay struct {
	hard      raftpb.HardState
	entries   []raftpb.Entry
	committed []raftpb.Entry
}

// advances returns the Ready as RawNode.Advance wants it.
func (u *underWay) advances() raft.Ready {
	return raft.Ready{HardState: u.hard, Entries: u.entries, CommittedEntries: u.committed}
}

type peer struct {
	replica base.ReplicaID
	store   base.StoreID
}

// leadership is what a replica knows of its leader. Values are never changed once published.
type leadership struct {
	term   uint64
	leader base.ReplicaID // 0: none known
	store  base.StoreID   // of leader, 0 if not known
	leads  bool           // this replica is the leader
}

// inbox buffers what callers have for the group until its worker can step it.
type inbox struct {
	sync.Mutex
	closed   wire.Code // not OK: refuse with this, and reason
	campaign bool
	gone     bool // no worker looks here any more
	reason   string
	msgs     []inMessage
	writes   []WriteRequest
	reads    []ReadRequest
	seldom   *seldom // nil: nothing
	confs    []confResult
	park     func(ok bool)
	watched  []watched

	msgBytes   int64
	writeBytes atomic.Int64 // unproposed, here and in worker.writes
	readCount  atomic.Int64 // unanswered, wherever they are
}

// seldom is the part of an inbox that is empty nearly always.
type seldom struct {
	unreachable []base.ReplicaID
	transfers   []transferRequest
	calls       []func(*replica) // run on the worker between two Readys
	sent        []snapshotDone
}

// seldomLocked returns the seldom part, to add to it.
func (in *inbox) seldomLocked() *seldom {
	if in.seldom == nil {
		in.seldom = &seldom{}
	}
	return in.seldom
}

// takeSeldomLocked empties the seldom part and returns what was there.
func (in *inbox) takeSeldomLocked() (out seldom) {
	if in.seldom != nil {
		out, in.seldom = *in.seldom, nil
	}
	return out
}

type inMessage struct {
	store base.StoreID
	stamp wire.Stamp
	msg   raftpb.Message
}

func (r *replica) String() string { return base.ReplicaName(r.shard, r.id) }

func (r *replica) faultReason() (string, bool) {
	if p := r.faulted.Load(); p != nil {
		return *p, true
	}
	return "", false
}

func (r *replica) appliedState() engine.AppliedState {
	r.state.Lock()
	defer r.state.Unlock()
	return r.state.applied
}

// storeOf returns the store that a replica of the group lives on, 0 if it has never been heard of.
func (r *replica) storeOf(id base.ReplicaID) base.StoreID {
	for i := range r.worker.peers {
		if r.worker.peers[i].replica == id {
			return r.worker.peers[i].store
		}
	}
	return 0
}

// learnPeer remembers where a message came from: a leader may be newer than our descriptor.
func (r *replica) learnPeer(id base.ReplicaID, s base.StoreID) {
	if r.storeOf(id) == 0 {
		r.worker.peers = append(r.worker.peers, peer{id, s})
	}
}

// deadline gives a request without one the default.
func (s *Store) deadline(d, now time.Duration) time.Duration {
	if d == 0 {
		return now + s.cfg.RequestTimeout
	}
	return d
}

// notLeader is the answer that sends a client to the leader.
func (r *replica) notLeader() wire.Answer {
	a := wire.Answer{Code: wire.NotLeader}
	if l := r.lead.Load(); !l.leads && l.leader != r.id { // V13: a leader that is no voter serves nobody
		a.Arg = uint64(l.store)
	}
	return a
}

// epochMismatch is the answer to a stale route to [lo, hi), or to lo alone.
func (r *replica) epochMismatch(lo, hi []byte) wire.Answer {
	return wire.Answer{Code: wire.EpochMismatch, Payload: wire.AppendDescriptors(nil, r.routes(lo, hi)...)}
}

// mismatchOf is epochMismatch for an operation.
func (r *replica) mismatchOf(op *wire.Op) wire.Answer {
	if op.Code == wire.OpScan || op.Code == wire.OpDeleteRange {
		return r.epochMismatch(op.Key, op.Value)
	}
	return r.epochMismatch(op.Key, nil)
}

// complete answers a request; only initialised replicas get any.
func (r *replica) complete(w Waiter, req uint64, a wire.Answer) {
	a.Req = req
	a.Version = r.desc.Load().Epoch.Version
	w.Complete(req, a)
}

func answerText(c wire.Code, reason string) wire.Answer {
	return wire.Answer{Code: c, Payload: []byte(reason)}
}
