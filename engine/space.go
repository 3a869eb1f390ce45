package engine

import (
	"errors"
	"log/slog"
	"math"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// Free space. Two thresholds on the bytes that are free on the store's file system tell the layers above when to refuse
// what grows the store, long before a write fails: a write of the log or the manifest that finds the disk full ends the
// process, since nothing can be said about what it left.
//
//	free >= low              SpaceOK
//	critical <= free < low   SpaceLow       writes that add bytes are refused, leaderships and moves go elsewhere
//	free < critical          SpaceCritical  only what frees space or is tiny may be written
//
// A level is left upwards only at an eighth above its threshold, so that it does not flap.
//
// The RESERVE file is space for a start on a full disk: recovery flushes what it replays, and a store that cannot flush
// cannot start, nor be emptied. Open deletes the file when it finds less than critical free, and it comes back, at Open
// or later, once the disk has room for it above low.
const (
	reserveName = "RESERVE"

	lowFraction     = 0.03
	minLowSpace     = 512 << 20
	maxLowSpace     = 8 << 30
	criticalOfLow   = 4
	reserveFraction = 0.01
	maxReserve      = 64 << 20
	hysteresisOf    = 8
)

// SpaceLevel says how full the store's disk is.
type SpaceLevel uint8

// The levels, from enough to almost nothing.
const (
	SpaceOK SpaceLevel = iota
	SpaceLow
	SpaceCritical
)

// String returns ok, low or critical.
func (l SpaceLevel) String() string {
	switch l {
	case SpaceOK:
		return "ok"
	case SpaceLow:
		return "low"
	}
	return "critical"
}

// spaceState is what the last look at the disk found. The probe goroutine looks each second.
type spaceState struct {
	mu            sync.Mutex // held over a look
	level         atomic.Uint32
	free          atomic.Uint64
	total         atomic.Uint64
	low, critical atomic.Uint64
	reserve       bool         // the file is there, whole
	retryAt       atomic.Int64 // e.now() from which on tables are created again whatever is free
}

// Space returns the level of free space, the free bytes it is from, and the two thresholds in bytes. It is as of the
// last look at the disk, at most about a second ago, and never waits for the disk. If the file system does not tell
// (one in memory without SetFree), the level is SpaceOK and free is the largest number.
func (e *Engine) Space() (level SpaceLevel, free, low, critical uint64) {
	s := &e.space
	if _, ok := e.opts.FS.setFree(); ok || e.opts.ProbeInterval < 0 { // in tests: now
		e.pollSpace()
	}
	return SpaceLevel(s.level.Load()), s.free.Load(), s.low.Load(), s.critical.Load()
}

// DiskCapacity returns the size of the store's file system in bytes, as of the last look at it; 0 if it does not tell.
func (e *Engine) DiskCapacity() uint64 { return e.space.total.Load() }

// thresholds returns the free bytes below which space is low and critical, on a disk of total bytes, 0 if unknown.
func (o *Options) thresholds(total uint64) (low, critical uint64) {
	low = min(max(uint64(lowFraction*float64(total)), minLowSpace), maxLowSpace)
	if o.LowSpaceBytes > 0 {
		low = uint64(o.LowSpaceBytes)
	}
	critical = low / criticalOfLow
	if o.CriticalSpaceBytes > 0 {
		critical = min(uint64(o.CriticalSpaceBytes), low)
	}
	return low, critical
}

// reserveBytes returns the size of the RESERVE file on a disk of total bytes, 0 for none.
func (o *Options) reserveBytes(total uint64) int64 {
	switch {
	case o.ReserveBytes < 0:
		return 0
	case o.ReserveBytes > 0:
		return o.ReserveBytes
	}
	return min(int64(reserveFraction*float64(total)), maxReserve)
}

// levelOf returns the level that free bytes mean after the level old.
func levelOf(old SpaceLevel, free, low, critical uint64) SpaceLevel {
	if old >= SpaceLow {
		low += low / hysteresisOf
	}
	if old == SpaceCritical {
		critical += critical / hysteresisOf
	}
	switch {
	case free < critical:
		return SpaceCritical
	case free < low:
		return SpaceLow
	}
	return SpaceOK
}

// pollSpace looks at the disk once.
func (e *Engine) pollSpace() {
	s := &e.space
	s.mu.Lock()
	defer s.mu.Unlock()
	free, total, known := e.opts.FS.usage(e.opts.Dir)
	low, critical := e.opts.thresholds(total)
	old := SpaceLevel(s.level.Load())
	level := SpaceOK
	if known {
		level = levelOf(old, free, low, critical)
	}
	s.free.Store(free)
	if known {
		s.total.Store(total)
	}
	s.low.Store(low)
	s.critical.Store(critical)
	s.level.Store(uint32(level))
	if level != old {
		severity := slog.LevelWarn
		if level == SpaceOK {
			severity = slog.LevelInfo
		}
		e.events.log(severity, "level of free disk space has changed", slog.String("from", old.String()),
			slog.String("to", level.String()), slog.Uint64("free_bytes", free), slog.Uint64("low_bytes", low),
			slog.Uint64("critical_bytes", critical))
	}
	if size := e.opts.reserveBytes(total); known && !s.reserve && size > 0 && level == SpaceOK &&
		free >= uint64(size)+low && !e.fatal.stopped.Load() {
		s.reserve = e.makeReserve(size)
	}
}

// freeReserve runs in Open before anything is written: it deletes the RESERVE file if space is critical, and otherwise
// notes whether a whole one is there.
func (e *Engine) freeReserve() error {
	fs, name := e.opts.FS.inner, e.reserveFile()
	info, err := fs.Stat(name)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	free, total, known := e.opts.FS.usage(e.opts.Dir)
	_, critical := e.opts.thresholds(total)
	want := e.opts.reserveBytes(total)
	if info.Size() == want && (!known || free >= critical) {
		e.space.reserve = true
		return nil
	}
	if err := fs.Remove(name); err != nil {
		return err
	}
	if known && free < critical {
		e.events.log(slog.LevelWarn, "disk almost full: the reserve is given back for recovery",
			slog.Int64("reserve_bytes", info.Size()), slog.Uint64("free_bytes", free))
	}
	return nil
}

// makeReserve writes the RESERVE file and reports whether it is there. Any failure of it is of no consequence. It goes
// past the guard, which would stop the store for a full disk. Its bytes need not be synced, only taken.
func (e *Engine) makeReserve(size int64) bool {
	fs, name := e.opts.FS.inner, e.reserveFile()
	file, err := fs.Create(name, vfs.WriteCategoryUnspecified)
	if err != nil {
		return false
	}
	if err = e.preallocate(file, size); err != nil && !vfs.IsNoSpaceError(err) {
		err = fillFile(file, size)
	}
	if err = errors.Join(err, file.Close()); err != nil {
		e.events.log(slog.LevelWarn, "no reserve for a start on a full disk", slog.String("error", err.Error()))
		if err := fs.Remove(name); err != nil {
			e.events.log(slog.LevelWarn, "remove the reserve", slog.String("error", err.Error()))
		}
		return false
	}
	return true
}

// A flush or compaction that finds the disk full is started again by Pebble at once. So once a table could not be
// written, the next ones are not even created until one fits, or fullRetry has passed; Pebble has by then deleted what
// the failed job had written, which holding that job back would have kept on the full disk.
const (
	fullRetry = 30 * time.Second
	spaceWait = time.Second // between looks at the disk
)

// tableFull notes that a table could not be written if err says that the disk is full.
func (e *Engine) tableFull(err error) {
	if vfs.IsNoSpaceError(err) {
		e.space.retryAt.Store(int64(e.now() + fullRetry))
	}
}

// waitForSpace holds the creation of a table back. Open does not wait: it refuses.
func (e *Engine) waitForSpace() {
	for int64(e.now()) < e.space.retryAt.Load() && !e.fatal.opening.Load() {
		wait := time.NewTimer(e.opts.spaceWait)
		select {
		case <-wait.C:
		case <-e.damage.closing:
			wait.Stop()
			return
		case <-e.fatal.ch:
			wait.Stop()
			return
		}
		if free, _, known := e.opts.FS.usage(e.opts.Dir); !known || free >= uint64(e.opts.MemTableBytes) {
			e.space.retryAt.Store(0)
		}
	}
}

// preallocate takes size bytes of the disk without writing them; an error means that this cannot be had here.
func (e *Engine) preallocate(file vfs.File, size int64) error {
	if e.opts.FS.mem != nil || runtime.GOOS != "linux" { // where Preallocate does nothing
		return errors.ErrUnsupported
	}
	if err := file.Preallocate(0, size); err != nil {
		return err
	}
	_, err := file.WriteAt([]byte{0}, size-1) // the length, by which freeReserve knows a whole file
	return err
}

// fillFile writes size bytes that no file system compresses to nothing.
func fillFile(file vfs.File, size int64) error {
	block := make([]byte, 1<<20)
	state := uint64(size) | 1
	for i := range block {
		state ^= state << 13
		state ^= state >> 7
		state ^= state << 17
		block[i] = byte(state)
	}
	for left := size; left > 0; left -= int64(len(block)) {
		if _, err := file.Write(block[:min(left, int64(len(block)))]); err != nil {
			return err
		}
	}
	return nil
}

func (e *Engine) reserveFile() string { return e.opts.FS.inner.PathJoin(e.opts.Dir, reserveName) }

// FreeUnknown is the number of bytes with which SetFree takes its override back.
const FreeUnknown = math.MaxUint64

// SetFree makes the file system say that bytes are free, whatever is; FreeUnknown undoes it. For tests of what the
// layers above do when the disk gets full. The next call of Engine.Space sees it.
func (f *FS) SetFree(bytes uint64) { f.free.Store(bytes + 1) }

// setFree returns the override.
func (f *FS) setFree() (bytes uint64, ok bool) {
	v := f.free.Load()
	return v - 1, v != 0
}

// usage returns the bytes that are free for us, and those of the whole file system, 0 if unknown. known false: the file
// system does not tell; free is then the largest number.
func (f *FS) usage(dir string) (free, total uint64, known bool) {
	u, err := f.inner.GetDiskUsage(dir)
	if err == nil {
		free, total, known = u.AvailBytes, u.TotalBytes, true
	} else {
		free = math.MaxUint64
	}
	if v, ok := f.setFree(); ok {
		free, known = v, true
	}
	return free, total, known
}
