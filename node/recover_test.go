package node

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/engine"
	"github.com/shardd/shardd/internal/base"
)

func (p *proc) id(t *testing.T) uint64 {
	t.Helper()
	st, err := p.admin().NodeStatus(testContext(t), &pb.NodeStatusRequest{})
	if err != nil || st.NodeId == 0 {
		t.Fatalf("%s: %v %v", p.name, st, err)
	}
	return st.NodeId
}

// caughtUp waits until every replica has everything that any replica of its shard has.
func caughtUp(t *testing.T, ps []*proc) {
	t.Helper()
	eventually(t, "all replicas are equal", func(context.Context) error {
		last := map[base.ShardID]uint64{}
		for round := range 2 {
			for _, p := range ps {
				for _, sum := range p.n.member.Load().store.Summaries() {
					switch {
					case round == 0:
						last[sum.Shard] = max(last[sum.Shard], sum.Applied)
					case sum.Applied < last[sum.Shard]:
						return fmt.Errorf("%s on %s is at %d of %d", sum.Shard, p.name, sum.Applied, last[sum.Shard])
					}
				}
			}
		}
		return nil
	})
}

// planned waits until the plan at a node has no problems, and returns it.
func planned(t *testing.T, p *proc, failed []uint64) *pb.RecoverQuorumResponse {
	t.Helper()
	var plan *pb.RecoverQuorumResponse
	eventually(t, "plan", func(ctx context.Context) (err error) {
		plan, err = p.admin().RecoverQuorum(ctx, &pb.RecoverQuorumRequest{Action: "plan", FailedNodes: failed})
		if err == nil && len(plan.Problems) > 0 {
			err = fmt.Errorf("problems: %v", plan.Problems)
		}
		return err
	})
	return plan
}

func begin(t *testing.T, p *proc, failed []uint64, plan *pb.RecoverQuorumResponse) {
	t.Helper()
	eventually(t, "start", func(ctx context.Context) error {
		_, err := p.admin().RecoverQuorum(ctx, &pb.RecoverQuorumRequest{
			Action: "start", FailedNodes: failed, PlanToken: plan.PlanToken,
		})
		return err
	})
}

// recovered waits for the end of a recovery as a node shows it.
func recovered(t *testing.T, p *proc) *pb.RecoverQuorumResponse {
	t.Helper()
	var now *pb.RecoverQuorumResponse
	eventually(t, "the recovery", func(ctx context.Context) (err error) {
		now, err = p.admin().RecoverQuorum(ctx, &pb.RecoverQuorumRequest{Action: "status"})
		if err == nil && now.Stage != "done" {
			err = fmt.Errorf("stage %q, problems %v, shards %v", now.Stage, now.Problems, now.Shards)
		}
		return err
	})
	return now
}

// refusedForGood starts a node that was given up and expects it to end by itself.
func refusedForGood(t *testing.T, p *proc) {
	t.Helper()
	p.start()
	select {
	case <-p.done:
	case <-testContext(t).Done():
		t.Fatalf("%s goes on", p.name)
	}
	if engine.ExitCode(p.err) != engine.ExitOtherStore || !strings.Contains(p.err.Error(), "removed from the cluster") {
		t.Errorf("%s ended with %v", p.name, p.err)
	}
}

