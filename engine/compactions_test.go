package engine

import (
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2"
)

// countingDB is a database as a scheduler of compactions sees it.
type countingDB struct {
	allowed, waiting, started, asked atomic.Int64
}

func (d *countingDB) GetAllowedWithoutPermission() int {
	d.asked.Add(1)
	return int(d.allowed.Load())
}

func (d *countingDB) GetWaitingCompaction() (bool, pebble.WaitingCompaction) {
	d.asked.Add(1)
	return d.waiting.Load() > 0, pebble.WaitingCompaction{}
}

func (d *countingDB) Schedule(pebble.CompactionGrantHandle) bool {
	d.waiting.Add(-1)
	d.started.Add(1)
	return true
}

// full returns a scheduler that has granted what it may, and refused one compaction more, which waits.
func full(t *testing.T) (*compactions, *countingDB, pebble.CompactionGrantHandle) {
	t.Helper()
	s, db := newCompactions(), &countingDB{}
	s.Register(1, db)
	db.allowed.Store(1)
	ok, h := s.TrySchedule()
	if !ok {
		t.Fatal("the first one is refused")
	}
	if ok, _ := s.TrySchedule(); ok {
		t.Fatal("two run, one is allowed")
	}
	db.waiting.Store(1)
	return s, db, h
}

func TestACompactionThatWaitsIsStartedWhenAnotherEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, db, h := full(t)
		h.Started()
		h.Done()
		if n := db.started.Load(); n != 1 {
			t.Fatalf("%d started", n)
		}
	})
}

func TestACompactionThatWaitsIsStartedWhenMoreMayRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, db, _ := full(t)
		time.Sleep(10 * grantEvery)
		if n := db.started.Load(); n != 0 {
			t.Fatalf("%d started, over the limit", n)
		}
		db.allowed.Store(2) // without a word
		time.Sleep(grantEvery)
		synctest.Wait()
		if n := db.started.Load(); n != 1 {
			t.Fatalf("%d started", n)
		}
	})
}

func TestAFlushThatLetsMoreCompactionsRunHasThemStartedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, db, _ := full(t)
		db.allowed.Store(2)
		s.UpdateGetAllowedWithoutPermission()
		time.Sleep(time.Nanosecond)
		synctest.Wait()
		if n := db.started.Load(); n != 1 {
			t.Fatalf("%d started", n)
		}
	})
}

func TestNothingLooksForCompactionsWhileNoneWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, db, h := full(t)
		h.Done()
		h.Done() // the one that has waited
		asked := db.asked.Load()
		if asked == 0 || db.started.Load() != 1 {
			t.Fatalf("%d started after %d looks", db.started.Load(), asked)
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		if n := db.asked.Load() - asked; n != 0 {
			t.Fatalf("%d looks in an hour", n)
		}
		// Another one that has to wait gets its turn all the same.
		if ok, _ := s.TrySchedule(); !ok {
			t.Fatal("none runs, and one is refused")
		}
		if ok, _ := s.TrySchedule(); ok {
			t.Fatal("two run, one is allowed")
		}
		db.waiting.Store(1)
		db.allowed.Store(2)
		time.Sleep(grantEvery)
		synctest.Wait()
		if n := db.started.Load(); n != 2 {
			t.Fatalf("%d started", n)
		}
	})
}

func TestNoCompactionIsStartedOnceTheDatabaseCloses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, db, h := full(t)
		s.Unregister()
		asked := db.asked.Load()
		h.Done()
		time.Sleep(time.Hour)
		synctest.Wait()
		if ok, _ := s.TrySchedule(); ok || db.asked.Load() != asked || db.started.Load() != 0 {
			t.Fatalf("scheduled %t, %d looks, %d started", ok, db.asked.Load()-asked, db.started.Load())
		}
	})
}

// Pebble's own scheduler has a goroutine that looks ten times a second.
func TestAnIdleEngineLooksForNoCompactions(t *testing.T) {
	e, err := Open(Options{Dir: "data", FS: NewMemFS()})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	stacks := make([]byte, 1<<20)
	stacks = stacks[:runtime.Stack(stacks, true)]
	if strings.Contains(string(stacks), "periodicGranter") {
		t.Error("Pebble's scheduler runs")
	}
}
