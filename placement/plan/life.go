package plan

import (
	"encoding/binary"
	"fmt"
	"time"

	"github.com/shardd/shardd/internal/base"
)

// EventKind is what happened to a shard. The numbers are part of the format.
type EventKind uint8

// Kinds.
const (
	EventSeen       EventKind = 1  // first report of a shard of which nothing was known
	EventSplit      EventKind = 2  // Other was split off
	EventSplitFrom  EventKind = 3  // it was split off Other
	EventMerged     EventKind = 4  // it took in Other
	EventMergedInto EventKind = 5  // Other took it in
	EventAdded      EventKind = 6  // a replica on Store
	EventRemoved    EventKind = 7  // the replica on Store
	EventRole       EventKind = 8  // the replica on Store got another role
	EventLeader     EventKind = 9  // Store leads, before it From
	EventRecovered  EventKind = 10 // written by who recovers a lost quorum
)

var eventKinds = [...]string{
	EventSeen: "created", EventSplit: "split", EventSplitFrom: "split-from", EventMerged: "merged",
	EventMergedInto: "merged-into", EventAdded: "replica", EventRemoved: "replica", EventRole: "replica",
	EventLeader: "leader", EventRecovered: "recovered",
}

// String returns the word that the API uses.
func (k EventKind) String() string {
	if int(k) < len(eventKinds) {
		return eventKinds[k]
	}
	return fmt.Sprintf("event(%d)", uint8(k))
}

// Event is one line in the life of a shard, derived from reports: what lies between two reports of a shard shows as one
// step.
type Event struct {
	// At is boot time in the view; who stores events puts wall time in.
	At    time.Duration
	Shard base.ShardID
	Kind  EventKind
	Other base.ShardID
	Store base.StoreID
	From  base.StoreID
	// Replica and Role are those of the replica for the kinds about one.
	Replica base.ReplicaID
	Role    base.Role
	Term    uint64
	Epoch   base.Epoch
}

// Detail says in words what happened.
func (e *Event) Detail() string {
	switch e.Kind {
	case EventSeen:
		return "first reported at epoch " + e.Epoch.String()
	case EventSplit:
		return fmt.Sprintf("%s was split off", e.Other)
	case EventSplitFrom:
		return fmt.Sprintf("split off %s", e.Other)
	case EventMerged:
		return fmt.Sprintf("took in %s", e.Other)
	case EventMergedInto:
		return fmt.Sprintf("taken in by %s", e.Other)
	case EventAdded:
		return fmt.Sprintf("%s %s on %s added", e.Role, base.ReplicaName(e.Shard, e.Replica), e.Store)
	case EventRemoved:
		return fmt.Sprintf("%s %s on %s removed", e.Role, base.ReplicaName(e.Shard, e.Replica), e.Store)
	case EventRole:
		return fmt.Sprintf("%s on %s is now %s", base.ReplicaName(e.Shard, e.Replica), e.Store, e.Role)
	case EventLeader:
		if e.From == 0 {
			return fmt.Sprintf("%s leads in term %d", e.Store, e.Term)
		}
		return fmt.Sprintf("%s leads in term %d, before it %s", e.Store, e.Term, e.From)
	case EventRecovered:
		return fmt.Sprintf("recovered from the replica on %s; what only lost nodes had is gone", e.Store)
	}
	return e.Kind.String()
}

const (
	eventVersion = 1
	eventSize    = 1 + 8 + 8 + 1 + 8 + 8 + 8 + 8 + 1 + 8 + 8 + 8
)

// Append encodes (big-endian):
//
//	u8 version | u64 at, ns | u64 shard | u8 kind | u64 other | u64 store | u64 from | u64 replica | u8 role | u64 term |
//	u64 conf | u64 version
func (e *Event) Append(buf []byte) []byte {
	u64 := binary.BigEndian.AppendUint64
	buf = u64(u64(append(buf, eventVersion), uint64(e.At)), uint64(e.Shard))
	buf = u64(u64(u64(append(buf, byte(e.Kind)), uint64(e.Other)), uint64(e.Store)), uint64(e.From))
	buf = append(u64(buf, uint64(e.Replica)), byte(e.Role))
	return u64(u64(u64(buf, e.Term), e.Epoch.ConfVer), e.Epoch.Version)
}

