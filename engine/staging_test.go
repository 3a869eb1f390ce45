package engine

import (
	"bytes"
	"errors"
	"hash/crc32"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/cockroachdb/pebble/v2/sstable"
	"github.com/shardd/shardd/internal/base"
)

// chunkOf builds a chunk by hand, with a right header, of whatever fill puts into the table.
func chunkOf(t testing.TB, like *Chunk, o sstable.WriterOptions, fill func(w *sstable.Writer) error) *Chunk {
	t.Helper()
	var buf tableBuffer
	w := sstable.NewWriter(&buf, o)
	if err := errors.Join(fill(w), w.Close()); err != nil {
		t.Fatal(err)
	}
	c := *like
	c.SST, c.Size = buf.b, uint32(len(buf.b))
	c.CRC = crc32.Checksum(c.SST, crc32.MakeTable(crc32.Castagnoli))
	return &c
}

func TestAChunkThatIsNotWhatItSaysIsRefusedAndNothingIsKept(t *testing.T) {
	src, fs := newEngine(t), NewMemFS()
	dst := mustOpen(t, testOptions(t, fs))
	d := source(t, src, 200, 20)
	v := mustView(t, src, 7)
	defer closeView(t, v)
	chunks := allChunks(t, v, sized(16<<10))
	first := slices.IndexFunc(chunks, func(c *Chunk) bool { return c.Span == SpanData })
	next := chunks[first]
	s := mustStage(t, dst, metaOf(v), chunks[:first])

	stored := make([]byte, valueLen(ValueHeader{Version: 1}, 1))
	putValue(stored, ValueHeader{Version: 1}, []byte("v"))
	// one makes a chunk of the given rows whose header fits them.
	one := func(span byte, value []byte, keys ...string) *Chunk {
		raw := 0
		for _, k := range keys {
			raw += len(k) + len(value)
		}
		like := &Chunk{Seq: next.Seq, Span: span, First: []byte(keys[0]), Last: []byte(keys[len(keys)-1]),
			Rows: uint32(len(keys)), RawBytes: uint64(raw)}
		return chunkOf(t, like, tableOptions(), func(w *sstable.Writer) (err error) {
			for _, k := range keys {
				err = errors.Join(err, w.Set([]byte(k), value))
			}
			return err
		})
	}
	changed := func(f func(c *Chunk)) *Chunk {
		c := *next
		c.SST = bytes.Clone(c.SST)
		f(&c)
		return &c
	}
	reseal := func(c *Chunk) { c.CRC = crc32.Checksum(c.SST, crc32.MakeTable(crc32.Castagnoli)) }
	old := tableOptions()
	old.TableFormat = sstable.TableFormatPebblev4
	for _, c := range []struct {
		name  string
		chunk *Chunk
		is    error
		want  string
	}{
		{"flipped bit", changed(func(c *Chunk) { c.SST[len(c.SST)/2] ^= 4 }), ErrCorrupt, "checksum"},
		{"flipped bit and a new checksum", changed(func(c *Chunk) { c.SST[len(c.SST)/3] ^= 4; reseal(c) }), ErrCorrupt, ""},
		{"cut", changed(func(c *Chunk) { c.SST = c.SST[:len(c.SST)-100] }), ErrCorrupt, "bytes of table"},
		{"cut and a new header", changed(func(c *Chunk) { c.SST = c.SST[:len(c.SST)-100]; c.Size -= 100; reseal(c) }),
			ErrCorrupt, ""},
		{"garbage", changed(func(c *Chunk) { clear(c.SST); reseal(c) }), ErrCorrupt, ""},
		{"seq too high", changed(func(c *Chunk) { c.Seq++ }), ErrChunkOrder, "not the next"},
		{"seq too low", changed(func(c *Chunk) { c.Seq-- }), ErrChunkOrder, "not the next"},
		{"unknown span", changed(func(c *Chunk) { c.Span = 'x' }), ErrCorrupt, "span"},
		{"too many rows said", changed(func(c *Chunk) { c.Rows++ }), ErrCorrupt, "rows"},
		{"too few bytes said", changed(func(c *Chunk) { c.RawBytes-- }), ErrCorrupt, "rows"},
		{"other first key said", changed(func(c *Chunk) { c.First = dataKey("a", -1) }), ErrCorrupt, "rows"},
		{"other last key said", changed(func(c *Chunk) { c.Last = append(bytes.Clone(c.Last), 1) }), ErrCorrupt, "rows"},
		{"data as sessions", changed(func(c *Chunk) { c.Span = SpanSession }), ErrCorrupt, "outside"},
		{"sessions as data", one(SpanData, stored, string(sessionKey(7, 100000))), ErrCorrupt, "outside"},
		{"below the range", one(SpanData, stored, "\x02A", "\x02a1"), ErrCorrupt, "outside"},
		{"above the range", one(SpanData, stored, "\x02a1", "\x02b"), ErrCorrupt, "outside"},
		{"another shard's sessions", one(SpanSession, []byte("x"), string(sessionKey(8, 1))), ErrCorrupt, "outside"},
		{"sessions again", one(SpanSession, []byte("x"), string(sessionKey(7, 3))), ErrChunkOrder, "starts at"},
		{"a value without layout", one(SpanData, []byte("raw"), "\x02a1"), ErrCorrupt, "value of"},
		{"a deletion", chunkOf(t, next, tableOptions(), func(w *sstable.Writer) error { return w.Delete(next.First) }),
			ErrCorrupt, "more than rows"},
		{"a range deletion", chunkOf(t, next, tableOptions(), func(w *sstable.Writer) error {
			return errors.Join(w.Set(next.First, stored), w.DeleteRange(d.Start, d.End))
		}), ErrCorrupt, "more than rows"},
		{"a range key", chunkOf(t, next, tableOptions(), func(w *sstable.Writer) error {
			return errors.Join(w.Set(next.First, stored), w.RangeKeyDelete(d.Start, d.End))
		}), ErrCorrupt, "more than rows"},
		{"a merge", chunkOf(t, next, tableOptions(), func(w *sstable.Writer) error { return w.Merge(next.First, stored) }),
			ErrCorrupt, "MERGE"},
		{"another table format", chunkOf(t, next, old, func(w *sstable.Writer) error { return w.Set(next.First, stored) }),
			ErrCorrupt, "format"},
	} {
		err := s.Add(c.chunk)
		var ce *ChunkError
		if !errors.Is(err, c.is) || !errors.As(err, &ce) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", c.name, err)
		}
		if s.Chunks() != uint32(first) {
			t.Fatalf("%s: kept", c.name)
		}
	}
	if err := s.Add(chunks[first]); err != nil { // the right one still fits
		t.Fatal(err)
	}
	// Data, then sessions; and the same rows again under the next number.
	if err := s.Add(changed(func(c *Chunk) { c.Seq++ })); !errors.Is(err, ErrChunkOrder) {
		t.Fatal(err)
	}
	late := one(SpanSession, []byte("x"), string(sessionKey(7, 999)))
	late.Seq = next.Seq + 1
	if err := s.Add(late); !errors.Is(err, ErrChunkOrder) || !strings.Contains(err.Error(), "sessions come before") {
		t.Fatal(err)
	}
	if rows := shardRows(t, dst, d); len(rows) > 0 {
		t.Fatalf("%d rows ingested", len(rows))
	}
	if err := errors.Join(s.Remove(), s.Remove()); err != nil {
		t.Fatal(err)
	}
	noStaging(t, fs)
	if err := s.Add(next); err == nil {
		t.Fatal("added to a staging that is gone")
	}
	if _, err := dst.Install(installOf(s)); err == nil || !strings.Contains(err.Error(), "removed") {
		t.Fatal(err)
	}
	mustClose(t, dst)
}

