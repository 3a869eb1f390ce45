package placement

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/shardd/shardd/internal/base"
)

func shardOf(id base.ShardID, leader base.StoreID, replicas ...base.ReplicaDesc) *ShardNow {
	now := &ShardNow{Leader: leader, Term: 6, Desc: &base.Descriptor{
		Shard: id, Start: []byte("\x02a"), End: []byte("\x02b"), Epoch: base.Epoch{ConfVer: 5, Version: 1}, NextReplicaID: 20,
		Replicas: replicas,
	}}
	for _, r := range replicas {
		now.Progress = append(now.Progress, ReplicaNow{
			Replica: r.Replica, Store: r.Store, Match: 9, Last: 9, Bytes: 64 << 20,
		})
	}
	return now
}

func voterOn(s base.StoreID) base.ReplicaDesc {
	return base.ReplicaDesc{Replica: base.ReplicaID(s), Store: s, Role: base.RoleVoter}
}

func learnerOn(s base.StoreID) base.ReplicaDesc {
	return base.ReplicaDesc{Replica: base.ReplicaID(s), Store: s, Role: base.RoleLearner}
}

func liveNodes(n int) map[base.StoreID]NodeNow {
	out := make(map[base.StoreID]NodeNow)
	for id := base.StoreID(1); id <= base.StoreID(n); id++ {
		out[id] = NodeNow{ID: id, Heard: true, Alive: true, Level: LevelOK, FreeBytes: 1 << 30, Replicas: uint32(id)}
	}
	return out
}

