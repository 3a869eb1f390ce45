package engine

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"sync"

	"github.com/cockroachdb/pebble/v2/sstable"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/shardd/shardd/internal/base"
)

// Staging. A snapshot under way is a directory of tables beside the database: DIR/staging/<shard>-<replica>-<id>/.
// Its files are synced one by one, so that Install only links them; their names are not, since a staging lives no
// longer than the process: Open removes all of them. Nothing in the database refers to it, so a crash or a failure at
// any point costs the snapshot and nothing else.

const stagingDir = "staging"

// StagingFullError refuses to stage more than Options.StagingBytes.
type StagingFullError struct {
	Want, Used, Limit uint64 // bytes; Used by all snapshots under way, with what they have announced
}

// Error names the setting.
func (e *StagingFullError) Error() string {
	return fmt.Sprintf("staging %d more bytes: %d of %d are in use: wait, or raise the store's limit of staging bytes",
		e.Want, e.Used, e.Limit)
}

// ChunkError says why a chunk was refused. Nothing of it has been kept: the right one may still come.
type ChunkError struct {
	Shard base.ShardID
	Seq   uint32
	Err   error
}

// Error names chunk and reason.
func (e *ChunkError) Error() string { return fmt.Sprintf("chunk %d of %s: %v", e.Seq, e.Shard, e.Err) }

// Unwrap returns the reason: ErrCorrupt, ErrChunkOrder, or an error of the file system.
func (e *ChunkError) Unwrap() error { return e.Err }

// ErrChunkOrder marks a chunk that is not the next one.
var ErrChunkOrder = errors.New("not the next chunk")

// stagingSet counts what the snapshots under way take or have announced.
type stagingSet struct {
	mu struct {
		sync.Mutex
		used uint64
		live map[string]bool // directories
	}
}

// reserve adds want bytes, or refuses.
func (s *stagingSet) reserve(want, limit uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if want > limit || s.mu.used > limit-want {
		return &StagingFullError{Want: want, Used: s.mu.used, Limit: limit}
	}
	s.mu.used += want
	return nil
}

func (s *stagingSet) release(n uint64, dir string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mu.used -= n
	if dir != "" {
		delete(s.mu.live, dir)
	}
}

// StagedBytes returns what all snapshots under way have staged or announced.
func (e *Engine) StagedBytes() uint64 {
	e.staging.mu.Lock()
	defer e.staging.mu.Unlock()
	return e.staging.mu.used
}

// Staging collects the chunks of one snapshot. It belongs to one goroutine at a time, but for Chunks, Bytes, Resume and
// Meta, which anybody may call. It ends with Install or Remove.
type Staging struct {
	e    *Engine
	fs   vfs.FS
	meta *SnapshotMeta
	dir  string

	files    []string // what was staged, in key order
	session  []byte   // up to where the session span has been replaced by files
	local    int      // numbers the small tables of Install
	reserved uint64
	removed  bool

	mu struct {
		sync.Mutex
		chunks uint32
		bytes  uint64
		span   byte   // of the last chunk
		last   []byte // key of the last row
	}
}

// NewStaging makes the directory for one snapshot; id tells apart the tries to send it. The announced size is reserved:
// it fails with *StagingFullError past Options.StagingBytes.
func (e *Engine) NewStaging(m *SnapshotMeta, id [16]byte) (*Staging, error) {
	if e.fatal.stopped.Load() {
		return nil, e.stopErr()
	}
	if err := m.check(); err != nil {
		return nil, fmt.Errorf("stage %s: %w", m.name(), err)
	}
	fs := e.guarded()
	s := &Staging{e: e, fs: fs, meta: m, reserved: m.ApproxBytes}
	s.dir = fs.PathJoin(e.opts.Dir, stagingDir, fmt.Sprintf("%d-%d-%x", m.Shard, m.To, id))
	s.session, _ = shardSpan(spanSession, m.Shard)

	set := &e.staging
	if err := set.reserve(s.reserved, uint64(e.opts.StagingBytes)); err != nil {
		return nil, fmt.Errorf("stage %s: %w", m.name(), err)
	}
	set.mu.Lock()
	live := set.mu.live[s.dir]
	if !live {
		if set.mu.live == nil {
			set.mu.live = make(map[string]bool)
		}
		set.mu.live[s.dir] = true
	}
	set.mu.Unlock()
	if live {
		set.release(s.reserved, "")
		return nil, fmt.Errorf("stage %s: snapshot %x is being staged already", m.name(), id)
	}
	err := fs.RemoveAll(s.dir) // of a removal that failed
	if err == nil {
		err = fs.MkdirAll(s.dir, 0o755)
	}
	if err != nil {
		set.release(s.reserved, s.dir)
		return nil, fmt.Errorf("stage %s: %w", m.name(), err)
	}
	return s, nil
}

