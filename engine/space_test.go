package engine

import (
	"context"
	"fmt"
	"log/slog"
	"math"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

func TestThresholdsOfFreeSpaceFollowTheDiskWithinTheirBounds(t *testing.T) {
	const MiB = 1 << 20
	for _, c := range []struct {
		o             Options
		total         uint64
		low, critical uint64
		reserve       int64
	}{
		{Options{}, 0, 512 * MiB, 128 * MiB, 0},
		{Options{}, 1 << 30, 512 * MiB, 128 * MiB, 1 << 30 / 100},
		{Options{}, 100 << 30, 3 << 30, 3 << 28, 64 * MiB},
		{Options{}, 10 << 40, 8 << 30, 2 << 30, 64 * MiB},
		{Options{LowSpaceBytes: 1000, ReserveBytes: 7}, 1 << 40, 1000, 250, 7},
		{Options{LowSpaceBytes: 1000, CriticalSpaceBytes: 900, ReserveBytes: -1}, 1 << 40, 1000, 900, 0},
		{Options{CriticalSpaceBytes: 1 << 40}, 1 << 30, 512 * MiB, 512 * MiB, 1 << 30 / 100},
	} {
		low, critical := c.o.thresholds(c.total)
		if r := c.o.reserveBytes(c.total); low != c.low && low-c.low > 1 || critical != c.critical || r != c.reserve {
			t.Errorf("%+v, %d bytes: low %d, critical %d, reserve %d, want %d, %d, %d",
				c.o, c.total, low, critical, r, c.low, c.critical, c.reserve)
		}
	}
}

func TestTheSpaceLevelFollowsFreeBytesWithHysteresis(t *testing.T) {
	fs := NewMemFS()
	o := testOptions(t, fs)
	o.LowSpaceBytes, o.CriticalSpaceBytes = 800, 400
	o.Registerer = prometheus.NewRegistry()
	e := mustOpen(t, o)
	defer mustClose(t, e)
	level, free, low, critical := e.Space()
	if level != SpaceOK || free != math.MaxUint64 || low != 800 || critical != 400 {
		t.Fatalf("of a disk that does not tell: %s, %d, %d, %d", level, free, low, critical)
	}
	for _, s := range []struct {
		free uint64
		want SpaceLevel
	}{
		{5000, SpaceOK}, {800, SpaceOK}, {799, SpaceLow}, {800, SpaceLow}, {899, SpaceLow}, {900, SpaceOK},
		{0, SpaceCritical}, {400, SpaceCritical}, {449, SpaceCritical}, {450, SpaceLow}, {399, SpaceCritical},
		{899, SpaceLow}, {900, SpaceOK}, {400, SpaceLow}, {399, SpaceCritical}, {10_000, SpaceOK},
	} {
		fs.SetFree(s.free)
		level, free, _, _ := e.Space()
		if level != s.want || free != s.free {
			t.Fatalf("%d bytes free: %s of %d, want %s", s.free, level, free, s.want)
		}
		if disk, _ := e.DiskStats(); disk != s.free {
			t.Fatalf("DiskStats says %d", disk)
		}
	}
	fs.SetFree(399)
	metric := func(name string) float64 {
		all, err := o.Registerer.(*prometheus.Registry).Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range all {
			if m.GetName() == name {
				return m.Metric[0].GetGauge().GetValue()
			}
		}
		t.Fatalf("no metric %s", name)
		return 0
	}
	if n := metric("shardd_engine_disk_free_bytes"); n != 399 {
		t.Fatalf("metric of %v bytes free", n)
	}
	if n := metric("shardd_engine_disk_space_level"); n != 2 {
		t.Fatalf("metric of level %v", n)
	}
	fs.SetFree(FreeUnknown)
	if level, _, _, _ := e.Space(); level != SpaceOK {
		t.Fatalf("level %s with the override gone", level)
	}
}

func TestTheProbeLooksAtTheDiskWithoutBeingAsked(t *testing.T) {
	fs := NewMemFS()
	fs.mem.TestingSetDiskUsage(vfs.DiskUsage{AvailBytes: 1 << 30, TotalBytes: 1 << 40})
	o := testOptions(t, fs)
	o.ProbeInterval = time.Millisecond
	o.ReserveBytes = -1
	e := mustOpen(t, o)
	defer mustClose(t, e)
	level, free, low, _ := e.Space()
	if level != SpaceCritical || free != 1<<30 || low != 8<<30 {
		t.Fatalf("%s, %d free, low %d", level, free, low)
	}
	fs.mem.TestingSetDiskUsage(vfs.DiskUsage{AvailBytes: 1 << 39, TotalBytes: 1 << 40})
	waitFor(t, "the level rises", func() bool { level, _, _, _ := e.Space(); return level == SpaceOK })
}

func TestTheReserveIsMadeWhenThereIsRoomAndFreedAtAStartOnAFullDisk(t *testing.T) {
	fs := NewMemFS()
	o := testOptions(t, fs)
	o.LowSpaceBytes, o.CriticalSpaceBytes, o.ReserveBytes = 8<<20, 1<<20, 3<<20|1
	size := func() int64 {
		info, err := fs.inner.Stat(testDir + "/" + reserveName)
		if err != nil {
			return -1
		}
		return info.Size()
	}
	open := func(free uint64) *Engine {
		fs.SetFree(free)
		return mustOpen(t, o)
	}
	e := open(9 << 20) // not enough for the reserve above low
	if n := size(); n != -1 {
		t.Fatalf("a reserve of %d bytes was made on an almost full disk", n)
	}
	fs.SetFree(100 << 20)
	e.Space()
	if n := size(); n != o.ReserveBytes {
		t.Fatalf("reserve of %d bytes, want %d", n, o.ReserveBytes)
	}
	mustClose(t, e)
	mustClose(t, open(5<<20)) // low: kept
	if n := size(); n != o.ReserveBytes {
		t.Fatalf("reserve of %d bytes after a start at low", n)
	}
	e = open(1<<20 - 1)
	if n := size(); n != -1 {
		t.Fatal("the reserve was not freed on a full disk")
	}
	if level, _, _, _ := e.Space(); level != SpaceCritical {
		t.Fatalf("level %s", level)
	}
	fs.SetFree(50 << 20)
	e.Space()
	if n := size(); n != o.ReserveBytes {
		t.Fatal("the reserve did not come back with the space")
	}
	mustClose(t, e)
	writeFile(t, fs, reserveName, []byte("half")) // a crash while it was made
	mustClose(t, open(50<<20))
	if n := size(); n != o.ReserveBytes {
		t.Fatalf("half a reserve became one of %d bytes", n)
	}
	o.ReserveBytes = -1
	mustClose(t, open(50<<20))
	if n := size(); n != -1 {
		t.Fatal("the reserve stayed though none is wanted")
	}
}

func TestAReserveThatCannotBeMadeDoesNoHarm(t *testing.T) {
	fs := NewMemFS()
	o := testOptions(t, fs)
	o.Dir = t.TempDir()
	o.FS = nil
	o.ReserveBytes = 1 << 20
	o.LowSpaceBytes, o.CriticalSpaceBytes = 2, 1
	e := mustOpen(t, o) // on the real disk: allocated, not written
	info, err := e.opts.FS.inner.Stat(e.reserveFile())
	if err != nil || info.Size() != 1<<20 {
		t.Fatal(info, err)
	}
	if level, free, low, critical := e.Space(); level != SpaceOK || free == 0 || low != 2 || critical != 1 {
		t.Fatal(level, free, low, critical)
	}
	mustClose(t, e)
}

// logLines collects what is logged, by message.
type logLines struct {
	mu    sync.Mutex
	lines map[string]int
	total int
}

func (l *logLines) Enabled(context.Context, slog.Level) bool { return true }
func (l *logLines) WithAttrs([]slog.Attr) slog.Handler       { return l }
func (l *logLines) WithGroup(string) slog.Handler            { return l }
func (l *logLines) Handle(_ context.Context, r slog.Record) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.lines == nil {
		l.lines = make(map[string]int)
	}
	if r.Level >= slog.LevelWarn {
		l.lines[r.Message]++
		l.total++
	}
	return nil
}

