package leasemodel

import (
	"fmt"
	"slices"
	"time"

	"go.etcd.io/etcd/raft/v3"
	"go.etcd.io/etcd/raft/v3/raftpb"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/shard/liveness"
)

// Raft node ids say on which store the replica is, which a descriptor says elsewhere.
const storesMax = 10

func storeOf(id uint64) base.StoreID { return base.StoreID(id % storesMax) }

// disk is what one replica has on disk. Its log and hard state change only at a sync; the state machine is written
// unsynced, so a crash may find an older one, but for what was there when the log was synced last.
type disk struct {
	id    uint64
	shard base.ShardID
	log   *raft.MemoryStorage
	saved machine
}

// InitialState takes the configuration from the applied state, as the engine does.
func (d *disk) InitialState() (raftpb.HardState, raftpb.ConfState, error) {
	hs, _, err := d.log.InitialState()
	hs.Commit = max(hs.Commit, d.saved.applied) // R3
	return hs, d.saved.conf, err
}

// logStore is the disk as raft sees it.
type logStore struct {
	*raft.MemoryStorage
	d *disk
}

func (s logStore) InitialState() (raftpb.HardState, raftpb.ConfState, error) {
	return s.d.InitialState()
}

// Every group's log starts at the same place, on every store: with the state of its birth, which stands for a snapshot.
const (
	birthIndex = 10
	birthTerm  = 5
)

// newDisk is one with the state of a replica, and the term of the last entry in that.
func newDisk(shard base.ShardID, id uint64, m machine, term uint64) *disk {
	d := &disk{id: id, shard: shard, log: raft.NewMemoryStorage(), saved: m}
	err := d.log.ApplySnapshot(raftpb.Snapshot{Metadata: raftpb.SnapshotMetadata{
		Index: m.applied, Term: term, ConfState: m.conf,
	}})
	if err == nil {
		err = d.log.SetHardState(raftpb.HardState{Term: term, Commit: m.applied})
	}
	if err != nil {
		panic(err)
	}
	return d
}

// replica is one replica in one life of its store: what its worker owns, and what that publishes to readers.
type replica struct {
	st    *store
	shard base.ShardID
	id    uint64
	disk  *disk
	rn    *raft.RawNode

	// The pass (section 4).
	inbox    []*message
	ticks    int
	inflight bool // a Ready is not advanced yet
	synced   bool
	rd       raft.Ready
	atSync   machine // what the sync in flight makes durable besides
	held     []raftpb.Message
	visiting bool

	// Apply.
	m        machine
	queue    []raftpb.Entry
	applying bool
	waiting  []*read

	// Published.
	leads  uint64 // the term that it leads in; 0: it does not
	commit uint64
	lease  *lease

	// The worker's part of the lease rules.
	promise   given
	stamps    map[uint64]stamp // of followers, in the term that it leads in
	first     uint64           // index of that term's first entry
	givenUp   uint64           // term for whose rest the lease is given up (V4)
	deadline  int              // ticks until a transfer without a result ends the leadership; 0: no transfer
	asleep    bool
	destroyed bool
}

// given is a promise to the leader of a term, for one epoch of support of its store. The zero value binds nobody.
type given struct {
	store base.StoreID
	epoch uint64
	term  uint64
}

// stamp is what a follower's answer says: the epoch under which it has stepped the leader's message, and its commit
// index.
type stamp struct {
	epoch, commit uint64
}

// silent drops what raft logs.
type silent struct{}

func (silent) Debug(...any)              {}
func (silent) Debugf(string, ...any)     {}
func (silent) Info(...any)               {}
func (silent) Infof(string, ...any)      {}
func (silent) Warning(...any)            {}
func (silent) Warningf(string, ...any)   {}
func (silent) Error(...any)              {}
func (silent) Errorf(string, ...any)     {}
func (silent) Fatal(v ...any)            { panic(fmt.Sprint(v...)) }
func (silent) Fatalf(f string, v ...any) { panic(fmt.Sprintf(f, v...)) }
func (silent) Panic(v ...any)            { panic(fmt.Sprint(v...)) }
func (silent) Panicf(f string, v ...any) { panic(fmt.Sprintf(f, v...)) }