// DecodeEvent is the reverse of Append; errors wrap base.ErrCorrupt.
func DecodeEvent(b []byte) (Event, error) {
	if len(b) != eventSize || b[0] != eventVersion {
		return Event{}, fmt.Errorf("shard event of %d bytes: %w", len(b), base.ErrCorrupt)
	}
	u64 := func(at int) uint64 { return binary.BigEndian.Uint64(b[at:]) }
	e := Event{
		At: time.Duration(u64(1)), Shard: base.ShardID(u64(9)), Kind: EventKind(b[17]), Other: base.ShardID(u64(18)),
		Store: base.StoreID(u64(26)), From: base.StoreID(u64(34)), Replica: base.ReplicaID(u64(42)), Role: base.Role(b[50]),
		Term: u64(51), Epoch: base.Epoch{ConfVer: u64(59), Version: u64(67)},
	}
	if e.Kind < EventSeen || e.Kind > EventRecovered || e.Role > base.RoleOutgoing {
		return Event{}, fmt.Errorf("shard event of kind %d, role %d: %w", e.Kind, e.Role, base.ErrCorrupt)
	}
	return e, nil
}

func (v *View) event(e Event) {
	if v.Events == nil {
		return
	}
	e.At = v.now
	if sh := v.shards[e.Shard]; sh != nil {
		e.Epoch = sh.Epoch
	}
	v.Events(e)
}

// born tells of a shard that the view sees for the first time, and of what it was split from if that shows: an older
// range over its own, else a left neighbour of the same version on the same stores.
func (v *View) born(sh *Shard) {
	var parent *Shard
	v.byKey.DescendLessOrEqual(&Shard{Start: sh.Start}, func(o *Shard) bool {
		switch {
		case o == sh:
			return true
		case o.End > sh.Start && o.Epoch.Version < sh.Epoch.Version:
			parent = o
		case o.End == sh.Start && o.Epoch.Version == sh.Epoch.Version && sh.Epoch.Version > 1 && sameStores(o, sh):
			parent = o
			if o.rare != nil && o.rare.parent != 0 {
				if p := v.shards[o.rare.parent]; p != nil {
					parent = p
				}
			}
		}
		return false
	})
	if parent == nil {
		v.event(Event{Kind: EventSeen, Shard: sh.ID})
		return
	}
	sh.mend().parent = parent.ID
	v.event(Event{Kind: EventSplit, Shard: parent.ID, Other: sh.ID})
	v.event(Event{Kind: EventSplitFrom, Shard: sh.ID, Other: parent.ID})
}

func sameStores(a, b *Shard) bool {
	if len(a.Listed()) != len(b.Listed()) {
		return false
	}
	for _, p := range a.Listed() {
		if b.ListedOn(p.Store) == nil {
			return false
		}
	}
	return true
}

// replicaEvents tells how the replicas differ from what they were.
func (v *View) replicaEvents(sh *Shard, old []Peer) {
	if v.Events == nil {
		return
	}
	was := make(map[base.ReplicaID]Peer, len(old))
	for _, p := range old {
		was[p.Replica] = p
	}
	for _, p := range sh.Listed() {
		o, known := was[p.Replica]
		delete(was, p.Replica)
		switch {
		case !known:
			v.event(Event{Kind: EventAdded, Shard: sh.ID, Store: p.Store, Replica: p.Replica, Role: p.Role})
		case o.Role != p.Role:
			v.event(Event{Kind: EventRole, Shard: sh.ID, Store: p.Store, Replica: p.Replica, Role: p.Role})
		}
	}
	for _, o := range old {
		if _, gone := was[o.Replica]; gone {
			v.event(Event{Kind: EventRemoved, Shard: sh.ID, Store: o.Store, Replica: o.Replica, Role: o.Role})
		}
	}
}
