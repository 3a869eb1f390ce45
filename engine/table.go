package engine

import (
	"bytes"
	"context"
	"fmt"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"
	"github.com/cockroachdb/pebble/v2/sstable"
	"github.com/cockroachdb/pebble/v2/sstable/block"
)

// tableOptions are for tables that are built to be ingested. This compression (MinLZ, or Snappy where that is faster)
// builds at more than twice the rate of Go's Snappy on amd64. The filter costs nothing that can be measured for rows of
// 1 KiB, and chunks stay as they are for long: they land on the lowest level.
func tableOptions() sstable.WriterOptions {
	return sstable.WriterOptions{
		Comparer:           pebble.DefaultComparer,
		TableFormat:        FormatMajor.MaxTableFormat(),
		Compression:        sstable.FastestCompression,
		BlockSize:          32 << 10,
		IndexBlockSize:     256 << 10,
		FilterPolicy:       bloom.FilterPolicy(10),
		FilterType:         pebble.TableFilter,
		DisableValueBlocks: true,
	}
}

// tableBuffer is where tables are built: memory that grows. Pebble may scribble over what it hands to Write.
type tableBuffer struct{ b []byte }

func (t *tableBuffer) Write(p []byte) error { t.b = append(t.b, p...); return nil }
func (t *tableBuffer) Finish() error        { return nil }
func (t *tableBuffer) Abort()               {}

// openTable reads a table that is in memory. A fault of any kind is ErrCorrupt: the bytes are all there.
func openTable(sst []byte) (*sstable.Reader, error) {
	r, err := sstable.NewMemReader(sst, sstable.ReaderOptions{Comparer: pebble.DefaultComparer})
	if err != nil {
		return nil, tableError(err)
	}
	return r, nil
}

func tableError(err error) error {
	return &damageError{err}
}

// validateTable compares every block of a table with its checksum. It does not decompress them, as Pebble's own check
// would: that took three tenths of the time to build a chunk.
func validateTable(sst []byte) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("pebble found the table inconsistent: %v: %w", p, ErrCorrupt)
		}
	}()
	r, err := openTable(sst)
	if err != nil {
		return err
	}
	l, err := r.Layout()
	if cerr := r.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return tableError(err)
	}
	blocks := append([]block.Handle{
		l.TopIndex, l.RangeDel, l.RangeKey, l.ValueIndex, l.Properties, l.MetaIndex, l.BlobReferenceIndex,
	}, l.Index...)
	blocks = append(blocks, l.ValueBlock...)
	for i := range l.Data {
		blocks = append(blocks, l.Data[i].Handle)
	}
	for i := range l.Filter {
		blocks = append(blocks, l.Filter[i].Handle)
	}
	for _, h := range blocks {
		if h.Length == 0 {
			continue // there is none
		}
		if err := block.ValidateChecksum(block.ChecksumTypeCRC32c, sst[h.Offset:], h); err != nil {
			return tableError(err)
		}
	}
	return nil
}

// tableRows is what a walk over a table has found.
type tableRows struct {
	first, last []byte
	rows        uint64
	raw         uint64 // bytes of keys and values
}

// walkTable reads all of a table, which checks the checksums of its blocks, and calls f for each row. It refuses with
// ErrCorrupt what is not a plain list of rows: deletions, keys not ascending or outside [lo, hi), values elsewhere.
// Bytes from another machine may hold anything, and Pebble panics at some of it.
func walkTable(sst, lo, hi []byte, f func(key, value []byte) error) (t tableRows, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("pebble found the table inconsistent: %v: %w", p, ErrCorrupt)
		}
	}()
	r, err := openTable(sst)
	if err != nil {
		return t, err
	}
	defer func() {
		if cerr := r.Close(); err == nil && cerr != nil {
			err = tableError(cerr)
		}
	}()
	if format, err := r.TableFormat(); err != nil || format != FormatMajor.MaxTableFormat() {
		return t, fmt.Errorf("table of format %s: %w", format, ErrCorrupt)
	}
	props, err := r.ReadPropertiesBlock(context.Background(), nil)
	if err != nil {
		return t, tableError(err)
	}
	if props.NumDeletions+props.NumRangeDeletions+props.NumRangeKeys()+props.NumValueBlocks > 0 ||
		r.Attributes.Has(sstable.AttributeBlobValues) {
		return t, fmt.Errorf("the table holds more than rows: %w", ErrCorrupt)
	}
	var pool sstable.BufferPool
	pool.Init(4)
	defer pool.Release()
	opts := sstable.IterOptions{
		Transforms:           sstable.NoTransforms,
		FilterBlockSizeLimit: sstable.NeverUseFilterBlock,
		ReaderProvider:       sstable.MakeTrivialReaderProvider(r),
		BlobContext:          sstable.AssertNoBlobHandles,
	}
	opts.Env.Block.BufferPool = &pool
	it, err := r.NewPointIter(context.Background(), opts)
	if err != nil {
		return t, tableError(err)
	}
	defer func() {
		if cerr := it.Close(); err == nil && cerr != nil {
			err = tableError(cerr)
		}
	}()
	for kv := it.First(); kv != nil; kv = it.Next() {
		key := kv.K.UserKey
		value, _, err := kv.Value(nil)
		switch {
		case err != nil:
			return t, tableError(err)
		case kv.Kind() != pebble.InternalKeyKindSet || kv.SeqNum() != 0:
			return t, fmt.Errorf("key %x is a %s: %w", key, kv.Kind(), ErrCorrupt)
		case bytes.Compare(key, lo) < 0 || bytes.Compare(key, hi) >= 0:
			return t, fmt.Errorf("key %x is outside [%x, %x): %w", key, lo, hi, ErrCorrupt)
		case t.rows > 0 && bytes.Compare(key, t.last) <= 0:
			return t, fmt.Errorf("key %x comes after %x: %w", key, t.last, ErrCorrupt)
		}
		if t.rows == 0 {
			t.first = bytes.Clone(key)
		}
		t.last = append(t.last[:0], key...)
		t.rows++
		t.raw += uint64(len(key) + len(value))
		if err := f(key, value); err != nil {
			return t, err
		}
	}
	if err := it.Error(); err != nil {
		return t, tableError(err)
	}
	return t, nil
}
