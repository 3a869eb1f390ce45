package base

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Role is what a replica does in its raft group.
type Role uint8

// Roles as stored; the numbers are part of the format. Incoming and Outgoing exist only while a shard is Joint.
const (
	RoleVoter    Role = 1
	RoleLearner  Role = 2
	RoleIncoming Role = 3 // was a learner, becomes a voter when the joint configuration is left
	RoleOutgoing Role = 4 // voter of the outgoing configuration, becomes a learner when that is left
)

// String returns the lower-case word for the role.
func (r Role) String() string {
	switch r {
	case RoleVoter:
		return "voter"
	case RoleLearner:
		return "learner"
	case RoleIncoming:
		return "incoming"
	case RoleOutgoing:
		return "outgoing"
	}
	return fmt.Sprintf("role(%d)", uint8(r))
}

// ReplicaDesc names one replica and where it lives.
type ReplicaDesc struct {
	Replica ReplicaID
	Store   StoreID
	Role    Role
}

// Descriptor says which range a shard owns and who its replicas are. Start and End are routing keys, End exclusive.
// Descriptors are values: never change one that has been published, Clone it.
type Descriptor struct {
	Shard         ShardID
	Start, End    []byte
	Epoch         Epoch
	Replicas      []ReplicaDesc
	NextReplicaID ReplicaID
}

// Contains reports whether the routing key lies in the shard's range.
func (d *Descriptor) Contains(key []byte) bool {
	return bytes.Compare(key, d.Start) >= 0 && bytes.Compare(key, d.End) < 0
}

// Overlaps reports whether the two ranges share a key.
func (d *Descriptor) Overlaps(o *Descriptor) bool {
	return bytes.Compare(d.Start, o.End) < 0 && bytes.Compare(o.Start, d.End) < 0
}

// ReplicaOn returns the replica on a store, and false if there is none.
func (d *Descriptor) ReplicaOn(s StoreID) (ReplicaDesc, bool) {
	for _, r := range d.Replicas {
		if r.Store == s {
			return r, true
		}
	}
	return ReplicaDesc{}, false
}

// Replica returns the replica with an id, and false if there is none.
func (d *Descriptor) Replica(id ReplicaID) (ReplicaDesc, bool) {
	for _, r := range d.Replicas {
		if r.Replica == id {
			return r, true
		}
	}
	return ReplicaDesc{}, false
}

// Equal reports whether two descriptors say the same.
func (d *Descriptor) Equal(o *Descriptor) bool {
	return d.Shard == o.Shard && d.Epoch == o.Epoch && d.NextReplicaID == o.NextReplicaID &&
		bytes.Equal(d.Start, o.Start) && bytes.Equal(d.End, o.End) && slices.Equal(d.Replicas, o.Replicas)
}

// Clone returns a deep copy.
func (d *Descriptor) Clone() *Descriptor {
	c := *d
	c.Start, c.End = bytes.Clone(d.Start), bytes.Clone(d.End)
	c.Replicas = append([]ReplicaDesc(nil), d.Replicas...)
	return &c
}

// String returns a short text for logs: s12[02 61,02 7a) 1.4 (n1/1 n2/2 n3/3).
func (d *Descriptor) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s[%x,%x) %s (", d.Shard, d.Start, d.End, d.Epoch)
	for i, r := range d.Replicas {
		if i > 0 {
			b.WriteByte(' ')
		}
		fmt.Fprintf(&b, "%s/%s", r.Store, r.Replica)
		if r.Role != RoleVoter {
			b.WriteString(":" + r.Role.String())
		}
	}
	b.WriteByte(')')
	return b.String()
}

// ErrCorrupt marks bytes that do not follow their layout.
var ErrCorrupt = errors.New("corrupt encoding")

const (
	descVersion    = 1
	descFixed      = 1 + 8 + 8 + 8 + 8 + 2 + 2 + 2 // version, shard, conf, version, next, start len, end len, replicas
	descReplica    = 8 + 8 + 1
	maxDescKey     = MaxKeySize + 1
	maxDescMembers = 64
)

