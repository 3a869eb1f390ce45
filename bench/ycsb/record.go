package ycsb

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
)

// ErrIntegrity marks a record that is not what was written for its key.
var ErrIntegrity = errors.New("record is not what was written for its key")

// appendKey appends the key of a record number, named as YCSB names it: the prefix and the number, hashed unless
// inserts are ordered, padded with zeros.
func (s *settings) appendKey(buf []byte, number int64) []byte {
	if !s.ordered {
		number = hash64(number)
	}
	var digits [20]byte
	d := strconv.AppendInt(digits[:0], number, 10)
	buf = append(buf, s.keyPrefix...)
	for range s.zeroPadding - len(d) {
		buf = append(buf, '0')
	}
	return append(buf, d...)
}

// words is a splitmix64 stream: eight bytes a step keep the driver's share of a write small. (Copying from one random
// block would be cheaper still, and would let the store compress records against each other.)
type words uint64

func (w *words) next() uint64 {
	*w += 0x9E3779B97F4A7C15
	z := uint64(*w)
	z = (z ^ z>>30) * 0xBF58476D1CE4E5B9
	z = (z ^ z>>27) * 0x94D049BB133111EB
	return z ^ z>>31
}

// fill writes printable bytes of 6 bits of entropy each.
func (w *words) fill(b []byte) {
	for len(b) >= 8 {
		binary.LittleEndian.PutUint64(b, printable(w.next()))
		b = b[8:]
	}
	if len(b) > 0 {
		var last [8]byte
		binary.LittleEndian.PutUint64(last[:], printable(w.next()))
		copy(b, last[:])
	}
}

// matches says whether b is what fill would write.
func (w *words) matches(b []byte) bool {
	for len(b) >= 8 {
		if binary.LittleEndian.Uint64(b) != printable(w.next()) {
			return false
		}
		b = b[8:]
	}
	var last [8]byte
	binary.LittleEndian.PutUint64(last[:], printable(w.next()))
	return len(b) == 0 || string(last[:len(b)]) == string(b)
}

func printable(w uint64) uint64 { return w&0x3f3f3f3f3f3f3f3f + 0x2020202020202020 }

// fieldWords is the stream of one field of the record that a key has when it is inserted.
func fieldWords(key []byte, field int) words {
	h := uint64(0xCBF29CE484222325)
	for _, c := range key {
		h = (h ^ uint64(c)) * 1099511628211
	}
	return words(h + uint64(field)*0xD6E8FEB86659FD93)
}

// appendInserted appends the record that follows from the key alone.
func (w *workload) appendInserted(buf, key []byte) []byte {
	var lengths *rand.Rand // fields of constant length need none
	if w.set.fieldLengths != "constant" {
		lengths = rand.New(rand.NewPCG(uint64(fieldWords(key, -1)), 0))
	}
	for field := range w.set.fieldCount {
		stream := fieldWords(key, field)
		buf = w.appendField(buf, lengths, &stream)
	}
	return buf
}

// appendRandom appends a record of random fields.
func (w *workload) appendRandom(buf []byte, r *rand.Rand) []byte {
	stream := words(r.Uint64())
	for range w.set.fieldCount {
		buf = w.appendField(buf, r, &stream)
	}
	return buf
}

func (w *workload) appendField(buf []byte, r *rand.Rand, stream *words) []byte {
	n := int(w.fieldLengths.next(r))
	buf = binary.AppendUvarint(buf, uint64(n))
	at := len(buf)
	buf = grow(buf, n)
	stream.fill(buf[at:])
	return buf
}

// appendModified appends the record with one field replaced by a random one, or a random record if the given one is
// not a record.
func (w *workload) appendModified(buf, record []byte, r *rand.Rand) []byte {
	pick := r.IntN(w.set.fieldCount)
	rest := record
	for range pick {
		_, after, ok := cutField(rest)
		if !ok {
			return w.appendRandom(buf, r)
		}
		rest = after
	}
	_, after, ok := cutField(rest)
	if !ok {
		return w.appendRandom(buf, r)
	}
	stream := words(r.Uint64())
	buf = append(buf, record[:len(record)-len(rest)]...)
	buf = w.appendField(buf, r, &stream)
	return append(buf, after...)
}

// verify checks a record that was inserted, or written with dataintegrity on.
func (w *workload) verify(key, record []byte) error {
	rest := record
	for field := range w.set.fieldCount {
		value, after, ok := cutField(rest)
		if !ok {
			return fmt.Errorf("key %q: field %d of %d is cut short in %d bytes: %w",
				key, field, w.set.fieldCount, len(record), ErrIntegrity)
		}
		stream := fieldWords(key, field)
		if len(value) != w.set.fieldLength || !stream.matches(value) {
			return fmt.Errorf("key %q: field %d differs: %w", key, field, ErrIntegrity)
		}
		rest = after
	}
	if len(rest) > 0 {
		return fmt.Errorf("key %q: %d bytes after the last field: %w", key, len(rest), ErrIntegrity)
	}
	return nil
}

// cutField splits the first field off.
func cutField(b []byte) (value, rest []byte, ok bool) {
	n, size := binary.Uvarint(b)
	if size <= 0 || n > uint64(len(b)-size) {
		return nil, nil, false
	}
	return b[size : size+int(n)], b[size+int(n):], true
}

// grow lengthens buf by n bytes of any content.
func grow(buf []byte, n int) []byte {
	if cap(buf)-len(buf) < n {
		bigger := make([]byte, len(buf), 2*cap(buf)+n)
		copy(bigger, buf)
		buf = bigger
	}
	return buf[:len(buf)+n]
}
