package plan

import (
	"maps"
	"time"

	"github.com/shardd/shardd/internal/base"
)

// Commission says whether a node belongs to the cluster.
type Commission uint8

// Commissions.
const (
	Active          Commission = iota
	Decommissioning            // all its replicas leave, it gets no new ones
	Decommissioned             // has none left, and gets none
	Removed                    // gone for good: its replicas are replaced at once
)

// String returns the word that the API uses; empty for Active.
func (c Commission) String() string {
	return [...]string{"", "decommissioning", "decommissioned", "removed"}[c&3]
}

// Drain is what a node is kept free of; each keeps off what the one before it does as well. Its numbers are those of
// placement.DrainMode.
type Drain uint8

// Drains.
const (
	DrainNone Drain = iota
	DrainLeaders
	DrainReplicas
)

// Disk is how full a store's disk is, as the store itself judges.
type Disk uint8

// Disk levels.
const (
	DiskOK       Disk = iota
	DiskLow           // gets no more replicas
	DiskCritical      // refuses writes: gets no leaders either
)

// ParseDisk reads the word of a report; what is not known counts as ok.
func ParseDisk(s string) Disk {
	switch s {
	case "low":
		return DiskLow
	case "critical":
		return DiskCritical
	}
	return DiskOK
}

// Load is what a shard does per second at its leader, averaged by the reporter over half a minute or so.
type Load struct {
	Reads, Writes         uint32 // requests
	ReadBytes, WriteBytes uint32
	CPUMicros             uint32 // microseconds of processor
}

// Requests returns reads and writes.
func (l Load) Requests() uint64 { return uint64(l.Reads) + uint64(l.Writes) }

// Bytes returns bytes read and written.
func (l Load) Bytes() uint64 { return uint64(l.ReadBytes) + uint64(l.WriteBytes) }

// LoadSum adds up loads. Its numbers are whole, so that adding and taking away leaves nothing behind.
type LoadSum struct {
	Requests, Bytes, CPUMicros int64
}

func (s *LoadSum) add(l Load, sign int64) {
	s.Requests += sign * int64(l.Requests())
	s.Bytes += sign * int64(l.Bytes())
	s.CPUMicros += sign * int64(l.CPUMicros)
}

// Member is what the meta shard's records say of a node; the driver hands it to View.SetMember.
type Member struct {
	ID         base.StoreID
	Labels     map[string]string
	Commission Commission
	Drain      Drain
}

// Store is one store of the view. Read only outside this package.
type Store struct {
	Member
	Incarnation uint64
	// Number is that of its last report.
	Number uint64
	// Seen is when it last reported, on the owner's boot clock; Known is false until it has.
	Seen  time.Duration
	Known bool
	// Full: the present incarnation has told all its replicas.
	Full bool
	// Listed: a member record names it. A store that only reports is not planned with.
	Listed bool

	DiskBytes, DiskFree, DiskCapacity uint64
	Disk                              Disk
	Unhealthy, Slow                   string // why, empty if not
	CPUMillis                         uint64
	// SlowSeen is when it last said that it is slow or unhealthy, if SlowEver.
	SlowSeen time.Duration
	SlowEver bool

	// Kept by the view: replicas whose descriptor lists the store, those of them that lead, bytes of them all, and the load
	// of the leaders.
	Replicas, Leaders int
	Bytes             uint64
	Load              LoadSum

	digest uint64
	// shards are the shards whose descriptor lists the store or that it has reported; Peer.pos is the place in it.
	shards []*Shard
	// down and alive are what the last Tick made of it, slow whether it was slow lately.
	down, alive, slow bool
	at                int32 // its place in View.order
}

// Shards calls f for every shard that lists the store or that it holds a replica of, in no useful order, until f
// returns false. f must not change the view.
func (s *Store) Shards(f func(*Shard) bool) {
	for _, sh := range s.shards {
		if !f(sh) {
			return
		}
	}
}

// Held is the number of shards that Shards visits.
func (s *Store) Held() int { return len(s.shards) }

func (s *Store) sameLabels(labels map[string]string) bool { return maps.Equal(s.Labels, labels) }
