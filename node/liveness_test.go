package node

import (
	"context"
	"fmt"
	"testing"
	"time"

	pb "github.com/shardd/shardd/api/shardd/v1"
)

// livenessOf returns what p says of the node with an id, nil if it says nothing.
func livenessOf(ctx context.Context, p *proc, id uint64) (*pb.PeerLiveness, *pb.LivenessResponse, error) {
	resp, err := p.admin().Liveness(ctx, &pb.LivenessRequest{})
	if err != nil {
		return nil, nil, err
	}
	for _, v := range resp.Peers {
		if v.NodeId == id {
			return v, resp, nil
		}
	}
	return nil, resp, nil
}

// mutual waits until every pair gives each other support.
func mutual(t *testing.T, ps []*proc) {
	t.Helper()
	eventually(t, "nodes support each other", func(ctx context.Context) error {
		for _, p := range ps {
			for _, q := range ps {
				if p == q {
					continue
				}
				v, _, err := livenessOf(ctx, p, uint64(q.store()))
				if err != nil {
					return err
				}
				if v == nil || v.Gives == nil || v.Has == nil || !v.SharesShards || v.HeardMsAgo == nil {
					return fmt.Errorf("%s says of %s: %v", p.name, q.name, v)
				}
			}
		}
		return nil
	})
}

func TestNodesThatShareShardsSupportEachOtherAcrossRestarts(t *testing.T) {
	ps := startProcs(t, 3)
	initAll(t, ps[0], ps, 2)
	settled(t, ps[0], 2)
	mutual(t, ps)
	_, first, err := livenessOf(testContext(t), ps[1], 0)
	if err != nil || first.SupportMs != 250 || first.QuietMs != 0 {
		t.Errorf("%v, %v", first, err)
	}
	if id, _ := ps[2].n.eng.Ident(); id.LongestPromise != 250*time.Millisecond {
		t.Errorf("the promise on disk is %s", id.LongestPromise)
	}

	// A dead node's support lapses, and it gets none.
	dead := uint64(ps[2].store())
	ps[2].kill(0, 1)
	eventually(t, "support of a dead node ends", func(ctx context.Context) error {
		v, _, err := livenessOf(ctx, ps[0], dead)
		if err == nil && v != nil && (v.Gives != nil || v.Has != nil) {
			err = fmt.Errorf("%v", v)
		}
		return err
	})

	// With a longer promise it keeps quiet for what it promised before, and gets support under new epochs.
	ps[2].tune = func(c *Config) { c.Settings.LeaseSupport = 10 * time.Minute }
	ps[2].start()
	mutual(t, ps)
	v, resp, err := livenessOf(testContext(t), ps[2], uint64(ps[0].store()))
	if err != nil || v.Gives.Incarnation != resp.Incarnation || resp.SupportMs != 600_000 || resp.QuietMs > 250 {
		t.Errorf("%v, %v", resp, err)
	}
	if v, _, err = livenessOf(testContext(t), ps[0], dead); err != nil || v.Incarnation != resp.Incarnation || v.Has.LeftMs > 250 {
		t.Errorf("another one says %v, %v", v, err)
	}

	// Without leases it still keeps what it promised: ten minutes of quiet.
	if err := ps[2].term(); err != nil {
		t.Fatal(err)
	}
	ps[2].tune = func(c *Config) { c.Settings.NoLeases = true }
	ps[2].start()
	eventually(t, "the node without leases serves", func(ctx context.Context) error {
		v, resp, err := livenessOf(ctx, ps[2], uint64(ps[0].store()))
		if err == nil && (resp.SupportMs != 0 || resp.QuietMs < 60_000 || v != nil) {
			t.Fatalf("%v", resp)
		}
		return err
	})
	mutual(t, ps[:2])
}
