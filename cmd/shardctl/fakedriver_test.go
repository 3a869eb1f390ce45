package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	sharddv1 "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/client/admin"
)

// fakeDriver is the state of the placement driver of a fakeCluster, guarded by its mutex.
type fakeDriver struct {
	paused   []string
	set      *sharddv1.BalanceLimits
	rules    string
	revision uint64
	recovery fakeRecovery
}

// before is a moment of the past, far enough from the next unit that a slow test shows the same age.
func before(d time.Duration) uint64 { return uint64(time.Now().Add(-d - 20*time.Second).UnixMilli()) }

func (f *fakeCluster) Why(_ context.Context, r *sharddv1.WhyRequest) (*sharddv1.WhyResponse, error) {
	switch {
	case r.GetShardId() == 99:
		return nil, status.Error(codes.NotFound, "no shard s99")
	case r.GetNodeId() != 0:
		return &sharddv1.WhyResponse{Summary: "n1: up, 3 replicas, 2 leaders, disk 5.0 MiB used and 7.0 GiB free"}, nil
	case r.GetOperatorId() != 0:
		return &sharddv1.WhyResponse{Summary: "move s2 from n2 to n4: running, waits for the snapshot",
			Past: []*sharddv1.Decision{{UnixMs: before(3 * time.Minute), By: "rules", Outcome: "begun: n2 is in the zone of n1",
				OperatorId: r.GetOperatorId()}}}, nil
	}
	considered := []*sharddv1.Candidate{
		{What: "n4", Verdict: "chosen", Score: 0.91234, Detail: "zone c, fewest replicas"},
		{What: "n3", Verdict: "disk-low", Detail: "90.0 MiB free"},
		{What: "n1", Verdict: "has-replica"}}
	return &sharddv1.WhyResponse{
		Summary: "[first, m) on n1 n2, led by n1: short of a voter, n2 is down for 1m1s",
		Now: []*sharddv1.Decision{{By: "checks", Outcome: "as of now", Candidates: []*sharddv1.Candidate{
			{What: "replicas", Detail: "2 of 3 voters are up"}, {What: "rule", Detail: "default holds"}}}, {By: "replicas", Subject: "s2", Outcome: "would replace n2 by n4 once n2 is down for 5m0s",
			Candidates: considered}, {By: "merges", Subject: "s2", Outcome: "not small: 256.0 MiB"}},
		Past: []*sharddv1.Decision{
			{UnixMs: before(5 * time.Minute), By: "leaders", Outcome: "moved leadership from n2 to n1", OperatorId: admin.FirstTransfer + 8},
			{UnixMs: before(3 * time.Hour), By: "splits", Outcome: "split at m into s2 and s3", OperatorId: 7,
				Candidates: []*sharddv1.Candidate{{What: "m", Verdict: "chosen", Detail: "half the bytes"}}}}}, nil
}

func (f *fakeCluster) BalanceStatus(
	context.Context, *sharddv1.BalanceStatusRequest) (*sharddv1.BalanceStatusResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return &sharddv1.BalanceStatusResponse{State: "running", Term: 5, Rounds: 1204, LastRoundMicros: 1340,
		Running: []*sharddv1.Operator{{OperatorId: 9, Kind: "move", ShardId: 2, Reason: "move s2 n2 -> n4; rules: n2 is in the zone of n1",
			Step: "snapshot", AgeMs: 61000, Bytes: 256 << 20, State: "running"}},
		Recent: []*sharddv1.Operator{
			{OperatorId: admin.FirstTransfer + 8, Kind: "transfer", ShardId: 3, Reason: "n1 leads 2 more than n3", AgeMs: 140000, State: "done"},
			{OperatorId: 5, Kind: "split", ShardId: 2, Reason: "2.0 GiB is over 256.0 MiB", AgeMs: 7200000, State: "failed",
				Error: "the shard is joint"}},
		Limits: f.balanceLimits(), Problems: []*sharddv1.Count{{What: "short of voters", Count: 1}, {What: "over size"}},
		ReplicaSpread: 2, LeaderSpread: 1, Paused: f.driver.paused}, nil
}