func TestOneNodeOfThreeGoesOnAlone(t *testing.T) {
	seed := startSeed(t)
	ps := startProcs(t, 3)
	initAll(t, ps[0], ps, 4)
	settled(t, ps[0], 4)
	l := newLedger(seed)
	l.put(t, ps[0], 60, 4)
	caughtUp(t, ps)
	failed := []uint64{ps[0].id(t), ps[1].id(t)}
	slices.Sort(failed)
	for _, p := range ps[:2] {
		p.kill(50, seed)
	}
	p := ps[2]
	plan := planned(t, p, failed)
	if len(plan.Shards) != 5 || plan.PlanToken == "" {
		t.Fatalf("plan %v", plan)
	}
	for _, s := range plan.Shards {
		if s.Survivor != p.id(t) || s.Loss == "" || s.State != "waiting" || s.LastIndex == 0 {
			t.Errorf("shard %v", s)
		}
	}
	begin(t, p, failed, plan)
	if done := recovered(t, p); len(done.Shards) != 5 || !slices.Equal(done.FailedNodes, failed) {
		t.Errorf("recovered %v", done)
	}
	for _, s := range plan.Shards {
		life, err := p.admin().ShardLog(testContext(t), &pb.ShardLogRequest{ShardId: s.ShardId})
		if err != nil || !slices.ContainsFunc(life.Events, func(e *pb.ShardEvent) bool { return e.Kind == "recovered" }) {
			t.Errorf("the life of s%d does not tell: %v %v", s.ShardId, life, err)
		}
	}
	l.check(t, p)
	l.put(t, p, 20, 4)
	settled(t, p, 4)
	for _, q := range ps[:2] {
		refusedForGood(t, q)
	}
	// The cluster grows again; its nodes and shards get ids that nobody has had.
	fresh := newProc(t, "fresh")
	fresh.join = []string{p.addr}
	fresh.start()
	eventually(t, "a new node", func(ctx context.Context) error {
		nodes, err := p.admin().ListNodes(ctx, &pb.ListNodesRequest{})
		if err != nil {
			return err
		}
		for _, n := range nodes.Nodes {
			removed := slices.Contains(failed, n.NodeId)
			if removed != (n.Commission == "removed") {
				return fmt.Errorf("node %v", n)
			}
		}
		if last := nodes.Nodes[len(nodes.Nodes)-1]; !last.Alive || last.NodeId <= 3 {
			return fmt.Errorf("node %v", last)
		}
		return nil
	})
	id := fresh.id(t)
	runJob(t, p, &pb.JobSpec{Kind: "add-replica", ShardId: plan.Shards[0].ShardId, ToNode: id})
	p.kill(50, seed) // what is on record is on the disk
	p.start()
	l.check(t, p)
	if st := recovered(t, p); st.Stage != "done" {
		t.Errorf("after a restart: %v", st)
	}
	if !fresh.n.member.Load().book.isFenced(base.StoreID(failed[0])) {
		t.Error("a node that came later does not know who was given up")
	}
}

// runJob runs a job to its end.
func runJob(t *testing.T, p *proc, spec *pb.JobSpec) {
	t.Helper()
	var id uint64
	eventually(t, "start job", func(ctx context.Context) error {
		resp, err := p.admin().StartJob(ctx, &pb.StartJobRequest{Spec: spec})
		if err == nil {
			id = resp.Job.JobId
		}
		return err
	})
	eventually(t, "job", func(ctx context.Context) error {
		resp, err := p.admin().GetJob(ctx, &pb.GetJobRequest{JobId: id})
		if err == nil && resp.Job.State != "done" {
			err = fmt.Errorf("job %v", resp.Job)
		}
		return err
	})
}

// TestThreeNodesOfFiveTakeTheMetaShardAndSomeRangesWithThem: each shard has three replicas in a row of the five nodes, so
// that one of them, and the meta shard, has none left.
func TestThreeNodesOfFiveTakeTheMetaShardAndSomeRangesWithThem(t *testing.T) {
	seed := startSeed(t)
	ps := byAddress(startProcs(t, 5))
	initAll(t, ps[0], ps, 5)
	settled(t, ps[0], 5)
	l := newLedger(seed)
	l.put(t, ps[0], 80, 5)
	caughtUp(t, ps)
	var failed []uint64
	for _, p := range ps[:3] {
		failed = append(failed, p.id(t))
	}
	slices.Sort(failed)
	for _, p := range ps[:3] {
		p.kill(50, seed)
	}
	p, other := ps[3], ps[4]
	plan := planned(t, p, failed)
	anew, kept := 0, 0
	for _, s := range plan.Shards {
		switch {
		case s.Survivor != 0:
			kept++
		case s.ShardId == uint64(base.MetaShard):
			anew++
		default:
			anew++
			for key := range l.rows { // it is lost, and the plan says so
				if routing := base.UserKey([]byte(key)); string(routing) >= string(s.Start) && string(routing) < string(s.End) {
					delete(l.rows, key)
				}
			}
		}
	}
	if anew != 2 || kept < 2 {
		t.Fatalf("%d anew, %d kept: %v", anew, kept, plan.Shards)
	}
	begin(t, other, failed, planned(t, other, failed)) // any node can be asked
	recovered(t, p)
	for _, q := range ps[3:] {
		l.check(t, q)
		l.put(t, q, 20, 5) // the whole key space takes writes
	}
	st := settledAnew(t, p, 5)
	if len(st.Nodes) != 5 {
		t.Errorf("nodes %v", st.Nodes)
	}
	refusedForGood(t, ps[1])
}

