package wire

import (
	"encoding/binary"
	"fmt"

	"github.com/shardd/shardd/internal/base"
)

// EntryKind says what a log entry holds. A kind that a binary does not know faults the replica; it is never skipped.
type EntryKind uint8

// Kinds of entries.
const (
	EntryData   EntryKind = 1 // a concatenation of client writes
	EntryVerify EntryKind = 2 // no operations; the body is a Verify: every replica opens a view at this index
	EntrySplit  EntryKind = 3 // boundary: no operations; the body is a Split

	lastKind = EntryAbortMerge
)

// Boundary reports whether an entry of this kind changes more than its own shard's state machine: apply halts at it and
// leaves it to the store (rule I2).
func (k EntryKind) Boundary() bool { return k >= EntrySplit && k <= lastKind }

// KindOf returns the kind of a normal entry's data, 0 if it has none or is not in a layout of this binary's. DecodeEntry
// looks closer.
func KindOf(data []byte) EntryKind {
	if len(data) < EntryHeaderSize || data[0] != entryVersion {
		return 0
	}
	return EntryKind(data[1])
}

const entryVersion = 1

// EntryHeaderSize is the fixed part of a log entry's data, in bytes:
//
//	0 u8 layout version | 1 u8 kind | 2 u16 reserved | 4 u32 operations | 8 u64 proposal id | 16 u64 version stamp
//	24 operations, each exactly as it came on the wire
//
// An empty entry (no data at all) is raft's own: a new leader's first, or a refused conf change.
const EntryHeaderSize = 24

// EntryHeader describes one log entry. Proposal is unique among the proposals of one store incarnation; waiters are
// found by (term, index) as well as by it. Stamp is the leader's hybrid logical clock; apply raises it above the
// shard's last stamp, and each operation takes the next one.
type EntryHeader struct {
	Kind     EntryKind
	Count    uint32
	Proposal uint64
	Stamp    uint64
}

// Append encodes the header at the end of buf.
func (h *EntryHeader) Append(buf []byte) []byte {
	buf = append(buf, entryVersion, byte(h.Kind), 0, 0)
	buf = binary.BigEndian.AppendUint32(buf, h.Count)
	buf = binary.BigEndian.AppendUint64(buf, h.Proposal)
	return binary.BigEndian.AppendUint64(buf, h.Stamp)
}

// DecodeEntry splits an entry's data into header and body: the operations of EntryData, the Verify of EntryVerify, the
// command of a boundary entry. Errors wrap base.ErrCorrupt: the replica is faulted.
func DecodeEntry(data []byte) (EntryHeader, []byte, error) {
	if len(data) < EntryHeaderSize {
		return EntryHeader{}, nil, fmt.Errorf("entry of %d bytes, want at least %d: %w",
			len(data), EntryHeaderSize, base.ErrCorrupt)
	}
	if data[0] != entryVersion || EntryKind(data[1]) < EntryData || EntryKind(data[1]) > lastKind {
		return EntryHeader{}, nil, fmt.Errorf("entry layout %d kind %d is not known to this binary: %w",
			data[0], data[1], base.ErrCorrupt)
	}
	if data[2]|data[3] != 0 {
		return EntryHeader{}, nil, fmt.Errorf("entry with reserved bytes %x set: %w", data[2:4], base.ErrCorrupt)
	}
	return EntryHeader{
		Kind: EntryKind(data[1]), Count: binary.BigEndian.Uint32(data[4:]),
		Proposal: binary.BigEndian.Uint64(data[8:]), Stamp: binary.BigEndian.Uint64(data[16:]),
	}, data[EntryHeaderSize:], nil
}

// Blind reports whether the data of a well-formed entry is empty or holds nothing but Puts and Deletes of one key
// without a condition: applying it reads nothing. False for everything else, and for what cannot be decoded.
func Blind(data []byte) bool {
	if len(data) == 0 {
		return true
	}
	if KindOf(data) != EntryData {
		return false
	}
	for b := data[EntryHeaderSize:]; len(b) > 0; {
		if len(b) < HeaderSize {
			return false
		}
		n := uint64(binary.BigEndian.Uint32(b))
		if c := OpCode(b[4]); c != OpPut && c != OpDelete || b[5] != 0 || n < HeaderSize || n > uint64(len(b)) {
			return false
		}
		b = b[n:]
	}
	return true
}

// VerifySize is the body of an EntryVerify, in bytes: u64 id | u64 bytes per second.
const VerifySize = 16

// Verify asks every replica of a shard for a checksum of its state at the entry's index. It changes nothing.
type Verify struct {
	ID             uint64 // of the verification: tells runs at one index apart after a replay
	BytesPerSecond uint64 // limit for reading, 0: as the replica likes
}

// Append encodes the body at the end of buf.
func (v *Verify) Append(buf []byte) []byte {
	buf = binary.BigEndian.AppendUint64(buf, v.ID)
	return binary.BigEndian.AppendUint64(buf, v.BytesPerSecond)
}

// DecodeVerify reads the whole body of an EntryVerify. Errors wrap base.ErrCorrupt: the replica is faulted.
func DecodeVerify(body []byte) (Verify, error) {
	if len(body) != VerifySize {
		return Verify{}, fmt.Errorf("verify entry with a body of %d bytes, want %d: %w",
			len(body), VerifySize, base.ErrCorrupt)
	}
	return Verify{ID: binary.BigEndian.Uint64(body), BytesPerSecond: binary.BigEndian.Uint64(body[8:])}, nil
}