func TestNoBitOfAChunkMatters(t *testing.T) {
	rng, _ := seeded(t)
	src, dst := newEngine(t), newEngine(t)
	d := source(t, src, 60, 0)
	v := mustView(t, src, 7)
	defer closeView(t, v)
	c := allChunks(t, v, sized(1<<20))[0]
	want := shardRows(t, src, d)
	for round := range 400 { // whoever damages the table also gets the checksum right
		bad := *c
		bad.SST = bytes.Clone(c.SST)
		at := rng.IntN(len(bad.SST))
		if round%2 == 0 {
			at = len(bad.SST) - 1 - rng.IntN(min(len(bad.SST), 600))
		}
		bad.SST[at] ^= 1 << rng.IntN(8)
		bad.CRC = crc32.Checksum(bad.SST, crc32.MakeTable(crc32.Castagnoli))
		s := mustStage(t, dst, metaOf(v), nil)
		if err := s.Add(&bad); err != nil {
			if !errors.Is(err, ErrCorrupt) {
				t.Fatalf("byte %d: %v", at, err)
			}
			if err := s.Remove(); err != nil {
				t.Fatal(err)
			}
			continue
		}
		mustInstall(t, dst, installOf(s)) // a bit that nobody reads
		sameRows(t, "rows", shardRows(t, dst, d), want)
	}
}

