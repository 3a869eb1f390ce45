package engine

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// guardFS is what Pebble gets as its file system. It sees every failed sync, and every failed write of the log and the
// manifest, before Pebble does, stops the store with it, and from then on freezes what is on disk: writes, syncs,
// renames and removals report success and do nothing. So the directory stays as the failure found it, with everything
// acknowledged in it, as after a power loss; and Pebble, which panics on such errors in the middle of a commit, winds
// down like any other. That it is told lies does no harm, since nothing is acknowledged any more: rule S3.
//
// Tables are the exception. Nothing refers to a new one until the manifest does, so they may go on being written and
// Pebble finds what it wrote. A disk that is full when a table is written is an error that Pebble can handle, by trying
// again, which it does at once: so the next tables have to wait (space.go). But not in a blob file, whose
// writer panics if its last flush fails.
type guardFS struct {
	vfs.FS
	fs *FS
	e  *Engine
}

type guardFile struct {
	vfs.File
	g     guardFS
	name  string
	table bool
}

func isSST(name string) bool   { return strings.HasSuffix(name, ".sst") }
func isTable(name string) bool { return isSST(name) || strings.HasSuffix(name, ".blob") }

// frozen reports whether a change of the named file must not reach the disk any more.
func (g guardFS) frozen(name string) bool { return g.e.fatal.stopped.Load() && !isTable(name) }

// judge decides about an error of a change of a file: nil means a pretended success, on a store that is stopped.
func (g guardFS) judge(name string, err error, sync bool) error {
	switch {
	case err == nil || g.e.fatal.stopped.Load():
		return nil
	case isSST(name) && (!sync || vfs.IsNoSpaceError(err)):
		g.e.tableFull(err)
		return err
	}
	// A failed sync of a table too: Pebble would write another one, but what else the disk has dropped is unknown.
	g.e.fail(err)
	return nil
}

// open wraps the file of a successful creation; an error that stops the store, or a stopped store, gives a file that
// swallows everything.
func (g guardFS) open(op, name string, create func() (vfs.File, error)) (vfs.File, error) {
	if g.frozen(name) {
		return swallow{vfs.NewMemFile(nil)}, nil
	}
	var file vfs.File
	err := g.fs.writing(name)
	if err != nil {
		err = &os.PathError{Op: op, Path: name, Err: err}
	} else {
		file, err = create()
	}
	if err == nil {
		return &guardFile{File: file, g: g, name: name, table: isTable(name)}, nil
	}
	if isTable(name) && !g.e.fatal.stopped.Load() {
		g.e.tableFull(err)
		return nil, err
	}
	g.e.fail(err)
	return swallow{vfs.NewMemFile(nil)}, nil
}

// Create first syncs the directory of a marker file, which names the manifest in use: Pebble syncs both names at once,
// and a crash that keeps only the marker's would leave a directory that never opens again.
func (g guardFS) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	if strings.HasPrefix(g.PathBase(name), "marker.") {
		if err := syncDir(g, g.PathDir(name)); err != nil {
			return nil, err
		}
	}
	if isTable(name) && g.PathDir(name) == g.PathDir(g.e.reserveFile()) { // of Pebble's own making
		g.e.waitForSpace()
	}
	return g.open("create", name, func() (vfs.File, error) { return g.FS.Create(name, c) })
}

func (g guardFS) OpenReadWrite(name string, c vfs.DiskWriteCategory, opts ...vfs.OpenOption) (vfs.File, error) {
	return g.open("open", name, func() (vfs.File, error) { return g.FS.OpenReadWrite(name, c, opts...) })
}

func (g guardFS) ReuseForWrite(from, to string, c vfs.DiskWriteCategory) (vfs.File, error) {
	return g.open("reuse", to, func() (vfs.File, error) {
		g.fs.twice.RLock()
		defer g.fs.twice.RUnlock()
		return g.FS.ReuseForWrite(from, to, c)
	})
}

