// Package wire is the byte format that clients, nodes and the raft log share: operations, answers and log entries.
//
// A frame is a concatenation of operations (towards a node) or answers (towards a client), each with a fixed header.
// The bytes of a write on the wire are its bytes in the log entry, so a node never decodes and encodes a value on the
// write path. All integers are big-endian. Every length is checked before anything is sliced; decoded keys and values
// point into the frame.
package wire

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/shardd/shardd/internal/base"
)

// OpCode says what an operation does. The numbers are part of the log format.
type OpCode uint8

// Operations. Get and Scan never enter the log. The Check codes exist only inside a Batch.
const (
	OpGet         OpCode = 1
	OpScan        OpCode = 2
	OpPut         OpCode = 3
	OpDelete      OpCode = 4
	OpDeleteRange OpCode = 5
	OpBatch       OpCode = 6
	// OpReadIndex is what a follower asks the leader for on behalf of its readers. Between nodes only; never in the log.
	OpReadIndex OpCode = 7

	OpCheckAbsent  OpCode = 16
	OpCheckPresent OpCode = 17
	OpCheckVersion OpCode = 18 // Arg is the version that the key must have
	OpCheckValue   OpCode = 19 // Value is what the key must hold
)

// String returns the word used in errors and metrics.
func (c OpCode) String() string {
	switch c {
	case OpGet:
		return "get"
	case OpScan:
		return "scan"
	case OpPut:
		return "put"
	case OpDelete:
		return "delete"
	case OpDeleteRange:
		return "delete-range"
	case OpBatch:
		return "batch"
	case OpReadIndex:
		return "read-index"
	case OpCheckAbsent:
		return "check-absent"
	case OpCheckPresent:
		return "check-present"
	case OpCheckVersion:
		return "check-version"
	case OpCheckValue:
		return "check-value"
	}
	return fmt.Sprintf("op(%d)", uint8(c))
}

// IsWrite reports whether the operation goes through the log.
func (c OpCode) IsWrite() bool { return c >= OpPut && c <= OpBatch }

// IsRead reports whether the operation is answered from a view.
func (c OpCode) IsRead() bool { return c == OpGet || c == OpScan }

// Flags of an operation.
const (
	// FlagIfVersion makes a Put or Delete conditional: the key must have version Arg, where 0 means absent.
	FlagIfVersion uint8 = 1 << 0
	// FlagReverse makes a Scan run downwards from its end.
	FlagReverse uint8 = 1 << 1
	// FlagKeysOnly makes a Scan return no values.
	FlagKeysOnly uint8 = 1 << 2
	// FlagFollower lets any replica serve a Get or Scan. It stays linearizable.
	FlagFollower uint8 = 1 << 3
	// FlagStale lets any replica serve a Get or Scan, from a state that is at most MaxAge old.
	FlagStale uint8 = 1 << 4
)

// flagsAnyReplica are those of reads that need not go to the leader.
const flagsAnyReplica = FlagFollower | FlagStale

// known reports whether this binary knows the operation, and which flags it may carry. A flag that an operation does
// not define is refused, never ignored: a sender that sets it expects an effect.
func (c OpCode) known() (flags uint8, ok bool) {
	switch c {
	case OpDeleteRange, OpBatch, OpReadIndex:
		return 0, true
	case OpGet:
		return flagsAnyReplica, true
	case OpScan:
		return FlagReverse | FlagKeysOnly | flagsAnyReplica, true
	case OpPut, OpDelete:
		return FlagIfVersion, true
	}
	return 0, false
}

// HeaderSize is the fixed part of an operation, in bytes:
//
//	0 u32 length of the whole operation | 4 u8 op | 5 u8 flags | 6 u16 key length | 8 u64 request id | 16 u64 shard
//	24 u64 epoch version | 32 u64 arg | 40 u32 value length | 44 u32 time-out in ms (0: none) | 48 key | value
//
// With FlagStale the value section begins with u32 max age in ms, which its length counts.
const HeaderSize = 48

