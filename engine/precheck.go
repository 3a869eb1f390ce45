package engine

import (
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// Two files decide what the rest of the directory means, and Pebble reads both only up to the first record that does not
// check, and takes the rest as never written. That is right for a write that a crash tore; after damage it loses
// acknowledged data without a word. So both are looked through before Pebble opens them.

// checkManifest refuses a damaged manifest. Every edit in it is synced before the next is written, so a crash tears at most
// the last. A directory without a database passes.
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
