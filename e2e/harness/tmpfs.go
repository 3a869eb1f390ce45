package harness

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Disk is a small file system of its own that holds one node's directory.
type Disk struct {
	c    *Cluster
	path string
}

// PutOnDisk gives node i, which has not been started yet, a disk of so many bytes, kept in memory. The test is
// skipped if it may not mount one.
func (c *Cluster) PutOnDisk(i int, bytes int64) *Disk {
	c.t.Helper()
	n := c.Nodes[i]
	d := &Disk{c: c, path: filepath.Join(c.Dir, fmt.Sprintf("disk%d", i))}
	if err := os.MkdirAll(d.path, 0o755); err != nil {
		c.t.Fatal(err)
	}
	err := unix.Mount("tmpfs", d.path, "tmpfs", 0, fmt.Sprintf("size=%d", bytes))
	switch {
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES), errors.Is(err, unix.ENODEV):
		c.t.Skipf("a small disk needs the right to mount a tmpfs: %v", err)
	case err != nil:
		c.t.Fatalf("mount a tmpfs at %s: %v", d.path, err)
	}
	// Detached, since the node still runs: the file system goes with its process.
	c.t.Cleanup(func() {
		if err := unix.Unmount(d.path, unix.MNT_DETACH); err != nil {
			c.t.Errorf("unmount %s: %v", d.path, err)
		}
	})
	n.Dir = filepath.Join(d.path, "data")
	return d
}

func (d *Disk) junk() string { return filepath.Join(d.path, "junk") }

// Free is how many bytes are free.
func (d *Disk) Free() int64 {
	d.c.t.Helper()
	var st unix.Statfs_t
	if err := unix.Statfs(d.path, &st); err != nil {
		d.c.t.Fatal(err)
	}
	return int64(st.Bavail) * st.Bsize
}

// Fill takes space with a file that is not the node's, until about so many bytes are left. A node that writes at the
// same time may make that less.
func (d *Disk) Fill(left int64) {
	d.c.t.Helper()
	f, err := os.OpenFile(d.junk(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		d.c.t.Fatal(err)
	}
	defer f.Close()
	buf := make([]byte, 1<<20)
	for {
		free := d.Free()
		if free <= left {
			return
		}
		if _, err := f.Write(buf[:min(int64(len(buf)), free-left)]); err != nil {
			if errors.Is(err, unix.ENOSPC) {
				return
			}
			d.c.t.Fatal(err)
		}
	}
}

// Empty gives the space of Fill back.
func (d *Disk) Empty() {
	d.c.t.Helper()
	if err := os.Remove(d.junk()); err != nil && !errors.Is(err, os.ErrNotExist) {
		d.c.t.Fatal(err)
	}
}