// Op is one operation. Key and Value are routing keys and raw user bytes:
//
//	Get          Key
//	Scan         Key = start, Value = end (exclusive), Arg = ScanArg(max rows, max bytes), FlagReverse, FlagKeysOnly
//	Put          Key, Value; FlagIfVersion with Arg
//	Delete       Key; FlagIfVersion with Arg
//	DeleteRange  Key = start, Value = end (exclusive)
//	Batch        Key = first key written or checked (for routing), Value = concatenated sub-operations (see Sub)
//	ReadIndex    Key = start of the shard, Arg = the node that is meant, Value = 16 bytes of its cluster's id
type Op struct {
	Code    OpCode
	Flags   uint8
	Req     uint64
	Shard   base.ShardID
	Version uint64 // Epoch.Version that the sender believes; conf changes do not disturb data operations
	Arg     uint64
	Timeout uint32 // ms
	MaxAge  uint32 // ms; with FlagStale on a Get or Scan, nowhere else
	Key     []byte
	Value   []byte
}

// stale reports whether the encoding holds MaxAge.
func (o *Op) stale() bool { return o.Flags&FlagStale != 0 && o.Code.IsRead() }

// AnyReplica reports whether the operation is a read that need not go to the leader.
func (o *Op) AnyReplica() bool { return o.Flags&flagsAnyReplica != 0 && o.Code.IsRead() }

const clusterSize = len(base.ClusterID{})

// ErrTruncated marks a frame that ends inside an operation or answer.
var ErrTruncated = errors.New("frame ends inside an operation")

// ErrInvalid marks an operation that no retry can make valid; the wrapping error names the field and the limit.
var ErrInvalid = errors.New("invalid operation")

// ErrUnknown marks an operation, step or flag that this binary does not know. It wraps ErrInvalid: at the edge such a
// request is refused like any other invalid one. In the log it faults the replica, since a newer binary might apply it.
var ErrUnknown = fmt.Errorf("unknown to this binary: %w", ErrInvalid)

// maxValueLen is the most that any operation's value section may hold: a Batch with its sub-headers.
const maxValueLen = base.MaxBatchSize

// Size returns the encoded size in bytes.
func (o *Op) Size() int {
	n := HeaderSize + len(o.Key) + len(o.Value)
	if o.stale() {
		n += ageSize
	}
	return n
}

// ageSize is the part of MaxAge in the encoding, in bytes.
const ageSize = 4

// Append encodes the operation at the end of buf. The caller has validated it.
func (o *Op) Append(buf []byte) []byte {
	buf = binary.BigEndian.AppendUint32(buf, uint32(o.Size()))
	buf = append(buf, byte(o.Code), o.Flags)
	buf = binary.BigEndian.AppendUint16(buf, uint16(len(o.Key)))
	buf = binary.BigEndian.AppendUint64(buf, o.Req)
	buf = binary.BigEndian.AppendUint64(buf, uint64(o.Shard))
	buf = binary.BigEndian.AppendUint64(buf, o.Version)
	buf = binary.BigEndian.AppendUint64(buf, o.Arg)
	buf = binary.BigEndian.AppendUint32(buf, uint32(o.Size()-HeaderSize-len(o.Key)))
	buf = binary.BigEndian.AppendUint32(buf, o.Timeout)
	buf = append(buf, o.Key...)
	if o.stale() {
		buf = binary.BigEndian.AppendUint32(buf, o.MaxAge)
	}
	return append(buf, o.Value...)
}

