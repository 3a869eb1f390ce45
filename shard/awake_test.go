package shard

import (
	"fmt"
	"testing"
	"time"

	"go.etcd.io/etcd/raft/v3"
	"go.etcd.io/etcd/raft/v3/tracker"
)

// Raft sends a follower that it has lost nothing before that has answered a heartbeat. A store that is back must not wait for
// the next one: until it has what it lacks the loss of another store stops the group.
func TestALeaderThatIsAwakeBeatsForAStoreThatIsBackAtOnce(t *testing.T) {
	c, lead := liveShard(t, nil)
	two := c.nodes[2]
	c.crash(two, 100)
	n := 0
	write := func() {
		n++
		c.put(7, "a", fmt.Sprint(n))
	}
	c.until("its support is over", func() bool {
		write() // so that the group stays awake
		s := lead.live.Held(2)
		return s == nil || s.Until <= lead.Boot()
	})
	lead.store.Unreachable(7, 1, 2)
	write()
	r := lead.store.lookup(7)
	r.worker.rn.WithProgress(func(id uint64, _ raft.ProgressType, pr tracker.Progress) {
		if id == 2 && (pr.State != tracker.StateProbe || !pr.IsPaused()) {
			t.Fatalf("the follower is in %s, paused %t", pr.State, pr.IsPaused())
		}
	})
	c.start(two)
	for range 9 { // less than a tick of raft's
		c.clock.now.Add(int64(10 * time.Millisecond))
		c.drift(10 * time.Millisecond)
		c.beat()
		c.settle()
	}
	if s := lead.live.Held(2); s == nil || s.Until <= lead.Boot() {
		t.Fatal("the store does not support the leader's")
	}
	if got, want := two.store.lookup(7).applied.Load(), r.applied.Load(); got != want {
		t.Errorf("it has applied %d of %d", got, want)
	}
}