func TestStagingIsBounded(t *testing.T) {
	src, fs := newEngine(t), NewMemFS()
	o := testOptions(t, fs)
	o.StagingBytes = 100 << 10
	dst := mustOpen(t, o)
	source(t, src, 0, 0)
	rng, _ := seeded(t)
	commit(t, src, true, func(b *Batch) {
		for i := range 300 {
			b.Put(dataKey("a", i), ValueHeader{}, randomBytes(rng, 1000))
		}
	})
	v := mustView(t, src, 7)
	defer closeView(t, v)
	m := metaOf(v)
	m.ApproxBytes = 60 << 10
	a, err := dst.NewStaging(m, [16]byte{1})
	if err != nil {
		t.Fatal(err)
	}
	m.ApproxBytes = 1
	if _, err := dst.NewStaging(m, [16]byte{1}); err == nil || !strings.Contains(err.Error(), "already") {
		t.Fatal(err)
	}
	m.ApproxBytes = 60 << 10
	var full *StagingFullError
	if _, err := dst.NewStaging(m, [16]byte{2}); !errors.As(err, &full) || full.Used != 60<<10 || full.Limit != 100<<10 {
		t.Fatal(err)
	}
	m.ApproxBytes = 1 << 63
	if _, err := dst.NewStaging(m, [16]byte{3}); !errors.As(err, &full) {
		t.Fatal(err)
	}
	m.ApproxBytes = 40 << 10
	b, err := dst.NewStaging(m, [16]byte{2})
	if err != nil {
		t.Fatal(err)
	}
	// What comes beyond the announcement counts as well.
	chunks := allChunks(t, v, sized(90<<10))
	if len(chunks[0].SST) < 41<<10 {
		t.Fatalf("a chunk of %d bytes shows nothing", len(chunks[0].SST))
	}
	if err := b.Add(chunks[0]); !errors.As(err, &full) || b.Chunks() != 0 {
		t.Fatal(err)
	}
	if err := a.Remove(); err != nil {
		t.Fatal(err)
	}
	if err := b.Add(chunks[0]); err != nil || dst.StagedBytes() < uint64(chunks[0].Size) {
		t.Fatal(err)
	}
	if err := b.Remove(); err != nil || dst.StagedBytes() != 0 {
		t.Fatal(err, dst.StagedBytes())
	}
	mustClose(t, dst)
}

