package node

import (
	"context"
	"errors"
	"maps"
	"slices"
	"testing"

	pb "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/clock"
	"github.com/shardd/shardd/placement"
	"github.com/shardd/shardd/shard"
)

// toldStore is a store of which a test says what it holds and what has news.
type toldStore struct {
	sums     map[base.ShardID]shard.Summary
	news     map[base.ShardID]bool
	gone     []base.ShardID
	progress map[base.ShardID][]shard.Progress
	looks    int
}

func (s *toldStore) Changed() (sums []shard.Summary, gone []base.ShardID) {
	for id := range s.news {
		sums = append(sums, s.sums[id])
	}
	s.news, gone, s.gone = nil, s.gone, nil
	return sums, gone
}

func (s *toldStore) Summaries() []shard.Summary { return slices.Collect(maps.Values(s.sums)) }

func (s *toldStore) Summary(id base.ShardID) (shard.Summary, bool) {
	s.looks++
	sum, ok := s.sums[id]
	return sum, ok
}

func (s *toldStore) ProgressOf(context.Context, []base.ShardID) map[base.ShardID][]shard.Progress {
	return s.progress
}

// newTeller returns a store of so many led shards, and a report of it as the meta leader answers or does not.
func newTeller(shards int) (s *toldStore, m *member, report func(answered bool) *pb.ReportRequest) {
	s = &toldStore{sums: make(map[base.ShardID]shard.Summary)}
	for id := base.ShardID(1); id <= base.ShardID(shards); id++ {
		s.sums[id] = shard.Summary{Shard: id, Replica: 3, Leads: true, Term: 4, Desc: descOn(id, 1, 2)}
	}
	m = &member{clock: clock.System()}
	m.reports.sent.full = true
	return s, m, func(answered bool) *pb.ReportRequest {
		req := &pb.ReportRequest{}
		done := m.tellReplicas(context.Background(), s, req)
		if answered {
			done()
			m.reports.sent.full = false
		}
		return req
	}
}

func TestReportTellsAgainWhatWasToldWithoutAnAnswer(t *testing.T) {
	s, _, report := newTeller(2)
	report(true)
	if req := report(true); req.Full || len(req.Replicas) != 0 {
		t.Fatalf("nothing new is told as %v", req)
	}
	s.progress = map[base.ShardID][]shard.Progress{1: {{Replica: 4, Active: true, PendingSnapshot: 9}}}
	if req := report(false); len(req.Replicas) != 1 || len(req.Replicas[0].Behind) != 1 {
		t.Fatalf("a follower that is behind is told as %v", req)
	}
	// It is as it was before: that is to be told, as the leader may have heard what was not answered.
	s.progress = map[base.ShardID][]shard.Progress{1: {{Replica: 4, Active: true}}}
	for _, answered := range []bool{false, true} {
		if req := report(answered); len(req.Replicas) != 1 || req.Replicas[0].ShardId != 1 || len(req.Replicas[0].Behind) != 0 {
			t.Fatalf("a follower that is not behind any more is told as %v", req)
		}
	}
	if req := report(true); len(req.Replicas) != 0 {
		t.Fatalf("told again after the answer: %v", req)
	}
	// A replica that came and went within reports without an answer.
	s.sums[3], s.news = shard.Summary{Shard: 3, Replica: 3, Desc: descOn(3, 1, 2)}, map[base.ShardID]bool{3: true}
	report(false)
	delete(s.sums, 3)
	s.gone = []base.ShardID{3}
	for _, answered := range []bool{false, true} {
		if req := report(answered); !slices.Equal(req.Removed, []uint64{3}) {
			t.Fatalf("removed %v, want 3", req.Removed)
		}
	}
	if req := report(true); len(req.Removed) != 0 {
		t.Fatalf("removed %v again", req.Removed)
	}
}

func TestReportFindsInTimeWhatChangedWithoutNews(t *testing.T) {
	const shards = 10 * lookTurn
	s, _, report := newTeller(shards)
	report(true)
	sum := s.sums[5]
	sum.Leads, sum.Faulted = false, "damaged"
	s.sums[5] = sum
	delete(s.sums, 6)
	s.looks = 0
	var faulted string
	var removed []uint64
	var last *pb.ReportRequest
	for range shards / lookTurn {
		last = report(true)
		for _, r := range last.Replicas {
			faulted += r.Faulted
		}
		removed = append(removed, last.Removed...)
	}
	if faulted != "damaged" || !slices.Equal(removed, []uint64{6}) || last.LeaderCount != shards-2 {
		t.Errorf("told fault %q, removed %v, %d leaders", faulted, removed, last.LeaderCount)
	}
	if s.looks > shards {
		t.Errorf("%d looks at %d replicas", s.looks, shards)
	}
}

func TestReportDropsNewsWhileThereIsNobodyToTellItTo(t *testing.T) {
	s, m, report := newTeller(2)
	report(true)
	s.news, s.gone = map[base.ShardID]bool{1: true}, []base.ShardID{2}
	delete(s.sums, 2)
	m.reports.sent.skip(s, skipEach)
	if s.news != nil || s.gone != nil {
		t.Fatal("the news piles up")
	}
	if req := report(true); !req.Full || len(req.Replicas) != 1 || req.ReplicaCount != 1 {
		t.Fatalf("the next report tells %v", req)
	}
}

func TestReportTakenUnderAnEarlierLeadershipIsRefused(t *testing.T) {
	r := &reports{view: placement.NewView(clock.System())}
	d := descOn(7, 2)
	told := &placement.Report{
		Node: placement.Node{ID: 2, Incarnation: 1}, Full: true, States: []placement.ReplicaState{{Desc: d, Leads: true, Term: 4}},
	}
	r.enterTerm(5)
	r.enterTerm(7) // while the report taken at 5 waits for the meta shard
	r.enterTerm(5)
	if _, err := r.add(5, told); !errors.Is(err, placement.ErrStale) || len(r.view.Stores()) != 0 {
		t.Errorf("a report of term 5 at term 7: %v, %d stores", err, len(r.view.Stores()))
	}
	if _, err := r.add(7, told); err != nil || r.view.Shard(d).Leader != 2 {
		t.Errorf("at term 7: %v", err)
	}
}
