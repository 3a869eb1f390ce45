package admin

import (
	"context"
	"fmt"

	"google.golang.org/grpc"

	sharddv1 "github.com/shardd/shardd/api/shardd/v1"
)

// Kinds of jobs, as JobSpec.Kind names them.
const (
	KindMove          = "move"
	KindAddReplica    = "add-replica"
	KindRemoveReplica = "remove-replica"
	KindPromote       = "promote"
	KindDrain         = "drain"
	KindVerify        = "verify"
	KindSplit         = "split"
	KindMerge         = "merge"
	KindScatter       = "scatter"
	KindDecommission  = "decommission"
)

// States of a job.
const (
	JobRunning    = "running"
	JobDone       = "done"
	JobFailed     = "failed"
	JobCancelling = "cancelling"
	JobCancelled  = "cancelled"
)

// Ended reports whether a job has come to its end, whichever.
func Ended(j *sharddv1.Job) bool {
	switch j.GetState() {
	case JobDone, JobFailed, JobCancelled:
		return true
	}
	return false
}

// StartJob begins long work, or with dryRun only returns the plan (a job without an id). The job goes on whoever
// watches.
//
// Unlike the other calls it is not repeated at the next endpoint once a node has been given it: it might begin twice.
// If no answer comes back the error says that the job may have been started; ListJobs tells.
func (c *Client) StartJob(ctx context.Context, spec *sharddv1.JobSpec, dryRun bool) (*sharddv1.Job, error) {
	name := "start job " + spec.GetKind()
	req := &sharddv1.StartJobRequest{Spec: spec, DryRun: dryRun}
	do := func(ctx context.Context, cc grpc.ClientConnInterface) (*sharddv1.StartJobResponse, error) {
		return sharddv1.NewAdminServiceClient(cc).StartJob(ctx, req)
	}
	if dryRun {
		resp, err := call(ctx, c, name, quick, do)
		return resp.GetJob(), err
	}
	at, err := c.answering(ctx)
	if err != nil {
		return nil, err
	}
	resp, err := call(ctx, at, name, slow, do)
	if err != nil {
		return nil, maybeStarted(err)
	}
	return resp.GetJob(), nil
}

// ListJobs returns at most limit jobs (0: 100), newest first; with running only those that have not ended.
func (c *Client) ListJobs(ctx context.Context, running bool, limit uint32) ([]*sharddv1.Job, error) {
	req := &sharddv1.ListJobsRequest{Running: running, Limit: limit}
	resp, err := call(ctx, c, "list jobs", quick,
		func(ctx context.Context, cc grpc.ClientConnInterface) (*sharddv1.ListJobsResponse, error) {
			return sharddv1.NewAdminServiceClient(cc).ListJobs(ctx, req)
		})
	return resp.GetJobs(), err
}

// GetJob returns one job with its steps as they stand.
func (c *Client) GetJob(ctx context.Context, id uint64) (*sharddv1.Job, error) {
	resp, err := call(ctx, c, fmt.Sprintf("get job j%d", id), quick,
		func(ctx context.Context, cc grpc.ClientConnInterface) (*sharddv1.GetJobResponse, error) {
			return sharddv1.NewAdminServiceClient(cc).GetJob(ctx, &sharddv1.GetJobRequest{JobId: id})
		})
	return resp.GetJob(), err
}

// CancelJob asks a running job to stop at its next safe point; it returns the job as it stands then.
func (c *Client) CancelJob(ctx context.Context, id uint64) (*sharddv1.Job, error) {
	resp, err := call(ctx, c, fmt.Sprintf("cancel job j%d", id), quick,
		func(ctx context.Context, cc grpc.ClientConnInterface) (*sharddv1.CancelJobResponse, error) {
			return sharddv1.NewAdminServiceClient(cc).CancelJob(ctx, &sharddv1.CancelJobRequest{JobId: id})
		})
	return resp.GetJob(), err
}

// Undrain lets a node have leaderships and replicas again and cancels its running drain.
func (c *Client) Undrain(ctx context.Context, node uint64) error {
	_, err := call(ctx, c, fmt.Sprintf("undrain n%d", node), quick,
		func(ctx context.Context, cc grpc.ClientConnInterface) (*sharddv1.UndrainResponse, error) {
			return sharddv1.NewAdminServiceClient(cc).Undrain(ctx, &sharddv1.UndrainRequest{NodeId: node})
		})
	return err
}