// settledAnew waits until every shard has a leader, with however few replicas.
func settledAnew(t *testing.T, p *proc, shards int) *pb.ClusterStatusResponse {
	t.Helper()
	var out *pb.ClusterStatusResponse
	eventually(t, "cluster settles", func(ctx context.Context) (err error) {
		out, err = p.admin().ClusterStatus(ctx, &pb.ClusterStatusRequest{})
		if err == nil && (int(out.Shards) != shards+1 || out.ShardsWithoutLeader+out.ShardsCreating > 0) {
			err = fmt.Errorf("status %v", out)
		}
		return err
	})
	return out
}

// TestARecoveryGoesOnAfterACrash kills a survivor, the coordinator or another one, at a step of the recovery; started
// again, everything is recovered, without anybody asking.
func TestARecoveryGoesOnAfterACrash(t *testing.T) {
	for _, c := range []struct {
		who   int // of the survivors: 0 coordinates
		point string
	}{{0, "recovery on record"}, {0, "shard recovered"}, {1, "shard recovered"}} {
		t.Run(fmt.Sprintf("survivor %d at %s", c.who, c.point), func(t *testing.T) {
			seed := startSeed(t)
			ps := byAddress(startProcs(t, 5))
			initAll(t, ps[0], ps, 5)
			settled(t, ps[0], 5)
			var failed []uint64
			for _, p := range []*proc{ps[0], ps[2], ps[4]} { // every range has a survivor
				failed = append(failed, p.id(t))
			}
			slices.Sort(failed)
			l := newLedger(seed)
			l.put(t, ps[1], 40, 5)
			caughtUp(t, ps)
			for _, p := range []*proc{ps[0], ps[2], ps[4]} {
				p.kill(50, seed)
			}
			survivors := []*proc{ps[1], ps[3]}
			plan := planned(t, survivors[0], failed)
			victim := survivors[c.who]
			killed := make(chan struct{})
			var once sync.Once
			victim.n.crash = func(at string) {
				if at == c.point {
					once.Do(func() {
						victim.fs = victim.fs.PowerOff(50, seed)
						close(victim.n.halt)
						close(killed)
					})
				}
			}
			ctx, cancel := context.WithCancel(testContext(t))
			var wg sync.WaitGroup
			wg.Go(func() { // the answer may die with the node
				_, _ = survivors[0].admin().RecoverQuorum(ctx, &pb.RecoverQuorumRequest{
					Action: "start", FailedNodes: failed, PlanToken: plan.PlanToken,
				})
			})
			select {
			case <-killed:
			case <-testContext(t).Done():
				t.Fatalf("no node came to %q", c.point)
			}
			cancel()
			wg.Wait()
			victim.halt()
			victim.start()
			recovered(t, survivors[0])
			for _, p := range survivors {
				l.check(t, p)
				l.put(t, p, 5, 5)
			}
		})
	}
}