// load makes the replica of a disk in the present life of the store.
func (st *store) load(d *disk) *replica {
	rn, err := raft.NewRawNode(&raft.Config{
		ID: d.id, ElectionTick: election, HeartbeatTick: 2, Storage: logStore{d.log, d}, Applied: d.saved.applied,
		MaxSizePerMsg: 1 << 20, MaxInflightMsgs: 128, CheckQuorum: true, PreVote: true, DisableProposalForwarding: true,
		Logger: silent{},
	})
	if err != nil {
		panic(err)
	}
	r := &replica{st: st, shard: d.shard, id: d.id, disk: d, rn: rn, m: d.saved, commit: d.saved.applied}
	if hs := rn.BasicStatus().HardState; hs.Commit > r.commit {
		r.commit = hs.Commit
	}
	st.replicas = append(st.replicas, r)
	slices.SortFunc(st.replicas, func(a, b *replica) int { return int(a.shard) - int(b.shard) })
	st.w.in(0, st, r.visit) // what is committed is applied again
	return r
}

// create makes a replica that a message asks for, unless something stands against it (I1, I3): with the state of its birth,
// or where that covers what others have here by now, with the sender's, as by a snapshot.
func (st *store) create(from base.StoreID, shard base.ShardID, id uint64) *replica {
	b, ok := st.w.births[shard]
	if !ok || st.gone[shard] >= id || storeOf(id) != st.id {
		return nil
	}
	if st.free(&b) {
		return st.add(shard, id, b, birthTerm)
	}
	if o := st.w.store(from).replica(shard); o != nil && memberOf(&o.m.conf, id) && st.free(&o.m) {
		term, err := o.disk.log.Term(o.m.applied)
		if err != nil {
			panic(err)
		}
		return st.add(shard, id, o.m, term)
	}
	return nil // the split, or its own removal, is still to come here
}

// free reports whether no replica here covers any of a state's range.
func (st *store) free(m *machine) bool {
	for _, r := range st.replicas {
		if r.m.lo < m.hi && m.lo < r.m.hi {
			return false
		}
	}
	return true
}

// add makes a new replica.
func (st *store) add(shard base.ShardID, id uint64, m machine, term uint64) *replica {
	d := newDisk(shard, id, m, term)
	st.disks = append(st.disks, d)
	slices.SortFunc(st.disks, func(a, b *disk) int { return int(a.shard) - int(b.shard) })
	st.w.logf("%s has a replica %s/%d", st, shard, id)
	return st.load(d)
}

// destroy removes a replica for good.
func (r *replica) destroy() {
	st := r.st
	r.destroyed = true
	r.withdraw()
	st.gone[r.shard] = max(st.gone[r.shard], r.id)
	st.replicas = slices.DeleteFunc(slices.Clone(st.replicas), func(o *replica) bool { return o == r })
	st.disks = slices.DeleteFunc(st.disks, func(o *disk) bool { return o == r.disk })
	st.w.logf("%s destroys its replica %s/%d", st, r.shard, r.id)
	if r.leads != 0 {
		g := liveness.Group{Shard: r.shard, Term: r.leads}
		r.leads = 0
		st.live.release(g)
	}
}

// visit is one pass over the group: messages, then ticks, then what raft wants done.
func (r *replica) visit() {
	if r.inflight || r.destroyed || r.visiting { // R1
		return
	}
	r.visiting = true
	inbox := r.inbox
	r.inbox = nil
	for _, m := range inbox {
		r.step(m)
	}
	for ; r.ticks > 0; r.ticks-- {
		r.tick()
	}
	r.visiting = false
	r.ready()
}

