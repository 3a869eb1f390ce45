package placement

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
)

// Jobs in the meta shard. A running job and the locks it holds change in one write, so that no two jobs change the
// replicas of one shard and no node is drained twice. Every save is conditional on the row that it replaces: of two
// nodes that believe to run a job only one can go on.

// EndedJobs is how many ended jobs are kept.
const EndedJobs = 1000

// BusyError refuses a job because of another one that runs.
type BusyError struct {
	What string // s12 or n4
	Job  JobID
}

func (e *BusyError) Error() string {
	return fmt.Sprintf("%s is busy with job %s: wait for it (shardctl jobs watch %s) or cancel it "+
		"(shardctl jobs cancel %s)", e.What, e.Job, e.Job, e.Job)
}

type lock struct {
	key  []byte
	what string
}

// locks returns what the job holds in its state.
func (j *Job) locks() []lock {
	if j.State.Ended() {
		return nil
	}
	shard := func(id base.ShardID) lock { return lock{shardLock(id), id.String()} }
	switch j.Spec.Kind {
	case JobVerify:
		return nil
	case JobDrain, JobDecommission:
		return append([]lock{{nodeLock(j.Spec.From), j.Spec.From.String()}}, moveLocks(j)...)
	case JobMerge:
		return []lock{shard(j.Spec.Shard), shard(j.Spec.Right)}
	case JobScatter:
		return moveLocks(j)
	}
	if j.Spec.Shard == 0 { // a split at keys: a shard that changes meanwhile refuses it, and is looked at again
		return nil
	}
	return []lock{shard(j.Spec.Shard)}
}

// moveLocks are those of the shards that the job moves now.
func moveLocks(j *Job) (out []lock) {
	for _, m := range j.Moves {
		out = append(out, lock{shardLock(m.Shard), m.Shard.String()})
	}
	return out
}

// CreateJob gives the job an id and records it with its locks; a drain marks its node in the same write. *BusyError:
// another job runs where this one would. Any error but that and ErrInvalid leaves open whether the job was recorded. A
// decommission marks its node as leaving in the same write; a node that has been removed is ErrInvalid.
func (d *Directory) CreateJob(ctx context.Context, j *Job) error { return d.createJob(ctx, j, nil) }

// createJob records a job, of a driver only while it holds its fence.
func (d *Directory) createJob(ctx context.Context, j *Job, f *Fence) error {
	id, err := d.AllocIDs(ctx, JobIDs, 1)
	if err != nil {
		return fmt.Errorf("create job: %w", err)
	}
	j.ID, j.Rev = JobID(id), 1
	if err := j.Validate(); err != nil {
		return fmt.Errorf("create job: %w: %w", err, ErrInvalid)
	}
	return d.retry(ctx, "create job", func() ([]wire.Sub, error) {
		steps, err := d.fenced(ctx, f)
		if err != nil {
			return nil, err
		}
		take, err := d.takeLocks(ctx, j, nil)
		if err != nil {
			return nil, err
		}
		steps = append(append(steps, checkVersion(jobKey(j.ID), 0)), take...)
		steps = append(steps, wire.Sub{Code: wire.OpPut, Key: jobKey(j.ID), Value: j.Append(nil)})
		if j.Spec.Kind == JobDrain {
			mode := DrainLeaders
			if j.Spec.Replicas {
				mode = DrainReplicas
			}
			steps = append(steps, drainSub(j.Spec.From, mode))
		}
		if j.Spec.Kind == JobDecommission {
			mark, err := d.commissionSteps(ctx, j.Spec.From, Decommissioning)
			if err != nil {
				return nil, err
			}
			steps = append(mark, steps...)
		}
		return steps, nil
	})
}

// Busy says *BusyError if a job could not be created now because another one runs.
func (d *Directory) Busy(ctx context.Context, j *Job) error {
	_, err := d.takeLocks(ctx, j, nil)
	return err
}

