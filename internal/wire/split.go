package wire

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"github.com/shardd/shardd/internal/base"
)

// Limits of one split.
const (
	// MaxSplitRights is how many right-hand shards one command makes at most.
	MaxSplitRights = 128
	// MaxSplitBound bounds a routing key at which a shard is divided, in bytes: a user key of 4093 bytes behind its
	// space byte, so that the key with its own prefix fits into a key of the descriptor index.
	MaxSplitBound = base.MaxKeySize - 3 + 1
	// SplitShares is the whole that shares are parts of.
	SplitShares = 1_000_000
)

const (
	splitVersion = 1
	splitFixed   = 1 + 8 + 8 + 2 + 2 // version, conf, version, len left end, rights
	splitRight   = 4 + 4             // share, len descriptor
)

// Split is the body of an EntrySplit: the shard in whose log it stands keeps its id and start and ends at LeftEnd, the
// rest of its range goes to new shards.
type Split struct {
	Epoch   base.Epoch // of the left shard before it, both parts
	LeftEnd []byte
	Rights  []SplitRight // ascending, without a gap
}

// SplitRight is one new shard. Desc is complete; Share is its part of the left shard's statistics, in millionths.
type SplitRight struct {
	Share uint32
	Desc  *base.Descriptor
}

// Append encodes the body at the end of buf, big-endian:
//
//	u8 version | u64 conf | u64 version | u16 len left end | u16 rights | left end
//	rights x { u32 share | u32 len descriptor | descriptor }
func (s *Split) Append(buf []byte) []byte {
	buf = append(buf, splitVersion)
	buf = binary.BigEndian.AppendUint64(buf, s.Epoch.ConfVer)
	buf = binary.BigEndian.AppendUint64(buf, s.Epoch.Version)
	buf = binary.BigEndian.AppendUint16(buf, uint16(len(s.LeftEnd)))
	buf = binary.BigEndian.AppendUint16(buf, uint16(len(s.Rights)))
	buf = append(buf, s.LeftEnd...)
	for i := range s.Rights {
		buf = binary.BigEndian.AppendUint32(buf, s.Rights[i].Share)
		at := len(buf)
		buf = binary.BigEndian.AppendUint32(buf, 0) // known below
		buf = s.Rights[i].Desc.Append(buf)
		binary.BigEndian.PutUint32(buf[at:], uint32(len(buf)-at-4))
	}
	return buf
}

// DecodeSplit reads the whole body of an EntrySplit. The result shares no memory with it. It checks the layout and its
// limits; see Validate for what the parts mean together. Errors wrap base.ErrCorrupt: the replica is faulted.
func DecodeSplit(body []byte) (*Split, error) {
	fail := func(format string, args ...any) (*Split, error) {
		return nil, fmt.Errorf("split entry: %w: %w", fmt.Errorf(format, args...), base.ErrCorrupt)
	}
	if len(body) < splitFixed {
		return fail("%d bytes, want at least %d", len(body), splitFixed)
	}
	if body[0] != splitVersion {
		return fail("layout version %d, this binary knows %d", body[0], splitVersion)
	}
	s := &Split{Epoch: base.Epoch{
		ConfVer: binary.BigEndian.Uint64(body[1:]), Version: binary.BigEndian.Uint64(body[9:]),
	}}
	end, n := int(binary.BigEndian.Uint16(body[17:])), int(binary.BigEndian.Uint16(body[19:]))
	body = body[splitFixed:]
	if end == 0 || end > MaxSplitBound || len(body) < end {
		return fail("left end of %d bytes, %d left", end, len(body))
	}
	if n == 0 || n > MaxSplitRights {
		return fail("%d right-hand shards, want 1 to %d", n, MaxSplitRights)
	}
	s.LeftEnd, body = bytes.Clone(body[:end]), body[end:]
	s.Rights = make([]SplitRight, n)
	for i := range s.Rights {
		if len(body) < splitRight {
			return fail("right-hand shard %d: %d bytes left", i, len(body))
		}
		s.Rights[i].Share = binary.BigEndian.Uint32(body)
		size := uint64(binary.BigEndian.Uint32(body[4:]))
		body = body[splitRight:]
		if uint64(len(body)) < size {
			return fail("right-hand shard %d: descriptor of %d bytes, %d left", i, size, len(body))
		}
		d, rest, err := base.DecodeDescriptor(body[:size])
		if err != nil {
			return fail("right-hand shard %d: %w", i, err)
		}
		if len(rest) > 0 {
			return fail("right-hand shard %d: %d bytes behind its descriptor", i, len(rest))
		}
		s.Rights[i].Desc, body = d, body[size:]
	}
	if len(body) > 0 {
		return fail("%d bytes behind the last right-hand shard", len(body))
	}
	return s, nil
}

