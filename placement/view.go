package placement

import (
	"fmt"
	"sync"
	"time"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/clock"
)

// AliveFor is how long after its last report a store counts as alive.
const AliveFor = 10 * time.Second

// Report is what a store tells the leader of the meta shard of itself, each second.
type Report struct {
	Node Node
	// Number rises with every report of an incarnation; 0 from a node of a version that does not count them.
	Number    uint64
	DiskBytes uint64
	HeapBytes uint64
	Replicas  uint32
	Leaders   uint32
	// FreeBytes is what the store's disk has left; Level is ok, low or critical.
	FreeBytes uint64
	Level     string
	// Unhealthy is the node's failed check, empty if all pass.
	Unhealthy string
	// Full means that States holds every replica; else it holds those that changed since the last answered report, and
	// Removed the shards whose replica has gone since.
	Full    bool
	States  []ReplicaState
	Removed []base.ShardID
}

// ReplicaState is one replica in a report.
type ReplicaState struct {
	Desc     *base.Descriptor
	Leads    bool
	Term     uint64
	PutBytes uint64
	Faulted  string
}

// StoreState is what the view knows of one store.
type StoreState struct {
	Node      Node
	Alive     bool
	LastSeen  time.Duration // age of the last report
	DiskBytes uint64
	HeapBytes uint64
	Replicas  uint32
	Leaders   uint32
	FreeBytes uint64
	Level     string // ok, low or critical; empty if the node does not say
	Unhealthy string // the node's failed check, empty if all pass
}

// ShardState is what the reports say of one shard.
type ShardState struct {
	Leader   base.StoreID // 0: no live store says that it leads
	Term     uint64
	PutBytes uint64 // as the leader says, else the largest reported
	Live     int    // replicas on live stores, faulted ones left out
}

// View is the cluster as the stores report it, in memory, on the leader of the meta shard. A new leader starts with an
// empty one. Safe for concurrent use.
type View struct {
	clock clock.Clock

	mu struct {
		sync.Mutex
		stores map[base.StoreID]*storeView
	}
}

type storeView struct {
	node              Node
	number            uint64
	seen              time.Duration // Boot
	disk, heap        uint64
	replicas, leaders uint32
	free              uint64
	level, unhealthy  string
	states            map[base.ShardID]ReplicaState
}

// NewView returns an empty view on boot time of c.
func NewView(c clock.Clock) *View {
	v := &View{clock: c}
	v.mu.stores = make(map[base.StoreID]*storeView)
	return v
}

// Reset forgets everything; a node that becomes leader of the meta shard calls it.
func (v *View) Reset() {
	v.mu.Lock()
	defer v.mu.Unlock()
	clear(v.mu.stores)
}

// Add takes a report in. wantFull: the view has nothing that the report's delta could build on, and ignored its states.
// ErrStale: a later incarnation of the store has reported, or this one has with a higher number.
func (v *View) Add(r *Report) (wantFull bool, err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	s := v.mu.stores[r.Node.ID]
	if s != nil && r.Node.Incarnation < s.node.Incarnation {
		return false, fmt.Errorf("report of %s incarnation %d, seen %d: %w",
			r.Node.ID, r.Node.Incarnation, s.node.Incarnation, ErrStale)
	}
	if s != nil && r.Node.Incarnation == s.node.Incarnation && r.Number < s.number {
		return false, fmt.Errorf("report %d of %s, seen %d: %w", r.Number, r.Node.ID, s.number, ErrStale)
	}
	if s == nil || r.Node.Incarnation != s.node.Incarnation {
		s = &storeView{}
		v.mu.stores[r.Node.ID] = s
	}
	s.node, s.number, s.seen = r.Node, r.Number, v.clock.Boot()
	s.disk, s.heap, s.replicas, s.leaders = r.DiskBytes, r.HeapBytes, r.Replicas, r.Leaders
	s.free, s.level, s.unhealthy = r.FreeBytes, r.Level, r.Unhealthy
	if r.Full {
		s.states = make(map[base.ShardID]ReplicaState, len(r.States))
	}
	if s.states == nil {
		return true, nil
	}
	for _, st := range r.States {
		st.Desc = v.sharedLocked(st.Desc)
		s.states[st.Desc.Shard] = st
	}
	for _, id := range r.Removed {
		delete(s.states, id)
	}
	return false, nil
}

// sharedLocked returns a descriptor that the view has already in the place of one that is the same: all members of a shard
// report it.
func (v *View) sharedLocked(d *base.Descriptor) *base.Descriptor {
	for _, s := range v.mu.stores {
		if st, ok := s.states[d.Shard]; ok && st.Desc.Equal(d) {
			return st.Desc
		}
	}
	return d
}

// Stores returns the state of every store that has reported.
func (v *View) Stores() map[base.StoreID]StoreState {
	v.mu.Lock()
	defer v.mu.Unlock()
	now := v.clock.Boot()
	out := make(map[base.StoreID]StoreState, len(v.mu.stores))
	for id, s := range v.mu.stores {
		out[id] = StoreState{
			Node: s.node, Alive: now-s.seen <= AliveFor, LastSeen: now - s.seen,
			DiskBytes: s.disk, HeapBytes: s.heap, Replicas: s.replicas, Leaders: s.leaders,
			FreeBytes: s.free, Level: s.level, Unhealthy: s.unhealthy,
		}
	}
	return out
}

// Descriptor returns the newest descriptor of a shard that any store has reported, live or not, and false if none has.
func (v *View) Descriptor(id base.ShardID) (*base.Descriptor, bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	var out *base.Descriptor
	for _, s := range v.mu.stores {
		if st, ok := s.states[id]; ok && (out == nil || st.Desc.Epoch.Newer(out.Epoch)) {
			out = st.Desc
		}
	}
	return out, out != nil
}

// Shard sums up what the members of a descriptor say of their shard.
func (v *View) Shard(d *base.Descriptor) ShardState {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.shardLocked(d, v.clock.Boot())
}

// Shards is Shard for many descriptors under one lock.
func (v *View) Shards(ds []*base.Descriptor) []ShardState {
	v.mu.Lock()
	defer v.mu.Unlock()
	now := v.clock.Boot()
	out := make([]ShardState, len(ds))
	for i, d := range ds {
		out[i] = v.shardLocked(d, now)
	}
	return out
}

func (v *View) shardLocked(d *base.Descriptor, now time.Duration) ShardState {
	var out ShardState
	var led uint64
	for _, r := range d.Replicas {
		s := v.mu.stores[r.Store]
		if s == nil || now-s.seen > AliveFor {
			continue
		}
		st, ok := s.states[d.Shard]
		if !ok || st.Faulted != "" {
			continue
		}
		out.Live++
		out.PutBytes = max(out.PutBytes, st.PutBytes)
		// Of two that say they lead, the one of the higher term does.
		if st.Leads && (out.Leader == 0 || st.Term > out.Term) {
			out.Leader, out.Term, led = r.Store, st.Term, st.PutBytes
		}
	}
	if out.Leader != 0 {
		out.PutBytes = led
	}
	return out
}
