package shard

import (
	"runtime"
	"sync/atomic"
	"testing"

	"go.etcd.io/etcd/raft/v3/raftpb"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
)

// handOver drives a HandOver of a store to its end.
func (c *cluster) handOver(n *testNode) (moved int, err error) {
	c.t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		moved, err = n.store.HandOver(c.t.Context())
	}()
	for {
		select {
		case <-done:
			return moved, err
		default:
			c.tick()
			runtime.Gosched() // HandOver waits on its own goroutine
		}
	}
}

func TestHandOverGoesToFitStoresAndToOthersOnlyIfThereAreNone(t *testing.T) {
	var unfit atomic.Uint64 // one store's id
	c := newCluster(t, 4, func(cfg *Config) {
		cfg.MayLead = func(id base.StoreID) bool { return uint64(id) != unfit.Load() }
	})
	for i := range 200 { // more than go at once
		d := desc(shardID(10+i), string(rune('A'+i/26%26))+string(rune('A'+i%26)), string(rune('A'+i/26%26))+string(rune('A'+i%26))+"z", 1, 2, 3)
		if i >= 198 {
			d.Replicas, d.NextReplicaID = d.Replicas[:2], 3
		}
		c.create(d)
		c.leads(d.Shard, 1)
	}
	unfit.Store(2)
	moved, err := c.handOver(c.nodes[1])
	if err != nil || moved != 200 {
		t.Fatalf("%d moved, %v", moved, err)
	}
	for i := range 200 {
		want := base.StoreID(3)
		if i >= 198 {
			want = 2 // nobody else has a voter
		}
		if n := c.leader(shardID(10 + i)); n == nil || n.id != want {
			t.Fatalf("%s is led by %v, want %s", shardID(10+i), n, want)
		}
	}
}

func TestHandOverTriesAgainWhatDoesNotArrive(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.create(desc(7, "", "", 1, 2, 3))
	c.leads(7, 1)
	c.put(7, "a", "1")
	c.everywhere(7, "a", "1")
	n := c.nodes[1]
	lost := 0
	n.filter(func(m *wire.RaftMessage) bool {
		if m.Msg.Type != raftpb.MsgTimeoutNow || lost > 0 {
			return true
		}
		lost++
		return false
	})
	if moved, err := c.handOver(n); err != nil || moved != 1 || lost != 1 {
		t.Fatalf("%d moved, %d lost, %v", moved, lost, err)
	}
}