func (l *logLines) count() (total int, all string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.total, fmt.Sprint(l.lines)
}

func counter(t *testing.T, c prometheus.Counter) float64 {
	t.Helper()
	var m dto.Metric
	if err := c.Write(&m); err != nil {
		t.Fatal(err)
	}
	return m.Counter.GetValue()
}

// failTables makes each new table fail as on a full disk, and leaves the log and the manifest alone.
func failTables(fs *FS, err error) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	fs.mu.failWrites, fs.mu.failWritesSuffix = err, ".sst"
}

func TestAFlushOnAFullDiskTriesAgainWithoutASpinAndEndsWhenSpaceReturns(t *testing.T) {
	lines := &logLines{}
	fs := NewMemFS()
	o := testOptions(t, fs)
	o.Logger = slog.New(lines)
	o.spaceWait = 20 * time.Millisecond
	e := mustOpen(t, o)
	failTables(fs, syscall.ENOSPC)
	commit(t, e, true, func(b *Batch) { b.SetMark(7, ReplicaMark{NextReplicaID: 3}) })
	done, err := e.db.AsyncFlush()
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	waitFor(t, "ten tries", func() bool { return counter(t, e.metrics.backgroundErrors) >= 10 })
	took := time.Since(start)
	if least := 8 * o.spaceWait; took < least {
		t.Errorf("ten tries in %s: at least %s apart each", took, o.spaceWait)
	}
	commit(t, e, true, func(b *Batch) { b.SetMark(8, ReplicaMark{NextReplicaID: 3}) }) // the log has space
	failTables(fs, nil)
	<-done
	if m, ok, err := e.Mark(7); !ok || err != nil || m.NextReplicaID != 3 {
		t.Fatal(m, ok, err)
	}
	mustClose(t, e)
	if n, all := lines.count(); n > 6 {
		t.Errorf("%d lines about ten failures: %s", n, all)
	}
}

