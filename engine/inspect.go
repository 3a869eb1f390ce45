package engine

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/shardd/shardd/internal/base"
	"go.etcd.io/etcd/raft/v3/raftpb"
)

// Inspect looks at the directory of a stopped store. Stages: refuse what Open would refuse before it changes anything,
// take the lock, open Pebble read-only, over a file system that can write nothing, and read every span with all the
// records of each replica, the raft logs included. What a boot refuses at the first record is listed here, all of it.

// ReplicaLife is where a replica is in its life, by what is on disk.
type ReplicaLife uint8

// The states of a replica that left a trace.
const (
	ReplicaRemoved       ReplicaLife = iota + 1 // its mark only, which keeps it from coming back
	ReplicaUninitialised                        // mark and perhaps HardState: it may vote, and waits for a snapshot
	ReplicaInitialised
	ReplicaUnmarked // records without a mark: never in a healthy store
)

// String returns removed, uninitialised, initialised or unmarked.
func (l ReplicaLife) String() string {
	switch l {
	case ReplicaRemoved:
		return "removed"
	case ReplicaUninitialised:
		return "uninitialised"
	case ReplicaInitialised:
		return "initialised"
	case ReplicaUnmarked:
		return "unmarked"
	}
	return "unknown"
}

// InspectedReplica is what the store has of one shard. Pointers are nil for records that are missing or unreadable.
type InspectedReplica struct {
	Shard     base.ShardID
	Life      ReplicaLife
	Mark      ReplicaMark
	Desc      *base.Descriptor
	Applied   *AppliedState
	Hard      *raftpb.HardState
	Truncated *TruncatedState
	LogFirst  uint64 // index of the first and the last entry that exist; 0 if there is none
	LogLast   uint64
	Entries   uint64 // how many exist
	LogBytes  uint64 // of the entries as stored, exact
	Sessions  uint64 // client session records
	DataBytes uint64 // estimate of the tables that hold the shard's range
}

// Problem is something that a healthy store does not have. Shard is 0 if it is not about one.
type Problem struct {
	Shard base.ShardID
	Text  string
}

// Inspection is what Inspect has found.
type Inspection struct {
	Dir          string
	Ident        *Ident // nil if the store has none (yet)
	Replicas     []InspectedReplica
	Problems     []Problem
	FreeBytes    uint64 // on the file system; 0 if unknown
	UsedBytes    uint64 // of all files of the database
	ReserveBytes uint64 // of the file that is freed when the disk is full, 0 if there is none
}

// Inspect reads the store in o.Dir, which no process may have open, and changes nothing in it. Of the options only Dir,
// FS, Logger and CacheBytes count. It fails with an *OpenError for what Open would refuse (in use, not a store, a newer
// format, damage in what Pebble itself needs) and otherwise lists all problems that it finds.
func Inspect(o Options) (*Inspection, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	o = o.withDefaults()
	o.ProbeInterval, o.OnCorrupt, o.damageHold = -1, nil, time.Nanosecond
	e := &Engine{opts: o, start: time.Now()}
	e.fatal.ch, e.fatal.dead = make(chan struct{}), make(chan struct{})
	e.fatal.opening.Store(true) // a failure ends the inspection, not the process
	e.metrics.init()
	e.damage.init()
	e.events = newEventLog(o.Logger)
	defer e.events.close()
	in := &inspector{e: e, out: &Inspection{Dir: o.Dir}, at: make(map[base.ShardID]*InspectedReplica)}
	if err := in.run(); err != nil {
		return nil, classify(o.Dir, fmt.Errorf("inspect: %w", err))
	}
	return in.out, nil
}

type inspector struct {
	e   *Engine
	out *Inspection
	at  map[base.ShardID]*InspectedReplica
}