func TestStagingIsGoneAfterARestart(t *testing.T) {
	src, fs := newEngine(t), NewMemFS()
	dst := mustOpen(t, testOptions(t, fs))
	source(t, src, 300, 10)
	v := mustView(t, src, 7)
	defer closeView(t, v)
	mustStage(t, dst, metaOf(v), allChunks(t, v, sized(16<<10)))
	crashed := fs.CrashClone(100, 1)
	mustClose(t, dst)
	for _, fs := range []*FS{fs, crashed} {
		if names, err := fs.inner.List(testDir + "/" + stagingDir); err != nil || len(names) != 1 {
			t.Fatal(names, err)
		}
		dst := mustOpen(t, testOptions(t, fs))
		noStaging(t, fs)
		if n := dst.StagedBytes(); n != 0 {
			t.Fatal(n)
		}
		mustInstall(t, dst, installOf(mustStage(t, dst, metaOf(v), allChunks(t, v, sized(16<<10)))))
		mustClose(t, dst)
	}
}

func TestAFullDiskCostsTheStagingAndNotTheStore(t *testing.T) {
	src, fs := newEngine(t), NewMemFS()
	dst := mustOpen(t, testOptions(t, fs))
	d := source(t, src, 300, 10)
	v := mustView(t, src, 7)
	defer closeView(t, v)
	chunks := allChunks(t, v, sized(16<<10))
	s := mustStage(t, dst, metaOf(v), chunks[:2])
	left := 0
	full := func() { // the disk is full after so many more writes
		setHook(fs, func() {
			fs.mu.Lock()
			defer fs.mu.Unlock()
			if left--; left < 0 {
				fs.mu.failWrites = syscall.ENOSPC
			}
		})
	}
	well := func() { setHook(fs, nil); fs.FailWrites(nil) }
	for left = range 3 { // creation, write
		n := left
		full()
		err := s.Add(chunks[2])
		well()
		if n < 2 && (!errors.Is(err, syscall.ENOSPC) || s.Chunks() != 2) {
			t.Fatalf("after %d steps: %v", n, err)
		}
		if err == nil {
			break
		}
		if names, err := fs.inner.List(s.dir); err != nil || len(names) != 2 {
			t.Fatalf("left in the staging: %v, %v", names, err)
		}
	}
	for _, c := range chunks[s.Chunks():] {
		addOverWire(t, s, c)
	}
	// The small tables of an install: it is refused, and nothing has changed.
	fs.FailWrites(syscall.ENOSPC)
	if _, err := dst.Install(installOf(s)); !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
	well()
	if _, ok, err := dst.ReplicaState(7); ok || err != nil {
		t.Fatal(ok, err)
	}
	checkInstalled(t, dst, mustInstall(t, dst, installOf(s)), shardRows(t, src, d))
	noStaging(t, fs)
	mustClose(t, dst)
}

func TestMetaThatContradictsItselfIsNotStaged(t *testing.T) {
	src, dst := newEngine(t), newEngine(t)
	source(t, src, 1, 0)
	v := mustView(t, src, 7)
	defer closeView(t, v)
	for name, mend := range map[string]func(m *SnapshotMeta){
		"other shard":     func(m *SnapshotMeta) { m.Shard = 8 },
		"not listed":      func(m *SnapshotMeta) { m.To = 9 },
		"another store's": func(m *SnapshotMeta) { m.ToStore = 2 },
		"never applied":   func(m *SnapshotMeta) { m.Applied.Index = 0 },
		"local range": func(m *SnapshotMeta) {
			m.Desc = m.Desc.Clone()
			m.Desc.Start = []byte{spaceLocal, spanRaft}
		},
		"beyond the families": func(m *SnapshotMeta) {
			m.Desc = m.Desc.Clone()
			m.Desc.End = []byte{base.SpaceSystem + 2}
		},
	} {
		m := metaOf(v)
		mend(m)
		if _, err := dst.NewStaging(m, [16]byte{1}); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := DecodeSnapshotMeta(m.Append(nil)); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if n := dst.StagedBytes(); n != 0 {
		t.Fatal(n)
	}
}