// balanceLimits are those in force; the caller holds the lock.
func (f *fakeCluster) balanceLimits() *sharddv1.BalanceLimits {
	l := &sharddv1.BalanceLimits{Operators: 16, NodeSnapshots: 2, NodeTransfers: 4, DownAfterMs: 300000,
		SplitBytes: 256 << 20, MergeBytes: 64 << 20, MergeAgeMs: 600000, SplitRequests: 2500}
	if f.driver.set != nil {
		proto.Merge(l, f.driver.set)
	}
	return l
}

func (f *fakeCluster) SetBalance(_ context.Context, r *sharddv1.SetBalanceRequest) (*sharddv1.SetBalanceResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, p := range r.GetPause() {
		if !slices.Contains(f.driver.paused, p) {
			f.driver.paused = append(f.driver.paused, p)
		}
	}
	f.driver.paused = slices.DeleteFunc(f.driver.paused, func(p string) bool {
		return slices.Contains(r.GetResume(), p) || slices.Contains(r.GetResume(), admin.PartAll)
	})
	if r.GetLimits() != nil {
		f.driver.set = r.GetLimits()
	}
	return &sharddv1.SetBalanceResponse{Limits: f.balanceLimits(), Paused: f.driver.paused}, nil
}

func (f *fakeCluster) Simulate(_ context.Context, r *sharddv1.SimulateRequest) (*sharddv1.SimulateResponse, error) {
	if r.GetLose() == "zone=nowhere" {
		return nil, status.Error(codes.NotFound, "no node has the label zone=nowhere")
	}
	resp := &sharddv1.SimulateResponse{Bytes: 512 << 20, TookMs: 190000, MovesTotal: 3, Moves: []*sharddv1.SimulatedMove{
		{AtMs: 1000, Kind: "move", ShardId: 2, FromNode: 1, ToNode: 4, Bytes: 256 << 20, Reason: "n4 has no replica"},
		{AtMs: 1500, Kind: "transfer", ShardId: 3, FromNode: 1, ToNode: 3, Reason: "n1 leads 2 more than n3"}},
		Nodes: []*sharddv1.SimulatedNode{
			{NodeId: 1, Labels: "zone=a", ReplicasBefore: 3, ReplicasAfter: 2, LeadersBefore: 2, LeadersAfter: 1,
				BytesBefore: 300 << 20, BytesAfter: 44 << 20},
			{NodeId: 4, Labels: strings.Join(r.GetAddNodes(), " "), ReplicasAfter: 2, BytesAfter: 256 << 20, Note: "new"}}}
	if r.GetLose() != "" {
		resp.Unfinished, resp.Problems = true, []string{"s1 has lost 2 of 3 voters: " + r.GetLose()}
	}
	return resp, nil
}

func (f *fakeCluster) GetZones(context.Context, *sharddv1.GetZonesRequest) (*sharddv1.GetZonesResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return &sharddv1.GetZonesResponse{Yaml: orElse(f.driver.rules, "default:\n  replicas: 3\n"),
		Revision: f.driver.revision}, nil
}

