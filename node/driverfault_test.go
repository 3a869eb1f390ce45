package node

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	pb "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/placement/plan"
)

// driving waits until a node leads the meta shard and drives, and returns it.
func driving(t *testing.T, ps ...*proc) *proc {
	t.Helper()
	var out *proc
	eventually(t, "a node drives", func(context.Context) error {
		for _, p := range ps {
			if _, leads := p.member().leadsMeta(); leads {
				out = p
				return nil
			}
		}
		return errPending
	})
	return out
}

func TestANewMetaLeaderMovesNothingBeforeAllNodesHaveReported(t *testing.T) {
	const shards = 3
	ps := balancedProcs(t, 0, shards)
	for i := 1; i < 4; i++ {
		p := newProc(t, fmt.Sprintf("p%d", i))
		p.join = addrs(ps)
		p.tune = func(cfg *Config) {
			balanced(cfg)
			cfg.Settings.DownAfter = 3 * time.Second
		}
		p.start().ready()
		ps = append(ps, p)
		if i == 2 {
			atRest(t, ps[0])
		}
	}
	// The driver also is at rest before it knows of the node that joined.
	eventually(t, "the last node has its share", func(ctx context.Context) error {
		voters, _, err := counts(ctx, ps[3])
		if err == nil && voters[uint64(ps[3].store())] < 2 {
			err = fmt.Errorf("voters %v", voters)
		}
		return err
	})
	atRest(t, ps[3])
	old := driving(t, ps...)
	var next, away *proc
	for _, p := range ps[1:] { // whose time-out is short
		switch {
		case p == old:
		case next == nil && p.member().hasMeta():
			next = p
		default:
			away = p
		}
	}
	if err := away.term(); err != nil {
		t.Fatal(err)
	}
	if _, err := next.admin().TransferLeader(testContext(t), &pb.TransferLeaderRequest{
		ShardId: uint64(base.MetaShard), ToNode: uint64(next.store()),
	}); err != nil {
		t.Fatal(err)
	}
	missing := away.store()
	began := time.Now()
	eventually(t, "it has waited for twice the time after which a node is down", func(ctx context.Context) error {
		st, err := next.balance(ctx)
		if err != nil {
			return err
		}
		if st.State != "waiting" || len(st.Running)+len(st.Recent) > 0 {
			if time.Since(began) > time.Second {
				t.Fatalf("it does not wait for %s: %v", missing, st)
			}
			return fmt.Errorf("%v", st)
		}
		if !strings.Contains(st.Detail, missing.String()) && !strings.Contains(st.Detail, "round") {
			return fmt.Errorf("it waits for something else: %s", st.Detail)
		}
		if time.Since(began) < 6*time.Second {
			return errPending
		}
		return nil
	})
	away.start()
	away.ready()
	st := atRest(t, next)
	for _, op := range st.Recent {
		if strings.Contains(op.Reason, "lost") {
			t.Errorf("nothing was lost, and yet: %v", op)
		}
	}
}

func TestReplicasOfANodeThatIsDownAreMadeAnew(t *testing.T) {
	const shards = 3
	ps := balancedProcs(t, 0, shards)
	for i := 0; i < 3; i++ {
		ps = append(ps, joinBalanced(t, fmt.Sprintf("p%d", i+1), ps...))
	}
	atRest(t, ps[0])
	if _, err := ps[0].admin().SetBalance(testContext(t), &pb.SetBalanceRequest{
		Limits: &pb.BalanceLimits{DownAfterMs: 10_000},
	}); err != nil {
		t.Fatal(err)
	}
	l := newLedger(startSeed(t))
	l.put(t, ps[1], 20, shards)
	lead := driving(t, ps...)
	var lost *proc
	for _, p := range ps {
		if p != lead {
			lost = p
		}
	}
	gone := uint64(lost.store())
	lost.halt()
	eventually(t, "its replicas are elsewhere", func(ctx context.Context) error {
		voters, _, err := counts(ctx, lead)
		if err == nil && voters[gone] > 0 {
			err = fmt.Errorf("voters %v", voters)
		}
		return err
	})
	l.check(t, lead)
}

func TestWhatTheMetaLeaderHasMistakenIsPutRightByTheDigest(t *testing.T) {
	const shards = 2
	ps := balancedProcs(t, 2, shards)
	atRest(t, ps[0])
	lead := driving(t, ps...)
	other := ps[0]
	if other == lead {
		other = ps[1]
	}
	c := &lead.member().plan
	held := func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		p := c.view.Shard(2).On(other.store())
		return p != nil && p.Reported()
	}
	if !held() {
		t.Fatal("s2 is not reported by the other node")
	}
	c.mu.Lock()
	s := c.view.Store(other.store())
	_, err := c.view.Report(&plan.StoreReport{
		Store: s.ID, Incarnation: s.Incarnation, Number: s.Number, At: lead.member().clock.Boot(), Removed: []base.ShardID{2},
	})
	c.mu.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	if held() {
		t.Fatal("the mistake was not made")
	}
	eventually(t, "the view is right again", func(context.Context) error {
		if !held() {
			return errPending
		}
		return nil
	})
}

func TestShardsSplitBySizeAndAtKeysAndSpread(t *testing.T) {
	p := newProc(t, "p0")
	p.tune = func(cfg *Config) {
		balanced(cfg)
		cfg.Settings.SplitBytes = 256 << 10
	}
	p.start()
	ctx := testContext(t)
	if _, err := p.admin().Init(ctx, &pb.InitRequest{}); err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(uint64(startSeed(t)), 1))
	value := make([]byte, 4<<10)
	for i := range 300 {
		for j := range value {
			value[j] = byte(rng.Uint32())
		}
		eventually(t, "put", func(ctx context.Context) error {
			_, err := p.kv().Put(ctx, &pb.PutRequest{Key: fmt.Appendf(nil, "u%04d", i), Value: value})
			return err
		})
	}
	shards := func(ctx context.Context) int {
		st, err := p.admin().ClusterStatus(ctx, &pb.ClusterStatusRequest{})
		if err != nil {
			return 0
		}
		return int(st.Shards)
	}
	eventually(t, "it has split by size", func(ctx context.Context) error {
		if n := shards(ctx); n < 5 {
			return fmt.Errorf("%d shards", n)
		}
		return nil
	})
	st := atRest(t, p)
	before := shards(ctx)
	resp, err := p.admin().StartJob(ctx, &pb.StartJobRequest{Spec: &pb.JobSpec{
		Kind: "split", Keys: [][]byte{base.UserKey([]byte("a")), base.UserKey([]byte("b")), base.UserKey([]byte("u0150x"))},
	}})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is split at keys", func(ctx context.Context) error {
		j, err := p.admin().GetJob(ctx, &pb.GetJobRequest{JobId: resp.Job.JobId})
		if err == nil && j.Job.State != "done" {
			err = fmt.Errorf("%v", j.Job)
		}
		return err
	})
	// The index of shards follows with the next reports.
	eventually(t, "the index has the new shards", func(ctx context.Context) error {
		if n := shards(ctx); n != before+3 {
			return fmt.Errorf("%d shards, were %d; %v", n, before, st)
		}
		return nil
	})
	eventually(t, "the life of a shard tells of its splits", func(ctx context.Context) error {
		log, err := p.admin().ShardLog(ctx, &pb.ShardLogRequest{ShardId: 2})
		if err == nil && !strings.Contains(fmt.Sprint(log.Events), "was split off") {
			err = fmt.Errorf("%v", log.Events)
		}
		return err
	})
}