// takeLocks returns the steps that take the locks of j that old does not hold.
func (d *Directory) takeLocks(ctx context.Context, j, old *Job) ([]wire.Sub, error) {
	var checks, puts []wire.Sub
	for _, l := range j.locks() {
		if old != nil && slices.ContainsFunc(old.locks(), func(o lock) bool { return bytes.Equal(o.key, l.key) }) {
			continue
		}
		v, ver, err := d.kv.Get(ctx, l.key)
		if err != nil {
			return nil, err
		}
		if ver != 0 {
			other, err := decodeNumber("lock of "+l.what, v)
			if err != nil {
				return nil, err
			}
			return nil, &BusyError{What: l.what, Job: JobID(other)}
		}
		checks = append(checks, checkVersion(l.key, 0))
		puts = append(puts, wire.Sub{Code: wire.OpPut, Key: l.key, Value: appendNumber(nil, uint64(j.ID))})
	}
	return append(checks, puts...), nil
}

// PutJob saves a running job, raises its Rev, and takes and frees locks as its Moves say; a job that has ended gives up
// all locks and joins the history. ErrStale: the record is not the one that j was made from, or has ended. *BusyError:
// a shard of a new move is locked. After any other error j may be saved or not; saving it again finds out.
func (d *Directory) PutJob(ctx context.Context, j *Job) error {
	if err := j.Validate(); err != nil {
		return fmt.Errorf("save job: %w: %w", err, ErrInvalid)
	}
	next := *j
	next.Rev++
	value := next.Append(nil)
	err := d.retry(ctx, "save job "+j.ID.String(), func() ([]wire.Sub, error) {
		v, ver, err := d.kv.Get(ctx, jobKey(j.ID))
		if err != nil {
			return nil, err
		}
		if ver == 0 {
			return nil, d.endedAs(ctx, j.ID, value)
		}
		if bytes.Equal(v, value) {
			return nil, nil // an earlier try, whose answer was lost
		}
		old, err := DecodeJob(v)
		if err != nil {
			return nil, err
		}
		if old.Rev != j.Rev {
			return nil, fmt.Errorf("revision %d, saved %d: %w", j.Rev, old.Rev, ErrStale)
		}
		steps, err := d.takeLocks(ctx, &next, old)
		if err != nil {
			return nil, err
		}
		steps = append([]wire.Sub{checkVersion(jobKey(j.ID), ver)}, steps...)
		for _, l := range old.locks() {
			if !slices.ContainsFunc(next.locks(), func(n lock) bool { return bytes.Equal(n.key, l.key) }) {
				steps = append(steps, wire.Sub{Code: wire.OpDelete, Key: l.key})
			}
		}
		if !next.State.Ended() {
			return append(steps, wire.Sub{Code: wire.OpPut, Key: jobKey(j.ID), Value: value}), nil
		}
		if next.Spec.Kind == JobDecommission && next.State == JobDone {
			// Only of a node that is still leaving: it may have been removed, or taken back, since the job looked.
			mark, err := d.commissionSteps(ctx, next.Spec.From, Decommissioned)
			if err != nil {
				return nil, err
			}
			steps = append(mark, steps...)
		}
		return append(steps,
			wire.Sub{Code: wire.OpDelete, Key: jobKey(j.ID)},
			wire.Sub{Code: wire.OpPut, Key: endedKey(j.ID), Value: value}), nil
	})
	if err == nil {
		j.Rev = next.Rev
	}
	return err
}

// endedAs returns nil if the history holds exactly this record, else ErrStale.
func (d *Directory) endedAs(ctx context.Context, id JobID, value []byte) error {
	v, ver, err := d.kv.Get(ctx, endedKey(id))
	switch {
	case err != nil:
		return err
	case ver != 0 && bytes.Equal(v, value):
		return nil
	}
	return fmt.Errorf("it has ended: %w", ErrStale)
}

// Job returns a job, running or ended. ErrNotFound: there is none, or it ended too long ago.
func (d *Directory) Job(ctx context.Context, id JobID) (*Job, error) {
	// It may end between the two reads, but it never comes back.
	for _, key := range [][]byte{jobKey(id), endedKey(id)} {
		v, ver, err := d.kv.Get(ctx, key)
		if err != nil {
			return nil, fmt.Errorf("read job %s: %w", id, err)
		}
		if ver != 0 {
			return DecodeJob(v)
		}
	}
	return nil, fmt.Errorf("job %s: %w", id, ErrNotFound)
}

