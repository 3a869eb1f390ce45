package node

import (
	"strings"
	"testing"

	pb "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/placement"
)

func TestAScatterSpreadsReplicasAndLeadersOfARange(t *testing.T) {
	b := newJobBench(t)
	r, _ := b.runner(4)
	var keys []string
	for c := 'b'; c < 'f'; c++ {
		keys = append(keys, string(c))
	}
	b.await(b.start(r, &pb.JobSpec{Kind: "split", Keys: userKeys(keys...)}).ID, placement.JobDone)
	spec := &pb.JobSpec{Kind: "scatter", Start: base.UserStart(), End: base.UserKey([]byte("g"))}
	dry, err := r.start(testContext(t), spec, true)
	if err != nil || dry.ID != 0 || len(dry.Steps) < 3 {
		t.Fatalf("dry run: %+v %v", dry, err)
	}
	b.await(b.start(r, spec).ID, placement.JobDone)
	replicas, leaders := map[base.StoreID]int{}, map[base.StoreID]int{}
	b.fakeCluster.mu.Lock()
	for _, s := range b.fakeCluster.mu.shards {
		d := s.Desc
		if d.Shard == base.MetaShard || string(d.Start) >= string(base.UserKey([]byte("g"))) {
			continue
		}
		leaders[s.Leader]++
		for _, rep := range d.Replicas {
			replicas[rep.Store]++
		}
	}
	others := b.fakeCluster.mu.shards[3].Desc.String()
	b.fakeCluster.mu.Unlock()
	for id := base.StoreID(1); id <= 5; id++ {
		if replicas[id] != 3 || leaders[id] > 2 {
			t.Errorf("%s has %d replicas and %d leaders of 15 and 5", id, replicas[id], leaders[id])
		}
	}
	if !strings.Contains(others, "n1") || !strings.Contains(others, "n2") || !strings.Contains(others, "n3") {
		t.Errorf("a shard outside the range has moved: %s", others)
	}
	if _, err := r.start(testContext(t), &pb.JobSpec{Kind: "scatter"}, false); err == nil {
		t.Error("a scatter of nothing is started")
	}
}

func TestAScatterThatIsAlwaysUndoneEnds(t *testing.T) {
	b := newJobBench(t)
	j := &placement.Job{
		Spec:  placement.JobSpec{Kind: placement.JobScatter, Start: base.UserStart(), End: base.UserEnd()},
		State: placement.JobRunning, Done: 3 * scatterSteps, // of the three shards, by an earlier meta leader
	}
	if err := b.dir.CreateJob(testContext(t), j); err != nil {
		t.Fatal(err)
	}
	b.runner(4)
	b.await(j.ID, placement.JobDone)
	b.fakeCluster.mu.Lock()
	defer b.fakeCluster.mu.Unlock()
	if n := len(b.fakeCluster.mu.changes); n > 0 {
		t.Errorf("it still made %d changes: %v", n, b.fakeCluster.mu.changes)
	}
}
