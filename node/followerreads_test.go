package node

import (
	"context"
	"fmt"
	"testing"
	"time"

	pb "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
	"github.com/shardd/shardd/transport"
)

// counted returns the value of a counter with one label, 0 if there is none.
func counted(t *testing.T, p *proc, name, value string) float64 {
	t.Helper()
	all, err := p.n.Metrics().Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range all {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			if l := m.GetLabel(); len(l) == 1 && l[0].GetValue() == value {
				return m.GetCounter().GetValue()
			}
		}
	}
	return 0
}

func TestEveryNodeServesLinearizableReadsOfItsReplicas(t *testing.T) {
	ps := startProcs(t, 3)
	initAll(t, ps[0], ps, 4)
	settled(t, ps[0], 4)
	ctx := testContext(t)
	for i := range 60 {
		key, value := fmt.Appendf(nil, "k%03d-x", i%4), fmt.Append(nil, i)
		eventually(t, "put", func(ctx context.Context) error {
			_, err := ps[i%3].kv().Put(ctx, &pb.PutRequest{Key: key, Value: value})
			return err
		})
		for _, p := range ps {
			got, err := p.kv().Get(ctx, &pb.GetRequest{Key: key, Read: &pb.ReadOptions{AtFollower: true}})
			if err != nil || string(got.Value) != string(value) {
				t.Fatalf("%s: get %s: %q, %v; %s was acknowledged", p.name, key, got.GetValue(), err, value)
			}
		}
	}
	for _, p := range ps {
		if n := counted(t, p, "shardd_shard_follower_reads_total", "asked"); n == 0 {
			t.Errorf("%s served no read that the leader was asked for", p.name)
		}
		rows, err := p.kv().Scan(ctx, &pb.ScanRequest{Read: &pb.ReadOptions{AtFollower: true}})
		if err != nil || len(rows.Rows) != 4 {
			t.Errorf("%s: scan: %d rows, %v", p.name, len(rows.GetRows()), err)
		}
		keys := [][]byte{[]byte("k003-x"), []byte("none"), []byte("k000-x")}
		mg, err := p.kv().MultiGet(ctx, &pb.MultiGetRequest{Keys: keys, Read: &pb.ReadOptions{MaxStalenessMs: 1}})
		if err != nil || len(mg.Rows) != 2 {
			t.Errorf("%s: multi-get: %v, %v", p.name, mg, err)
		}
	}
}

// While a shard has no leader, a follower goes on with stale reads as long as it can prove the bound, and with no others.
func TestAStaleReadOutlivesTheLeaderByItsBound(t *testing.T) {
	ps := startProcs(t, 3)
	initAll(t, ps[0], ps, 1)
	settled(t, ps[0], 1)
	ctx := testContext(t)
	eventually(t, "put", func(ctx context.Context) error {
		_, err := ps[0].kv().Put(ctx, &pb.PutRequest{Key: []byte("k"), Value: []byte("v")})
		return err
	})
	get := func(ctx context.Context, p *proc, o *pb.ReadOptions) error {
		got, err := p.kv().Get(ctx, &pb.GetRequest{Key: []byte("k"), Read: o})
		if err == nil && string(got.Value) != "v" {
			t.Errorf("%s: %q", p.name, got.Value)
		}
		return err
	}
	hour := &pb.ReadOptions{MaxStalenessMs: 3_600_000}
	last := ps[2]
	eventually(t, "a stale read at "+last.name, func(ctx context.Context) error { return get(ctx, last, hour) })
	ps[0].halt()
	ps[1].halt()
	for range 20 {
		if err := get(ctx, last, hour); err != nil {
			t.Fatalf("with a bound of an hour: %v", err)
		}
	}
	for name, o := range map[string]*pb.ReadOptions{
		"a millisecond": {MaxStalenessMs: 1}, "nothing": {AtFollower: true},
	} {
		eventually(t, "the lease is over that it may have had", func(ctx context.Context) error {
			short, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
			defer cancel()
			if get(short, last, o) == nil {
				return fmt.Errorf("a read with a bound of %s is served without a quorum", name)
			}
			return nil
		})
	}
}

func TestQuestionsForReadIndexesAreAnsweredToNodesOfTheClusterOnly(t *testing.T) {
	p, d := oneNode(t)
	m := p.n.member.Load()
	ask := op(d, wire.OpReadIndex, 1, "", "")
	ask.Key, ask.Arg, ask.Value = d.Start, uint64(m.self), m.cluster[:]
	other, elsewhere := ask, ask
	other.Req, other.Value = 2, make([]byte, 16)
	elsewhere.Req, elsewhere.Arg = 3, 99
	c := openOps(t, p, transport.ClassNode)
	c.send(ask, other, elsewhere)
	got := c.answers(3)
	if got[1].Code != wire.OK || got[1].Arg == 0 {
		t.Errorf("a node: %v, index %d", got[1].Code, got[1].Arg)
	}
	if got[2].Code != wire.Unavailable || got[3].Code != wire.Unavailable {
		t.Errorf("another cluster: %v; another node: %v", got[2].Code, got[3].Code)
	}
	c = openOps(t, p, transport.ClassClient)
	c.send(ask)
	if a := c.answers(1)[1]; a.Code != wire.Invalid {
		t.Errorf("a client: %v", a.Code)
	}
}

func TestLookUpsTellTheLabelsOfAllNodes(t *testing.T) {
	ps := startProcs(t, 3)
	initAll(t, ps[0], ps, 2)
	settled(t, ps[0], 2)
	for _, p := range ps {
		eventually(t, "labels", func(ctx context.Context) error {
			resp, err := pb.NewRouteServiceClient(p.conn).Lookup(ctx, &pb.LookupRequest{Key: base.UserStart()})
			if err != nil {
				return err
			}
			names := map[string]bool{}
			for _, l := range resp.Labels {
				names[l.Labels["name"]] = true
			}
			for _, q := range ps {
				if !names[q.name] {
					return fmt.Errorf("%s does not tell of %s: %v", p.name, q.name, resp.Labels)
				}
			}
			return nil
		})
	}
}