// Meta returns what the snapshot is of. Do not change it.
func (s *Staging) Meta() *SnapshotMeta { return s.meta }

// Chunks returns how many chunks have been staged; the next one has this number.
func (s *Staging) Chunks() uint32 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mu.chunks
}

// Bytes returns the size of the tables that have been staged.
func (s *Staging) Bytes() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mu.bytes
}

// Resume returns where the next chunk starts, for View.Chunk; nil for the first one.
func (s *Staging) Resume() []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.chunks == 0 {
		return nil
	}
	return append(bytes.Clone(s.mu.last), 0)
}

// Add checks a chunk against its header and its place, and stages it: when it returns nil, the file has been written
// and synced. Anything else is a *ChunkError, or wraps a *StagingFullError, and leaves the staging as it was, so that
// the chunk may be sent again, or the staging removed. A full disk is among these; a sync that fails for another reason
// stops the store like any other.
func (s *Staging) Add(c *Chunk) error {
	if s.removed {
		return fmt.Errorf("stage %s: the staging has been removed", s.meta.name())
	}
	if s.e.fatal.stopped.Load() {
		return s.e.stopErr()
	}
	table, end, err := s.examine(c)
	if err != nil {
		return &ChunkError{Shard: s.meta.Shard, Seq: c.Seq, Err: err}
	}
	if want := s.Bytes() + uint64(len(table)); want > s.reserved {
		if err := s.e.staging.reserve(want-s.reserved, uint64(s.e.opts.StagingBytes)); err != nil {
			return fmt.Errorf("stage %s: %w", s.meta.name(), err)
		}
		s.reserved = want
	}
	name, err := s.write(fmt.Sprintf("%06d.sst", s.Chunks()), table)
	if err != nil {
		return &ChunkError{Shard: s.meta.Shard, Seq: c.Seq, Err: err}
	}
	s.files = append(s.files, name)
	if c.Span == SpanSession {
		s.session = end
	}
	s.mu.Lock()
	s.mu.chunks++
	s.mu.bytes += uint64(len(table))
	s.mu.span, s.mu.last = c.Span, bytes.Clone(c.Last)
	s.mu.Unlock()
	s.e.metrics.chunksStaged.Inc()
	s.e.metrics.chunkBytesStaged.Add(float64(len(table)))
	return nil
}

