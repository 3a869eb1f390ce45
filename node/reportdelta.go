package node

import (
	"context"
	"encoding/binary"
	"maps"
	"math"
	"slices"
	"time"

	pb "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/placement/plan"
	"github.com/shardd/shardd/shard"
)

// What of a replica is worth a report. Identity, epoch, leadership, faults and freezes are told at once. Sizes and rates
// move all the time: they are told when they have changed by a good part, so that an idle shard and one under a steady
// load say nothing. A size that has come to rest is told exactly after a while. What the receiver has lost or mistaken
// shows in the digest, which covers the first kind, and in a full report that it then asks for.

const (
	// sizeStep and loadStep are the parts of itself by which a size or a rate must have changed to be told: a sixteenth,
	// a quarter.
	sizeStep = 16
	loadStep = 4
	// sizeRest is after how long a smaller change of a size is told all the same.
	sizeRest = 30 * time.Second
	// loadFloor is the rate of requests below which a rate counts as none, and loadBytes that of bytes.
	loadFloor = 1
	loadBytes = 1 << 10
)

// reported is what has been told of a replica, comparable but for the numbers.
type reported struct {
	said
	put, size uint64
	load      shard.Load
	at        time.Duration // Boot time
}

// said is the part whose every change is told.
type said struct {
	replica       base.ReplicaID
	epoch         base.Epoch
	leads         bool
	term          uint64
	faulted       string
	uninitialised bool
	into          base.ShardID // frozen for a merge into it
	merge         uint64
	hot, split    string // routing keys
	silent        string // replica ids, 8 bytes each, ascending
	behind        string
}

// told is how a reported is kept. A store has one or two for each of its replicas, so what few have stands apart.
type told struct {
	replica              base.ReplicaID
	epoch                base.Epoch
	term                 uint64
	put, size            uint64
	at                   time.Duration
	leads, uninitialised bool
	more                 *toldMore // nil: all zero
}

type toldMore struct {
	load                       shard.Load
	faulted                    string
	into                       base.ShardID
	merge                      uint64
	hot, split, silent, behind string
}

// keep returns what is kept of r.
func (r *reported) keep() *told {
	k := &told{
		replica: r.replica, epoch: r.epoch, term: r.term, put: r.put, size: r.size, at: r.at, leads: r.leads,
		uninitialised: r.uninitialised,
	}
	more := toldMore{
		load: r.load, faulted: r.faulted, into: r.into, merge: r.merge, hot: r.hot, split: r.split, silent: r.silent,
		behind: r.behind,
	}
	if more != (toldMore{}) {
		k.more = &more
	}
	return k
}

// reported returns what was kept; nil stands for nothing.
func (k *told) reported() (r reported) {
	if k == nil {
		return r
	}
	r.replica, r.epoch, r.term, r.put, r.size, r.at = k.replica, k.epoch, k.term, k.put, k.size, k.at
	r.leads, r.uninitialised = k.leads, k.uninitialised
	if m := k.more; m != nil {
		r.load, r.faulted, r.into, r.merge = m.load, m.faulted, m.into, m.merge
		r.hot, r.split, r.silent, r.behind = m.hot, m.split, m.silent, m.behind
	}
	return r
}

// says reports whether r is what old was, but for the time.
func (r *reported) says(old *reported) bool {
	now := *r
	now.at = old.at
	return now == *old
}

func (m *member) reportedOf(s *shard.Summary, now time.Duration) reported {
	r := reported{
		said: said{
			replica: s.Replica, leads: s.Leads, term: s.Term, faulted: s.Faulted, uninitialised: s.Desc == nil,
		},
		put: s.Stats.PutBytes, size: s.SizeBytes, at: now,
	}
	if s.Desc != nil {
		r.epoch = s.Desc.Epoch
	}
	if f := s.Freeze; f != nil {
		r.into, r.merge = f.Into, f.ID
	}
	if s.Leads {
		r.load, r.hot, r.split = quietLoad(s.Load), string(s.HotKey), string(s.LoadSplitKey)
		r.silent, r.behind = m.followers.of(s.Shard)
	}
	return r
}

// quietLoad is a load with what is next to nothing left out.
func quietLoad(l shard.Load) shard.Load {
	if l.Requests() < loadFloor {
		l.Reads, l.Writes = 0, 0
	}
	if l.Bytes() < loadBytes {
		l.ReadBytes, l.WriteBytes = 0, 0
	}
	if l.Requests() == 0 {
		l.CPUMicros = 0
	}
	return l
}

// worth reports whether r is to be told after old was.
func (r *reported) worth(old *reported) bool {
	differs := func(a, b uint64, step uint64) bool { return max(a, b)-min(a, b) > max(a, b)/step }
	rate := func(a, b float64) bool { return math.Abs(a-b) > max(a, b)/loadStep }
	switch {
	case r.said != old.said,
		differs(r.size, old.size, sizeStep), differs(r.put, old.put, sizeStep),
		rate(r.load.Requests(), old.load.Requests()), rate(r.load.Bytes(), old.load.Bytes()),
		rate(r.load.CPUMicros, old.load.CPUMicros):
		return true
	}
	return (r.size != old.size || r.put != old.put) && r.at-old.at >= sizeRest
}

