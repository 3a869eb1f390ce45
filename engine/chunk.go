package engine

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"sync"

	"github.com/cockroachdb/pebble/v2/sstable"
	"github.com/shardd/shardd/internal/base"
)

// The spans that a snapshot carries, in this order; the numbers are part of the format of chunk headers.
const (
	SpanSession = spanSession // client sessions, under their keys in the local space
	SpanData    = dataStart   // the shard's range in the data families
)

// Chunk is a piece of a snapshot: one sorted table of Pebble's with the rows of one span, in memory. Keys and stored
// values are byte for byte those of the source.
type Chunk struct {
	Seq         uint32
	Span        byte   // SpanSession or SpanData
	First, Last []byte // keys of the first and last row
	Rows        uint32 // at least 1
	RawBytes    uint64 // of keys and stored values
	Size        uint32 // of SST, in bytes
	CRC         uint32 // CRC-32C of SST
	SST         []byte
}

const (
	chunkFixedLen = 1 + 4 + 1 + 4 + 8 + 4 + 4 + 2 + 2
	maxChunkRaw   = 256 << 20           // the most that one table is built of
	maxChunkSize  = 1 << 30             // no sender makes such a table; a receiver must not believe in one
	maxChunkKey   = base.MaxKeySize + 1 // with the family's byte
)

// AppendHeader adds the fixed layout of everything but the table to dst, big-endian:
//
//	u8 version | u32 seq | u8 span | u32 rows | u64 raw bytes | u32 size | u32 crc | u16 len first | u16 len last
//	first | last
func (c *Chunk) AppendHeader(dst []byte) []byte {
	dst = append(dst, layoutV1)
	dst = binary.BigEndian.AppendUint32(dst, c.Seq)
	dst = append(dst, c.Span)
	dst = binary.BigEndian.AppendUint32(dst, c.Rows)
	dst = binary.BigEndian.AppendUint64(dst, c.RawBytes)
	dst = binary.BigEndian.AppendUint32(dst, c.Size)
	dst = binary.BigEndian.AppendUint32(dst, c.CRC)
	dst = binary.BigEndian.AppendUint16(dst, uint16(len(c.First)))
	dst = binary.BigEndian.AppendUint16(dst, uint16(len(c.Last)))
	dst = append(dst, c.First...)
	return append(dst, c.Last...)
}

// DecodeChunkHeader reads what AppendHeader wrote; the caller sets SST when it has arrived. The result shares no memory
// with b. It fails with ErrCorrupt for anything that no sender writes.
func DecodeChunkHeader(b []byte) (*Chunk, error) {
	const what = "chunk header"
	if err := checkLayout(what, b, chunkFixedLen, false); err != nil {
		return nil, err
	}
	c := &Chunk{
		Seq: binary.BigEndian.Uint32(b[1:]), Span: b[5], Rows: binary.BigEndian.Uint32(b[6:]), RawBytes: u64at(b, 10),
		Size: binary.BigEndian.Uint32(b[18:]), CRC: binary.BigEndian.Uint32(b[22:]),
	}
	first, last := int(binary.BigEndian.Uint16(b[26:])), int(binary.BigEndian.Uint16(b[28:]))
	if want := chunkFixedLen + first + last; len(b) != want {
		return nil, fmt.Errorf("%s: %d bytes, want %d: %w", what, len(b), want, ErrCorrupt)
	}
	c.First = bytes.Clone(b[chunkFixedLen : chunkFixedLen+first])
	c.Last = bytes.Clone(b[chunkFixedLen+first:])
	if err := c.check(); err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	return c, nil
}

func (c *Chunk) check() error {
	switch {
	case c.Span != SpanSession && c.Span != SpanData:
		return fmt.Errorf("span %#x: %w", c.Span, ErrCorrupt)
	case len(c.First) == 0 || len(c.First) > maxChunkKey || len(c.Last) > maxChunkKey ||
		bytes.Compare(c.First, c.Last) > 0:
		return fmt.Errorf("keys of %d and %d bytes, or out of order: %w", len(c.First), len(c.Last), ErrCorrupt)
	case c.Rows == 0 || c.Size == 0 || c.Size > maxChunkSize || c.RawBytes < uint64(c.Rows):
		return fmt.Errorf("%d rows of %d bytes in a table of %d: %w", c.Rows, c.RawBytes, c.Size, ErrCorrupt)
	}
	return nil
}

// chunkBuffers keeps the tables of chunks that were released.
type chunkBuffers struct{ pool sync.Pool }

func (p *chunkBuffers) get(size int) []byte {
	if b, ok := p.pool.Get().(*[]byte); ok && cap(*b) >= size {
		return (*b)[:0]
	}
	return make([]byte, 0, size)
}

