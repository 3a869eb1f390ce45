package main

import (
	"context"
	"net"
	"strings"
	"sync"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	sharddv1 "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/client/admin"
	"github.com/shardd/shardd/transport"
)

// fakeCluster answers the calls about jobs. What becomes of a job is told by its shard: 13 fails, 14 is cancelled by
// someone else, 15 is refused, 16 never ends, verify of 17 finds something; all others are done. Every question moves a
// job a step on.
type fakeCluster struct {
	sharddv1.UnimplementedAdminServiceServer
	addr string
	mu   sync.Mutex
	jobs []*sharddv1.Job
	// every third question about a job finds no leader of the meta shard
	asked     int
	undrained uint64
	limits    [2]uint64
	latencies uint64 // calls of Latency
	driver    fakeDriver
}

const (
	fails, cancelledByOther, refused, neverEnds, differs = 13, 14, 15, 16, 17
)

func (f *fakeCluster) StartJob(_ context.Context, r *sharddv1.StartJobRequest) (*sharddv1.StartJobResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if r.GetSpec().GetShardId() == refused {
		return nil, status.Error(codes.FailedPrecondition, "s15 is being moved by j1: wait for it or cancel it")
	}
	j := &sharddv1.Job{Spec: r.GetSpec(), State: admin.JobRunning}
	for _, name := range []string{"add learner", "snapshot", "catch up"} {
		j.Steps = append(j.Steps, &sharddv1.JobStep{Name: name, State: stepWaiting})
	}
	j.Steps[1].BytesTotal = 64 << 20
	if r.GetDryRun() {
		return &sharddv1.StartJobResponse{Job: j}, nil
	}
	j.StartedUnixMs, j.UpdatedUnixMs = 1000, 1000
	f.jobs = append(f.jobs, j)
	j.JobId = uint64(len(f.jobs))
	return &sharddv1.StartJobResponse{Job: proto.CloneOf(j)}, nil
}

func (f *fakeCluster) find(id uint64) (*sharddv1.Job, error) {
	if id == 0 || id > uint64(len(f.jobs)) {
		return nil, status.Errorf(codes.NotFound, "no job j%d", id)
	}
	return f.jobs[id-1], nil
}

func (f *fakeCluster) GetJob(_ context.Context, r *sharddv1.GetJobRequest) (*sharddv1.GetJobResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	j, err := f.find(r.GetJobId())
	if err != nil {
		return nil, err
	}
	if f.asked++; f.asked%3 == 0 {
		return nil, status.Error(codes.Unavailable, "the meta shard has no leader")
	}
	f.step(j)
	return &sharddv1.GetJobResponse{Job: proto.CloneOf(j)}, nil
}

func (f *fakeCluster) step(j *sharddv1.Job) {
	if admin.Ended(j) {
		return
	}
	end := func(state, why string) {
		j.State, j.Error, j.EndedUnixMs = state, why, j.UpdatedUnixMs
	}
	j.UpdatedUnixMs += 1000
	shard := j.GetSpec().GetShardId()
	if j.State == admin.JobCancelling {
		end(admin.JobCancelled, "as asked")
		return
	}
	for i, s := range j.GetSteps() {
		switch {
		case s.State == "done":
			continue
		case s.State == stepWaiting:
			s.State = stepRunning
			return
		case shard == neverEnds:
			return
		case i == 1 && shard == fails:
			s.State = stepFailed
			end(admin.JobFailed, "n4 has no room for a snapshot of 64.0 MiB: free space there")
			return
		case i == 1 && shard == cancelledByOther:
			end(admin.JobCancelled, "")
			return
		}
		s.State, s.BytesDone = "done", s.BytesTotal
		return
	}
	if shard == differs {
		j.Findings = []string{`s17: n2 and n3 differ at applied index 812, first in ["k1", "k2")`}
	}
	end(admin.JobDone, "")
}

func (f *fakeCluster) ListJobs(_ context.Context, r *sharddv1.ListJobsRequest) (*sharddv1.ListJobsResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	resp := &sharddv1.ListJobsResponse{}
	for i := len(f.jobs) - 1; i >= 0; i-- {
		if !r.GetRunning() || !admin.Ended(f.jobs[i]) {
			resp.Jobs = append(resp.Jobs, proto.CloneOf(f.jobs[i]))
		}
	}
	return resp, nil
}

func (f *fakeCluster) CancelJob(_ context.Context, r *sharddv1.CancelJobRequest) (*sharddv1.CancelJobResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	j, err := f.find(r.GetJobId())
	if err != nil {
		return nil, err
	}
	if !admin.Ended(j) {
		j.State = admin.JobCancelling
	}
	return &sharddv1.CancelJobResponse{Job: proto.CloneOf(j)}, nil
}