// do runs something of the worker's, now or after the Ready in flight.
func (r *replica) do(f func()) {
	if r.destroyed || !r.st.up {
		return
	}
	if r.inflight || r.visiting {
		r.st.w.in(time.Millisecond, r.st, func() { r.do(f) })
		return
	}
	f()
	r.visit()
}

// ready takes what raft has to be written, sent and applied.
func (r *replica) ready() {
	if !r.rn.HasReady() {
		r.refresh()
		return
	}
	w := r.st.w
	rd := r.rn.Ready()
	r.rd, r.inflight, r.synced = rd, true, false
	termOrVote := false
	if hs := rd.HardState; !raft.IsEmptyHardState(hs) {
		old, _, _ := r.disk.log.InitialState()
		termOrVote = hs.Term != old.Term || hs.Vote != old.Vote
		r.commit = hs.Commit // V5: before any message that carries it leaves
	}
	r.publish(&rd)
	r.held = nil
	for _, m := range rd.Messages { // R1
		early := !termOrVote && (m.Type == raftpb.MsgApp || m.Type == raftpb.MsgHeartbeat)
		if early && len(rd.Entries) > 0 && m.Commit >= rd.Entries[0].Index {
			early = false
		}
		if early {
			r.send(m)
		} else {
			r.held = append(r.held, m)
		}
	}
	if !termOrVote && len(rd.Entries) == 0 {
		r.finish()
		return
	}
	r.atSync = r.m
	w.in(w.between(r.st.syncLag/4, r.st.syncLag), r.st, func() {
		if r.destroyed {
			return
		}
		r.persist()
		r.finish()
	})
}

// persist is the sync of the Ready in flight, and of what was applied before: one write-ahead log orders both.
func (r *replica) persist() {
	if r.atSync.applied > r.disk.saved.applied {
		r.disk.saved = r.atSync
	}
	if err := r.disk.log.Append(r.rd.Entries); err != nil {
		panic(err)
	}
	hs := r.rn.BasicStatus().HardState // nothing was stepped since (R1)
	if err := r.disk.log.SetHardState(hs); err != nil {
		panic(err)
	}
}

// finish does what waits for the sync.
func (r *replica) finish() {
	w := r.st.w
	r.synced = true
	w.oracle.committed(w, r, r.rd.CommittedEntries)
	if f := &w.faults; f.lastWord && !f.over && r.leads != 0 && len(r.rd.CommittedEntries) > 0 {
		f.lastWord = false
		w.cutAll(r.st, w.between(promise, 4*promise), laneRaft, laneLive)
	}
	held := r.held
	r.held = nil
	for _, m := range held {
		r.send(m)
	}
	if w.without(V4Late) && r.leads == 0 {
		w.in(w.between(time.Millisecond, 100*time.Millisecond), r.st, r.withdrawLate)
	}
	r.queue = append(r.queue, r.rd.CommittedEntries...)
	r.apply()
	for i := range r.rd.CommittedEntries {
		if r.rd.CommittedEntries[i].Type != raftpb.EntryNormal {
			return // R2: apply advances
		}
	}
	r.advance()
}

func (r *replica) advance() {
	r.rn.Advance(r.rd)
	r.rd, r.inflight = raft.Ready{}, false
	r.refresh()
	r.visit()
}

// apply applies what is queued, after as long as this store takes.
func (r *replica) apply() {
	if r.applying || len(r.queue) == 0 || r.destroyed {
		return
	}
	r.applying = true
	w := r.st.w
	w.in(w.between(r.st.applyLag/2+1, r.st.applyLag+2), r.st, func() {
		r.applying = false
		batch := r.queue
		r.queue = nil
		confs := false
		for i := range batch {
			if r.destroyed {
				return
			}
			confs = confs || batch[i].Type != raftpb.EntryNormal
			r.applyEntry(&batch[i])
		}
		if r.destroyed {
			return
		}
		if w.chance(0.3) {
			r.disk.saved = r.m
		}
		r.wakeReads()
		if confs {
			r.advance()
		} else {
			r.refresh()
		}
		r.apply()
	})
}