func (in *inspector) run() (err error) {
	e, dir := in.e, in.e.opts.Dir
	fs := vfs.FS(guardFS{FS: readOnlyFS{e.opts.FS.inner}, fs: e.opts.FS, e: e})
	state, found, err := checkOurs(fs, dir)
	if err != nil {
		return err
	}
	if !found || state != markerReady {
		err := errors.New("there is no store in it, or its creation has not ended")
		return &OpenError{Code: ExitCorrupt, Dir: dir, Err: err}
	}
	lock, err := lockDir(fs, dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	for _, check := range []func(vfs.FS, string) error{checkPebbleFormat, checkManifest, checkLastLog} {
		if err := check(fs, dir); err != nil {
			return err
		}
	}
	if info, err := fs.Stat(e.reserveFile()); err == nil {
		in.out.ReserveBytes = uint64(info.Size())
	}
	if free, _, known := e.opts.FS.usage(dir); known {
		in.out.FreeBytes = free
	}

	po := e.opts.pebbleOptions()
	po.Lock = lock
	po.ReadOnly, po.ErrorIfNotExists, po.DisableAutomaticCompactions = true, true, true
	po.Logger = pebbleLogger{e}
	po.EventListener = e.listener()
	po.Cache = pebble.NewCache(e.opts.CacheBytes)
	defer po.Cache.Unref()
	po.FS = fs
	if e.db, err = e.openPebble(po); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, e.closeDB(e.db)) }()
	in.out.UsedBytes = diskUsed(e.db.Metrics())
	if err := e.checkBlobs(fs); err != nil {
		in.problem(0, "%v", err)
	}
	in.ident()
	in.spans()
	in.judge()
	return nil
}

func (in *inspector) problem(shard base.ShardID, format string, args ...any) {
	in.out.Problems = append(in.out.Problems, Problem{Shard: shard, Text: oneLine(fmt.Sprintf(format, args...))})
}

// replica returns the record of a shard; a shard that has none yet has no mark either.
func (in *inspector) replica(shard base.ShardID) *InspectedReplica {
	r := in.at[shard]
	if r == nil {
		r = &InspectedReplica{Shard: shard, Life: ReplicaUnmarked}
		in.at[shard] = r
	}
	return r
}

func (in *inspector) ident() {
	if err := in.e.loadIdent(); err != nil {
		in.problem(0, "%v", err)
		return
	}
	if id, ok := in.e.Ident(); ok {
		in.out.Ident = &id
	}
}

// each calls f for every key in [lo, hi) and reports where the walk broke off, if it did.
func (in *inspector) each(what string, lo, hi []byte, f func(k []byte, v pebble.LazyValue)) {
	it, err := in.e.db.NewIter(&pebble.IterOptions{LowerBound: lo, UpperBound: hi})
	if err != nil {
		in.problem(0, "read %s: %v", what, readError(err))
		return
	}
	at := lo
	for ok := it.First(); ok; ok = it.Next() {
		at = append(at[:0:0], it.Key()...)
		f(it.Key(), it.LazyValue())
	}
	if err := errors.Join(it.Error(), it.Close()); err != nil {
		in.problem(0, "read %s, from key %x on: %v", what, at, readError(err))
	}
}

// record is each for a span with one record per shard.
func (in *inspector) record(what string, span byte, f func(shard base.ShardID, v []byte) error) {
	lo, hi := spanBounds(span)
	in.each(what, lo, hi, func(k []byte, lazy pebble.LazyValue) {
		if len(k) != shardKeyLen {
			in.problem(0, "%s: key %x is not one of ours", what, k)
			return
		}
		shard := base.ShardID(u64at(k, 2))
		v, _, err := lazy.Value(nil)
		if err == nil {
			err = f(shard, v)
		}
		if err != nil {
			in.problem(shard, "%s: %v", what, readError(err))
		}
	})
}

func (in *inspector) spans() {
	in.record("mark", spanMark, func(shard base.ShardID, v []byte) error {
		r := in.replica(shard)
		var err error
		r.Mark, err = decodeMark(v)
		r.Life = ReplicaRemoved
		if r.Mark.ReplicaID != 0 || err != nil {
			r.Life = ReplicaUninitialised
		}
		return err
	})
	in.record("descriptor", spanDesc, func(shard base.ShardID, v []byte) error {
		d, rest, err := base.DecodeDescriptor(v)
		if err == nil && (len(rest) != 0 || d.Shard != shard) {
			err = fmt.Errorf("it is of %s, with %d bytes behind it: %w", d.Shard, len(rest), ErrCorrupt)
		}
		if err != nil {
			in.replica(shard)
			return err
		}
		in.replica(shard).Desc = d
		return nil
	})
	in.record("applied state", spanApplied, func(shard base.ShardID, v []byte) error {
		r := in.replica(shard)
		a, err := decodeApplied(v)
		if err == nil {
			r.Applied = &a
		}
		return err
	})
	lo, hi := spanBounds(spanSession)
	in.each("session", lo, hi, func(k []byte, _ pebble.LazyValue) {
		if len(k) <= shardKeyLen {
			in.problem(0, "session: key %x is not one of ours", k)
			return
		}
		in.replica(base.ShardID(u64at(k, 2))).Sessions++
	})
	lo, hi = spanBounds(spanRaft)
	in.each("raft state", lo, hi, in.raft)
}

