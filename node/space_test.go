package node

import (
	"context"
	"fmt"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/engine"
	"github.com/shardd/shardd/internal/base"
)

// level waits until p and the meta leader say how full p's disk is.
func (p *proc) level(want engine.SpaceLevel, by *proc) {
	p.t.Helper()
	eventually(p.t, p.name+" has level "+want.String(), func(ctx context.Context) error {
		st, err := p.admin().NodeStatus(ctx, &pb.NodeStatusRequest{})
		if err != nil || st.DiskLevel != want.String() {
			return fmt.Errorf("status %v: %w", st, err)
		}
		list, err := by.admin().ListNodes(ctx, &pb.ListNodesRequest{})
		if err != nil {
			return err
		}
		for _, n := range list.Nodes {
			if n.NodeId == uint64(p.store()) && n.DiskLevel == want.String() {
				return nil
			}
		}
		return fmt.Errorf("nodes %v", list.Nodes)
	})
}

func TestNodeShortOfSpaceGivesItsLeadershipsAwayAndTakesThemAgain(t *testing.T) {
	const shards = 3
	var ps []*proc
	for i := range 3 {
		p := newProc(t, fmt.Sprintf("p%d", i))
		p.tune = func(c *Config) { c.Settings.LowSpaceBytes, c.Settings.CriticalSpaceBytes = 1<<30, 1<<20 }
		p.fs.SetFree(1 << 40)
		ps = append(ps, p.start())
	}
	initAll(t, ps[0], ps, shards)
	settled(t, ps[0], shards)
	full := ps[1]
	gather(t, full, shards)
	full.fs.SetFree(1 << 29)
	full.level(engine.SpaceLow, ps[0])
	l := newLedger(startSeed(t))
	l.put(t, ps[0], 4*shards, shards) // goes through because the leaderships go
	eventually(t, "it leads nothing", func(context.Context) error {
		if led := full.leads(); len(led) > 0 {
			return fmt.Errorf("it leads %v", led)
		}
		return nil
	})
	full.fs.SetFree(1 << 19)
	full.level(engine.SpaceCritical, ps[0])
	h, err := full.admin().Health(testContext(t), &pb.HealthRequest{})
	if err != nil || h.Ok {
		t.Errorf("its health: %v %v", h, err)
	}
	l.put(t, ps[0], 4*shards, shards) // without it: the other two are a quorum
	full.fs.SetFree(1 << 40)
	full.level(engine.SpaceOK, ps[2])
	full.ready()
	gather(t, full, shards)
	l.check(t, full)
}

func TestOnlyNodeShortOfSpaceServesReadsAndDeletes(t *testing.T) {
	p := newProc(t, "p")
	p.tune = func(c *Config) { c.Settings.LowSpaceBytes, c.Settings.CriticalSpaceBytes = 1<<30, 1<<20 }
	p.fs.SetFree(1 << 40)
	p.start()
	initAll(t, p, []*proc{p}, 1)
	l := newLedger(startSeed(t))
	l.put(t, p, 5, 1)
	p.fs.SetFree(1 << 29)
	p.level(engine.SpaceLow, p)
	eventually(t, "a write is refused for the reason", func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, patience/100)
		defer cancel()
		_, err := p.kv().Put(ctx, &pb.PutRequest{Key: []byte("more"), Value: []byte("v")})
		if status.Code(err) != codes.ResourceExhausted {
			return fmt.Errorf("put: %v", err)
		}
		return nil
	})
	l.check(t, p)
	for key := range l.rows {
		if _, err := p.kv().Delete(testContext(t), &pb.DeleteRequest{Key: []byte(key)}); err != nil {
			t.Errorf("delete: %v", err)
		}
	}
	p.fs.SetFree(1 << 40)
	l.put(t, p, 5, 1)
}

func TestReplicaOverADamagedFileStopsAndIsReplaced(t *testing.T) {
	const shards = 2
	ps := startProcs(t, 3)
	initAll(t, ps[0], ps, shards)
	settled(t, ps[0], shards)
	l := newLedger(startSeed(t))
	l.put(t, ps[0], 20, shards)
	late := joinProc(t, "late", ps...)
	sick := ps[2]
	gather(t, sick, shards) // the worst case: it leads

	sick.n.corrupt(base.UserKey([]byte("k0000")), base.UserKey([]byte("k0001"))) // inside the first shard's range
	faulted := func(id base.ShardID) string {
		st, ok := sick.member().store.Status(id)
		if !ok {
			t.Fatalf("no replica of %s", id)
		}
		return st.Faulted
	}
	if why := faulted(2); why == "" {
		t.Error("the replica over the damaged file goes on")
	}
	for _, id := range []base.ShardID{base.MetaShard, 3} {
		if why := faulted(id); why != "" {
			t.Errorf("%s, which it does not touch, stopped: %s", id, why)
		}
	}
	l.put(t, sick, 10, shards)
	l.check(t, ps[0])
	if f := ps[0].verified(2, 0); len(f) != 1 {
		t.Errorf("verify: %q", f)
	}
	eventually(t, "the cluster knows", func(ctx context.Context) error {
		st, err := ps[0].admin().ClusterStatus(ctx, &pb.ClusterStatusRequest{})
		if err == nil && st.ShardsUnderReplicated != 1 {
			err = fmt.Errorf("status %v", st)
		}
		return err
	})

	ps[0].replace(2, sick.store(), late.store())
	eventually(t, "the stopped replica goes", func(context.Context) error {
		if _, ok := sick.member().store.Status(2); ok {
			return errPending
		}
		return nil
	})
	l.check(t, late)
	if f := ps[0].verified(2, 0); len(f) > 0 {
		t.Errorf("verify: %q", f)
	}
}

func TestDamagedFileOfUnknownContentStopsNothing(t *testing.T) {
	ps := startProcs(t, 3)
	initAll(t, ps[0], ps, 1)
	settled(t, ps[0], 1)
	ps[0].n.corrupt(nil, nil)
	for _, s := range ps[0].member().store.Summaries() {
		if s.Faulted != "" {
			t.Errorf("%s stopped: %s", s.Shard, s.Faulted)
		}
	}
}
