package engine

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// The STORE marker: makes a directory ours.
//
// First open: refuse a directory that holds anything else; lock; write STORE{creating}, synced; let Pebble create its
// files; write STORE{ready}, synced. A crash before the first sync leaves at most LOCK and STORE.tmp, which the next
// open takes as empty. A crash after it leaves STORE{creating}: Pebble may create what is missing. Once the marker says
// ready, a missing database is damage, never a reason to make an empty one: acknowledged data was in it.
//
// Layout: "shardd store\n" | u8 version | u32 FormatVersion | u8 state | u32 crc.
const (
	markerName  = "STORE"
	markerTemp  = "STORE.tmp"
	markerMagic = "shardd store\n"
	markerLen   = len(markerMagic) + 1 + 4 + 1 + crcLen

	markerCreating byte = 1
	markerReady    byte = 2
)

func appendMarker(b []byte, format uint32, state byte) []byte {
	start := len(b)
	b = append(b, markerMagic...)
	b = append(b, layoutV1)
	b = binary.BigEndian.AppendUint32(b, format)
	b = append(b, state)
	return append(b[:start], sealCRC(b[start:])...)
}

// decodeMarker returns the state; the error is ErrCorrupt or errNewerLayout.
func decodeMarker(b []byte) (format uint32, state byte, err error) {
	const what = "STORE marker"
	if !bytes.HasPrefix(b, []byte(markerMagic)) {
		return 0, 0, fmt.Errorf("%s: not one of shardd's: %w", what, ErrCorrupt)
	}
	body, err := openCRC(what, b)
	if err != nil {
		return 0, 0, err
	}
	rest := body[len(markerMagic):]
	if len(rest) > 0 && rest[0] > layoutV1 {
		return 0, 0, fmt.Errorf("%s: layout version %d: %w", what, rest[0], errNewerLayout)
	}
	if err := checkLayout(what, rest, markerLen-len(markerMagic)-crcLen, true); err != nil {
		return 0, 0, err
	}
	format, state = binary.BigEndian.Uint32(rest[1:]), rest[5]
	if format > FormatVersion {
		return 0, 0, fmt.Errorf("%s: format %d, this binary knows %d: %w", what, format, FormatVersion, errNewerLayout)
	}
	if format == 0 || (state != markerCreating && state != markerReady) {
		return 0, 0, fmt.Errorf("%s: format %d, state %d: %w", what, format, state, ErrCorrupt)
	}
	return format, state, nil
}

// makeDir creates the directory of a first open and syncs its parents, so that a synced store cannot vanish with its
// own directory entry. All parents: an earlier try may have made some of them and died before it synced them.
func makeDir(fs vfs.FS, dir string) error {
	if err := fs.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for p := fs.PathDir(dir); ; p = fs.PathDir(p) {
		// A parent that we may pass through but not open was not made by us.
		if err := syncDir(fs, p); err != nil && !errors.Is(err, os.ErrPermission) {
			return err
		}
		if fs.PathDir(p) == p {
			return nil
		}
	}
}

func syncDir(fs vfs.FS, dir string) error {
	d, err := fs.OpenDir(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// checkOurs reads the marker. found is false for a directory that is missing or holds nothing but what a crashed first
// open leaves; a directory with other content is an error.
func checkOurs(fs vfs.FS, dir string) (state byte, found bool, err error) {
	names, err := fs.List(dir)
	if errors.Is(err, os.ErrNotExist) {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, err
	}
	if !slices.Contains(names, markerName) {
		for _, n := range names {
			switch n {
			case "LOCK", markerTemp, "lost+found":
			default:
				return 0, false, fmt.Errorf("no STORE marker, but other files (%q): %w", n, ErrCorrupt)
			}
		}
		return 0, false, nil
	}
	file, err := fs.Open(fs.PathJoin(dir, markerName))
	if err != nil {
		return 0, false, err
	}
	b, err := io.ReadAll(file)
	if err = errors.Join(err, file.Close()); err != nil {
		return 0, false, err
	}
	if _, state, err = decodeMarker(b); err != nil {
		return 0, false, err
	}
	return state, true, nil
}

// writeMarker replaces the marker: the new content is whole and synced before it gets the name.
func writeMarker(fs vfs.FS, dir string, state byte) error {
	tmp := fs.PathJoin(dir, markerTemp)
	file, err := fs.Create(tmp, vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	_, err = file.Write(appendMarker(nil, FormatVersion, state))
	if err == nil {
		err = file.Sync()
	}
	if err = errors.Join(err, file.Close()); err != nil {
		return err
	}
	if err := fs.Rename(tmp, fs.PathJoin(dir, markerName)); err != nil {
		return err
	}
	return syncDir(fs, dir)
}

// checkPebbleFormat refuses a database of a newer Pebble before Pebble sees it: Pebble has no error of its own kind for
// that, and would call it unknown.
func checkPebbleFormat(fs vfs.FS, dir string) error {
	names, err := fs.List(dir)
	if err != nil {
		return err
	}
	for _, n := range names {
		rest, ok := strings.CutPrefix(n, "marker.format-version.")
		if !ok {
			continue
		}
		_, value, _ := strings.Cut(rest, ".")
		v, err := strconv.ParseUint(value, 10, 64)
		if err != nil {
			return fmt.Errorf("format marker %q: %w", n, ErrCorrupt)
		}
		if v > uint64(FormatMajor) {
			return fmt.Errorf("pebble format %d, this binary knows %d: %w", v, FormatMajor, errNewerLayout)
		}
	}
	return nil
}

// lockDir takes the directory's lock. An error that is not about space, permission or a missing directory means that
// somebody else has it.
func lockDir(fs vfs.FS, dir string) (*pebble.Lock, error) {
	lock, err := pebble.LockDirectory(dir, fs)
	switch {
	case err == nil:
		return lock, nil
	case vfs.IsNoSpaceError(err):
		return nil, &OpenError{Code: ExitNoSpace, Dir: dir, Err: err}
	case errors.Is(err, os.ErrNotExist), isPathError(err):
		return nil, fmt.Errorf("lock data directory %s: %w", dir, err)
	}
	return nil, &OpenError{Code: ExitInUse, Dir: dir, Err: err}
}

// isPathError tells a LOCK file that cannot be opened from one that is locked: the system may answer EACCES for both,
// but only opening comes back with the path.
func isPathError(err error) bool {
	var pe *os.PathError
	return errors.As(err, &pe)
}
