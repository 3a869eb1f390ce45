package e2e

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/shardd/shardd/client"
	"github.com/shardd/shardd/e2e/harness"
)

// Disks fill up: first that of one node, which hands its leaderships over and at last takes no appends any more, then
// all of them, when writes are refused by name while reads and deletes go on. With the space everything comes back.
func TestFullDisksRefuseWritesAndRecover(t *testing.T) {
	const disk, low, critical = 192 * mib, 64 * mib, 24 * mib
	const shards = 4
	c := harness.New(t, binaries(t), 3)
	var disks []*harness.Disk
	for i, n := range c.Nodes {
		disks = append(disks, c.PutOnDisk(i, disk))
		n.Args = append(n.Args, "--disk-low", "64MiB", "--disk-critical", "24MiB", "--disk-reserve", "8MiB",
			"--memtable", "4MiB", "--cache", "8MiB")
	}
	c.StartAll()
	c.Init(splitsOf(shards))
	db := c.DB(client.WithTimeout(20 * time.Second))
	l := newLoadOf(t, db, shards, 4)
	stop := l.run(1)
	l.waitWrites("with room")
	level := func(i int, want string) {
		t.Helper()
		c.Until(fmt.Sprintf("disk of node %d is %s", i, want), func(context.Context) error {
			if got := c.Info(i).GetDiskLevel(); got != want {
				return fmt.Errorf("it is %s with %d bytes free, %d as reported", got, disks[i].Free(),
					c.Info(i).GetDiskFreeBytes())
			}
			return nil
		})
	}

	disks[2].Fill((low + critical) / 2)
	level(2, "low")
	c.Until("leaderships have left the node that is short of space", func(context.Context) error {
		if n := c.Info(2).GetLeaders(); n > 0 {
			return fmt.Errorf("it leads %d shards", n)
		}
		return nil
	})
	l.waitWrites("with one disk short of space")

	disks[2].Fill(critical / 2)
	level(2, "critical")
	l.waitWrites("with one disk full")
	stop()

	key := func(i int) []byte { return fmt.Appendf(nil, "%02d/space", i) }
	for i := range shards {
		if _, err := db.All().Put(t.Context(), key(i), []byte("v")); err != nil {
			t.Fatal(err)
		}
	}
	disks[0].Fill((low + critical) / 2)
	disks[1].Fill((low + critical) / 2)
	level(0, "low")
	level(1, "low")
	for i := range shards {
		c.Until("a write is refused for want of space", func(ctx context.Context) error {
			ctx, cancel := context.WithTimeout(ctx, time.Second)
			defer cancel()
			_, err := db.All().Put(ctx, key(i), []byte("more"))
			if !errors.Is(err, client.ErrDiskFull) {
				return fmt.Errorf("a write gave %v", err)
			}
			return nil
		})
		if v, err := db.All().Get(t.Context(), key(i)); err != nil {
			t.Errorf("a read gave %q, %v", v.Bytes, err)
		}
		if err := db.All().Delete(t.Context(), key(i)); err != nil {
			t.Errorf("a delete gave %v", err)
		}
	}

	// Not a byte left, and a crash: the reserve lets the node come up again.
	disks[2].Fill(0)
	c.Kill(2)
	disks[2].Fill(0)
	c.Start(2)

	for i, d := range disks {
		d.Empty()
		level(i, "ok")
	}
	c.WaitHealthy()
	stop = l.run(2)
	l.waitWrites("with room again")
	stop()
	c.Verify()
	l.judge(2)
}