// Validate checks what every stored descriptor must satisfy; the error names the field.
func (d *Descriptor) Validate() error {
	switch {
	case d.Shard == 0:
		return fmt.Errorf("descriptor: shard id 0")
	case len(d.Start) == 0 || len(d.End) == 0:
		return fmt.Errorf("descriptor %s: empty bound", d.Shard)
	case len(d.Start) > maxDescKey || len(d.End) > maxDescKey:
		return fmt.Errorf("descriptor %s: bound over %d bytes", d.Shard, maxDescKey)
	case bytes.Compare(d.Start, d.End) >= 0:
		return fmt.Errorf("descriptor %s: start %x is not below end %x", d.Shard, d.Start, d.End)
	case len(d.Replicas) > maxDescMembers:
		return fmt.Errorf("descriptor %s: %d replicas, at most %d", d.Shard, len(d.Replicas), maxDescMembers)
	}
	for i, r := range d.Replicas {
		if r.Replica == 0 || r.Replica >= d.NextReplicaID {
			return fmt.Errorf("descriptor %s: replica id %d outside [1, %d)", d.Shard, r.Replica, d.NextReplicaID)
		}
		if r.Store == 0 || r.Role < RoleVoter || r.Role > RoleOutgoing {
			return fmt.Errorf("descriptor %s: replica %d has store %d and role %d", d.Shard, r.Replica, r.Store, r.Role)
		}
		for _, o := range d.Replicas[:i] {
			if o.Replica == r.Replica || o.Store == r.Store {
				return fmt.Errorf("descriptor %s: replica or store listed twice (%s/%s)", d.Shard, r.Store, r.Replica)
			}
		}
	}
	return nil
}

// Append adds the fixed layout (big-endian, version byte first) to buf:
//
//	u8 version | u64 shard | u64 conf | u64 version | u64 next replica | u16 len start | u16 len end | u16 replicas
//	start | end | replicas x { u64 replica | u64 store | u8 role }
func (d *Descriptor) Append(buf []byte) []byte {
	buf = append(buf, descVersion)
	buf = binary.BigEndian.AppendUint64(buf, uint64(d.Shard))
	buf = binary.BigEndian.AppendUint64(buf, d.Epoch.ConfVer)
	buf = binary.BigEndian.AppendUint64(buf, d.Epoch.Version)
	buf = binary.BigEndian.AppendUint64(buf, uint64(d.NextReplicaID))
	buf = binary.BigEndian.AppendUint16(buf, uint16(len(d.Start)))
	buf = binary.BigEndian.AppendUint16(buf, uint16(len(d.End)))
	buf = binary.BigEndian.AppendUint16(buf, uint16(len(d.Replicas)))
	buf = append(buf, d.Start...)
	buf = append(buf, d.End...)
	for _, r := range d.Replicas {
		buf = binary.BigEndian.AppendUint64(buf, uint64(r.Replica))
		buf = binary.BigEndian.AppendUint64(buf, uint64(r.Store))
		buf = append(buf, byte(r.Role))
	}
	return buf
}

// DecodeDescriptor reads one descriptor from the front of b and returns the rest. The result shares no memory with b.
// It fails with ErrCorrupt, wrapped with the field at fault.
func DecodeDescriptor(b []byte) (*Descriptor, []byte, error) {
	if len(b) < descFixed {
		return nil, nil, fmt.Errorf("descriptor: %d bytes, want at least %d: %w", len(b), descFixed, ErrCorrupt)
	}
	if b[0] != descVersion {
		return nil, nil, fmt.Errorf("descriptor: layout version %d, this binary knows %d: %w", b[0], descVersion, ErrCorrupt)
	}
	u64 := func(at int) uint64 { return binary.BigEndian.Uint64(b[at:]) }
	u16 := func(at int) int { return int(binary.BigEndian.Uint16(b[at:])) }
	d := &Descriptor{
		Shard: ShardID(u64(1)), Epoch: Epoch{ConfVer: u64(9), Version: u64(17)}, NextReplicaID: ReplicaID(u64(25)),
	}
	ls, le, n := u16(33), u16(35), u16(37)
	if n > maxDescMembers {
		return nil, nil, fmt.Errorf("descriptor %s: %d replicas: %w", d.Shard, n, ErrCorrupt)
	}
	need := descFixed + ls + le + n*descReplica
	if len(b) < need {
		return nil, nil, fmt.Errorf("descriptor %s: %d bytes, want %d: %w", d.Shard, len(b), need, ErrCorrupt)
	}
	at := descFixed
	d.Start, d.End = bytes.Clone(b[at:at+ls]), bytes.Clone(b[at+ls:at+ls+le])
	at += ls + le
	if n > 0 {
		d.Replicas = make([]ReplicaDesc, n)
	}
	for i := range d.Replicas {
		d.Replicas[i] = ReplicaDesc{Replica: ReplicaID(u64(at)), Store: StoreID(u64(at + 8)), Role: Role(b[at+16])}
		at += descReplica
	}
	if err := d.Validate(); err != nil {
		return nil, nil, fmt.Errorf("%w: %w", err, ErrCorrupt)
	}
	return d, b[need:], nil
}
