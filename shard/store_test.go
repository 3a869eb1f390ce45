package shard

import (
	"fmt"
	"testing"

	"github.com/shardd/shardd/internal/wire"
)

func TestThreeStoresElectWriteAndRead(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.create(desc(7, "", "", 1, 2, 3))
	first := c.put(7, "a", "1")
	second := c.put(7, "a", "2")
	if second.Arg <= first.Arg {
		t.Fatalf("version %d after %d", second.Arg, first.Arg)
	}
	c.mustGet(7, "a", "2")
	c.everywhere(7, "a", "2")
}

func TestAnAcknowledgedWriteSurvivesTheLeader(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.create(desc(7, "", "", 1, 2, 3))
	for i := range 20 {
		c.put(7, fmt.Sprint("k", i), fmt.Sprint(i))
	}
	old := c.leader(7)
	c.crash(old, 0)
	c.until("another leader", func() bool { return c.leader(7) != nil })
	c.put(7, "after", "x")
	for i := range 20 {
		c.mustGet(7, fmt.Sprint("k", i), fmt.Sprint(i))
	}
	c.start(old)
	c.everywhere(7, "after", "x")
	c.everywhere(7, "k19", "19")
}

func TestAFullRestartKeepsEverythingAcknowledged(t *testing.T) {
	for _, keep := range []int{0, 50, 100} {
		t.Run(fmt.Sprint(keep, "% of unsynced data kept"), func(t *testing.T) {
			c := newCluster(t, 3, nil)
			for s := range 4 {
				id, from, to := 10+s, string(rune('a'+s)), string(rune('b'+s))
				c.create(desc(shardID(id), from, to, 1, 2, 3))
				for i := range 10 {
					c.put(shardID(id), fmt.Sprint(from, i), fmt.Sprint(i))
				}
			}
			for _, id := range c.ids() {
				c.crash(c.nodes[id], keep)
			}
			for _, id := range c.ids() {
				c.start(c.nodes[id])
			}
			for s := range 4 {
				id, from := 10+s, string(rune('a'+s))
				c.until("leader", func() bool { return c.leader(shardID(id)) != nil })
				for i := range 10 {
					c.mustGet(shardID(id), fmt.Sprint(from, i), fmt.Sprint(i))
				}
			}
		})
	}
}

func TestRefusalsAreDefiniteAndNameTheWayOut(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.create(desc(7, "b", "d", 1, 2, 3))
	lead := c.leader(7)
	a := newAnswers(t)
	var follower *testNode
	c.each(func(n *testNode) {
		if n != lead {
			follower = n
		}
	})
	check := func(what string, req uint64, code wire.Code) wire.Answer {
		t.Helper()
		ans, ok := a.of(req)
		if !ok || ans.Code != code {
			t.Fatalf("%s: %v %s, want %s", what, ok, ans.Code, code)
		}
		return ans
	}
	ans := check("at a follower", c.write(follower, op(wire.OpPut, 7, "c", "x"), a, 0), wire.NotLeader)
	if ans.Arg != uint64(lead.id) {
		t.Fatalf("hint %d, want %s", ans.Arg, lead.id)
	}
	check("read at a follower", c.readIndex(follower, 7, a, 0), wire.NotLeader)
	ans = check("unknown shard", c.write(lead, op(wire.OpPut, 8, "c", "x"), a, 0), wire.EpochMismatch)
	if ds, err := wire.DecodeDescriptors(ans.Payload); err != nil || len(ds) != 1 || ds[0].Shard != 7 {
		t.Fatalf("the owner of the key is %v, %v", ds, err)
	}
	check("unknown shard", c.readIndex(lead, 8, a, 0), wire.ShardNotFound)
	old := op(wire.OpPut, 7, "c", "x")
	old.Version = 9
	ans = check("other epoch", c.write(lead, old, a, 0), wire.EpochMismatch)
	ds, err := wire.DecodeDescriptors(ans.Payload)
	if err != nil || len(ds) != 1 || ds[0].Shard != 7 {
		t.Fatalf("payload %v %v", ds, err)
	}
	check("outside the range", c.write(lead, op(wire.OpPut, 7, "x", "x"), a, 0), wire.EpochMismatch)
	check("a read in the log", c.write(lead, op(wire.OpGet, 7, "c", ""), a, 0), wire.Invalid)
	unknown := op(wire.OpPut, 7, "c", "x")
	unknown.Flags = 0x80
	check("unknown flag", c.write(lead, unknown, a, 0), wire.Invalid)
	if n := len(lead.faults); n != 0 {
		t.Fatalf("%d faults", n)
	}
	if a.missing() != 0 {
		t.Fatal("requests without an answer")
	}
}