// TestAnotherNodeTakesARecoveryOver when the coordinator does not answer; the old one, back again, is none any more.
func TestAnotherNodeTakesARecoveryOver(t *testing.T) {
	seed := startSeed(t)
	ps := byAddress(startProcs(t, 5))
	initAll(t, ps[0], ps, 5)
	settled(t, ps[0], 5)
	failed := []uint64{ps[0].id(t), ps[2].id(t), ps[4].id(t)}
	slices.Sort(failed)
	l := newLedger(seed)
	l.put(t, ps[1], 40, 5)
	caughtUp(t, ps)
	for _, p := range []*proc{ps[0], ps[2], ps[4]} {
		p.kill(50, seed)
	}
	first, second := ps[1], ps[3]
	plan := planned(t, first, failed)
	reached := make(chan struct{})
	var once sync.Once
	second.n.crash = func(at string) { once.Do(func() { close(reached) }) } // a step has been taken here
	begin(t, first, failed, plan)
	select {
	case <-reached:
	case <-testContext(t).Done():
		t.Fatal("no step was taken")
	}
	first.kill(50, seed)
	eventually(t, "the take-over", func(ctx context.Context) error {
		resp, err := second.admin().RecoverQuorum(ctx, &pb.RecoverQuorumRequest{
			Action: "start", FailedNodes: failed, PlanToken: plan.PlanToken,
		})
		if err == nil && resp.Stage == "" {
			err = errPending
		}
		return err
	})
	first.start()
	recovered(t, second)
	eventually(t, "the first one has it from the second", func(context.Context) error {
		id, _ := first.n.eng.Ident()
		if id.Recovery.Coordinator != base.StoreID(second.id(t)) || id.Recovery.Stage != engine.RecoveryDone {
			return fmt.Errorf("record %+v", id.Recovery)
		}
		return nil
	})
	for _, p := range []*proc{first, second} {
		l.check(t, p)
	}
}

func TestARecoveryIsRefusedWhereItIsNotNeededOrNotSafe(t *testing.T) {
	seed := startSeed(t)
	ps := byAddress(startProcs(t, 3))
	initAll(t, ps[0], ps, 2)
	settled(t, ps[0], 2)
	ids := []uint64{ps[0].id(t), ps[1].id(t), ps[2].id(t)}
	ask := func(p *proc, action string, token string, failed ...uint64) (*pb.RecoverQuorumResponse, error) {
		return p.admin().RecoverQuorum(testContext(t), &pb.RecoverQuorumRequest{
			Action: action, FailedNodes: failed, PlanToken: token,
		})
	}
	problem := func(what, want string, p *proc, failed ...uint64) {
		t.Helper()
		plan, err := ask(p, "plan", "", failed...)
		if err != nil || plan.PlanToken != "" || !strings.Contains(strings.Join(plan.Problems, "\n"), want) {
			t.Errorf("%s: %v %v, want %q", what, plan, err, want)
		}
		if _, err := ask(p, "start", "x", failed...); status.Code(err) != codes.FailedPrecondition {
			t.Errorf("%s: start: %v", what, err)
		}
	}
	problem("a live node", "is alive, it answers", ps[0], ids[1])
	problem("the node itself", "is alive, it is the one that was asked", ps[0], ids[0])
	problem("an unknown node", "not known to any node", ps[0], 99)
	ps[2].kill(50, seed)
	problem("one that is not named", "does not answer", ps[0], 99)
	eventually(t, "shards have their quorum", func(ctx context.Context) error {
		plan, err := ps[0].admin().RecoverQuorum(ctx, &pb.RecoverQuorumRequest{Action: "plan", FailedNodes: ids[2:]})
		if err == nil && (len(plan.Problems) > 0 || len(plan.Shards) > 0) {
			err = fmt.Errorf("plan %v", plan)
		}
		return err
	})
	if _, err := ask(ps[0], "start", "", ids[2]); status.Code(err) != codes.FailedPrecondition ||
		!strings.Contains(err.Error(), "no shard has lost its quorum") {
		t.Errorf("with a quorum: %v", err)
	}
	if _, err := ask(ps[0], "cancel", ""); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("cancel of nothing: %v", err)
	}
	if _, err := ask(ps[0], "plan", ""); status.Code(err) != codes.InvalidArgument {
		t.Errorf("plan without nodes: %v", err)
	}
	if now, err := ask(ps[0], "status", ""); err != nil || now.Stage != "" {
		t.Errorf("status of nothing: %v %v", now, err)
	}
	// Nothing was fenced over all this.
	ps[2].start()
	settled(t, ps[1], 2)
}