// RunningJobs returns all jobs that have not ended, oldest first.
func (d *Directory) RunningJobs(ctx context.Context) ([]*Job, error) {
	lo, hi := tagSpan(tagJob)
	return d.scanJobs(ctx, lo, hi, 0, false)
}

// Jobs returns up to limit jobs, newest first; with running only those that have not ended.
func (d *Directory) Jobs(ctx context.Context, running bool, limit int) ([]*Job, error) {
	lo, hi := tagSpan(tagJob)
	out, err := d.scanJobs(ctx, lo, hi, limit, true)
	if err != nil || running {
		return out, err
	}
	// Running ones were read first: a job that ended in between is in both, one that is in neither cannot be.
	lo, hi = tagSpan(tagEnded)
	ended, err := d.scanJobs(ctx, lo, hi, limit, true)
	if err != nil {
		return nil, err
	}
	out = append(ended, out...)
	slices.SortStableFunc(out, func(a, b *Job) int { return -compareIDs(a.ID, b.ID) })
	out = slices.CompactFunc(out, func(a, b *Job) bool { return a.ID == b.ID })
	return out[:min(len(out), limit)], nil
}

func compareIDs(a, b JobID) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

func (d *Directory) scanJobs(ctx context.Context, lo, hi []byte, limit int, reverse bool) ([]*Job, error) {
	rows, err := d.kv.Scan(ctx, lo, hi, limit, reverse)
	if err != nil {
		return nil, fmt.Errorf("read jobs: %w", err)
	}
	out := make([]*Job, 0, len(rows))
	for _, r := range rows {
		j, err := DecodeJob(r.Value)
		if err != nil {
			return nil, err
		}
		out = append(out, j)
	}
	return out, nil
}

// ErrEnded refuses to cancel a job that has ended otherwise.
var ErrEnded = errors.New("job has ended")

// CancelJob asks a running job to stop at its next safe point and returns it as it stands then. Repeating it changes
// nothing. ErrNotFound: there is no such job; ErrEnded: it is done or failed.
func (d *Directory) CancelJob(ctx context.Context, id JobID) (*Job, error) {
	var out *Job
	err := d.retry(ctx, "cancel job "+id.String(), func() ([]wire.Sub, error) {
		v, ver, err := d.kv.Get(ctx, jobKey(id))
		if err != nil {
			return nil, err
		}
		if ver == 0 {
			if out, err = d.Job(ctx, id); err == nil && out.State != JobCancelled {
				err = fmt.Errorf("it is %s: %w", out.State, ErrEnded)
			}
			return nil, err
		}
		if out, err = DecodeJob(v); err != nil || out.State == JobCancelling {
			return nil, err
		}
		out.State = JobCancelling
		out.Rev++
		return []wire.Sub{
			checkVersion(jobKey(id), ver), {Code: wire.OpPut, Key: jobKey(id), Value: out.Append(nil)},
		}, nil
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// TrimJobs removes all but the newest keep ended jobs.
func (d *Directory) TrimJobs(ctx context.Context, keep int) error {
	lo, hi := tagSpan(tagEnded)
	rows, err := d.kv.Scan(ctx, lo, hi, 0, true)
	if err != nil {
		return fmt.Errorf("read jobs: %w", err)
	}
	for len(rows) > keep {
		some := rows[keep:min(len(rows), keep+256)]
		steps := make([]wire.Sub, 0, len(some))
		for _, r := range some {
			steps = append(steps, wire.Sub{Code: wire.OpDelete, Key: r.Key})
		}
		if err := d.kv.Apply(ctx, steps); err != nil {
			return fmt.Errorf("remove old jobs: %w", err)
		}
		rows = slices.Delete(rows, keep, keep+len(some))
	}
	return nil
}
