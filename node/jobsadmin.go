package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/placement"
)

const (
	listJobs = 100
	// heardTimeout is how long a new job waits for nodes that this meta leader has not heard from yet.
	heardTimeout = 5 * time.Second
	// driverYields is how long a person's job waits for one of the driver's to leave its shard in a whole configuration.
	driverYields = 30 * time.Second
)

// StartJob implements AdminService.
func (s *adminService) StartJob(ctx context.Context, req *pb.StartJobRequest) (*pb.StartJobResponse, error) {
	return toMeta(ctx, s.n, req, func(ctx context.Context, m *member, req *pb.StartJobRequest) (
		*pb.StartJobResponse, error) {
		j, err := m.jobs.start(ctx, req.GetSpec(), req.DryRun)
		if err != nil {
			return nil, jobStatus(err)
		}
		return &pb.StartJobResponse{Job: jobProto(j)}, nil
	}, pb.AdminServiceClient.StartJob)
}

// ListJobs implements AdminService.
func (s *adminService) ListJobs(ctx context.Context, req *pb.ListJobsRequest) (*pb.ListJobsResponse, error) {
	return toMeta(ctx, s.n, req, func(ctx context.Context, m *member, req *pb.ListJobsRequest) (
		*pb.ListJobsResponse, error) {
		limit := int(req.Limit)
		if limit == 0 {
			limit = listJobs
		}
		jobs, err := m.dir.Jobs(ctx, req.Running, min(limit, 2*placement.EndedJobs))
		if err != nil {
			return nil, directoryStatus(err)
		}
		resp := &pb.ListJobsResponse{}
		for _, j := range jobs {
			resp.Jobs = append(resp.Jobs, jobProto(m.jobs.fresh(j)))
		}
		return resp, nil
	}, pb.AdminServiceClient.ListJobs)
}

// GetJob implements AdminService.
func (s *adminService) GetJob(ctx context.Context, req *pb.GetJobRequest) (*pb.GetJobResponse, error) {
	return toMeta(ctx, s.n, req, func(ctx context.Context, m *member, req *pb.GetJobRequest) (*pb.GetJobResponse, error) {
		j, err := m.dir.Job(ctx, placement.JobID(req.JobId))
		if err != nil {
			return nil, directoryStatus(err)
		}
		return &pb.GetJobResponse{Job: jobProto(m.jobs.fresh(j))}, nil
	}, pb.AdminServiceClient.GetJob)
}

// CancelJob implements AdminService.
func (s *adminService) CancelJob(ctx context.Context, req *pb.CancelJobRequest) (*pb.CancelJobResponse, error) {
	return toMeta(ctx, s.n, req, func(ctx context.Context, m *member, req *pb.CancelJobRequest) (
		*pb.CancelJobResponse, error) {
		j, err := m.jobs.cancel(ctx, placement.JobID(req.JobId))
		if err != nil {
			return nil, jobStatus(err)
		}
		m.log.Info("job cancelled", "job", j.ID.String())
		return &pb.CancelJobResponse{Job: jobProto(j)}, nil
	}, pb.AdminServiceClient.CancelJob)
}

// Undrain implements AdminService.
func (s *adminService) Undrain(ctx context.Context, req *pb.UndrainRequest) (*pb.UndrainResponse, error) {
	return toMeta(ctx, s.n, req, func(ctx context.Context, m *member, req *pb.UndrainRequest) (
		*pb.UndrainResponse, error) {
		if err := m.jobs.undrain(ctx, base.StoreID(req.NodeId)); err != nil {
			return nil, jobStatus(err)
		}
		m.log.Info("node undrained", "undrained", base.StoreID(req.NodeId).String())
		return &pb.UndrainResponse{}, nil
	}, pb.AdminServiceClient.Undrain)
}