// TestARecoveryIsCalledOffBeforeAnythingIsMadeNew: a survivor that is away keeps it at its first stage.
func TestARecoveryIsCalledOffBeforeAnythingIsMadeNew(t *testing.T) {
	seed := startSeed(t)
	ps := byAddress(startProcs(t, 5))
	initAll(t, ps[0], ps, 5)
	settled(t, ps[0], 5)
	l := newLedger(seed)
	l.put(t, ps[1], 40, 5)
	lost := []*proc{ps[0], ps[2], ps[4]}
	var failed []uint64
	for _, p := range lost {
		failed = append(failed, p.id(t))
	}
	slices.Sort(failed)
	for _, p := range lost {
		p.kill(100, seed)
	}
	at, away := ps[1], ps[3]
	plan := planned(t, at, failed)
	at.n.crash = func(point string) { // between its own record and the word to the others
		if point == "recovery on record" && !isClosed(away.n.halt) {
			away.fs = away.fs.PowerOff(100, seed)
			close(away.n.halt)
		}
	}
	begin(t, at, failed, plan)
	eventually(t, "it waits for the survivor", func(ctx context.Context) error {
		now, err := at.admin().RecoverQuorum(ctx, &pb.RecoverQuorumRequest{Action: "status"})
		if err == nil && (now.Stage != "fence" || len(now.Problems) == 0) {
			err = fmt.Errorf("status %v", now)
		}
		return err
	})
	away.halt()
	away.start()
	// It is called off in time, or has gone on by then: in that case it only stops, and can be begun again.
	resp, err := at.admin().RecoverQuorum(testContext(t), &pb.RecoverQuorumRequest{Action: "cancel"})
	if err != nil && status.Code(err) != codes.FailedPrecondition {
		t.Fatal(err)
	}
	if resp.GetStage() != "cancelled" {
		now, err := at.admin().RecoverQuorum(testContext(t), &pb.RecoverQuorumRequest{Action: "status"})
		if err != nil {
			t.Fatal(err)
		}
		if now.Stage == "" {
			begin(t, at, failed, planned(t, at, failed))
		}
		recovered(t, at)
		l.check(t, at)
		return
	}
	for _, p := range lost {
		p.start()
	}
	settled(t, ps[0], 5)
	for _, p := range ps {
		l.check(t, p)
	}
}

// TestTheDriverHealsWhatWasRecovered: nodes that join get replicas of everything, and the lost ones do not come back.
func TestTheDriverHealsWhatWasRecovered(t *testing.T) {
	const shards = 4
	seed := startSeed(t)
	ps := balancedProcs(t, 3, shards)
	l := newLedger(seed)
	l.put(t, ps[0], 40, shards)
	eventually(t, "three voters everywhere", func(ctx context.Context) error {
		voters, _, err := counts(ctx, ps[0])
		if err == nil && len(voters) != 3 {
			err = fmt.Errorf("voters %v", voters)
		}
		for id, n := range voters {
			if n != shards+1 && err == nil {
				err = fmt.Errorf("%d voters on n%d", n, id)
			}
		}
		return err
	})
	caughtUp(t, ps)
	failed := []uint64{uint64(ps[0].store()), uint64(ps[1].store())}
	slices.Sort(failed)
	ps[0].kill(50, seed)
	ps[1].kill(50, seed)
	p := ps[2]
	begin(t, p, failed, planned(t, p, failed))
	recovered(t, p)
	ps = []*proc{p, joinBalanced(t, "p3", p), joinBalanced(t, "p4", p)}
	eventually(t, "it is healed", func(ctx context.Context) error {
		voters, _, err := counts(ctx, p)
		if err != nil {
			return err
		}
		for _, q := range ps {
			if voters[uint64(q.store())] != shards+1 || len(voters) != 3 {
				return fmt.Errorf("voters %v", voters)
			}
		}
		return nil
	})
	caughtUp(t, ps)
	p.kill(50, seed) // any of them may go now
	for _, q := range ps[1:] {
		l.check(t, q)
		l.put(t, q, 10, shards)
	}
}
