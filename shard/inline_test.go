package shard

import (
	"runtime"
	"strings"
	"testing"

	"github.com/shardd/shardd/internal/wire"
)

// passes runs the store's worker, and nothing else, until it has nothing to do.
func (n *testNode) passes() {
	for w := n.store.workers[0]; ; runtime.Gosched() {
		if !n.store.pool.Poll(0) && w.syncing == 0 {
			return
		}
	}
}

func TestLittleThatReadsNothingIsAppliedInThePass(t *testing.T) {
	c := newCluster(t, 1, nil)
	c.create(desc(7, "", "m", 1))
	c.create(desc(8, "m", "", 1))
	c.settled()
	n, a := c.nodes[1], newAnswers(t)
	c.write(n, op(wire.OpPut, 7, "a", "1"), a, 0)
	c.write(n, op(wire.OpPut, 8, "n", "1"), a, 0)
	c.write(n, op(wire.OpDelete, 7, "b", ""), a, 0)
	n.passes()
	if a.missing() > 0 {
		t.Fatalf("%d writes wait for the apply workers", a.missing())
	}
	if got := n.store.lookup(7).handed.bytes.Load(); got != 0 {
		t.Fatalf("%d bytes still counted", got)
	}
	c.everywhere(7, "a", "1")
}

func TestWhatReadsOrIsLargeGoesToTheApplyWorkersAndHoldsBackWhatFollows(t *testing.T) {
	conditional := op(wire.OpPut, 7, "a", "1")
	conditional.Flags = wire.FlagIfVersion
	for name, first := range map[string]wire.Op{
		"conditional": conditional,
		"large":       op(wire.OpPut, 7, "a", strings.Repeat("v", 300<<10)),
	} {
		t.Run(name, func(t *testing.T) {
			c := newCluster(t, 1, nil)
			c.create(desc(7, "", "", 1))
			c.settled()
			n, a := c.nodes[1], newAnswers(t)
			applied := n.store.lookup(7).applied.Load()
			c.write(n, first, a, 0)
			n.passes()
			c.write(n, op(wire.OpPut, 7, "a", "2"), a, 0)
			n.passes()
			if r := n.store.lookup(7); a.missing() != 2 || r.applied.Load() != applied || r.commit.Load() != applied+2 {
				t.Fatalf("%d wait, applied %d of %d", a.missing(), r.applied.Load()-applied, r.commit.Load()-applied)
			}
			c.settled()
			if a.missing() > 0 {
				t.Fatalf("%d writes have no answer", a.missing())
			}
			c.everywhere(7, "a", "2")
		})
	}
}

func TestAPassAppliesInTheOrderOfTheLog(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.create(desc(7, "", "", 1, 2, 3))
	c.settled()
	lead, a := c.leader(7), newAnswers(t)
	for i := range 200 {
		o := op(wire.OpPut, 7, "a", strings.Repeat("v", i*7%900)+"1")
		if i%5 == 3 {
			o = op(wire.OpBatch, 7, "a", "")
			put := wire.Sub{Code: wire.OpPut, Key: o.Key, Value: []byte("b")}
			o.Value = put.Append(nil)
		}
		c.write(lead, o, a, 0)
		if i%3 == 0 {
			c.drain()
		}
	}
	c.write(lead, op(wire.OpPut, 7, "a", "last"), a, 0)
	c.until("the answers", func() bool { return a.missing() == 0 })
	c.settled()
	c.everywhere(7, "a", "last")
	c.noFaults()
}
