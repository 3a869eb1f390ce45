package engine

import (
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2"
)

// grantEvery is how often a compaction that waits is looked at again: the number that may run can grow without a word.
const grantEvery = 100 * time.Millisecond

// compactions says which compactions run. It grants as many as Pebble allows at the moment, as Pebble's own scheduler does, but
// has a timer only while one waits: Pebble's wakes an idle process ten times a second, for ever, which was a good part of
// what such a process cost (docs/decisions/0017-store-liveness-and-leases.md).
//
// Refuse: TrySchedule, called under the database's lock, finds no room; Pebble remembers that something waits. Grant: when
// a compaction has ended, a flush may have raised the limit, or the timer fires, and never under that lock. Forget: once
// Pebble says that nothing waits of what was refused before it was asked, the timer is not set again.
type compactions struct {
	db pebble.DBForCompaction

	mu struct { // taken after the database's locks, never before
		sync.Mutex
		granted  *sync.Cond // granting has ended
		running  int
		granting bool
		refused  uint64 // how often
		settled  uint64 // refused, when last nothing waited
		timer    *time.Timer
		armed    bool
		ended    bool
	}
}

var (
	_ pebble.CompactionScheduler   = (*compactions)(nil)
	_ pebble.CompactionGrantHandle = (*compactions)(nil)
)

func newCompactions() *compactions {
	s := &compactions{}
	s.mu.granted = sync.NewCond(&s.mu.Mutex)
	return s
}

// Register implements pebble.CompactionScheduler.
func (s *compactions) Register(_ int, db pebble.DBForCompaction) { s.db = db }

// Unregister implements pebble.CompactionScheduler: the database is not called any more once it has returned.
func (s *compactions) Unregister() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mu.ended = true
	if s.mu.timer != nil {
		s.mu.timer.Stop()
	}
	for s.mu.granting {
		s.mu.granted.Wait()
	}
}

// TrySchedule implements pebble.CompactionScheduler.
func (s *compactions) TrySchedule() (bool, pebble.CompactionGrantHandle) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.ended {
		return false, nil
	}
	if s.roomLocked() {
		s.mu.running++
		return true, s
	}
	s.mu.refused++
	s.armLocked(grantEvery)
	return false, nil
}

// UpdateGetAllowedWithoutPermission implements pebble.CompactionScheduler. The database's lock is held: who waits gets its turn
// on another goroutine.
func (s *compactions) UpdateGetAllowedWithoutPermission() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.refused != s.mu.settled && s.roomLocked() {
		s.mu.armed = false
		s.armLocked(0)
	}
}

// Done implements pebble.CompactionGrantHandle: a compaction that was granted has ended.
func (s *compactions) Done() {
	s.mu.Lock()
	s.mu.running--
	s.mu.Unlock()
	s.grant()
}

// Started implements pebble.CompactionGrantHandle.
func (s *compactions) Started() {}

// MeasureCPU implements pebble.CompactionGrantHandle.
func (s *compactions) MeasureCPU(pebble.CompactionGoroutineKind) {}

// CumulativeStats implements pebble.CompactionGrantHandle.
func (s *compactions) CumulativeStats(pebble.CompactionGrantHandleStats) {}

// roomLocked reports whether one more may run. The call takes no lock of the database's.
func (s *compactions) roomLocked() bool { return s.db.GetAllowedWithoutPermission() > s.mu.running }

// armLocked has grant called after d, unless it is about to be.
func (s *compactions) armLocked(d time.Duration) {
	switch {
	case s.mu.armed || s.mu.ended:
		return
	case s.mu.timer == nil:
		s.mu.timer = time.AfterFunc(d, s.fire)
	default:
		s.mu.timer.Reset(d)
	}
	s.mu.armed = true
}

func (s *compactions) fire() {
	s.mu.Lock()
	s.mu.armed = false
	s.mu.Unlock()
	s.grant()
}

// grant starts what waits, as far as there is room.
func (s *compactions) grant() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.mu.granting {
		s.mu.granted.Wait()
	}
	s.mu.granting = true
	for !s.mu.ended && s.roomLocked() {
		refused := s.mu.refused
		s.mu.Unlock()
		waits, _ := s.db.GetWaitingCompaction()
		started := waits && s.db.Schedule(s)
		s.mu.Lock()
		if started {
			s.mu.running++
			continue
		}
		if !waits {
			s.mu.settled = refused // what was refused since may not be known to the database yet
		}
		break
	}
	s.mu.granting = false
	s.mu.granted.Broadcast()
	switch {
	case s.mu.refused != s.mu.settled:
		s.armLocked(grantEvery)
	case s.mu.armed:
		s.mu.timer.Stop()
		s.mu.armed = false
	}
}
