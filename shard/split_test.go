package shard

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
)

type splitResult struct {
	left   *base.Descriptor
	rights []*base.Descriptor
	err    error
}

func (r splitResult) String() string {
	out := r.left.String()
	for _, d := range r.rights {
		out += " " + d.String()
	}
	return out
}

// side asks for a right-hand shard that begins at a user key, with half of the statistics.
func side(id base.ShardID, start string) SplitSide {
	return SplitSide{ID: id, Start: base.UserKey([]byte(start)), Share: 500_000}
}

// split asks a store to split a shard as it knows it, without waiting for the outcome. The request is queued when it
// returns.
func (c *cluster) split(n *testNode, shard base.ShardID, sides ...SplitSide) <-chan splitResult {
	c.t.Helper()
	ch := make(chan splitResult, 1)
	r := n.store.lookup(shard)
	epoch := r.desc.Load().Epoch
	asked := n.store.call(r, func(r *replica) {
		n.store.workerOf(shard).startSplit(r, epoch, sides, func(left *base.Descriptor, rights []*base.Descriptor, err error) {
			ch <- splitResult{left, rights, err}
		})
	})
	if !asked {
		c.t.Fatalf("%s takes no requests", r)
	}
	return ch
}

// splitOutcome drives one to its end, with ticks if need be.
func (c *cluster) splitOutcome(ch <-chan splitResult) (res splitResult) {
	c.t.Helper()
	c.until("outcome of a split", func() bool {
		select {
		case res = <-ch:
			return true
		default:
			return false
		}
	})
	return res
}

// asked waits, in real time, for a call that was made on another goroutine.
func (c *cluster) asked(ch <-chan splitResult) splitResult {
	c.t.Helper()
	deadline := time.Now().Add(time.Minute)
	for time.Now().Before(deadline) {
		select {
		case res := <-ch:
			return res
		case <-time.After(time.Millisecond):
			c.settle()
		}
	}
	c.t.Fatal("no outcome of a split within a minute")
	return splitResult{}
}

// mustSplit splits a shard at its leader and waits until every live store that has the shard knows of it.
func (c *cluster) mustSplit(shard base.ShardID, sides ...SplitSide) splitResult {
	c.t.Helper()
	res := c.splitOutcome(c.split(c.leader(shard), shard, sides...))
	if res.err != nil {
		c.t.Fatal(res.err)
	}
	c.until("split applied everywhere", func() bool {
		all := true
		c.each(func(n *testNode) {
			if d, ok := n.store.Descriptor(shard); ok && d.Epoch.Version < res.left.Epoch.Version {
				all = false
			}
		})
		return all
	})
	return res
}

func TestASplitDividesTheRangeAndBothSidesServe(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.create(desc(7, "a", "z", 1, 2, 3))
	c.put(7, "b", "1")
	c.put(7, "x", "2")
	lead := c.leader(7)
	res := c.mustSplit(7, side(8, "m"))
	if want := "s7[0261,026d) 1.2 (n1/1 n2/2 n3/3)"; res.left.String() != want {
		t.Errorf("left is %s, want %s", res.left, want)
	}
	if want := "s8[026d,027a) 1.2 (n1/1 n2/2 n3/3)"; len(res.rights) != 1 || res.rights[0].String() != want {
		t.Errorf("rights are %v, want %s", res.rights, want)
	}
	// No tick has passed since: the right side was stood for at once, where the left one is led.
	if got := c.leader(8); got != lead {
		t.Fatalf("s8 is led by %v, s7 by %s", got, lead.id)
	}
	c.mustGet(7, "b", "1")
	c.mustGet(8, "x", "2")
	c.put(7, "c", "3")
	c.put(8, "y", "4")
	c.everywhere(7, "c", "3")
	c.everywhere(8, "y", "4")
	c.each(func(n *testNode) {
		a, _ := n.store.Status(7)
		b, _ := n.store.Status(8)
		if a.Stats.PutOps != 2 || b.Stats.PutOps != 2 { // two before, one each since
			t.Errorf("%s: statistics %+v and %+v", n.id, a.Stats, b.Stats)
		}
		if a.Faulted+b.Faulted != "" || len(n.faults) > 0 {
			t.Errorf("%s: %v", n.id, n.faults)
		}
	})
}

func TestASplitRepeatedFindsItDone(t *testing.T) {
	c := newCluster(t, 1, nil)
	c.create(desc(7, "a", "z", 1))
	n := c.nodes[1]
	epoch := base.Epoch{ConfVer: 1, Version: 1}
	ask := func(sides ...SplitSide) splitResult {
		ch := make(chan splitResult, 1)
		go func() {
			left, rights, err := n.store.Split(context.Background(), 7, epoch, sides)
			ch <- splitResult{left, rights, err}
		}()
		return c.asked(ch)
	}
	first := ask(side(8, "m"), side(9, "s"))
	again := ask(side(8, "m"), side(9, "s"))
	if first.err != nil || again.err != nil {
		t.Fatalf("first %v, again %v", first.err, again.err)
	}
	if a, b := first.String(), again.String(); a != b {
		t.Fatalf("first %s, again %s", a, b)
	}
	var refused *BoundaryError
	if res := ask(side(10, "c")); !errors.As(res.err, &refused) || refused.Retry {
		t.Fatalf("a split for an old epoch: %v", res.err)
	}
	if res := ask(side(8, "c")); !errors.As(res.err, &refused) {
		t.Fatalf("another split with an id that is taken: %v", res.err)
	}
}

// A client whose route is old learns of everything that its key may belong to now.
func TestAnswersToOldRoutesNameBothSides(t *testing.T) {
	c := newCluster(t, 1, nil)
	c.create(desc(7, "a", "z", 1))
	n := c.nodes[1]
	c.mustSplit(7, side(8, "m"), side(9, "s"))
	shards := func(a wire.Answer) string {
		if a.Code != wire.EpochMismatch {
			t.Fatalf("answer %s %s", a.Code, a.Payload)
		}
		ds, err := wire.DecodeDescriptors(a.Payload)
		if err != nil {
			t.Fatal(err)
		}
		out := ""
		for _, d := range ds {
			out += d.Shard.String() + " "
		}
		return out
	}
	a := newAnswers(t)
	for key, want := range map[string]string{"b": "s7 ", "m": "s7 s8 ", "x": "s7 s9 "} {
		req := c.write(n, op(wire.OpPut, 7, key, "v"), a, 0)
		c.settle()
		ans, _ := a.of(req)
		if got := shards(ans); got != want {
			t.Errorf("write to %s: %s, want %s", key, got, want)
		}
		o := op(wire.OpGet, 7, key, "")
		if _, err := wire.DecodeAnswer(n.store.Read(&o, nil), &ans); err != nil {
			t.Fatal(err)
		}
		if got := shards(ans); got != want {
			t.Errorf("read of %s: %s, want %s", key, got, want)
		}
	}
	scan := op(wire.OpScan, 7, "b", string(base.UserKey([]byte("n"))))
	var ans wire.Answer
	if _, err := wire.DecodeAnswer(n.store.Read(&scan, nil), &ans); err != nil {
		t.Fatal(err)
	}
	if got := shards(ans); got != "s7 s8 " {
		t.Errorf("scan of [b, n): %s", got)
	}
}