// raft takes one record of the raft span.
func (in *inspector) raft(k []byte, lazy pebble.LazyValue) {
	if len(k) < stateKeyLen {
		in.problem(0, "raft state: key %x is not one of ours", k)
		return
	}
	shard := base.ShardID(u64at(k, 2))
	r := in.replica(shard)
	v, _, err := lazy.Value(nil)
	if err != nil {
		in.problem(shard, "raft record %x: %v", k, readError(err))
		return
	}
	switch kind := k[shardKeyLen]; {
	case kind == raftHard && len(k) == stateKeyLen:
		h, derr := decodeHard(v)
		if err = derr; err == nil {
			r.Hard = &h
		}
	case kind == raftTruncated && len(k) == stateKeyLen:
		t, derr := decodeTruncated(v)
		if err = derr; err == nil {
			r.Truncated = &t
		}
	case kind == raftLog && len(k) == logKeyLen:
		index := u64at(k, stateKeyLen)
		_, err = decodeEntry(index, v)
		if r.Entries == 0 {
			r.LogFirst = index
		} else if index != r.LogLast+1 {
			in.problem(shard, "log: entries %d to %d are missing", r.LogLast+1, index-1)
		}
		r.LogLast = index
		r.Entries++
		r.LogBytes += uint64(len(v))
	default:
		err = fmt.Errorf("key %x is not one of ours", k)
	}
	if err != nil {
		in.problem(shard, "raft state: %v", err)
	}
}

// judge compares the records of each replica with one another, and the replicas with their neighbours.
func (in *inspector) judge() {
	var live []*InspectedReplica
	for _, shard := range slices.Sorted(maps.Keys(in.at)) {
		r := in.at[shard]
		in.judgeReplica(r)
		if r.Desc != nil && r.Mark.ReplicaID != 0 {
			r.Life = ReplicaInitialised
			live = append(live, r)
			if n, err := in.e.db.EstimateDiskUsage(r.Desc.Start, r.Desc.End); err == nil {
				r.DataBytes = n
			}
		}
	}
	slices.SortFunc(live, func(a, b *InspectedReplica) int { return bytes.Compare(a.Desc.Start, b.Desc.Start) })
	for i, r := range live {
		for _, next := range live[i+1:] {
			if !r.Desc.Overlaps(next.Desc) {
				break
			}
			in.problem(r.Shard, "overlaps %s: %s and %s", next.Shard, r.Desc, next.Desc)
		}
	}
	in.strayData(live)
	for _, shard := range slices.Sorted(maps.Keys(in.at)) {
		in.out.Replicas = append(in.out.Replicas, *in.at[shard])
	}
	for _, f := range in.e.damage.mu.queue { // nobody else announces them
		in.problem(0, "damaged file %s", f.Path)
	}
}

