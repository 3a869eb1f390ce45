package node

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	pb "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/engine"
)

func TestThreeNodesServeEveryKeyOnEveryNode(t *testing.T) {
	ps := startProcs(t, 3)
	for _, p := range ps {
		st, err := p.admin().NodeStatus(testContext(t), &pb.NodeStatusRequest{})
		if err != nil || st.Waiting != waitingText || st.ClusterId != "" {
			t.Fatalf("before init: %v %v", st, err)
		}
		if _, err := p.kv().Get(testContext(t), &pb.GetRequest{Key: []byte("a")}); status.Code(err) != codes.Unavailable {
			t.Errorf("get before init: %v", err)
		}
	}
	resp := initAll(t, ps[1], ps, 16) // whichever it is, it forwards to the lowest
	if resp.Existed {
		t.Error("a new cluster existed before")
	}
	l := newLedger(startSeed(t))
	for _, p := range ps {
		l.put(t, p, 40, 16)
	}
	for _, p := range ps {
		l.check(t, p)
	}
	st := settled(t, ps[2], 16)
	if len(st.Nodes) != 3 || st.ClusterId != resp.ClusterId {
		t.Errorf("status: %v", st)
	}
	for _, p := range ps {
		eventually(t, "ready", func(ctx context.Context) error {
			h, err := healthpb.NewHealthClient(p.conn).Check(ctx, &healthpb.HealthCheckRequest{})
			if err == nil && h.Status != healthpb.HealthCheckResponse_SERVING {
				err = errPending
			}
			return err
		})
	}
	again := initAll(t, ps[0], ps, 16)
	if !again.Existed || again.ClusterId != resp.ClusterId {
		t.Errorf("second init: %v", again)
	}
}

func TestConcurrentInitsMakeOneCluster(t *testing.T) {
	ps := startProcs(t, 3)
	var wg sync.WaitGroup
	ids := make([]*pb.InitResponse, 6)
	for i := range ids {
		wg.Go(func() {
			resp, err := ps[i%3].admin().Init(testContext(t), &pb.InitRequest{Nodes: addrs(ps), Splits: splitKeys(4)})
			if err != nil {
				t.Errorf("init %d: %v", i, err)
				return
			}
			ids[i] = resp
		})
	}
	wg.Wait()
	if t.Failed() {
		t.FailNow()
	}
	made := 0
	for _, r := range ids {
		if r.ClusterId != ids[0].ClusterId || r.Shards != 4 {
			t.Errorf("%v against %v", r, ids[0])
		}
		if !r.Existed {
			made++
		}
	}
	if made != 1 {
		t.Errorf("%d calls say that they made the cluster", made)
	}
}

func TestInitGoesOnAfterTheFounderWasKilled(t *testing.T) {
	for _, point := range []string{"meta replica written", "ident written", "node adopted"} {
		for _, keep := range []int{0, 50, 100} {
			t.Run(fmt.Sprintf("%s, %d%% kept", point, keep), func(t *testing.T) {
				killAt(t, point, keep, func(ps []*proc) []*proc { return ps[:1] })
			})
		}
	}
}

func TestInitGoesOnAfterAnAdoptedNodeWasKilled(t *testing.T) {
	for _, point := range []string{"meta replica written", "ident written"} {
		t.Run(point, func(t *testing.T) { killAt(t, point, 50, func(ps []*proc) []*proc { return ps[1:] }) })
	}
}

func TestInitGoesOnAfterTheMetaLeaderWasKilled(t *testing.T) {
	for _, point := range []string{"replicas made", "flags cleared"} {
		for _, keep := range []int{0, 100} {
			t.Run(fmt.Sprintf("%s, %d%% kept", point, keep), func(t *testing.T) {
				killAt(t, point, keep, func(ps []*proc) []*proc { return ps })
			})
		}
	}
}

// killAt kills the first of the armed nodes that comes to the point, starts it again from what its disk kept, and
// expects one finished cluster. arm picks from the nodes in the order of their addresses, founder first.
func killAt(t *testing.T, point string, keep int, arm func([]*proc) []*proc) {
	seed := startSeed(t)
	ps := byAddress(startProcs(t, 3))
	killed := make(chan *proc, 1)
	var once sync.Once
	for _, p := range arm(ps) {
		p.n.crash = func(at string) {
			if at != point {
				return
			}
			once.Do(func() {
				p.fs = p.fs.PowerOff(keep, seed)
				close(p.n.halt)
				killed <- p
			})
		}
	}
	ctx, cancel := context.WithCancel(testContext(t))
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() {
		// The answer may die with the founder; whoever asks, asks again.
		ps[1].admin().Init(ctx, &pb.InitRequest{Nodes: addrs(ps), Splits: splitKeys(5)})
	})
	select {
	case p := <-killed:
		p.halt()
		p.start()
	case <-ctx.Done():
		t.Fatalf("no node came to %q", point)
	}
	var id string
	eventually(t, "init", func(ctx context.Context) error {
		resp, err := ps[2].admin().Init(ctx, &pb.InitRequest{Nodes: addrs(ps), Splits: splitKeys(5)})
		if err != nil {
			return err
		}
		if resp.Shards != 5 {
			t.Fatalf("%d shards, want 5", resp.Shards)
		}
		id = resp.ClusterId
		return nil
	})
	l := newLedger(seed)
	for _, p := range ps {
		l.put(t, p, 5, 5)
	}
	l.check(t, ps[0])
	for _, p := range ps {
		st, err := p.admin().NodeStatus(testContext(t), &pb.NodeStatusRequest{})
		if err != nil || st.ClusterId != id {
			t.Errorf("%s: cluster %s, want %s: %v", p.name, st.GetClusterId(), id, err)
		}
	}
	settled(t, ps[1], 5)
}

