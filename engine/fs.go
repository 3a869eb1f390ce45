package engine

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// FS is the file system an engine lives on. A nil *FS in Options means the disk. Tests can tell it to fail or to stall.
// Safe for concurrent use; many engines may share one, each in its own directory.
type FS struct {
	inner vfs.FS
	mem   *vfs.MemFS             // nil on disk
	hook  atomic.Pointer[func()] // set by tests: called around everything that a crash could fall between
	free  atomic.Uint64          // SetFree's bytes and one, 0 for none

	// twice keeps CrashClone out of the recycling of a log and the linking of a table, in which Pebble's memory file
	// system takes its lock for reading twice: a clone that begins in between would block both for ever.
	twice sync.RWMutex

	// power is held for reading around each sync, so that PowerOff falls between syncs, never into one.
	power struct {
		sync.RWMutex
		off bool
	}

	mu struct {
		sync.Mutex
		failSyncs        error
		failSuffix       string // of the files whose syncs fail; "" all
		failWrites       error
		failWritesSuffix string        // of the files whose writes fail; "" all
		syncGate         chan struct{} // syncs wait while it is open
		held             int           // syncs that wait now
	}
}

// NewMemFS returns an empty file system in memory that remembers which bytes and names have been synced.
func NewMemFS() *FS {
	mem := vfs.NewCrashableMem()
	return &FS{inner: mem, mem: mem}
}

func newDiskFS() *FS { return &FS{inner: vfs.Default} }

// CrashClone returns what a power loss at this moment could leave: everything synced, and each unsynced block and name
// with a chance of keepPercent (0 to 100), drawn from seed. It panics on the disk's file system.
func (f *FS) CrashClone(keepPercent int, seed int64) *FS {
	if f.mem == nil {
		panic("engine: CrashClone needs a file system from NewMemFS")
	}
	f.twice.Lock()
	defer f.twice.Unlock()
	mem := f.mem.CrashClone(vfs.CrashCloneCfg{
		UnsyncedDataPercent: keepPercent,
		RNG:                 rand.New(rand.NewPCG(uint64(seed), uint64(keepPercent))),
	})
	clone := &FS{inner: mem, mem: mem}
	clone.free.Store(f.free.Load())
	return clone
}

// ErrPowerOff is what every sync fails with after PowerOff.
var ErrPowerOff = errors.New("the power is off")

// PowerOff returns CrashClone of this moment and lets no later sync succeed: what the store still does until it has
// been stopped cannot promise to others what the clone does not hold.
func (f *FS) PowerOff(keepPercent int, seed int64) *FS {
	f.power.Lock()
	defer f.power.Unlock()
	f.power.off = true
	return f.CrashClone(keepPercent, seed)
}

// FailSyncs makes every later sync fail with err; nil heals it.
func (f *FS) FailSyncs(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.mu.failSyncs = err
}

// FailWrites makes every later creation of a file and every write fail with err; nil heals it.
func (f *FS) FailWrites(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.mu.failWrites = err
}

// HoldSyncs makes every later sync wait, as a stalled disk does, until the returned function is called.
func (f *FS) HoldSyncs() (release func()) {
	gate := make(chan struct{})
	f.mu.Lock()
	f.mu.syncGate = gate
	f.mu.Unlock()
	return sync.OnceFunc(func() {
		f.mu.Lock()
		if f.mu.syncGate == gate {
			f.mu.syncGate = nil
		}
		f.mu.Unlock()
		close(gate)
	})
}

// HeldSyncs returns how many syncs wait because of HoldSyncs. It is the moment for a CrashClone of a store that is being
// opened: the clones of Pebble's memory file system must not meet its directory lock.
func (f *FS) HeldSyncs() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.mu.held
}

// SyncError is an error of a file's sync: the kernel may have dropped the data, and a second sync that succeeds would
// prove nothing (hazard: an fsync failed once, the next "succeeded", acknowledged entries were gone).
type SyncError struct {
	File string
	Err  error
}

// Error names the file.
func (e *SyncError) Error() string { return fmt.Sprintf("sync %s: %v", e.File, e.Err) }

// Unwrap returns the system's error.
func (e *SyncError) Unwrap() error { return e.Err }

// syncing runs a sync as the tests want it.
func (f *FS) syncing(name string, sync func() error) error {
	f.mu.Lock()
	if gate := f.mu.syncGate; gate != nil {
		f.mu.held++
		f.mu.Unlock()
		<-gate
		f.mu.Lock()
		f.mu.held--
	}
	err := f.mu.failSyncs
	if !strings.HasSuffix(name, f.mu.failSuffix) {
		err = nil
	}
	f.mu.Unlock()
	f.step()
	if err == nil {
		err = f.powered(sync)
	}
	f.step()
	if err != nil {
		return &SyncError{File: name, Err: err}
	}
	return nil
}

func (f *FS) powered(sync func() error) error {
	f.power.RLock()
	defer f.power.RUnlock()
	if f.power.off {
		return ErrPowerOff
	}
	return sync()
}

func (f *FS) writing(name string) error {
	f.step()
	f.mu.Lock()
	defer f.mu.Unlock()
	if !strings.HasSuffix(name, f.mu.failWritesSuffix) {
		return nil
	}
	return f.mu.failWrites
}

func (f *FS) step() {
	if h := f.hook.Load(); h != nil {
		(*h)()
	}
}