func (in *inspector) judgeReplica(r *InspectedReplica) {
	p := func(format string, args ...any) { in.problem(r.Shard, format, args...) }
	if r.Life == ReplicaRemoved || r.Life == ReplicaUnmarked {
		if r.Desc != nil || r.Applied != nil || r.Hard != nil || r.Truncated != nil || r.Entries > 0 || r.Sessions > 0 {
			p("%s, but there is more of it: descriptor %t, applied %t, hard %t, truncated %t, %d log entries, %d sessions",
				r.Life, r.Desc != nil, r.Applied != nil, r.Hard != nil, r.Truncated != nil, r.Entries, r.Sessions)
		}
		return
	}
	if r.Desc == nil { // uninitialised
		if r.Applied != nil || r.Truncated != nil || r.Entries > 0 || r.Sessions > 0 {
			p("half a state: no descriptor, but applied %t, truncated %t, %d log entries, %d sessions",
				r.Applied != nil, r.Truncated != nil, r.Entries, r.Sessions)
		}
		return
	}
	if r.Applied == nil || r.Truncated == nil || r.Hard == nil {
		p("half a state: descriptor, but applied %t, truncated %t, hard %t",
			r.Applied != nil, r.Truncated != nil, r.Hard != nil)
	}
	if _, ok := r.Desc.Replica(r.Mark.ReplicaID); !ok {
		p("replica %d is not listed in its descriptor %s", r.Mark.ReplicaID, r.Desc)
	}
	if r.Truncated == nil {
		return
	}
	t, last := r.Truncated.Index, max(r.LogLast, r.Truncated.Index)
	if r.Entries > 0 && r.LogFirst != t+1 {
		p("log starts at %d, but is truncated at %d", r.LogFirst, t)
	}
	if r.Applied != nil && t > r.Applied.Index {
		p("log truncated at %d, applied only to %d", t, r.Applied.Index)
	}
	if r.Applied != nil && r.Applied.Index > last {
		p("log ends at %d, but %d is applied", last, r.Applied.Index)
	}
	if r.Hard != nil && r.Hard.Commit > last {
		p("log ends at %d, but %d is committed", last, r.Hard.Commit)
	}
}

// strayData looks for keys outside the ranges of all live replicas, which are in order: one seek for each gap.
func (in *inspector) strayData(live []*InspectedReplica) {
	at := []byte{dataStart}
	gap := func(hi []byte) {
		if bytes.Compare(at, hi) >= 0 {
			return
		}
		it, err := in.e.db.NewIter(&pebble.IterOptions{LowerBound: at, UpperBound: hi})
		if err != nil {
			in.problem(0, "read data: %v", readError(err))
			return
		}
		if it.First() {
			in.problem(0, "data at key %x, which no replica here owns", it.Key())
		}
		if err := errors.Join(it.Error(), it.Close()); err != nil {
			in.problem(0, "read data in [%x, %x): %v", at, hi, readError(err))
		}
	}
	for _, r := range live {
		gap(r.Desc.Start)
		if bytes.Compare(r.Desc.End, at) > 0 {
			at = r.Desc.End
		}
	}
	gap([]byte{dataEnd})
}

// errReadOnly is what every change through a readOnlyFS fails with.
var errReadOnly = errors.New("opened for inspection only")

// readOnlyFS changes nothing.
type readOnlyFS struct{ vfs.FS }

// Lock takes the lock of a file that exists, which leaves no trace. Without one, as in a copy, nobody has the directory
// open.
func (f readOnlyFS) Lock(name string) (io.Closer, error) {
	if _, err := f.Stat(name); errors.Is(err, os.ErrNotExist) {
		return io.NopCloser(nil), nil
	}
	return f.FS.Lock(name)
}

func (readOnlyFS) deny(op, name string) error {
	return &os.PathError{Op: op, Path: name, Err: errReadOnly}
}

func (f readOnlyFS) Create(name string, _ vfs.DiskWriteCategory) (vfs.File, error) {
	return nil, f.deny("create", name)
}

func (f readOnlyFS) OpenReadWrite(name string, _ vfs.DiskWriteCategory, _ ...vfs.OpenOption) (vfs.File, error) {
	return nil, f.deny("open for writing", name)
}

func (f readOnlyFS) ReuseForWrite(from, _ string, _ vfs.DiskWriteCategory) (vfs.File, error) {
	return nil, f.deny("reuse", from)
}

func (f readOnlyFS) Link(_, name string) error                 { return f.deny("link", name) }
func (f readOnlyFS) Remove(name string) error                  { return f.deny("remove", name) }
func (f readOnlyFS) RemoveAll(name string) error               { return f.deny("remove", name) }
func (f readOnlyFS) Rename(from, _ string) error               { return f.deny("rename", from) }
func (f readOnlyFS) MkdirAll(name string, _ os.FileMode) error { return f.deny("make directory", name) }
func (f readOnlyFS) Unwrap() vfs.FS                            { return f.FS }
