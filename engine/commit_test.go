package engine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

func TestAsyncCommitsAreVisibleAtOnceAndHandedBackInOrder(t *testing.T) {
	fs := NewMemFS()
	e := mustOpen(t, testOptions(t, fs))
	release := fs.HoldSyncs()
	const n = 100
	var mu sync.Mutex
	var order []int
	for i := range n {
		b := e.NewBatch()
		if i%10 != 9 { // some are empty: they keep their place
			b.Put(userKey(i), ValueHeader{Version: 1}, userValue(i))
		}
		e.CommitAsync(b, func() {
			mu.Lock()
			order = append(order, i)
			mu.Unlock()
			b.Close()
		})
		if i%10 != 9 {
			if _, _, ok, err := e.Get(userKey(i), nil); !ok || err != nil {
				t.Fatalf("write %d is not visible: %v", i, err)
			}
		}
	}
	if mu.Lock(); len(order) > 0 {
		t.Fatalf("%d batches handed back before any sync", len(order))
	}
	mu.Unlock()
	lost := fs.CrashClone(0, 1)
	release()
	mustClose(t, e) // drains
	if len(order) != n || !slices.IsSorted(order) {
		t.Fatalf("handed back %v", order)
	}
	for _, c := range []struct {
		fs   *FS
		want bool
	}{{lost, false}, {fs.CrashClone(0, 1), true}} {
		e := mustOpen(t, testOptions(t, c.fs))
		for i := range n {
			if _, _, ok, err := e.Get(userKey(i), nil); err != nil || ok != (c.want && i%10 != 9) {
				t.Fatalf("after a crash write %d is there: %t, %v", i, ok, err)
			}
		}
		mustClose(t, e)
	}
}

func TestTheAgeOfTheOldestSyncIsKnown(t *testing.T) {
	fs := NewMemFS()
	e := mustOpen(t, testOptions(t, fs))
	defer mustClose(t, e)
	if age := e.SyncAge(); age != 0 {
		t.Fatalf("an idle store has a sync of %s under way", age)
	}
	release := fs.HoldSyncs()
	var done atomic.Int32
	for i := range 3 {
		b := e.NewBatch()
		b.Put(userKey(i), ValueHeader{}, nil)
		e.CommitAsync(b, func() { done.Add(1) })
	}
	first := e.SyncAge()
	if first <= 0 {
		t.Fatal("a sync under way has no age")
	}
	waitFor(t, "the sync grows older", func() bool { return e.SyncAge() > first })
	release()
	waitFor(t, "the syncs end", func() bool { return done.Load() == 3 && e.SyncAge() == 0 })
}

func TestAProbeFindsAStalledDiskUnderAnIdleStore(t *testing.T) {
	fs := NewMemFS()
	o := testOptions(t, fs)
	o.ProbeInterval = time.Millisecond
	e := mustOpen(t, o)
	defer mustClose(t, e)
	waitFor(t, "a probe ends", func() bool { return metric(t, e, "shardd_engine_probes_total") > 0 })
	release := fs.HoldSyncs()
	waitFor(t, "a probe hangs", func() bool { return e.SyncAge() > 5*time.Millisecond })
	release()
	waitFor(t, "the disk is well again", func() bool { return e.SyncAge() < 5*time.Millisecond })
}

// metric reads one counter of the engine.
func metric(t testing.TB, e *Engine, name string) float64 {
	t.Helper()
	reg := prometheus.NewPedanticRegistry()
	for _, c := range e.metrics.all {
		reg.MustRegister(c)
	}
	all, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range all {
		if f.GetName() == name {
			return f.GetMetric()[0].GetCounter().GetValue()
		}
	}
	t.Fatalf("no metric %s", name)
	return 0
}