// Validate checks the command against the descriptor of the left shard before it. It is a pure function: what it
// refuses every replica refuses. The error names what does not fit.
func (s *Split) Validate(left *base.Descriptor) error {
	if s.Epoch != left.Epoch {
		return fmt.Errorf("it was made for epoch %s, the shard is at %s", s.Epoch, left.Epoch)
	}
	if n := len(s.Rights); n == 0 || n > MaxSplitRights {
		return fmt.Errorf("%d right-hand shards, want 1 to %d", n, MaxSplitRights)
	}
	if bytes.Compare(s.LeftEnd, left.Start) <= 0 || bytes.Compare(s.LeftEnd, left.End) >= 0 {
		return fmt.Errorf("key %x is not inside [%x, %x)", s.LeftEnd, left.Start, left.End)
	}
	share := uint64(0)
	seen := map[base.ShardID]bool{left.Shard: true}
	start := s.LeftEnd
	for i := range s.Rights {
		d := s.Rights[i].Desc
		end := left.End
		if i+1 < len(s.Rights) {
			end = s.Rights[i+1].Desc.Start
		}
		share += uint64(s.Rights[i].Share)
		switch {
		case !bytes.Equal(d.Start, start) || !bytes.Equal(d.End, end):
			return fmt.Errorf("%s: its range should be [%x, %x)", d, start, end)
		case bytes.Compare(start, end) >= 0:
			return fmt.Errorf("%s: keys are not in ascending order", d)
		case len(start) > MaxSplitBound:
			return fmt.Errorf("%s: it starts at a key of %d bytes, at most %d", d.Shard, len(start)-1, MaxSplitBound-1)
		case seen[d.Shard]:
			return fmt.Errorf("%s is named twice", d.Shard)
		case d.Epoch != base.Epoch{ConfVer: 1, Version: left.Epoch.Version + 1}:
			return fmt.Errorf("%s: its epoch should be 1.%d", d, left.Epoch.Version+1)
		}
		if err := sameStores(left, d); err != nil {
			return err
		}
		seen[d.Shard] = true
		start = end
	}
	if share > SplitShares {
		return fmt.Errorf("shares add up to %d millionths", share)
	}
	return nil
}

// sameStores checks that a new shard has replicas 1 to n where the left shard has its own, with the same roles. It
// refuses a left shard that is joint.
func sameStores(left, right *base.Descriptor) error {
	if len(right.Replicas) != len(left.Replicas) || right.NextReplicaID != base.ReplicaID(len(right.Replicas)+1) {
		return fmt.Errorf("%s: its replicas are not those of %s", right, left)
	}
	for _, rep := range left.Replicas {
		if rep.Role != base.RoleVoter && rep.Role != base.RoleLearner {
			return fmt.Errorf("%s is in a joint configuration", left)
		}
		if r, ok := right.ReplicaOn(rep.Store); !ok || r.Role != rep.Role {
			return fmt.Errorf("%s: its replica on %s is not the %s that %s has there", right, rep.Store, rep.Role, left.Shard)
		}
	}
	return nil
}

// Left returns the descriptor of the left shard after the split of a shard that had d.
func (s *Split) Left(d *base.Descriptor) *base.Descriptor {
	left := d.Clone()
	left.End = bytes.Clone(s.LeftEnd)
	left.Epoch.Version++
	return left
}
