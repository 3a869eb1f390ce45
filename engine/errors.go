package engine

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// Exit codes of a store that cannot run, one for each reason that an operator acts on differently.
const (
	ExitInUse        = 10 // another process, or this one, has the directory open
	ExitOtherCluster = 11 // the directory belongs to another cluster
	ExitOtherStore   = 12 // the directory belongs to another store, or to one that was removed from the cluster
	ExitCorrupt      = 13 // the directory is damaged, or is not ours
	ExitNoSpace      = 14 // the disk is full
	ExitNewerFormat  = 15 // written by a newer version
)

// OpenError says why a data directory is refused. Nothing in the directory has been changed for the worse.
type OpenError struct {
	Code int // one of the Exit constants
	Dir  string
	Err  error
}

// Error names the directory, the reason and the remedy.
func (e *OpenError) Error() string {
	return fmt.Sprintf("data directory %s: %v (%s)", e.Dir, e.Err, remedies(e.Code))
}

// Unwrap returns the cause.
func (e *OpenError) Unwrap() error { return e.Err }

func remedies(code int) string {
	switch code {
	case ExitInUse:
		return "in use: stop the process that has it open, or choose another directory"
	case ExitOtherCluster:
		return "it belongs to another cluster: choose another directory"
	case ExitOtherStore:
		return "it belongs to another store, or to one that was removed from its cluster: choose another directory"
	case ExitCorrupt:
		return "damaged or not a shardd directory: keep it for inspection and start this node on an empty one"
	case ExitNoSpace:
		return "no space left: free some and start again"
	case ExitNewerFormat:
		return "written by a newer version: start that version"
	}
	return "cannot be opened"
}

// ExitCode returns the exit code that an error of this package asks for, 0 if none.
func ExitCode(err error) int {
	var oe *OpenError
	if errors.As(err, &oe) {
		return oe.Code
	}
	return 0
}

// ErrStopped is returned by everything that would write after the first failed sync or a fatal error of Pebble; the
// cause is wrapped with it.
var ErrStopped = errors.New("engine stopped")

// classify gives an error of opening a directory its exit code. System errors without a code of their own (a missing
// permission, say) stay plain: they are neither damage nor a full disk. Everything else that Pebble refuses to open is
// damage.
func classify(dir string, err error) error {
	if err == nil || ExitCode(err) != 0 || errors.Is(err, errMetrics) {
		return err
	}
	var errno syscall.Errno
	var se *SyncError
	switch {
	case vfs.IsNoSpaceError(err):
		return &OpenError{Code: ExitNoSpace, Dir: dir, Err: err}
	case pebble.IsCorruptionError(err), errors.Is(err, ErrCorrupt):
		return &OpenError{Code: ExitCorrupt, Dir: dir, Err: err}
	case errors.Is(err, errNewerLayout):
		return &OpenError{Code: ExitNewerFormat, Dir: dir, Err: err}
	case errors.Is(err, os.ErrNotExist): // a file that the database names is gone
		return &OpenError{Code: ExitCorrupt, Dir: dir, Err: err}
	case errors.As(err, &errno), errors.Is(err, os.ErrPermission), errors.As(err, &se):
		return fmt.Errorf("open data directory %s: %w", dir, err)
	}
	return &OpenError{Code: ExitCorrupt, Dir: dir, Err: err}
}

// readError marks damage found by Pebble's checksums with ErrCorrupt.
func readError(err error) error {
	if err != nil && pebble.IsCorruptionError(err) && !errors.Is(err, ErrCorrupt) {
		return &damageError{err}
	}
	return err
}

// damageError is an error of Pebble in one line that matches ErrCorrupt.
type damageError struct{ err error }

func (e *damageError) Error() string   { return ErrCorrupt.Error() + ": " + oneLine(e.err.Error()) }
func (e *damageError) Unwrap() []error { return []error{ErrCorrupt, e.err} }
