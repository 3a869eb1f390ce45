// Package clock gives the two times that Shardd uses. Whatever decides something runs on boot time, which never goes
// back and keeps counting while the machine sleeps; wall time only stamps versions and logs.
package clock

import (
	"time"

	"golang.org/x/sys/unix"
)

// Clock is injected wherever time decides something.
type Clock interface {
	// Boot is the time since an arbitrary fixed point of this machine's boot.
	Boot() time.Duration
	// Wall is the calendar time.
	Wall() time.Time
}

type system struct{}

// System reads CLOCK_BOOTTIME and the wall clock of the machine.
func System() Clock { return system{} }

func (system) Boot() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic("clock: CLOCK_BOOTTIME: " + err.Error()) // every supported kernel has it
	}
	return time.Duration(ts.Nano())
}

func (system) Wall() time.Time { return time.Now() }

type process struct{ start time.Time }

// Process runs on Go's own monotonic clock, so that testing/synctest controls it. For tests.
func Process() Clock { return process{start: time.Now()} }

func (p process) Boot() time.Duration { return time.Since(p.start) }
func (process) Wall() time.Time       { return time.Now() }
