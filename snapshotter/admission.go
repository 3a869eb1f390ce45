package snapshotter

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"
)

var (
	errTooMany = errors.New("too many snapshots wait for a slot")
	errBusy    = errors.New("no slot was free in time")
)

// admission gives out the receiver's slots and staging bytes: recovery first, then who asked first. Only the first in
// line is looked at, so that a big snapshot is not overtaken for ever by small ones.
type admission struct {
	slots, places int
	bytes         uint64

	mu struct {
		sync.Mutex
		usedSlots int
		usedBytes uint64
		waiting   []*ticket
	}
}

// ticket is one request for a slot, and for bytes unless they are held already.
type ticket struct {
	priority Priority
	bytes    uint64
	granted  chan struct{}
}

func newAdmission(slots, places int, bytes uint64) *admission {
	return &admission{slots: slots, places: places, bytes: bytes}
}

// enter waits for a slot and, beside it, bytes of staging, at most for patience. It fails with errTooMany, errBusy or
// the context's cause.
func (a *admission) enter(ctx context.Context, p Priority, bytes uint64, patience time.Duration) error {
	t := &ticket{priority: p, bytes: bytes, granted: make(chan struct{})}
	a.mu.Lock()
	at := len(a.mu.waiting)
	for at > 0 && a.mu.waiting[at-1].priority < p {
		at--
	}
	a.mu.waiting = slices.Insert(a.mu.waiting, at, t)
	a.serveLocked()
	var crowded *ticket
	if n := len(a.mu.waiting); n > a.places { // the last in line goes, which need not be this one
		crowded = a.mu.waiting[n-1]
		a.mu.waiting = a.mu.waiting[:n-1]
	}
	a.mu.Unlock()
	if crowded != nil {
		crowded.priority = crowdedOut
		close(crowded.granted)
	}

	timer := time.NewTimer(patience)
	defer timer.Stop()
	var cause error
	select {
	case <-t.granted:
		if t.priority == crowdedOut {
			return errTooMany
		}
		return nil
	case <-timer.C:
		cause = errBusy
	case <-ctx.Done():
		cause = context.Cause(ctx)
	}
	a.mu.Lock()
	i := slices.Index(a.mu.waiting, t)
	if i >= 0 {
		a.mu.waiting = slices.Delete(a.mu.waiting, i, i+1)
		a.serveLocked()
	}
	a.mu.Unlock()
	if i >= 0 {
		return cause
	}
	<-t.granted // decided meanwhile
	if t.priority == crowdedOut {
		return errTooMany
	}
	a.leave(bytes)
	return cause
}

// crowdedOut marks a ticket that lost its place; it is set before granted is closed.
const crowdedOut Priority = 0xff

// leave gives a slot back, and bytes.
func (a *admission) leave(bytes uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.mu.usedSlots--
	a.mu.usedBytes -= bytes
	a.serveLocked()
}

// resize changes what one snapshot has reserved, without waiting, once its true size is known; also to give bytes back.
func (a *admission) resize(from, to uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.mu.usedBytes += to - from
	a.serveLocked()
}

func (a *admission) serveLocked() {
	for len(a.mu.waiting) > 0 {
		t := a.mu.waiting[0]
		fits := t.bytes == 0 || a.mu.usedBytes == 0 || a.mu.usedBytes+t.bytes <= a.bytes
		if a.mu.usedSlots >= a.slots || !fits {
			return
		}
		a.mu.waiting = a.mu.waiting[1:]
		a.mu.usedSlots++
		a.mu.usedBytes += t.bytes
		close(t.granted)
	}
}

// state returns slots and bytes in use, and how many wait.
func (a *admission) state() (slots int, bytes uint64, waiting int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.mu.usedSlots, a.mu.usedBytes, len(a.mu.waiting)
}
