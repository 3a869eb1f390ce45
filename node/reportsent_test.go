package node

import (
	"context"
	"errors"
	"maps"
	"reflect"
	"slices"
	"testing"
	"testing/synctest"
	"time"

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

func TestWhatWasToldOfAReplicaIsKeptOnceWhileItStays(t *testing.T) {
	s, m, report := newTeller(3)
	sent := &m.reports.sent
	report(true)
	s.news = map[base.ShardID]bool{1: true, 2: true}
	report(true)
	for id := range s.sums {
		if sent.held.all[id] == nil || sent.held.all[id] != sent.answered[id] {
			t.Errorf("shard %d is kept twice", id)
		}
	}
	if sent.open != nil {
		t.Errorf("%d are open, in a map that may have been large", len(sent.open))
	}
	sum := s.sums[2]
	sum.SizeBytes = 1 << 20
	s.sums[2], s.news = sum, map[base.ShardID]bool{2: true}
	report(true)
	sum.SizeBytes++ // too little to be told
	s.sums[2], s.news = sum, map[base.ShardID]bool{2: true}
	if req := report(true); len(req.Replicas) != 0 {
		t.Fatalf("told %v", req)
	}
	if held, told := sent.held.all[2].size, sent.answered[2].size; held != told+1 || len(sent.open) != 1 {
		t.Errorf("held %d, told %d, %d open", held, told, len(sent.open))
	}
}

func TestWhatIsKeptOfAReportIsAllOfIt(t *testing.T) {
	plain := reported{
		said: said{replica: 3, epoch: base.Epoch{ConfVer: 2, Version: 5}, leads: true, term: 7}, put: 9, size: 8, at: 6,
	}
	if k := plain.keep(); k.more != nil || k.reported() != plain {
		t.Errorf("kept %+v of %+v", k, plain)
	}
	const size = 80 // the next is 96
	if n := reflect.TypeFor[told]().Size(); n > size {
		t.Errorf("%d bytes are kept of each replica, want at most %d", n, size)
	}
	for name, change := range map[string]func(*reported){
		"load":   func(r *reported) { r.load.Writes = 2 },
		"fault":  func(r *reported) { r.faulted = "disk" },
		"into":   func(r *reported) { r.into = 4 },
		"merge":  func(r *reported) { r.merge = 5 },
		"hot":    func(r *reported) { r.hot = "k" },
		"split":  func(r *reported) { r.split = "k" },
		"silent": func(r *reported) { r.silent = "12345678" },
		"behind": func(r *reported) { r.behind = "12345678" },
		"none":   func(r *reported) { r.uninitialised = true },
	} {
		r := plain
		change(&r)
		if got := r.keep().reported(); got != r {
			t.Errorf("%s: kept %+v of %+v", name, got, r)
		}
		if r.says(&plain) {
			t.Errorf("%s: no difference", name)
		}
	}
	later := plain
	if later.at++; !later.says(&plain) {
		t.Error("the time alone is a difference")
	}
	if got := (*told)(nil).reported(); got != (reported{}) {
		t.Errorf("nothing is %+v", got)
	}
}

func TestReportsWaitForTheNextMomentInStepOrForNews(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &reports{wake: make(chan struct{}, 1)}
		wait := func() time.Duration {
			began := time.Now()
			if !r.await(t.Context(), time.Second) {
				t.Fatal("the context has ended")
			}
			return time.Since(began)
		}
		if took := wait() + wait(); took > 2*time.Second {
			t.Errorf("the first two come after %s", took)
		}
		for range 3 {
			if took := wait(); took != time.Second {
				t.Errorf("the next comes after %s", took)
			}
		}
		r.wakeUp()
		time.AfterFunc(reportGap/2, r.wakeUp)
		if took := wait(); took != reportGap {
			t.Errorf("news is told after %s", took)
		}
		if took := wait(); took != time.Second-reportGap {
			t.Errorf("what shared a report is told again after %s", took)
		}
	})
}