func TestFullRestartFindsTheMetaShardFromTheIdents(t *testing.T) {
	seed := startSeed(t)
	ps := startProcs(t, 3)
	id := initAll(t, ps[0], ps, 8).ClusterId
	l := newLedger(seed)
	l.put(t, ps[0], 60, 8)
	for i, p := range ps {
		if i == 0 {
			if err := p.term(); err != nil {
				t.Errorf("graceful stop: %v", err)
			}
			continue
		}
		p.kill(50, seed)
	}
	for _, p := range ps {
		p.start()
	}
	for _, p := range ps {
		l.check(t, p)
	}
	l.put(t, ps[2], 20, 8)
	if st := settled(t, ps[1], 8); st.ClusterId != id {
		t.Errorf("cluster %s, was %s", st.ClusterId, id)
	}
}

func TestNodeOfAnotherClusterRefuses(t *testing.T) {
	ps := startProcs(t, 3)
	one, two := ps[:1], ps[1:]
	initAll(t, one[0], one, 1)
	_, err := two[0].admin().Init(testContext(t), &pb.InitRequest{Nodes: addrs(ps)})
	// Either the founder refuses since the other belongs to a cluster, or it belongs to one that the others are not in.
	if status.Code(err) != codes.FailedPrecondition {
		t.Fatalf("init over a member of another cluster: %v", err)
	}
	for _, p := range two {
		st, err := p.admin().NodeStatus(testContext(t), &pb.NodeStatusRequest{})
		if err != nil || st.ClusterId != "" {
			t.Errorf("%s was changed: %v %v", p.name, st, err)
		}
	}
	initAll(t, two[0], two, 1)
	_, err = two[0].admin().Init(testContext(t), &pb.InitRequest{Nodes: addrs(ps)})
	if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "exit code 11") {
		t.Errorf("init over two clusters: %v", err)
	}
	other, _ := two[0].n.eng.Ident()
	_, err = pb.NewInternalServiceClient(one[0].conn).Report(testContext(t), &pb.ReportRequest{
		ClusterId: other.Cluster[:], NodeId: 2,
	})
	if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "exit code 11") {
		t.Errorf("report of another cluster's node: %v", err)
	}
	_, err = pb.NewInternalServiceClient(one[0].conn).Adopt(testContext(t), &pb.AdoptRequest{
		ClusterId: other.Cluster[:], NodeId: 2, MetaDescriptor: other.Meta.Append(nil),
	})
	if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "exit code 11") {
		t.Errorf("adoption by another cluster: %v", err)
	}
}

func TestFourthNodeJoinsAndServes(t *testing.T) {
	seed := startSeed(t)
	ps := startProcs(t, 3)
	late := newProc(t, "late")
	late.join = addrs(ps)
	late.start() // asks before there is a cluster
	initAll(t, ps[0], ps, 4)
	eventually(t, "join", func(ctx context.Context) error {
		nodes, err := ps[1].admin().ListNodes(ctx, &pb.ListNodesRequest{})
		if err != nil {
			return err
		}
		for _, n := range nodes.Nodes {
			if n.Address == late.addr && n.NodeId == 4 && n.Alive {
				return nil
			}
		}
		return fmt.Errorf("nodes %v", nodes)
	})
	l := newLedger(seed)
	l.put(t, late, 20, 4)
	l.check(t, ps[0])
	if err := late.term(); err != nil {
		t.Fatal(err)
	}
	late.start()
	l.check(t, late)
	st, err := late.admin().NodeStatus(testContext(t), &pb.NodeStatusRequest{})
	if err != nil || st.NodeId != 4 || st.Incarnation != 2 {
		t.Errorf("after a restart: %v %v", st, err)
	}
}

// eachBirth runs a test on a cluster of three that was made at once, and on one that grew.
func eachBirth(t *testing.T, test func(t *testing.T, ps []*proc)) {
	t.Run("founded", func(t *testing.T) {
		ps := startProcs(t, 3)
		initAll(t, ps[0], ps, 2)
		settled(t, ps[0], 2)
		test(t, ps)
	})
	t.Run("grown", func(t *testing.T) {
		ps := growProcs(t, 3, 2)
		for _, id := range allShards(2) {
			ps[0].add(id, ps[1].store())
			ps[0].add(id, ps[2].store())
		}
		test(t, ps)
	})
}