// ApplyZones takes any text for rules but "bad"; text with "race" finds that the rules were changed when it is applied.
func (f *fakeCluster) ApplyZones(_ context.Context, r *sharddv1.ApplyZonesRequest) (*sharddv1.ApplyZonesResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if strings.Contains(r.GetYaml(), "bad") {
		return nil, status.Error(codes.InvalidArgument, `line 2: unknown field "replicsa": did you mean "replicas"?`)
	}
	if !r.GetDryRun() && (strings.Contains(r.GetYaml(), "race") || r.GetRevision() != f.driver.revision) {
		return nil, status.Errorf(codes.FailedPrecondition, "the rules have revision %d by now, not %d: look again",
			f.driver.revision+1, r.GetRevision())
	}
	resp := &sharddv1.ApplyZonesResponse{Revision: f.driver.revision}
	if r.GetYaml() == f.driver.rules {
		return resp, nil
	}
	resp.Diff = []string{"default: replicas 3 becomes 5", `new: "users" (keys user/ .. user0)`}
	resp.Warnings = []string{"warning: line 2: default: 5 replicas on 3 nodes: shards have fewer until more nodes join"}
	if strings.Contains(r.GetYaml(), "never") {
		resp.Warnings = []string{"error: line 4: users: wants 3 voters, on nodes with pool=meta, of which 2 exist"}
	}
	if !r.GetDryRun() {
		f.driver.rules, f.driver.revision = r.GetYaml(), f.driver.revision+1
		resp.Revision = f.driver.revision
	}
	return resp, nil
}

func (f *fakeCluster) ExplainZones(
	_ context.Context, r *sharddv1.ExplainZonesRequest) (*sharddv1.ExplainZonesResponse, error) {
	return &sharddv1.ExplainZonesResponse{Rule: "default (3 replicas, spread over zone)", Replicas: []*sharddv1.ExplainedReplica{
		{NodeId: 1, Role: "voter", Labels: "zone=a", Why: "counts for zone a", Fits: true},
		{NodeId: 2, Role: "voter", Labels: "zone=a", Why: "zone a has one already"}},
		Problems: []string{"1 voter is missing", "n1 and n2 share zone a"},
		Others: []*sharddv1.Candidate{{What: "n3", Verdict: "disk-low", Detail: "90.0 MiB free"},
			{What: "n4", Verdict: "none", Detail: "would fit"}},
		Spread: []string{"zone: 1 of 2 different", "host: 2 of 2"}}, nil
}

func (f *fakeCluster) ShardLog(_ context.Context, r *sharddv1.ShardLogRequest) (*sharddv1.ShardLogResponse, error) {
	if r.GetShardId() == 99 {
		return nil, status.Error(codes.NotFound, "no shard s99, and none of that id is remembered")
	}
	return &sharddv1.ShardLogResponse{Events: []*sharddv1.ShardEvent{
		{UnixMs: before(72 * time.Hour), Kind: "split-from", OtherShardId: 2, Detail: "at m, 256.0 MiB each"},
		{UnixMs: before(time.Hour), Kind: "replica", Detail: "n4 for n2: n2 is in the zone of n1"},
		{UnixMs: before(4 * time.Minute), Kind: "leader", Detail: "n1 in term 6, before n3"}}}, nil
}

// DecommissionNode of n3 is blocked, that of n9 unknown; that of n2 begins a job.
func (f *fakeCluster) DecommissionNode(
	_ context.Context, r *sharddv1.DecommissionNodeRequest) (*sharddv1.DecommissionNodeResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if r.GetNodeId() > 4 {
		return nil, status.Errorf(codes.NotFound, "no node n%d", r.GetNodeId())
	}
	resp := &sharddv1.DecommissionNodeResponse{Replicas: 12, Leaders: 5, Bytes: 3 << 30, TookMs: 100000}
	if r.GetNodeId() == 3 {
		resp.Blocked = []string{"s2: the rule default wants 3 zones, n3 is the last node of zone c: start a node with the " +
			"label zone=c, or change the rule"}
	}
	j := &sharddv1.Job{Spec: &sharddv1.JobSpec{Kind: admin.KindDecommission, FromNode: r.GetNodeId(), Origin: "user"},
		State: admin.JobRunning, Steps: []*sharddv1.JobStep{{Name: "replicas", State: stepWaiting, Total: 12}}}
	if !r.GetDryRun() {
		j.StartedUnixMs, j.UpdatedUnixMs = 1000, 1000
		f.jobs = append(f.jobs, j)
		j.JobId = uint64(len(f.jobs))
	}
	resp.Job = proto.CloneOf(j)
	return resp, nil
}