// DecodeOp reads the operation at the front of b into o; raw is its exact bytes (what enters the log) and rest what
// follows. Key, Value and raw point into b. It checks structure only; see Validate for limits. Errors wrap ErrTruncated
// or ErrInvalid.
func DecodeOp(b []byte, o *Op) (raw, rest []byte, err error) {
	if len(b) < HeaderSize {
		return nil, nil, fmt.Errorf("%d bytes left, an operation has at least %d: %w", len(b), HeaderSize, ErrTruncated)
	}
	total := binary.BigEndian.Uint32(b)
	klen, vlen := int(binary.BigEndian.Uint16(b[6:])), binary.BigEndian.Uint32(b[40:])
	if vlen > maxValueLen {
		return nil, nil, fmt.Errorf("value section of %d bytes, at most %d: %w", vlen, maxValueLen, ErrInvalid)
	}
	if uint64(total) != uint64(HeaderSize)+uint64(klen)+uint64(vlen) {
		return nil, nil, fmt.Errorf("length %d does not match key %d and value %d: %w", total, klen, vlen, ErrInvalid)
	}
	if uint64(len(b)) < uint64(total) {
		return nil, nil, fmt.Errorf("operation of %d bytes, %d left: %w", total, len(b), ErrTruncated)
	}
	raw = b[:total:total]
	*o = Op{
		Code: OpCode(raw[4]), Flags: raw[5],
		Req:     binary.BigEndian.Uint64(raw[8:]),
		Shard:   base.ShardID(binary.BigEndian.Uint64(raw[16:])),
		Version: binary.BigEndian.Uint64(raw[24:]),
		Arg:     binary.BigEndian.Uint64(raw[32:]),
		Timeout: binary.BigEndian.Uint32(raw[44:]),
		Key:     raw[HeaderSize : HeaderSize+klen : HeaderSize+klen],
		Value:   raw[HeaderSize+klen : total : total],
	}
	if o.stale() {
		if vlen < ageSize {
			return nil, nil, fmt.Errorf("%s: value section of %d bytes has no max age: %w", o.Code, vlen, ErrInvalid)
		}
		o.MaxAge = binary.BigEndian.Uint32(o.Value)
		o.Value = o.Value[ageSize:]
	}
	return raw, b[total:], nil
}

// Validate checks the operation against the limits of package base. The error wraps ErrInvalid and names the limit; it
// wraps ErrUnknown too if the operation, a flag or a step of a Batch is not known. It is deterministic, so apply uses
// it too. What is not known is found first: the limits of a newer binary's operation cannot be judged.
func (o *Op) Validate() error {
	flags, ok := o.Code.known()
	if !ok {
		return fmt.Errorf("operation %d: %w", uint8(o.Code), ErrUnknown)
	}
	if o.Flags&^flags != 0 {
		return fmt.Errorf("%s: flags %#x: %w", o.Code, o.Flags&^flags, ErrUnknown)
	}
	if len(o.Key) == 0 || len(o.Key) > base.MaxKeySize+1 {
		return keyError(o.Code, len(o.Key))
	}
	if o.stale() && o.MaxAge == 0 {
		return fmt.Errorf("%s: stale read with a max age of 0: %w", o.Code, ErrInvalid)
	}
	switch o.Code {
	case OpReadIndex:
		if len(o.Value) != clusterSize {
			return fmt.Errorf("%s: cluster id of %d bytes, want %d: %w", o.Code, len(o.Value), clusterSize, ErrInvalid)
		}
		return nil
	case OpGet, OpDelete:
		if len(o.Value) != 0 {
			return fmt.Errorf("%s: unexpected value of %d bytes: %w", o.Code, len(o.Value), ErrInvalid)
		}
		return nil
	case OpPut:
		if len(o.Value) > base.MaxValueSize {
			return valueError(o.Code, len(o.Value))
		}
		return nil
	case OpScan, OpDeleteRange:
		return checkRange(o.Code, o.Key, o.Value)
	case OpBatch:
		return validateBatch(o)
	}
	return fmt.Errorf("operation %d: %w", uint8(o.Code), ErrUnknown)
}

func keyError(c OpCode, n int) error {
	if n == 0 {
		return fmt.Errorf("%s: empty routing key: %w", c, ErrInvalid)
	}
	return fmt.Errorf("%s: key of %d bytes, at most %d: %w", c, n-1, base.MaxKeySize, ErrInvalid)
}

func valueError(c OpCode, n int) error {
	return fmt.Errorf("%s: value of %d bytes, at most %d: %w", c, n, base.MaxValueSize, ErrInvalid)
}

func checkRange(c OpCode, lo, hi []byte) error {
	if len(hi) == 0 || len(hi) > base.MaxKeySize+1 {
		return keyError(c, len(hi))
	}
	if string(lo) >= string(hi) {
		return fmt.Errorf("%s: start %q is not below end %q: %w", c, lo, hi, ErrInvalid)
	}
	return nil
}

// ScanArg packs the bounds of one scan page: rows and bytes of keys plus values. 0 means the server's default.
func ScanArg(maxRows, maxBytes uint32) uint64 { return uint64(maxRows)<<32 | uint64(maxBytes) }

// SplitScanArg is the reverse of ScanArg.
func SplitScanArg(a uint64) (maxRows, maxBytes uint32) { return uint32(a >> 32), uint32(a) }