// jobStatus maps the errors of jobs to gRPC.
func jobStatus(err error) error {
	var refused *placement.RefusedError
	var busy *placement.BusyError
	switch {
	case errors.As(err, &refused), errors.As(err, &busy), errors.Is(err, placement.ErrEnded):
		return status.Error(codes.FailedPrecondition, err.Error())
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return status.FromContextError(err).Err()
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	return directoryStatus(err)
}

// fresh returns the job as it stands now, if it runs here and the record has not ended. An end counts once it is saved: what goes
// with it is saved with it.
func (r *jobRunner) fresh(j *placement.Job) *placement.Job {
	if live := r.live(j.ID); live != nil && !j.State.Ended() {
		if live.State.Ended() || j.State == placement.JobCancelling && live.State == placement.JobRunning {
			live = live.Clone()
			live.State, live.Ended = j.State, j.Ended
		}
		return live
	}
	return j
}

// start plans a job and, unless it is a dry run, records it.
func (r *jobRunner) start(ctx context.Context, spec *pb.JobSpec, dry bool) (*placement.Job, error) {
	kind, err := placement.ParseJobKind(spec.GetKind())
	if err != nil {
		return nil, err
	}
	by, err := placement.ParseSplitBy(spec.SplitBy)
	if err != nil {
		return nil, err
	}
	s := placement.JobSpec{
		Kind: kind, Shard: base.ShardID(spec.ShardId), From: base.StoreID(spec.FromNode), To: base.StoreID(spec.ToNode),
		Learner: spec.Learner, Replicas: spec.Replicas, Rate: spec.BytesPerSecond, Keys: sortedKeys(spec.Keys),
		Parts: spec.Parts, By: by, Start: spec.Start, End: spec.End, Right: base.ShardID(spec.RightShardId),
	}
	if err := placement.CheckSpec(s); err != nil {
		return nil, err
	}
	j, err := r.planFree(ctx, s, dry)
	if err != nil {
		return nil, err
	}
	j.Started = uint64(r.clock.Wall().UnixMilli())
	j.Updated = j.Started
	if dry {
		return j, nil
	}
	if err := r.dir.CreateJob(ctx, j); err != nil {
		var busy *placement.BusyError
		if errors.As(err, &busy) || errors.Is(err, placement.ErrInvalid) {
			return nil, err
		}
		return nil, status.Errorf(codes.Unknown, "the job may have been started: shardctl jobs list: %v", err)
	}
	r.marks.forget()
	r.search()
	r.log.Info("job asked for", "job", j.ID.String(), "kind", j.Spec.Kind.String(), "shard", uint64(j.Spec.Shard),
		"from", uint64(j.Spec.From), "to", uint64(j.Spec.To))
	return j, nil
}

// planFree plans a job of a person. One of the driver's that is in its way is cancelled first: people come before it.
func (r *jobRunner) planFree(ctx context.Context, s placement.JobSpec, dry bool) (*placement.Job, error) {
	until := r.clock.Boot() + driverYields
	for cancelled := placement.JobID(0); ; {
		j, err := r.plan(ctx, s, dry)
		if err != nil || dry {
			return j, err
		}
		err = r.dir.Busy(ctx, j)
		var busy *placement.BusyError
		if !errors.As(err, &busy) {
			return j, err
		}
		other, oerr := r.dir.Job(ctx, busy.Job)
		if oerr == nil && !other.State.Ended() && other.Spec.Origin != placement.OriginDriver || r.clock.Boot() >= until {
			return nil, err
		}
		if busy.Job != cancelled {
			if _, cerr := r.cancel(ctx, busy.Job); cerr != nil && !errors.Is(cerr, placement.ErrEnded) {
				return nil, cerr
			}
			cancelled = busy.Job
		}
		pause(ctx, r.poll)
		if ctx.Err() != nil {
			return nil, err
		}
	}
}

// sortedKeys is a list of keys in order, each once.
func sortedKeys(keys [][]byte) [][]byte {
	out := slices.Clone(keys)
	slices.SortFunc(out, bytes.Compare)
	return slices.CompactFunc(out, bytes.Equal)
}

// plan checks what is asked for against the cluster as it is.
func (r *jobRunner) plan(ctx context.Context, s placement.JobSpec, dry bool) (*placement.Job, error) {
	switch s.Kind {
	case placement.JobVerify:
		if s.Shard != 0 {
			if _, err := r.world.now(ctx, s.Shard); err != nil {
				return nil, err
			}
		}
		step := placement.Step{Name: stepVerify, State: placement.StepWaiting}
		return &placement.Job{Spec: s, State: placement.JobRunning, Steps: []placement.Step{step}}, nil
	case placement.JobDrain, placement.JobDecommission:
		return r.planDrain(ctx, s, dry)
	case placement.JobSplit:
		return r.planSplit(ctx, s)
	case placement.JobScatter:
		return r.planScatter(ctx, s)
	case placement.JobMerge:
		return r.planMerge(ctx, s)
	}
	now, err := r.world.now(ctx, s.Shard)
	if err != nil {
		return nil, err
	}
	involved := append(voters(now.Desc), s.From, s.To)
	nodes, err := r.heard(ctx, s.To, involved)
	if err != nil {
		return nil, err
	}
	return placement.Plan(s, now, nodes)
}

func voters(d *base.Descriptor) (out []base.StoreID) {
	for _, r := range d.Replicas {
		out = append(out, r.Store)
	}
	return out
}

// heard returns the nodes; while this node leads the meta shard too shortly to know those that are asked for, it waits
// for their reports, and in any case for the first one of target, which may just have joined. Target 0 is none.
func (r *jobRunner) heard(ctx context.Context, target base.StoreID, ids []base.StoreID) (
	map[base.StoreID]placement.NodeNow, error) {
	until := r.clock.Boot() + heardTimeout
	for {
		nodes, err := r.world.nodes(ctx)
		if err != nil {
			return nil, directoryStatus(err)
		}
		missing := false
		for _, id := range ids {
			n, known := nodes[id]
			missing = missing || known && !n.Heard
		}
		to, known := nodes[target]
		joining := known && !to.Heard
		if !joining && (!missing || !r.settling(nodes)) || r.clock.Boot() >= until {
			return nodes, nil
		}
		pause(ctx, r.poll)
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
	}
}

// planDrain checks a drain. A dry run says which replicas would go where.
func (r *jobRunner) planDrain(ctx context.Context, s placement.JobSpec, dry bool) (*placement.Job, error) {
	nodes, err := r.heard(ctx, 0, []base.StoreID{s.From})
	if err != nil {
		return nil, err
	}
	node, ok := nodes[s.From]
	if !ok {
		return nil, &placement.RefusedError{
			Reason: fmt.Sprintf("there is no node %s", s.From), Remedy: "shardctl nodes list shows the nodes",
		}
	}
	shards, err := r.holding(ctx, s.From)
	if err != nil {
		return nil, directoryStatus(err)
	}
	s.Replicas = s.Replicas || s.Kind == placement.JobDecommission
	j := &placement.Job{Spec: s, State: placement.JobRunning}
	if s.Replicas {
		j.Total = uint64(len(shards))
	}
	want := placement.DrainLeaders
	if s.Replicas {
		want = placement.DrainReplicas
	}
	node.Draining = want
	nodes[s.From] = node
	w := placement.DrainWorld{Nodes: nodes, Shards: shards, Now: r.clock.Boot(), Pick: r.world.picker(s.From)}
	j.Steps = placement.NextDrain(j, w).Steps
	if dry && s.Replicas {
		j.Steps = placement.PlanDrain(j, w, func(id base.ShardID) uint64 {
			look, cancel := context.WithTimeout(ctx, time.Second)
			defer cancel()
			if now, err := r.world.now(look, id); err == nil {
				return now.Bytes()
			}
			return 0
		})
	}
	for i := range j.Steps {
		j.Steps[i].State = placement.StepWaiting
	}
	return j, nil
}

// cancel asks a job to stop.
func (r *jobRunner) cancel(ctx context.Context, id placement.JobID) (*placement.Job, error) {
	j, err := r.dir.CancelJob(ctx, id)
	if err != nil {
		return nil, err
	}
	r.poke(id)
	return r.fresh(j), nil
}

// undrain takes the mark off a node and cancels its running drain.
func (r *jobRunner) undrain(ctx context.Context, node base.StoreID) error {
	if err := r.dir.SetDraining(ctx, node, placement.DrainNone); err != nil {
		return err
	}
	r.marks.forget()
	jobs, err := r.dir.RunningJobs(ctx)
	if err != nil {
		return err
	}
	for _, j := range jobs {
		if j.Spec.Kind != placement.JobDrain || j.Spec.From != node {
			continue
		}
		// One that ends by itself meanwhile is as good.
		if _, err := r.cancel(ctx, j.ID); err != nil && !errors.Is(err, placement.ErrEnded) {
			return err
		}
	}
	return nil
}

// jobProto is a job as the API shows it.
func jobProto(j *placement.Job) *pb.Job {
	out := &pb.Job{
		JobId: uint64(j.ID), State: j.State.String(), Error: j.Error, StartedUnixMs: j.Started, UpdatedUnixMs: j.Updated,
		EndedUnixMs: j.Ended, Findings: j.Findings,
		Spec: &pb.JobSpec{
			Kind: j.Spec.Kind.String(), ShardId: uint64(j.Spec.Shard), FromNode: uint64(j.Spec.From),
			ToNode: uint64(j.Spec.To), Learner: j.Spec.Learner, Replicas: j.Spec.Replicas, BytesPerSecond: j.Spec.Rate,
			Keys: j.Spec.Keys, Parts: j.Spec.Parts, Start: j.Spec.Start, End: j.Spec.End,
			RightShardId: uint64(j.Spec.Right), Origin: j.Spec.Origin.String(), Reason: j.Spec.Reason,
		},
	}
	if j.Spec.Kind == placement.JobSplit && len(j.Spec.Keys) == 0 {
		out.Spec.SplitBy = j.Spec.By.String()
	}
	for i := range j.Steps {
		s := &j.Steps[i]
		out.Steps = append(out.Steps, &pb.JobStep{
			Name: s.Name, State: s.State.String(), Detail: s.Detail, BytesDone: s.BytesDone, BytesTotal: s.Bytes,
			BytesPerSecond: s.Rate, Lag: s.Lag, Done: s.Done, Total: s.Total,
		})
	}
	return out
}