func (f *fakeCluster) RecommissionNode(
	_ context.Context, r *sharddv1.RecommissionNodeRequest) (*sharddv1.RecommissionNodeResponse, error) {
	if r.GetNodeId() != 3 {
		return nil, status.Errorf(codes.FailedPrecondition, "n%d is in commission", r.GetNodeId())
	}
	return &sharddv1.RecommissionNodeResponse{}, nil
}

func (f *fakeCluster) RemoveNode(_ context.Context, r *sharddv1.RemoveNodeRequest) (*sharddv1.RemoveNodeResponse, error) {
	if !r.GetDead() && r.GetNodeId() != 2 {
		return nil, status.Error(codes.FailedPrecondition, fmt.Sprintf("n%d holds 3 replicas: `shardctl nodes decommission "+
			"n%[1]d` moves them away; --dead if it is lost", r.GetNodeId()))
	}
	if r.GetDead() {
		return &sharddv1.RemoveNodeResponse{Shards: 3}, nil
	}
	return &sharddv1.RemoveNodeResponse{}, nil
}

func (f *fakeCluster) Top(_ context.Context, r *sharddv1.TopRequest) (*sharddv1.TopResponse, error) {
	shards := f.shards()
	if r.GetBy() == admin.BySize {
		slices.SortFunc(shards, func(a, b *sharddv1.ShardInfo) int { return int(b.GetSizeBytes()) - int(a.GetSizeBytes()) })
	}
	if n := int(r.GetShards()); n > 0 {
		shards = shards[:min(n, len(shards))]
	}
	return &sharddv1.TopResponse{Nodes: f.nodes(), Shards: shards, ShardCount: 3,
		Total: &sharddv1.Load{Reads: 12000, Writes: 352, ReadBytes: 12 << 20, WriteBytes: 357 << 10, CpuMicros: 410000}}, nil
}

func (f *fakeCluster) HotKeys(_ context.Context, r *sharddv1.HotKeysRequest) (*sharddv1.HotKeysResponse, error) {
	if r.GetShardId() != 3 {
		return &sharddv1.HotKeysResponse{Sampled: 512, NodeId: 1}, nil
	}
	return &sharddv1.HotKeysResponse{Sampled: 4096, NodeId: 1, Keys: []*sharddv1.HotKey{
		{Key: []byte("\x02m 1"), Share: 0.8123, Error: 0.002}, {Key: []byte("\x02m2"), Share: 0.031, Error: 0.04}}}, nil
}

// HotMap is a busy range, a load that climbs through the keys, and a burst; the first tenth is unknown.
func (f *fakeCluster) HotMap(_ context.Context, r *sharddv1.HotMapRequest) (*sharddv1.HotMapResponse, error) {
	m := &sharddv1.HotMapResponse{Unit: map[string]string{"bytes": "bytes per second", "cpu": "microseconds of processor " +
		"per second"}[r.GetBy()]}
	m.Unit = orElse(m.Unit, "requests per second")
	rows, columns := int(r.GetRows()), int(r.GetColumns())
	for row := range rows + 1 {
		m.Bounds = append(m.Bounds, fmt.Appendf(nil, "\x02user%04d", row*10000/rows))
	}
	m.Bounds[0], m.Bounds[rows] = []byte{2}, []byte{3}
	start := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC).UnixMilli()
	for c := range columns {
		m.Times = append(m.Times, uint64(start)+r.GetBackMs()*uint64(c+1)/uint64(columns))
	}
	for row := range rows {
		for c := range columns {
			v := 2.0
			switch {
			case c < columns/10:
				v = -1
			case row == rows/4:
				v = 900
			case row == c*rows/columns:
				v = 300
			case c == columns*2/3:
				v = 1250
			case row > rows*3/4:
				v = 0
			}
			m.Cells = append(m.Cells, v)
		}
	}
	return m, nil
}
