package shard

import (
	"testing"
	"time"

	"github.com/shardd/shardd/internal/wire"
)

func TestAFollowedWriteHasEveryStage(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.create(desc(7, "", "", 1, 2, 3))
	c.put(7, "a", "1")
	c.settled()
	lead := c.leader(7)
	a := newAnswers(t)
	tr := &Trace{Arrived: c.clock.Boot()}
	o := op(wire.OpPut, 7, "a", "2")
	o.Version = c.desc(7).Epoch.Version
	a.expect(1)
	lead.store.Write([]WriteRequest{{Shard: 7, Version: o.Version, Req: 1, Raw: o.Append(nil), Waiter: a, Trace: tr}})
	c.until("the answer", func() bool { return a.missing() == 0 })
	c.settled()
	seen := map[Stage]bool{}
	if at := tr.Stages(func(s Stage, d time.Duration) { seen[s] = d >= 0 }); at == 0 {
		t.Fatal("never applied")
	}
	for _, s := range []Stage{StageQueue, StagePropose, StageReplicate, StageSync, StageCommit, StageApply} {
		if !seen[s] {
			t.Errorf("no %s in %v", s, seen)
		}
	}
}

func TestAFollowedReadHasItsStages(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.create(desc(7, "", "", 1, 2, 3))
	c.put(7, "a", "1")
	c.settled()
	a := newAnswers(t)
	tr := &Trace{Arrived: c.clock.Boot()}
	a.expect(1)
	c.leader(7).store.ReadIndex([]ReadRequest{{Shard: 7, Version: c.desc(7).Epoch.Version, Req: 1, Waiter: a, Trace: tr}})
	c.until("the answer", func() bool { return a.missing() == 0 })
	seen := map[Stage]bool{}
	if at := tr.Stages(func(s Stage, d time.Duration) { seen[s] = d >= 0 }); at == 0 {
		t.Fatal("never allowed")
	}
	for _, s := range []Stage{StageQueue, StageReplicate, StageApply} {
		if !seen[s] {
			t.Errorf("no %s in %v", s, seen)
		}
	}
}

func TestARefusedWriteIsNeverApplied(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.create(desc(7, "", "", 1, 2, 3))
	a := newAnswers(t)
	tr := &Trace{Arrived: 1}
	o := op(wire.OpPut, 7, "a", "2")
	lead := c.leader(7)
	req := uint64(0)
	c.each(func(n *testNode) {
		if n != lead {
			req++
			a.expect(req)
			n.store.Write([]WriteRequest{{Shard: 7, Version: 1, Req: req, Raw: o.Append(nil), Waiter: a, Trace: tr}})
		}
	})
	if at := tr.Stages(func(s Stage, _ time.Duration) { t.Errorf("has %s", s) }); at != 0 {
		t.Fatalf("applied at %s", at)
	}
}
