package wire

import (
	"encoding/binary"
	"fmt"

	"github.com/shardd/shardd/internal/base"
)

// SubHeaderSize is the fixed part of a sub-operation inside a Batch, in bytes:
//
//	0 u8 op | 1 u8 flags (0) | 2 u16 key length | 4 u32 value length | 8 u64 arg | 16 key | value
const SubHeaderSize = 16

// Sub is one step of a Batch: a condition (OpCheck...) or a write (OpPut, OpDelete, OpDeleteRange). The steps run in
// order and see the effects of earlier ones; if a condition fails, nothing of the Batch takes effect.
type Sub struct {
	Code  OpCode
	Arg   uint64
	Key   []byte
	Value []byte
}

// IsCheck reports whether the step is a condition.
func (s *Sub) IsCheck() bool { return s.Code >= OpCheckAbsent && s.Code <= OpCheckValue }

// Size returns the encoded size in bytes.
func (s *Sub) Size() int { return SubHeaderSize + len(s.Key) + len(s.Value) }

// Append encodes the step at the end of buf.
func (s *Sub) Append(buf []byte) []byte {
	buf = append(buf, byte(s.Code), 0)
	buf = binary.BigEndian.AppendUint16(buf, uint16(len(s.Key)))
	buf = binary.BigEndian.AppendUint32(buf, uint32(len(s.Value)))
	buf = binary.BigEndian.AppendUint64(buf, s.Arg)
	buf = append(buf, s.Key...)
	return append(buf, s.Value...)
}

// DecodeSub reads the step at the front of b into s and returns what follows; Key and Value point into b.
func DecodeSub(b []byte, s *Sub) (rest []byte, err error) {
	if len(b) < SubHeaderSize {
		return nil, fmt.Errorf("batch: %d bytes left, a step has at least %d: %w", len(b), SubHeaderSize, ErrInvalid)
	}
	klen, vlen := int(binary.BigEndian.Uint16(b[2:])), binary.BigEndian.Uint32(b[4:])
	if b[1] != 0 {
		return nil, fmt.Errorf("batch: step flags %#x: %w", b[1], ErrUnknown)
	}
	if uint64(len(b)) < uint64(SubHeaderSize)+uint64(klen)+uint64(vlen) {
		return nil, fmt.Errorf("batch: step of key %d and value %d bytes, %d left: %w", klen, vlen, len(b), ErrInvalid)
	}
	end := SubHeaderSize + klen + int(vlen)
	*s = Sub{
		Code: OpCode(b[0]), Arg: binary.BigEndian.Uint64(b[8:]),
		Key: b[SubHeaderSize : SubHeaderSize+klen : SubHeaderSize+klen], Value: b[SubHeaderSize+klen : end : end],
	}
	return b[end:], nil
}

// IsWrite reports whether the step changes something.
func (s *Sub) IsWrite() bool { return s.Code >= OpPut && s.Code <= OpDeleteRange }

// Validate checks one step against the limits.
func (s *Sub) Validate() error {
	if !s.IsCheck() && !s.IsWrite() {
		return s.unknown()
	}
	if len(s.Key) == 0 || len(s.Key) > base.MaxKeySize+1 {
		return keyError(s.Code, len(s.Key))
	}
	switch s.Code {
	case OpPut, OpCheckValue:
		if len(s.Value) > base.MaxValueSize {
			return valueError(s.Code, len(s.Value))
		}
		return nil
	case OpDelete, OpCheckAbsent, OpCheckPresent, OpCheckVersion:
		if len(s.Value) != 0 {
			return fmt.Errorf("%s: unexpected value of %d bytes: %w", s.Code, len(s.Value), ErrInvalid)
		}
		return nil
	case OpDeleteRange:
		return checkRange(s.Code, s.Key, s.Value)
	}
	return s.unknown()
}

func (s *Sub) unknown() error { return fmt.Errorf("batch: %s as a step: %w", s.Code, ErrUnknown) }

func validateBatch(o *Op) error {
	if len(o.Value) == 0 {
		return fmt.Errorf("batch: no steps: %w", ErrInvalid)
	}
	var s Sub
	for b := o.Value; len(b) > 0; {
		rest, err := DecodeSub(b, &s)
		if err != nil {
			return err
		}
		if err := s.Validate(); err != nil {
			return err
		}
		b = rest
	}
	return nil
}
