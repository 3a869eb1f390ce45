package wire

import (
	"encoding/binary"
	"fmt"

	"github.com/shardd/shardd/internal/base"
)

// Code is the outcome of an operation. OK, NotFound and ConditionFailed are results; of the rest only Ambiguous leaves
// open whether a write happened: every other code means that it did not and never will.
type Code uint8

// Codes on the wire.
const (
	OK              Code = 0
	NotFound        Code = 1  // Get: no such key
	ConditionFailed Code = 2  // Arg: current version of the key (0: absent); payload: u32 index of the failed step
	NotLeader       Code = 3  // Arg: store id of the leader, 0 if unknown
	EpochMismatch   Code = 4  // payload: current descriptors, concatenated
	ShardNotFound   Code = 5  // this store has no replica of the shard
	Busy            Code = 6  // Arg: suggested back-off in ms; payload: which limit
	Ambiguous       Code = 7  // payload: why the outcome is unknown
	Invalid         Code = 8  // payload: what to mend
	Unavailable     Code = 9  // payload: why, e.g. the store shuts down
	TimedOut        Code = 10 // a read that got no quorum in time, or a write that never was proposed
	Failed          Code = 11 // payload: e.g. a checksum mismatch on disk, or a faulted replica
	DiskFull        Code = 12 // a write that adds bytes, at a leader whose disk is short of space; payload: what still works
)

// String returns the word used in errors and metrics.
func (c Code) String() string {
	names := [...]string{"ok", "not-found", "condition-failed", "not-leader", "epoch-mismatch", "shard-not-found", "busy",
		"ambiguous", "invalid", "unavailable", "timed-out", "failed", "disk-full"}
	if int(c) < len(names) {
		return names[c]
	}
	return fmt.Sprintf("code(%d)", uint8(c))
}

// FlagMore on a scan answer says that the page was cut by its bounds: rows may remain in this shard.
const FlagMore uint8 = 1

// AnswerHeaderSize is the fixed part of an answer, in bytes:
//
//	0 u32 length of the whole answer | 4 u8 code | 5 u8 flags | 6 u16 reserved | 8 u64 request id | 16 u64 arg
//	24 u64 epoch version that served it | 32 payload
const AnswerHeaderSize = 32

// MaxAnswerSize bounds one answer, in bytes; scan pages are cut well below it.
const MaxAnswerSize = 16 << 20

// Answer is the outcome of one operation:
//
//	OK of Get      Arg = version, Payload = user value
//	OK of Scan     Payload = rows (see Row), FlagMore
//	OK of writes   Arg = version stamp given to the write
type Answer struct {
	Code    Code
	Flags   uint8
	Req     uint64
	Arg     uint64
	Version uint64 // Epoch.Version of the descriptor that served the operation
	Payload []byte
}

// Size returns the encoded size in bytes.
func (a *Answer) Size() int { return AnswerHeaderSize + len(a.Payload) }

// Append encodes the answer at the end of buf.
func (a *Answer) Append(buf []byte) []byte {
	buf = a.AppendHeader(buf, len(a.Payload))
	return append(buf, a.Payload...)
}

// AppendHeader encodes only the header for a payload of n bytes that the caller appends itself.
func (a *Answer) AppendHeader(buf []byte, n int) []byte {
	buf = binary.BigEndian.AppendUint32(buf, uint32(AnswerHeaderSize+n))
	buf = append(buf, byte(a.Code), a.Flags, 0, 0)
	buf = binary.BigEndian.AppendUint64(buf, a.Req)
	buf = binary.BigEndian.AppendUint64(buf, a.Arg)
	return binary.BigEndian.AppendUint64(buf, a.Version)
}

// FinishAnswer sets the length of the answer whose header starts at offset at in buf, once its payload is appended.
func FinishAnswer(buf []byte, at int) {
	binary.BigEndian.PutUint32(buf[at:], uint32(len(buf)-at))
}

// DecodeAnswer reads the answer at the front of b into a and returns what follows; Payload points into b.
func DecodeAnswer(b []byte, a *Answer) (rest []byte, err error) {
	if len(b) < AnswerHeaderSize {
		return nil, fmt.Errorf("%d bytes left, an answer has at least %d: %w", len(b), AnswerHeaderSize, ErrTruncated)
	}
	total := binary.BigEndian.Uint32(b)
	if total < AnswerHeaderSize || total > MaxAnswerSize {
		return nil, fmt.Errorf("answer of %d bytes, outside [%d, %d]: %w", total, AnswerHeaderSize, MaxAnswerSize, ErrInvalid)
	}
	if uint64(len(b)) < uint64(total) {
		return nil, fmt.Errorf("answer of %d bytes, %d left: %w", total, len(b), ErrTruncated)
	}
	*a = Answer{
		Code: Code(b[4]), Flags: b[5],
		Req:     binary.BigEndian.Uint64(b[8:]),
		Arg:     binary.BigEndian.Uint64(b[16:]),
		Version: binary.BigEndian.Uint64(b[24:]),
		Payload: b[AnswerHeaderSize:total:total],
	}
	return b[total:], nil
}

// rowHeaderSize: 0 u16 key length | 2 u16 reserved | 4 u32 value length | 8 u64 version | 16 key | value.
const rowHeaderSize = 16

// Row is one row of a scan page. Key is a routing key.
type Row struct {
	Key     []byte
	Value   []byte
	Version uint64
}

// Size returns the encoded size in bytes.
func (r *Row) Size() int { return rowHeaderSize + len(r.Key) + len(r.Value) }

// Append encodes the row at the end of buf.
func (r *Row) Append(buf []byte) []byte {
	buf = binary.BigEndian.AppendUint16(buf, uint16(len(r.Key)))
	buf = append(buf, 0, 0)
	buf = binary.BigEndian.AppendUint32(buf, uint32(len(r.Value)))
	buf = binary.BigEndian.AppendUint64(buf, r.Version)
	buf = append(buf, r.Key...)
	return append(buf, r.Value...)
}

// DecodeRow reads the row at the front of b into r and returns what follows; Key and Value point into b.
func DecodeRow(b []byte, r *Row) (rest []byte, err error) {
	if len(b) < rowHeaderSize {
		return nil, fmt.Errorf("%d bytes left, a row has at least %d: %w", len(b), rowHeaderSize, ErrTruncated)
	}
	klen, vlen := int(binary.BigEndian.Uint16(b)), binary.BigEndian.Uint32(b[4:])
	if uint64(len(b)) < uint64(rowHeaderSize)+uint64(klen)+uint64(vlen) {
		return nil, fmt.Errorf("row of key %d and value %d bytes, %d left: %w", klen, vlen, len(b), ErrTruncated)
	}
	end := rowHeaderSize + klen + int(vlen)
	*r = Row{
		Key:     b[rowHeaderSize : rowHeaderSize+klen : rowHeaderSize+klen],
		Value:   b[rowHeaderSize+klen : end : end],
		Version: binary.BigEndian.Uint64(b[8:]),
	}
	return b[end:], nil
}

// AppendDescriptors encodes the payload of EpochMismatch.
func AppendDescriptors(buf []byte, ds ...*base.Descriptor) []byte {
	for _, d := range ds {
		buf = d.Append(buf)
	}
	return buf
}

// DecodeDescriptors reads the payload of EpochMismatch.
func DecodeDescriptors(b []byte) ([]*base.Descriptor, error) {
	var out []*base.Descriptor
	for len(b) > 0 {
		d, rest, err := base.DecodeDescriptor(b)
		if err != nil {
			return nil, err
		}
		out, b = append(out, d), rest
	}
	return out, nil
}