func (r *reported) proto(id base.ShardID, d *base.Descriptor) *pb.ReplicaReport {
	out := &pb.ReplicaReport{
		ShardId: uint64(id), ReplicaId: uint64(r.replica), Leads: r.leads, Term: r.term, PutBytes: r.put,
		Faulted: r.faulted, SizeBytes: r.size, MergingInto: uint64(r.into), MergeId: r.merge,
		Silent: unpackIDs(r.silent), Behind: unpackIDs(r.behind), Uninitialised: r.uninitialised,
	}
	if d != nil {
		out.Descriptor_ = d.Append(nil)
	}
	if r.hot != "" {
		out.HotKey = []byte(r.hot)
	}
	if r.split != "" {
		out.LoadSplitKey = []byte(r.split)
	}
	if r.load != (shard.Load{}) {
		out.Load = loadProto(r.load)
	}
	return out
}

func loadProto(l shard.Load) *pb.Load {
	return &pb.Load{
		Reads: l.Reads, Writes: l.Writes, ReadBytes: l.ReadBytes, WriteBytes: l.WriteBytes, CpuMicros: l.CPUMicros,
	}
}

// digested is the part that the digest of the store covers.
func (r *reported) digested(id base.ShardID) *plan.ReplicaReport {
	out := &plan.ReplicaReport{
		Shard: id, Replica: r.replica, Leads: r.leads, Faulted: r.faulted, Uninitialised: r.uninitialised,
		MergeID: r.merge,
	}
	if !r.uninitialised {
		out.Desc = &base.Descriptor{Epoch: r.epoch}
	}
	return out
}

// followers is what this store's leaders know of their followers, looked at in turns. It belongs to the report loop.
type followers struct {
	next  int // where the turn stands
	known map[base.ShardID]*follow
}

// follow is what the last looks at one shard showed.
type follow struct {
	missed map[base.ReplicaID]int // looks in a row at which it had not answered
	silent string
	behind string
}

const (
	// followTurn is how many shards a report looks at, at least; more, so that all have their turn in followAll reports. Of
	// those that a look has found something about, each report asks again.
	followTurn = 32
	followAll  = 120
	// followMissed is at how many looks in a row a follower must have been silent: raft forgets at each election
	// time-out who has answered.
	followMissed = 5
	followLook   = 50 * time.Millisecond
)

func (f *followers) of(id base.ShardID) (silent, behind string) {
	if k := f.known[id]; k != nil {
		return k.silent, k.behind
	}
	return "", ""
}

// look asks the next of the shards led here, and those of which something is known, for the progress of their followers. It
// returns those of which something else is known now.
func (f *followers) look(ctx context.Context, s replicaSource, led []base.ShardID) (news []base.ShardID) {
	if f.known == nil {
		f.known = make(map[base.ShardID]*follow)
	}
	ask := make(map[base.ShardID]bool)
	for id, k := range f.known {
		if _, ok := slices.BinarySearch(led, id); ok {
			ask[id] = true
		} else {
			delete(f.known, id)
			if k.silent+k.behind != "" {
				news = append(news, id)
			}
		}
	}
	for range min(len(led), max(followTurn, len(led)/followAll)) {
		f.next = (f.next + 1) % len(led)
		ask[led[f.next]] = true
	}
	look, cancel := context.WithTimeout(ctx, followLook)
	defer cancel()
	// A busy worker does not answer: another time.
	for id, ps := range s.ProgressOf(look, slices.Collect(maps.Keys(ask))) {
		silent, behind := f.of(id)
		f.take(id, ps)
		if a, b := f.of(id); a != silent || b != behind {
			news = append(news, id)
		}
	}
	return news
}

// take takes the progress of a shard in.
func (f *followers) take(id base.ShardID, ps []shard.Progress) {
	k := f.known[id]
	if k == nil {
		k = &follow{missed: make(map[base.ReplicaID]int)}
	}
	var silent, behind []base.ReplicaID
	missed := make(map[base.ReplicaID]int)
	for _, p := range ps {
		if !p.Active {
			missed[p.Replica] = k.missed[p.Replica] + 1
			if missed[p.Replica] >= followMissed {
				silent = append(silent, p.Replica)
			}
		}
		if p.PendingSnapshot != 0 {
			behind = append(behind, p.Replica)
		}
	}
	if len(missed) == 0 && len(behind) == 0 {
		delete(f.known, id)
		return
	}
	k.missed, k.silent, k.behind = missed, packIDs(silent), packIDs(behind)
	f.known[id] = k
}

func packIDs(ids []base.ReplicaID) string {
	slices.Sort(ids)
	var b []byte
	for _, id := range ids {
		b = binary.BigEndian.AppendUint64(b, uint64(id))
	}
	return string(b)
}

func unpackIDs(s string) (out []uint64) {
	for b := []byte(s); len(b) >= 8; b = b[8:] {
		out = append(out, binary.BigEndian.Uint64(b))
	}
	return out
}