func TestNothingIsAcknowledgedAfterAFailedSync(t *testing.T) {
	fs := NewMemFS()
	var fatals []error
	var mu sync.Mutex
	o := testOptions(t, fs)
	o.Fatal = func(err error) {
		mu.Lock()
		defer mu.Unlock()
		fatals = append(fatals, err)
	}
	e := mustOpen(t, o)
	commit(t, e, true, func(b *Batch) { b.Put(userKey(0), ValueHeader{}, nil) })

	release := fs.HoldSyncs()
	var acknowledged atomic.Int32
	for i := range 20 {
		b := e.NewBatch()
		b.Put(userKey(i+1), ValueHeader{}, nil)
		e.CommitAsync(b, func() { acknowledged.Add(1) })
	}
	waiting := make(chan error)
	go func() {
		b := e.NewBatch()
		b.Put(userKey(100), ValueHeader{}, nil)
		waiting <- e.Commit(b, true)
	}()
	boom := errors.New("the disk is gone")
	fs.FailSyncs(boom)
	release()
	if err := <-waiting; !errors.Is(err, ErrStopped) || !errors.Is(err, boom) {
		t.Fatal(err)
	}
	fs.FailSyncs(nil) // a disk that seems well again must not matter
	for _, sync := range []bool{false, true} {
		b := e.NewBatch()
		b.Put(userKey(200), ValueHeader{}, nil)
		if err := e.Commit(b, sync); !errors.Is(err, ErrStopped) || !errors.Is(err, boom) {
			t.Fatalf("commit with sync %t after the failure: %v", sync, err)
		}
	}
	e.CommitAsync(e.NewBatch(), func() { acknowledged.Add(1) })
	if err := e.RecordPeer(PeerRecord{Store: 1}); err == nil {
		t.Fatal("the ident was changed after the failure")
	}
	if err := e.Close(); !errors.Is(err, boom) {
		t.Fatal(err)
	}
	if n := acknowledged.Load(); n != 0 {
		t.Fatalf("%d batches acknowledged", n)
	}
	if len(fatals) != 1 || !errors.Is(fatals[0], boom) {
		t.Fatalf("fatal called with %v", fatals)
	}
	r := mustOpen(t, testOptions(t, fs.CrashClone(0, 1)))
	defer mustClose(t, r)
	if _, _, ok, err := r.Get(userKey(0), nil); !ok || err != nil {
		t.Fatal("what was acknowledged before is gone", err)
	}
}

func TestAFailedSyncOfATableStopsTheStore(t *testing.T) {
	fs := NewMemFS()
	fatal := make(chan error, 10)
	o := testOptions(t, fs)
	o.Fatal = func(err error) { fatal <- err }
	e := mustOpen(t, o)
	commit(t, e, false, func(b *Batch) { b.Put(userKey(0), ValueHeader{}, nil) })
	boom := errors.New("the disk is gone")
	fs.mu.failSuffix = ".sst"
	fs.FailSyncs(boom)
	if _, err := e.db.AsyncFlush(); err != nil {
		t.Fatal(err)
	}
	if err := <-fatal; !errors.Is(err, boom) || !strings.Contains(err.Error(), ".sst") {
		t.Fatal(err)
	}
	b := e.NewBatch()
	if err := e.Commit(b, true); !errors.Is(err, ErrStopped) {
		t.Fatal(err)
	}
	if err := e.Close(); !errors.Is(err, boom) {
		t.Fatal(err)
	}
	if len(fatal) > 0 {
		t.Fatalf("fatal called again: %v", <-fatal)
	}
}

func TestAFullDiskUnderTheLogStopsTheStore(t *testing.T) {
	fs := NewMemFS()
	fatal := make(chan error, 10)
	o := testOptions(t, fs)
	o.Fatal = func(err error) { fatal <- err }
	e := mustOpen(t, o)
	fs.FailWrites(syscall.ENOSPC)
	b := e.NewBatch()
	b.Put(userKey(0), ValueHeader{}, nil)
	if err := e.Commit(b, true); !errors.Is(err, ErrStopped) || !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
	if err := <-fatal; !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
	if err := e.Close(); !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
}

