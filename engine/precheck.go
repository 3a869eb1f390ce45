package engine

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// Checks of a directory that Pebble does not make. Two files decide what the rest means, and Pebble reads both only up
// to the first record that does not check, and takes what follows as never written. That is right for a write that a
// crash tore; after damage it loses acknowledged data without a word. So both are looked through before Pebble opens
// them.

// checkManifest refuses a damaged manifest. Every edit in it is synced before the next is written, so a crash tears at
// most the last. A directory without a database passes.
func checkManifest(fs vfs.FS, dir string) error {
	desc, err := pebble.Peek(dir, fs)
	if err != nil {
		return err
	}
	if !desc.Exists {
		return nil
	}
	b, err := readWhole(fs, desc.ManifestFilename)
	if err == nil {
		err = checkRecords(b)
	}
	if err != nil {
		return fmt.Errorf("manifest %s: %w", fs.PathBase(desc.ManifestFilename), err)
	}
	return nil
}

// checkLastLog refuses the newest write-ahead log if it is damaged within what had been synced. Pebble is strict about
// the older ones, but about this one it looks for proof only from the next block of 32 KiB on.
func checkLastLog(fs vfs.FS, dir string) error {
	names, err := fs.List(dir)
	if err != nil {
		return err
	}
	last, num := "", uint64(0)
	for _, n := range names {
		if v, err := strconv.ParseUint(strings.TrimSuffix(n, ".log"), 10, 64); err == nil && isLog(n) && v >= num {
			last, num = n, v
		}
	}
	if last == "" {
		return nil
	}
	b, err := readWhole(fs, fs.PathJoin(dir, last))
	if err == nil {
		err = checkLog(b, uint32(num))
	}
	if err != nil {
		return fmt.Errorf("write-ahead log %s: %w", last, err)
	}
	return nil
}

// checkBlobs refuses a directory in which files of separated values are gone or cut. Pebble compares only the other
// tables with its manifest, and panics later. Compactions that are at work already may change both sides of the
// comparison, so it must come out badly twice with nothing in between.
func (e *Engine) checkBlobs(fs vfs.FS) error {
	for {
		before := e.db.Metrics()
		names, err := fs.List(e.opts.Dir)
		if err != nil {
			return err
		}
		var found uint64
		for _, n := range names {
			if !isTable(n) || isSST(n) {
				continue
			}
			info, err := fs.Stat(fs.PathJoin(e.opts.Dir, n))
			if err == nil {
				found += uint64(info.Size())
			} else if !errors.Is(err, os.ErrNotExist) {
				return err
			}
		}
		if found >= before.BlobFiles.LiveSize { // some may be obsolete
			return nil
		}
		after := e.db.Metrics()
		if after.BlobFiles.LiveSize == before.BlobFiles.LiveSize && after.Compact.Count == before.Compact.Count &&
			after.Compact.NumInProgress == 0 && after.Flush.Count == before.Flush.Count {
			return fmt.Errorf("%d bytes of separated values, of %d: %w", found, before.BlobFiles.LiveSize, ErrCorrupt)
		}
	}
}

func isLog(name string) bool { return strings.HasSuffix(name, ".log") }

func readWhole(fs vfs.FS, name string) ([]byte, error) {
	file, err := fs.Open(name)
	if err != nil {
		return nil, err // a missing file is damage: classify
	}
	info, err := file.Stat()
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	b := make([]byte, info.Size())
	_, err = io.ReadFull(file, b)
	return b, errors.Join(err, file.Close())
}