// examine checks a chunk and returns the table to stage, and for a session chunk where it ends. Data goes in as it is:
// the excise clears its range. The session span is not excised, so its tables are built again with a tombstone over
// the keys from the end of the one before.
func (s *Staging) examine(c *Chunk) (table, end []byte, err error) {
	if err := c.check(); err != nil {
		return nil, nil, err
	}
	s.mu.Lock()
	chunks, span, last := s.mu.chunks, s.mu.span, s.mu.last
	s.mu.Unlock()
	switch {
	case c.Seq != chunks:
		return nil, nil, fmt.Errorf("%w, which is %d", ErrChunkOrder, chunks)
	case chunks > 0 && span == SpanData && c.Span == SpanSession:
		return nil, nil, fmt.Errorf("%w: sessions come before data", ErrChunkOrder)
	case chunks > 0 && bytes.Compare(c.First, last) <= 0:
		return nil, nil, fmt.Errorf("%w: it starts at %x, the one before ends at %x", ErrChunkOrder, c.First, last)
	case uint64(c.Size) != uint64(len(c.SST)):
		return nil, nil, fmt.Errorf("%d bytes of table, want %d: %w", len(c.SST), c.Size, ErrCorrupt)
	}
	if sum := crc32.Checksum(c.SST, crc32.MakeTable(crc32.Castagnoli)); sum != c.CRC {
		return nil, nil, fmt.Errorf("checksum %08x, want %08x: %w", sum, c.CRC, ErrCorrupt)
	}
	lo, hi := s.meta.Desc.Start, s.meta.Desc.End
	row := func(key, value []byte) error {
		if _, _, err := decodeValue(value); err != nil {
			return fmt.Errorf("value of %x: %w", key, err)
		}
		return nil
	}
	var build *tableBuilder
	if c.Span == SpanSession {
		lo, hi = shardSpan(spanSession, s.meta.Shard)
		build = newTableBuilder(len(c.SST))
		row = func(key, value []byte) error { build.set(key, value); return nil }
	}
	t, err := walkTable(c.SST, lo, hi, row)
	switch {
	case err != nil:
	case t.rows != uint64(c.Rows) || t.raw != c.RawBytes || !bytes.Equal(t.first, c.First) || !bytes.Equal(t.last, c.Last):
		err = fmt.Errorf("%d rows of %d bytes in [%x, %x], want %d of %d in [%x, %x]: %w",
			t.rows, t.raw, t.first, t.last, c.Rows, c.RawBytes, c.First, c.Last, ErrCorrupt)
	case build != nil:
		end = append(bytes.Clone(t.last), 0)
		build.deleteRange(s.session, end)
	}
	table = c.SST
	if build != nil {
		built, berr := build.finish()
		if err == nil {
			table, err = built, berr
		}
	}
	if err != nil {
		return nil, nil, err
	}
	return table, end, nil
}

// write puts a table into the staging, synced. After an error nothing of it is left, as far as that can be had.
func (s *Staging) write(name string, table []byte) (path string, err error) {
	path = s.fs.PathJoin(s.dir, name)
	f, err := s.fs.Create(path, vfs.WriteCategoryUnspecified)
	if err != nil {
		return "", err
	}
	// Pieces, so that the kernel starts early and other syncs do not wait for the whole.
	const piece = 1 << 20
	for at := 0; err == nil && at < len(table); at += piece {
		_, err = f.Write(table[at:min(len(table), at+piece)])
	}
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil && s.e.fatal.stopped.Load() {
		err = s.e.stopErr() // it may not be on disk at all
	}
	if err != nil {
		return "", errors.Join(err, ignoreMissing(s.fs.Remove(path)))
	}
	return path, nil
}

func ignoreMissing(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// Remove deletes the staging; a second call does nothing. What cannot be deleted is left for the next Open.
func (s *Staging) Remove() error {
	if s.removed {
		return nil
	}
	s.removed = true
	err := s.fs.RemoveAll(s.dir)
	s.e.staging.release(s.reserved, s.dir)
	if err != nil {
		return fmt.Errorf("remove staging of %s: %w", s.meta.name(), err)
	}
	return nil
}

// tableBuilder builds a small table in memory; the first error is kept for finish.
type tableBuilder struct {
	buf tableBuffer
	w   *sstable.Writer
	err error
	any bool
}

func newTableBuilder(size int) *tableBuilder {
	t := &tableBuilder{buf: tableBuffer{b: make([]byte, 0, size+4<<10)}}
	t.w = sstable.NewWriter(&t.buf, tableOptions())
	return t
}

func (t *tableBuilder) did(err error) {
	t.any = true
	if t.err == nil {
		t.err = err
	}
}

func (t *tableBuilder) set(key, value []byte)     { t.did(t.w.Set(key, value)) }
func (t *tableBuilder) delete(key []byte)         { t.did(t.w.Delete(key)) }
func (t *tableBuilder) deleteRange(lo, hi []byte) { t.did(t.w.DeleteRange(lo, hi)) }

// finish returns the table. It must be called once, whatever happened before.
func (t *tableBuilder) finish() ([]byte, error) {
	if err := errors.Join(t.err, t.w.Close()); err != nil {
		return nil, fmt.Errorf("build table: %w", err)
	}
	return t.buf.b, nil
}
