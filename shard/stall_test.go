package shard

import (
	"runtime"
	"testing"
	"time"

	"github.com/shardd/shardd/internal/wire"
)

// A client whose route still ends at a store with a stalled disk must hear at once that its write has not happened, not
// wait there for its deadline while another replica leads.
func TestAStoreWithAStalledDiskRefusesWritesAtOnce(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.create(desc(7, "a", "c", 1, 2, 3))
	c.put(7, "a", "1")
	n := c.leader(7)
	release := c.holdSyncs(n)
	a := newAnswers(t)
	c.write(n, op(wire.OpPut, 7, "a", "2"), a, time.Hour) // its sync is the one that hangs
	c.drain()
	for ok := true; ok; ok, _ = n.store.SyncHealthy() {
		runtime.Gosched()
	}
	c.tickDraining(n)
	req := c.write(n, op(wire.OpPut, 7, "b", "1"), a, time.Hour)
	if ans, ok := a.of(req); !ok || ans.Code != wire.Unavailable {
		t.Fatalf("answered %t: %s", ok, ans.Code)
	}
	release()
	c.until("the first write is decided", func() bool { return a.missing() == 0 })
	c.until("a leader", func() bool { return c.leader(7) != nil })
	if _, ok := c.get(7, "b"); ok {
		t.Fatal("a write that was refused is there")
	}
	c.put(7, "b", "2")
}