func TestCopiedDataDirectoryIsFenced(t *testing.T) { eachBirth(t, copiedDirectory) }

func copiedDirectory(t *testing.T, ps []*proc) {
	l := newLedger(startSeed(t))
	l.put(t, ps[0], 10, 2)
	// Both claim to be the same node. The copy has the higher incarnation: the original must end.
	copied := newProc(t, "copy")
	copied.fs = ps[2].fs.CrashClone(100, 1)
	copied.start()
	select {
	case <-ps[2].done:
	case <-copied.done:
	case <-testContext(t).Done():
		t.Fatal("both go on")
	}
	err := ps[2].err
	if isClosed(copied.done) {
		err = copied.err
	}
	if engine.ExitCode(err) != engine.ExitOtherStore {
		t.Errorf("ended with %v, exit code %d", err, engine.ExitCode(err))
	}
	l.check(t, ps[0])
}

func TestOldCopyOfADataDirectoryIsFenced(t *testing.T) { eachBirth(t, oldDirectory) }

func oldDirectory(t *testing.T, ps []*proc) {
	old := ps[2].fs.CrashClone(100, 1)
	for range 2 {
		if err := ps[2].term(); err != nil {
			t.Fatal(err)
		}
		ps[2].start()
		settled(t, ps[2], 2)
	}
	if err := ps[2].term(); err != nil {
		t.Fatal(err)
	}
	ps[2].fs = old
	ps[2].start()
	select {
	case <-ps[2].done:
	case <-testContext(t).Done():
		t.Fatal("it goes on")
	}
	if engine.ExitCode(ps[2].err) != engine.ExitOtherStore {
		t.Errorf("ended with %v, exit code %d", ps[2].err, engine.ExitCode(ps[2].err))
	}
	newLedger(startSeed(t)).put(t, ps[0], 10, 2)
}

func TestStoppingNodeHandsItsLeadershipsOver(t *testing.T) {
	ps := startProcs(t, 3)
	initAll(t, ps[0], ps, 12)
	settled(t, ps[0], 12)
	victim := ps[1]
	if err := victim.term(); err != nil {
		t.Fatalf("stop: %v", err)
	}
	// All that it led is led by others already, at a term that they did not have to campaign for by time-out.
	for _, p := range []*proc{ps[0], ps[2]} {
		m := p.n.member.Load()
		for _, sum := range m.store.Summaries() {
			if sum.Leader == victim.n.self() {
				t.Errorf("%s: %s still follows the stopped node", p.name, sum.Desc.Shard)
			}
		}
	}
	l := newLedger(startSeed(t))
	l.put(t, ps[0], 24, 12)
	l.check(t, ps[2])
}

func TestTransferLeaderFromAnyNode(t *testing.T) {
	ps := startProcs(t, 3)
	initAll(t, ps[0], ps, 3)
	settled(t, ps[0], 3)
	for _, at := range ps {
		for to := uint64(1); to <= 3; to++ {
			var resp *pb.TransferLeaderResponse
			eventually(t, "transfer", func(ctx context.Context) (err error) {
				resp, err = at.admin().TransferLeader(ctx, &pb.TransferLeaderRequest{ShardId: 2, ToNode: to})
				return err
			})
			d, err := at.admin().DescribeShard(testContext(t), &pb.DescribeShardRequest{ShardId: 2})
			if err != nil || len(d.Replicas) != 3 {
				t.Fatalf("describe: %v %v", d, err)
			}
			if d.Shard.Leader != to && d.Shard.Term <= resp.Term {
				t.Errorf("leader is n%d at term %d after a transfer to n%d at %d", d.Shard.Leader, d.Shard.Term, to, resp.Term)
			}
		}
	}
	_, err := ps[0].admin().TransferLeader(testContext(t), &pb.TransferLeaderRequest{ShardId: 2, ToNode: 9})
	if status.Code(err) != codes.FailedPrecondition {
		t.Errorf("transfer to a node without replica: %v", err)
	}
	_, err = ps[0].admin().DescribeShard(testContext(t), &pb.DescribeShardRequest{ShardId: 99})
	if status.Code(err) != codes.NotFound {
		t.Errorf("describe unknown shard: %v", err)
	}
}

func TestNewRefusesADirectoryInUseWithItsExitCode(t *testing.T) {
	p := newProc(t, "p").start()
	cfg := p.config()
	cfg.Listen = "127.0.0.1:0"
	_, err := New(cfg)
	if engine.ExitCode(err) != engine.ExitInUse {
		t.Errorf("second node on one directory: %v", err)
	}
	cfg = newProc(t, "q").config()
	cfg.Listen = p.addr
	if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), p.addr) {
		t.Errorf("second node on one port: %v", err)
	}
	var open *engine.OpenError
	if !errors.As(p.n.refused(engine.ExitOtherCluster, errors.New("x")), &open) || open.Code != 11 {
		t.Errorf("refusal has no code: %v", open)
	}
}