func (f *fakeCluster) Undrain(_ context.Context, r *sharddv1.UndrainRequest) (*sharddv1.UndrainResponse, error) {
	if r.GetNodeId() > 3 {
		return nil, status.Errorf(codes.NotFound, "no node n%d", r.GetNodeId())
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.undrained = r.GetNodeId()
	return &sharddv1.UndrainResponse{}, nil
}

func (f *fakeCluster) NodeStatus(context.Context, *sharddv1.NodeStatusRequest) (*sharddv1.NodeStatusResponse, error) {
	return &sharddv1.NodeStatusResponse{ClusterId: "c", NodeId: 1, Address: f.addr}, nil
}

func (f *fakeCluster) ListNodes(context.Context, *sharddv1.ListNodesRequest) (*sharddv1.ListNodesResponse, error) {
	return &sharddv1.ListNodesResponse{Nodes: f.nodes()}, nil
}

func (f *fakeCluster) nodes() []*sharddv1.NodeInfo {
	return []*sharddv1.NodeInfo{
		{NodeId: 1, Address: f.addr, Alive: true, MetaLeader: true, Replicas: 3, Leaders: 2, DiskBytes: 5 << 20,
			DiskFreeBytes: 7 << 30, DiskLevel: "ok", Draining: "none", CpuMillis: 420, ShardBytes: 300 << 20,
			Load:   &sharddv1.Load{Reads: 12000, Writes: 345, ReadBytes: 12 << 20, WriteBytes: 350 << 10, CpuMicros: 410000},
			Labels: map[string]string{"zone": "a"}},
		{NodeId: 2, Address: "127.0.0.1:1", LastSeenMs: 61000, Replicas: 2, DiskFreeBytes: 1 << 30, DiskLevel: "ok"},
		{NodeId: 3, Address: f.addr, Alive: true, Replicas: 3, DiskFreeBytes: 90 << 20, DiskLevel: "low",
			Draining: "leaders", Unhealthy: "disk stalled for 3s", Commission: "decommissioning",
			Load: &sharddv1.Load{Reads: 0.25}},
	}
}

func (f *fakeCluster) ClusterStatus(
	context.Context, *sharddv1.ClusterStatusRequest) (*sharddv1.ClusterStatusResponse, error) {
	return &sharddv1.ClusterStatusResponse{ClusterId: "c", Nodes: f.nodes(), Shards: 3, ShardsUnderReplicated: 1,
		MetaLeader: 1}, nil
}

func (f *fakeCluster) shards() []*sharddv1.ShardInfo {
	return []*sharddv1.ShardInfo{
		{ShardId: 1, Start: []byte{3}, End: []byte{4}, Replicas: []*sharddv1.ReplicaInfo{
			{ReplicaId: 1, NodeId: 1, Role: "voter"}}, Leader: 1, Term: 5},
		{ShardId: 2, Start: []byte{2}, End: []byte("\x02m"), Replicas: []*sharddv1.ReplicaInfo{
			{ReplicaId: 1, NodeId: 1, Role: "voter"}, {ReplicaId: 2, NodeId: 2, Role: "voter"}}, Leader: 1, Term: 5, SizeBytes: 256 << 20, Rule: "default",
			Load: &sharddv1.Load{Reads: 12000, Writes: 345, ReadBytes: 12 << 20, WriteBytes: 350 << 10, CpuMicros: 410000}},
		{ShardId: 3, Start: []byte("\x02m"), End: []byte{3}, ConfVer: 4, Version: 1, Replicas: []*sharddv1.ReplicaInfo{
			{ReplicaId: 1, NodeId: 1, Role: "outgoing"}, {ReplicaId: 2, NodeId: 3, Role: "incoming"},
			{ReplicaId: 3, NodeId: 1, Role: "learner"}}, Leader: 1, Term: 6, SizeBytes: 12 << 20, Rule: "users in two zones",
			Load: &sharddv1.Load{Writes: 7}, MergingInto: 2, HotKey: []byte("\x02m 1"), ChangedMsAgo: 7384000},
	}
}

func (f *fakeCluster) ListShards(context.Context, *sharddv1.ListShardsRequest) (*sharddv1.ListShardsResponse, error) {
	return &sharddv1.ListShardsResponse{Shards: f.shards()}, nil
}

func (f *fakeCluster) DescribeShard(
	context.Context, *sharddv1.DescribeShardRequest) (*sharddv1.DescribeShardResponse, error) {
	return &sharddv1.DescribeShardResponse{Shard: f.shards()[2], Replicas: []*sharddv1.ReplicaStatus{
		{NodeId: 1, ReplicaId: 1, Role: "outgoing", RaftState: "leader", Lease: true, Term: 6, Commit: 90, Applied: 90, FirstIndex: 20,
			LastIndex: 95, LogBytes: 70 << 10, DataBytes: 12 << 20, Progress: []*sharddv1.FollowerProgress{
				{ReplicaId: 1, Match: 95, Next: 96, State: "replicate", RecentActive: true},
				{ReplicaId: 2, Match: 90, Next: 96, State: "replicate", RecentActive: true},
				{ReplicaId: 3, Next: 1, State: "snapshot", PendingSnapshot: 88, RecentActive: true}}},
		{NodeId: 3, ReplicaId: 2, Role: "incoming", RaftState: "follower", Term: 6, Commit: 90, Applied: 90, FirstIndex: 91,
			LastIndex: 90, DataBytes: 12 << 20},
		{NodeId: 1, ReplicaId: 3, Role: "learner", Term: 6, Uninitialised: true},
	}}, nil
}

func (f *fakeCluster) ListSnapshots(
	context.Context, *sharddv1.ListSnapshotsRequest) (*sharddv1.ListSnapshotsResponse, error) {
	return &sharddv1.ListSnapshotsResponse{Snapshots: []*sharddv1.SnapshotProgress{{ShardId: 3, FromNode: 1, ToNode: 3,
		ToReplicaId: 4, Sending: true, Phase: "streaming", BytesDone: 3 << 20, BytesTotal: 12 << 20, BytesPerSecond: 1 << 20,
		ElapsedMs: 3000, Priority: "rebalance"}}}, nil
}

// Latency has twice as many samples at every second call, so that a look over some time finds a difference.
func (f *fakeCluster) Latency(context.Context, *sharddv1.LatencyRequest) (*sharddv1.LatencyResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := 1 + f.latencies%2
	f.latencies++
	return &sharddv1.LatencyResponse{NodeId: 1, Incarnation: 5, Bounds: []float64{0.001, 0.002, 0.004},
		Stages: []*sharddv1.StageLatency{
			{Operation: "write", Stage: "queue", Count: 10 * n, Seconds: 0.005 * float64(n), Buckets: []uint64{10 * n, 0, 0, 0}},
			{Operation: "write", Stage: "commit", Count: 10 * n, Seconds: 0.03 * float64(n), Buckets: []uint64{0, 5 * n, 4 * n, n}},
			{Operation: "read", Stage: "total", Count: 4, Seconds: 0.002, Buckets: []uint64{4, 0, 0, 0}},
		}}, nil
}

func (f *fakeCluster) Liveness(context.Context, *sharddv1.LivenessRequest) (*sharddv1.LivenessResponse, error) {
	heard := uint64(45)
	return &sharddv1.LivenessResponse{NodeId: 1, Incarnation: 5, SupportMs: 800, QuietMs: 640,
		Peers: []*sharddv1.PeerLiveness{
			{NodeId: 2, Incarnation: 0, SharesShards: true, PendingHints: 3},
			{NodeId: 3, Incarnation: 7, HeardMsAgo: &heard, SharesShards: true,
				Gives: &sharddv1.Support{Incarnation: 5, Epoch: 2, LeftMs: 755},
				Has:   &sharddv1.Support{Incarnation: 7, Epoch: 1, LeftMs: 612}},
		}}, nil
}

func (f *fakeCluster) SetSnapshotLimits(
	_ context.Context, r *sharddv1.SetSnapshotLimitsRequest) (*sharddv1.SetSnapshotLimitsResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i, v := range []uint64{r.GetSendBytesPerSecond(), r.GetReceiveBytesPerSecond()} {
		if v > 0 {
			f.limits[i] = v
		}
	}
	return &sharddv1.SetSnapshotLimitsResponse{SendBytesPerSecond: f.limits[0], ReceiveBytesPerSecond: f.limits[1]}, nil
}

// startFake serves a fake cluster until the test ends and returns its address.
func startFake(t *testing.T) string {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer(transport.ServerOptions()...)
	sharddv1.RegisterAdminServiceServer(s, &fakeCluster{addr: lis.Addr().String(), limits: [2]uint64{64 << 20, 64 << 20}})
	served := make(chan error, 1)
	go func() { served <- s.Serve(lis) }()
	t.Cleanup(func() {
		s.Stop()
		if err := <-served; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return lis.Addr().String()
}

func TestScriptsWithAFakeCluster(t *testing.T) {
	addrs := map[string]string{} // each script has its own, so that the ids of its jobs are known
	for _, name := range []string{"jobs", "watch", "views", "boundaries", "decommission", "why", "balance", "zones", "hot",
		"recover"} {
		addrs[name] = startFake(t)
	}
	t.Run("group", func(t *testing.T) {
		testscript.Run(t, testscript.Params{Dir: "testdata/fake", UpdateScripts: *update, RequireExplicitExec: true,
			Setup: func(env *testscript.Env) error {
				name := env.WorkDir[strings.LastIndex(env.WorkDir, "script-")+len("script-"):]
				env.Setenv("SHARDCTL_ENDPOINTS", "127.0.0.1:1,"+addrs[name])
				env.Setenv("ADDR", addrs[name])
				return nil
			}})
	})
}