func TestPlanRefusesWithReasonAndRemedy(t *testing.T) {
	three := shardOf(12, 1, voterOn(1), voterOn(2), voterOn(3))
	joint := shardOf(12, 1, voterOn(1), base.ReplicaDesc{Replica: 2, Store: 2, Role: base.RoleIncoming})
	with := func(id base.StoreID, change func(*NodeNow)) map[base.StoreID]NodeNow {
		nodes := liveNodes(5)
		n := nodes[id]
		change(&n)
		nodes[id] = n
		return nodes
	}
	move := JobSpec{Kind: JobMove, Shard: 12, From: 2, To: 4}
	for _, c := range []struct {
		name  string
		spec  JobSpec
		now   *ShardNow
		nodes map[base.StoreID]NodeNow
		want  string // "" : accepted
	}{
		{"move", move, three, liveNodes(5), ""},
		{"unknown node", JobSpec{Kind: JobMove, Shard: 12, From: 2, To: 9}, three, liveNodes(5),
			"there is no node n9: shardctl nodes list"},
		{"target has one", JobSpec{Kind: JobMove, Shard: 12, From: 2, To: 3}, three, liveNodes(5),
			"n3 already has a replica of s12: it has replicas on n1, n2, n3"},
		{"source has none", JobSpec{Kind: JobMove, Shard: 12, From: 5, To: 4}, three, liveNodes(5),
			"n5 has no replica of s12"},
		{"draining", move, three, with(4, func(n *NodeNow) { n.Draining = DrainLeaders }),
			"n4 is being drained: shardctl nodes undrain n4"},
		{"disk low", move, three, with(4, func(n *NodeNow) { n.Level = "low" }), "n4 is low on disk (low): free space"},
		{"too big", move, three, with(4, func(n *NodeNow) { n.FreeBytes = 1 << 20 }),
			"n4 has 1 MiB free and the shard takes 64 MiB"},
		{"dead", move, three, with(4, func(n *NodeNow) { n.Alive = false }), "n4 does not report: start it"},
		{"unhealthy", move, three, with(4, func(n *NodeNow) { n.Unhealthy = "disk stalls" }),
			"n4 is unhealthy (disk stalls)"},
		{"joint", move, joint, liveNodes(5), "in the middle of a change (Joint): try again"},
		{"last replica", JobSpec{Kind: JobRemoveReplica, Shard: 12, From: 1}, shardOf(12, 1, voterOn(1)), liveNodes(5),
			"it is the only replica of s12: add one"},
		{"last voter", JobSpec{Kind: JobRemoveReplica, Shard: 12, From: 1}, shardOf(12, 1, voterOn(1), learnerOn(2)),
			liveNodes(5), "s12 would have no voter left: add a replica"},
		{"quorum", JobSpec{Kind: JobRemoveReplica, Shard: 12, From: 3}, three, with(2, func(n *NodeNow) { n.Alive = false }),
			"only 1 of the 2 voters that s12 would have are alive (n2 not)"},
		{"remove the dead one", JobSpec{Kind: JobRemoveReplica, Shard: 12, From: 2}, three,
			with(2, func(n *NodeNow) { n.Alive = false }), ""},
		{"move off the dead one", move, three, with(2, func(n *NodeNow) { n.Alive = false }), ""},
		{"remove a learner", JobSpec{Kind: JobRemoveReplica, Shard: 12, From: 2}, shardOf(12, 1, voterOn(1), learnerOn(2)),
			liveNodes(5), ""},
		{"promote a voter", JobSpec{Kind: JobPromote, Shard: 12, To: 3}, three, liveNodes(5),
			"is a voter: there is nothing to do"},
		{"promote nothing", JobSpec{Kind: JobPromote, Shard: 12, To: 4}, three, liveNodes(5), "n4 has no replica of s12"},
		{"promote", JobSpec{Kind: JobPromote, Shard: 12, To: 2}, shardOf(12, 1, voterOn(1), learnerOn(2)), liveNodes(5), ""},
		{"add", JobSpec{Kind: JobAddReplica, Shard: 12, To: 4}, three, liveNodes(5), ""},
	} {
		j, err := Plan(c.spec, c.now, c.nodes)
		var refused *RefusedError
		switch {
		case c.want == "" && err != nil:
			t.Errorf("%s: %v", c.name, err)
		case c.want == "" && (j.State != JobRunning || len(j.Steps) == 0):
			t.Errorf("%s: %+v", c.name, j)
		case c.want != "" && (!errors.As(err, &refused) || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
}

func TestPlanSaysTheStepsWithTheirBytes(t *testing.T) {
	j, err := Plan(JobSpec{Kind: JobMove, Shard: 12, From: 2, To: 4},
		shardOf(12, 1, voterOn(1), voterOn(2), voterOn(3)), liveNodes(5))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, s := range j.Steps {
		got = append(got, fmt.Sprintf("%s %s %d", s.Name, s.State, s.Bytes))
	}
	want := "add learner n4 waiting 0, snapshot waiting 67108864, catch up waiting 0, " +
		"joint: promote n4, demote n2 waiting 0, leave joint waiting 0, remove n2 waiting 0, gone from n2 waiting 0"
	if s := strings.Join(got, ", "); s != want || j.Replica != 2 {
		t.Errorf("replica %s, steps\n%s\nwant\n%s", j.Replica, s, want)
	}
}

func TestASpecWithoutWhatItsKindNeedsIsInvalid(t *testing.T) {
	for _, s := range []JobSpec{
		{}, {Kind: 9}, {Kind: JobMove, Shard: 1, From: 2}, {Kind: JobMove, From: 2, To: 3},
		{Kind: JobMove, Shard: 1, From: 2, To: 2}, {Kind: JobAddReplica, Shard: 1}, {Kind: JobRemoveReplica, Shard: 1, To: 2},
		{Kind: JobPromote, To: 3}, {Kind: JobDrain},
	} {
		if err := CheckSpec(s); !errors.Is(err, ErrInvalid) {
			t.Errorf("%+v: %v", s, err)
		}
	}
	if err := CheckSpec(JobSpec{Kind: JobVerify}); err != nil {
		t.Error(err)
	}
}

func TestTheTargetIsTheFittestNodeWithTheFewestReplicas(t *testing.T) {
	d := shardOf(12, 1, voterOn(1), voterOn(2)).Desc
	nodes := liveNodes(6)
	if to, _ := PickTarget(d, nodes); to != 3 {
		t.Errorf("picked %s", to)
	}
	set := func(id base.StoreID, change func(*NodeNow)) {
		n := nodes[id]
		change(&n)
		nodes[id] = n
	}
	set(3, func(n *NodeNow) { n.Draining = DrainReplicas })
	set(4, func(n *NodeNow) { n.Level = "critical" })
	set(5, func(n *NodeNow) { n.Alive = false })
	if to, _ := PickTarget(d, nodes); to != 6 {
		t.Errorf("picked %s", to)
	}
	set(6, func(n *NodeNow) { n.Unhealthy = "sync takes 3 s" })
	to, why := PickTarget(d, nodes)
	want := "n1 has one, n2 has one, n3 is being drained, n4 is low on disk (critical), n5 does not report, " +
		"n6 is unhealthy (sync takes 3 s)"
	if to != 0 || why != want {
		t.Errorf("picked %s: %s", to, why)
	}
}

// drainCase is a drain of n1 with shards on n1 and n2.
func drainCase(nodes int) (*Job, DrainWorld) {
	j := &Job{ID: 7, Spec: JobSpec{Kind: JobDrain, From: 1, Replicas: true}, State: JobRunning}
	w := DrainWorld{Nodes: liveNodes(nodes), Now: time.Hour}
	n := w.Nodes[1]
	n.Draining, n.Replicas, n.Leaders = DrainReplicas, 3, 2
	w.Nodes[1] = n
	for _, id := range []base.ShardID{1, 13, 12} {
		w.Shards = append(w.Shards, shardOf(id, 1, voterOn(1), voterOn(2)).Desc)
	}
	return j, w
}

func stepTexts(steps []Step) string {
	var b strings.Builder
	for _, s := range steps {
		fmt.Fprintf(&b, "%s %s %d/%d %s\n", s.Name, s.State, s.Done, s.Total, s.Detail)
	}
	return b.String()
}

func TestADrainMovesTwoReplicasAtATimeTheMetaShardLast(t *testing.T) {
	j, w := drainCase(4)
	a := NextDrain(j, w)
	if len(a.Start) != 2 || a.Start[0].Shard != 12 || a.Start[0].To != 3 || a.Start[1].Shard != 13 || a.Start[1].To != 3 ||
		a.Start[0].Replica != 1 || a.Total != 3 || a.End {
		t.Fatalf("%+v", a)
	}
	j.Moves, j.Total = a.Start, a.Total
	if a = NextDrain(j, w); len(a.Start) != 0 {
		t.Errorf("more than two at a time: %+v", a.Start)
	}
	j.Moves, w.Shards = nil, w.Shards[:1]
	a = NextDrain(j, w)
	if len(a.Start) != 1 || a.Start[0].Shard != base.MetaShard || a.Done != 2 {
		t.Errorf("%+v", a)
	}
	// All have left the shards; the disk is waited for.
	w.Shards = nil
	if a = NextDrain(j, w); a.End || !strings.Contains(stepTexts(a.Steps), "still has 3 replicas on its disk") {
		t.Errorf("%+v", a)
	}
	n := w.Nodes[1]
	n.Replicas, n.Leaders = 0, 0
	w.Nodes[1] = n
	if a = NextDrain(j, w); !a.End || a.State != JobDone || a.Done != 3 {
		t.Errorf("%+v", a)
	}
}

func TestWhatBlocksADrainIsShownAtOnceAndFailsItInTheEnd(t *testing.T) {
	j, w := drainCase(2)
	a := NextDrain(j, w)
	want := "no node left that could take s12 (n1 has one, n2 has one)"
	if text := stepTexts(a.Steps); a.End || len(a.Start) > 0 || !strings.Contains(text, "blocked: "+want) {
		t.Fatalf("%+v\n%s", a, text)
	}
	w.Watch = w.Watch.See(a.At, w.Now)
	w.Now += 10 * time.Minute
	if a = NextDrain(j, w); !a.End || a.State != JobFailed || !strings.Contains(a.Reason, want) {
		t.Errorf("%+v", a)
	}
	// A move that was undone rests, and says why.
	j, w = drainCase(4)
	w.Resting = map[base.ShardID]string{12: "the snapshot stalled"}
	a = NextDrain(j, w)
	if len(a.Start) != 2 || a.Start[0].Shard != 13 || !strings.Contains(stepTexts(a.Steps), "s12: the snapshot stalled") {
		t.Errorf("%+v", a)
	}
}

func TestADrainChoosesNothingBeforeAllNodesAreHeard(t *testing.T) {
	j, w := drainCase(4)
	w.Settling = true
	if a := NextDrain(j, w); len(a.Start) > 0 || a.End {
		t.Errorf("%+v", a)
	}
}

func TestACancelledOrUndrainedDrainWaitsForItsMoves(t *testing.T) {
	for _, undrained := range []bool{false, true} {
		j, w := drainCase(4)
		j.Moves = []Move{{Shard: 12, Replica: 1, To: 3, State: JobRunning}}
		if undrained {
			n := w.Nodes[1]
			n.Draining = DrainNone
			w.Nodes[1] = n
		} else {
			j.State = JobCancelling
		}
		if a := NextDrain(j, w); a.End || len(a.Start) > 0 {
			t.Errorf("%+v", a)
		}
		j.Moves = nil
		a := NextDrain(j, w)
		if !a.End || a.State != JobCancelled || strings.Contains(a.Reason, "stays marked") == undrained {
			t.Errorf("%+v", a)
		}
	}
}

func TestADrainOfLeadershipsEndsWithTheLast(t *testing.T) {
	j, w := drainCase(4)
	j.Spec.Replicas = false
	w.Shards = append(w.Shards, shardOf(14, 1, voterOn(1)).Desc)
	a := NextDrain(j, w)
	if a.End || len(a.Start) > 0 || !strings.Contains(stepTexts(a.Steps), "s14 has its only voter on n1: add a replica") {
		t.Errorf("%+v", a)
	}
	j.Steps = a.Steps
	n := w.Nodes[1]
	n.Leaders = 0
	w.Nodes[1] = n
	a = NextDrain(j, w)
	if !a.End || a.State != JobDone || !strings.Contains(stepTexts(a.Steps), "leaderships over done 2/2") {
		t.Errorf("%+v", a)
	}
	// A dead node leads nothing.
	j, w = drainCase(4)
	j.Spec.Replicas = false
	n = w.Nodes[1]
	n.Alive = false
	w.Nodes[1] = n
	if a = NextDrain(j, w); !a.End || a.State != JobDone {
		t.Errorf("%+v", a)
	}
}

func TestADryRunOfADrainSaysWhereEachReplicaWouldGo(t *testing.T) {
	j, w := drainCase(4)
	steps := PlanDrain(j, w, func(base.ShardID) uint64 { return 5 })
	got := stepTexts(steps)
	want := "mark n1 waiting 0/0 no leaderships, no new replicas\nhand leaderships over waiting 0/2 \n" +
		"s12 to n3 waiting 0/0 \ns13 to n3 waiting 0/0 \ns1 to n4 waiting 0/0 \n"
	if got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}