func TestPebblesFatalfEndsItsGoroutineAndStopsTheStore(t *testing.T) {
	fatal := make(chan error, 10)
	o := testOptions(t, NewMemFS())
	o.Fatal = func(err error) { fatal <- err }
	e := mustOpen(t, o)
	boom := errors.New("cause")
	returned, ended := false, make(chan struct{})
	go func() {
		defer close(ended)
		pebbleLogger{e}.Fatalf("reason %d: %v", 7, boom)
		returned = true
	}()
	<-ended
	if returned {
		t.Fatal("Fatalf returned")
	}
	if err := <-fatal; !errors.Is(err, boom) || !strings.Contains(err.Error(), "reason 7") {
		t.Fatal(err)
	}
	if err := e.Close(); !errors.Is(err, boom) {
		t.Fatal(err)
	}
}

func TestAnInvalidBatchNeverPassesForDurable(t *testing.T) {
	fatal := make(chan error, 1)
	o := testOptions(t, NewMemFS())
	o.Fatal = func(err error) { fatal <- err }
	e := mustOpen(t, o)
	b := e.NewBatch()
	b.Put(identKey(), ValueHeader{}, nil)
	e.CommitAsync(b, func() { t.Error("handed back") })
	if err := <-fatal; !errors.Is(err, ErrInvalidKey) {
		t.Fatal(err)
	}
	if err := e.Close(); !errors.Is(err, ErrInvalidKey) {
		t.Fatal(err)
	}
}

// blockedHandler is a log that nobody reads.
type blockedHandler struct {
	slog.Handler
	gate chan struct{}
}

func (h blockedHandler) Enabled(context.Context, slog.Level) bool { return true }
func (h blockedHandler) Handle(context.Context, slog.Record) error {
	<-h.gate
	return nil
}

func TestABlockedLogBlocksNoWrite(t *testing.T) {
	gate := make(chan struct{})
	o := testOptions(t, NewMemFS())
	o.Logger = slog.New(blockedHandler{Handler: slog.DiscardHandler, gate: gate})
	e := mustOpen(t, o)
	for i := range 50 {
		for range eventQueueLen / 10 {
			pebbleLogger{e}.Errorf("chatter")
		}
		commit(t, e, true, func(b *Batch) { b.Put(userKey(i), ValueHeader{}, userValue(i)) })
		if err := e.db.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	if e.events.dropped.Load() == 0 {
		t.Fatal("nothing was dropped: the test did not fill the queue")
	}
	close(gate)
	mustClose(t, e)
}

func TestMetricsComeAndGoWithTheEngine(t *testing.T) {
	reg := prometheus.NewPedanticRegistry()
	for range 2 {
		o := testOptions(t, NewMemFS())
		o.Registerer = reg
		e := mustOpen(t, o)
		commit(t, e, true, func(b *Batch) { b.Put(userKey(1), ValueHeader{}, nil) })
		all, err := reg.Gather()
		if err != nil {
			t.Fatal(err)
		}
		names := map[string]bool{}
		for _, f := range all {
			names[f.GetName()] = true
			if !strings.HasPrefix(f.GetName(), "shardd_engine_") || f.GetHelp() == "" {
				t.Errorf("metric %q, help %q", f.GetName(), f.GetHelp())
			}
		}
		for _, want := range []string{
			"flushes_total", "compactions_total", "write_stalls_total", "disk_slow_total", "wal_sync_seconds",
			"commit_sync_seconds", "block_cache_bytes", "entry_cache_bytes", "row_cache_bytes", "l0_files", "l0_sublevels",
			"sync_age_seconds", "row_cache_hits_total", "row_cache_misses_total",
		} {
			if !names["shardd_engine_"+want] {
				t.Errorf("no metric %s", want)
			}
		}
		if free, used := e.DiskStats(); used == 0 {
			t.Error("no disk usage", free, used)
		}
		mustClose(t, e)
		if all, err := reg.Gather(); err != nil || len(all) != 0 {
			t.Fatalf("%d metrics after close, %v", len(all), err)
		}
		_ = fmt.Sprint(e.DiskStats()) // still allowed
	}
}