// Release gives the memory of a chunk's table back for the next one. It is a kindness, not a duty; the table must not
// be used afterwards.
func (v *View) Release(c *Chunk) {
	if b := c.SST; cap(b) > 0 {
		c.SST = nil
		v.e.chunks.pool.Put(&b)
	}
}

// Chunk builds the chunk that starts at key from, nil for the first one, with rows of about targetBytes of keys and
// stored values (one row more than fits, so at least one). It returns where the next one starts, or nil if this was the
// last. Both are nil if there is nothing at or behind from: an empty shard has no chunks. The sessions come before the
// data, and no chunk has rows of both.
//
// What it reads was checked by Pebble's checksums on the way, every value must follow its layout, and the finished
// table is read once more, so that a fault of this machine's memory is not sent to others. It fails with ErrCorrupt
// if the source cannot be read.
func (v *View) Chunk(seq uint32, from []byte, targetBytes int) (c *Chunk, next []byte, err error) {
	lo, hi := shardSpan(spanSession, v.shard)
	if bytes.Compare(from, hi) < 0 {
		c, next, err = v.chunk(SpanSession, maxKey(lo, from), hi, targetBytes)
	}
	if err == nil && c == nil {
		c, next, err = v.chunk(SpanData, maxKey(v.desc.Start, from), v.desc.End, targetBytes)
	} else if err == nil && next == nil {
		next, err = v.firstKey()
	}
	if err != nil {
		return nil, nil, fmt.Errorf("chunk %d of %s: %w", seq, v.shard, err)
	}
	if c != nil {
		c.Seq = seq
		v.e.metrics.chunksBuilt.Inc()
		v.e.metrics.chunkBytesBuilt.Add(float64(c.Size))
	}
	return c, next, nil
}

func maxKey(a, b []byte) []byte {
	if bytes.Compare(a, b) < 0 {
		return b
	}
	return a
}

// firstKey returns a copy of the first key of the data; nil if there is none.
func (v *View) firstKey() ([]byte, error) {
	it, err := v.iter(v.desc.Start, v.desc.End)
	if err != nil {
		return nil, err
	}
	var key []byte
	if it.First() {
		key = bytes.Clone(it.Key())
	}
	return key, readError(errors.Join(it.Error(), it.Close()))
}

// chunk builds a table of the rows of [lo, hi), up to targetBytes; c is nil if there are none.
func (v *View) chunk(span byte, lo, hi []byte, targetBytes int) (c *Chunk, next []byte, err error) {
	if bytes.Compare(lo, hi) >= 0 {
		return nil, nil, nil
	}
	it, err := v.iter(lo, hi)
	if err != nil {
		return nil, nil, err
	}
	defer func() {
		if cerr := it.Close(); err == nil && cerr != nil {
			c, next, err = nil, nil, readError(cerr)
		}
	}()
	if !it.First() {
		return nil, nil, readError(it.Error())
	}
	c = &Chunk{Span: span, First: bytes.Clone(it.Key())}
	buf := &tableBuffer{b: v.e.chunks.get(min(targetBytes, int(min(v.approx, maxChunkRaw))) + 64<<10)}
	w := sstable.NewWriter(buf, tableOptions())
	for {
		value, err := it.ValueAndErr()
		if err == nil && span == SpanData {
			_, _, err = decodeValue(value)
		}
		if err == nil {
			err = w.Set(it.Key(), value)
		}
		if err != nil {
			err = fmt.Errorf("value of %x: %w", it.Key(), readError(err))
			return nil, nil, errors.Join(err, w.Close())
		}
		c.Rows++
		c.RawBytes += uint64(len(it.Key()) + len(value))
		if !it.Next() {
			break
		}
		if c.RawBytes >= uint64(max(targetBytes, 0)) || c.RawBytes >= maxChunkRaw || c.Rows == math.MaxUint32 {
			next = bytes.Clone(it.Key())
			break
		}
	}
	if err := it.Error(); err != nil {
		return nil, nil, errors.Join(readError(err), w.Close())
	}
	if err := w.Close(); err != nil {
		return nil, nil, fmt.Errorf("build table: %w", err)
	}
	meta, err := w.Metadata()
	if err != nil {
		return nil, nil, fmt.Errorf("build table: %w", err)
	}
	c.Last = bytes.Clone(meta.LargestPoint.UserKey)
	c.SST = buf.b
	c.Size = uint32(len(c.SST))
	c.CRC = crc32.Checksum(c.SST, crc32.MakeTable(crc32.Castagnoli))
	if err := validateTable(c.SST); err != nil {
		return nil, nil, fmt.Errorf("the table just built: %w", err)
	}
	return c, next, nil
}