func (g guardFS) OpenDir(name string) (vfs.File, error) {
	file, err := g.FS.OpenDir(name)
	if err != nil {
		return nil, err
	}
	return &guardFile{File: file, g: g, name: name}, nil
}

// change runs a rename or removal. Its errors are Pebble's to handle.
func (g guardFS) change(do func() error) error {
	if g.e.fatal.stopped.Load() { // tables too: the manifest on disk may still refer to them
		return nil
	}
	defer g.fs.step()
	return do()
}

func (g guardFS) Rename(from, to string) error {
	return g.change(func() error { return g.FS.Rename(from, to) })
}

func (g guardFS) Remove(name string) error {
	return g.change(func() error { return g.FS.Remove(name) })
}

func (g guardFS) RemoveAll(name string) error {
	return g.change(func() error { return g.FS.RemoveAll(name) })
}

// Open keeps two kinds of damage from Pebble, which panics at a blob file with a bad footer and calls Fatalf for a
// table that is gone. As errors of opening they reach whoever reads, and the store lives.
func (g guardFS) Open(name string, opts ...vfs.OpenOption) (vfs.File, error) {
	file, err := g.FS.Open(name, opts...)
	if err != nil {
		if isTable(name) && errors.Is(err, os.ErrNotExist) {
			g.e.damaged(name, nil, err.Error())
			return nil, fmt.Errorf("%v: %w", err, ErrCorrupt) // without the system's error, which Pebble looks for
		}
		return nil, err
	}
	if isTable(name) && !isSST(name) {
		if err := checkBlobFooter(file); err != nil {
			if errors.Is(err, ErrCorrupt) {
				g.e.damaged(name, nil, err.Error())
			}
			return nil, errors.Join(fmt.Errorf("blob file %s: %w", g.PathBase(name), err), file.Close())
		}
	}
	return file, nil
}

// Link needs no guard against errors, nor does Lock: locks are taken before and files linked by ingests only, which check
// for ErrStopped.
func (g guardFS) Link(from, to string) error {
	g.fs.twice.RLock()
	defer g.fs.twice.RUnlock()
	return g.FS.Link(from, to)
}

// Unwrap is part of vfs.FS.
func (g guardFS) Unwrap() vfs.FS { return g.FS }

func (f *guardFile) frozen() bool { return !f.table && f.g.e.fatal.stopped.Load() }

func (f *guardFile) Write(p []byte) (int, error) {
	if f.frozen() {
		return len(p), nil
	}
	n, err := 0, f.g.fs.writing(f.name)
	if err != nil {
		err = &os.PathError{Op: "write", Path: f.name, Err: err}
	} else {
		n, err = f.File.Write(p)
	}
	if err == nil {
		return n, nil
	}
	if err = f.g.judge(f.name, err, false); err != nil {
		return n, err
	}
	return len(p), nil
}

func (f *guardFile) sync(do func() error) error {
	if f.frozen() {
		return nil
	}
	return f.g.judge(f.name, f.g.fs.syncing(f.name, do), true)
}

func (f *guardFile) Sync() error     { return f.sync(f.File.Sync) }
func (f *guardFile) SyncData() error { return f.sync(f.File.SyncData) }

// SyncTo starts the write-back of what Pebble has written; it promises nothing, unless it is a whole sync.
func (f *guardFile) SyncTo(length int64) (full bool, err error) {
	err = f.sync(func() error {
		full, err = f.File.SyncTo(length)
		return err
	})
	return full, err
}

func (f *guardFile) Close() error {
	err := f.File.Close()
	if f.frozen() {
		return nil
	}
	return f.g.judge(f.name, err, false)
}

// swallow is a file that takes everything and keeps nothing.
type swallow struct{ vfs.File }

func (swallow) Write(p []byte) (int, error)            { return len(p), nil }
func (swallow) WriteAt(p []byte, _ int64) (int, error) { return len(p), nil }
func (swallow) Preallocate(_, _ int64) error           { return nil }
func (swallow) Sync() error                            { return nil }
func (swallow) SyncData() error                        { return nil }
func (swallow) SyncTo(int64) (bool, error)             { return true, nil }