func TestAFullDiskEndsTheStoreAndItStartsAgainWithTheReserveFreed(t *testing.T) {
	fs := NewMemFS()
	o := testOptions(t, fs)
	o.LowSpaceBytes, o.CriticalSpaceBytes, o.ReserveBytes = 8<<20, 2<<20, 1<<20
	fatal := make(chan error, 1)
	o.Fatal = func(err error) { fatal <- err }
	fs.SetFree(100 << 20)
	e := mustOpen(t, o)
	commit(t, e, true, func(b *Batch) { b.Put(userKey(1), ValueHeader{Version: 1}, []byte("kept")) })
	fs.SetFree(0)
	fs.FailWrites(syscall.ENOSPC)
	b := e.NewBatch()
	b.Put(userKey(2), ValueHeader{Version: 1}, []byte("lost"))
	if err := e.Commit(b, true); err == nil || !strings.Contains(err.Error(), syscall.ENOSPC.Error()) {
		t.Fatalf("a write to a full disk: %v", err)
	}
	if err := <-fatal; !vfs.IsNoSpaceError(err) {
		t.Fatal(err)
	}
	if err := e.Close(); err == nil {
		t.Fatal("closed without a word")
	}
	wantRefusal(t, o, ExitNoSpace) // still nothing: the reserve of this disk is no help
	if n := filesWith(t, fs, reserveName); len(n) != 0 {
		t.Fatal("the reserve was not freed")
	}
	fs.FailWrites(nil) // the reserve's space
	fs.SetFree(1 << 20)
	o.Fatal = func(err error) { t.Errorf("fatal: %v", err) }
	e = mustOpen(t, o)
	defer mustClose(t, e)
	if _, v, ok, err := e.Get(userKey(1), nil); !ok || err != nil || string(v) != "kept" {
		t.Fatal(ok, err)
	}
	if level, _, _, _ := e.Space(); level != SpaceCritical {
		t.Fatalf("level %s", level)
	}
	commit(t, e, true, func(b *Batch) { b.Delete(userKey(1)) })
}

// What a store uses does not change by its being opened again, and what it gave back is never counted below zero.
func TestDiskStatsCountSeparatedValuesOfEarlierLives(t *testing.T) {
	const rows, size = 100, 10_000
	rng, _ := seeded(t)
	value := make([]byte, size) // that does not compress
	fs := NewMemFS()
	o := testOptions(t, fs)
	e := mustOpen(t, o)
	commit(t, e, false, func(b *Batch) {
		for i := range rows {
			for j := range value {
				value[j] = byte(rng.Uint32())
			}
			b.Put(userKey(i), ValueHeader{Version: 1}, value)
		}
	})
	if err := e.db.Flush(); err != nil {
		t.Fatal(err)
	}
	if len(filesWith(t, fs, ".blob")) == 0 {
		t.Fatal("no values were separated")
	}
	mustClose(t, e)
	e = mustOpen(t, o)
	defer mustClose(t, e)
	_, before := e.DiskStats()
	if before < rows*size || before > 3*rows*size {
		t.Errorf("%d bytes used when opened again", before)
	}
	commit(t, e, false, func(b *Batch) {
		for i := range rows {
			b.Delete(userKey(i))
		}
	})
	if err := e.db.Compact(t.Context(), userKey(0), userKey(rows), false); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the files of values to go", func() bool { return len(filesWith(t, fs, ".blob")) == 0 })
	waitFor(t, "their bytes to be given back", func() bool {
		_, left := e.DiskStats()
		return left < rows*size/2
	})
}
