package main

import (
	"fmt"
	"strings"
	"time"

	sharddv1 "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/client/admin"
	"github.com/shardd/shardd/internal/cli"
)

// jobJSON is a job in JSON output. Fields that its kind does not use are left out.
type jobJSON struct {
	ID             string     `json:"id,omitempty"` // none: a plan
	Kind           string     `json:"kind"`
	Shard          string     `json:"shard,omitempty"`
	From           string     `json:"from,omitempty"`
	To             string     `json:"to,omitempty"`
	Learner        bool       `json:"learner,omitempty"`
	Replicas       bool       `json:"replicas,omitempty"`
	BytesPerSecond uint64     `json:"bytes_per_second,omitempty"`
	Keys           []string   `json:"keys,omitempty"`
	Parts          uint32     `json:"parts,omitempty"`
	SplitBy        string     `json:"split_by,omitempty"`
	Start          string     `json:"start,omitempty"`
	End            string     `json:"end,omitempty"`
	Right          string     `json:"right,omitempty"`  // shard
	Origin         string     `json:"origin,omitempty"` // user or driver
	Reason         string     `json:"reason,omitempty"`
	State          string     `json:"state,omitempty"`
	Error          string     `json:"error,omitempty"`
	Steps          []stepJSON `json:"steps"`
	Findings       []string   `json:"findings,omitempty"`
	Started        string     `json:"started,omitempty"` // RFC 3339, the clock of the node that runs the job
	Updated        string     `json:"updated,omitempty"`
	Ended          string     `json:"ended,omitempty"`
}

type stepJSON struct {
	Name           string `json:"name"`
	State          string `json:"state,omitempty"`
	Detail         string `json:"detail,omitempty"`
	BytesDone      uint64 `json:"bytes_done,omitempty"`
	BytesTotal     uint64 `json:"bytes_total,omitempty"`
	BytesPerSecond uint64 `json:"bytes_per_second,omitempty"`
	Lag            uint64 `json:"lag,omitempty"` // entries
	Done           uint64 `json:"done,omitempty"`
	Total          uint64 `json:"total,omitempty"`
}

func toJobJSON(j *sharddv1.Job) jobJSON {
	s := j.GetSpec()
	out := jobJSON{Kind: s.GetKind(), Learner: s.GetLearner(), Replicas: s.GetReplicas(),
		BytesPerSecond: s.GetBytesPerSecond(), Parts: s.GetParts(), SplitBy: s.GetSplitBy(), Start: userKey(s.GetStart()),
		End: userKey(s.GetEnd()), Origin: s.GetOrigin(), Reason: s.GetReason(),
		State: j.GetState(), Error: j.GetError(), Steps: []stepJSON{},
		Findings: j.GetFindings(), Started: rfc3339(j.GetStartedUnixMs()), Updated: rfc3339(j.GetUpdatedUnixMs()),
		Ended: rfc3339(j.GetEndedUnixMs())}
	if j.GetJobId() != 0 {
		out.ID = jobName(j.GetJobId())
	}
	if s.GetShardId() != 0 {
		out.Shard = shardName(s.GetShardId())
	}
	if s.GetFromNode() != 0 {
		out.From = nodeName(s.GetFromNode())
	}
	if s.GetToNode() != 0 {
		out.To = nodeName(s.GetToNode())
	}
	if s.GetRightShardId() != 0 {
		out.Right = shardName(s.GetRightShardId())
	}
	for _, k := range s.GetKeys() {
		out.Keys = append(out.Keys, userKey(k))
	}
	for _, p := range j.GetSteps() {
		out.Steps = append(out.Steps, stepJSON{Name: p.GetName(), State: p.GetState(), Detail: p.GetDetail(),
			BytesDone: p.GetBytesDone(), BytesTotal: p.GetBytesTotal(), BytesPerSecond: p.GetBytesPerSecond(),
			Lag: p.GetLag(), Done: p.GetDone(), Total: p.GetTotal()})
	}
	return out
}

func rfc3339(ms uint64) string {
	if ms == 0 {
		return ""
	}
	return time.UnixMilli(int64(ms)).UTC().Format(time.RFC3339)
}

func jobName(id uint64) string { return fmt.Sprintf("j%d", id) }

// jobTitle is what a job does, in a few words: "move s12 from n1 to n4".
func jobTitle(s *sharddv1.JobSpec) string {
	shard, from, to := shardName(s.GetShardId()), nodeName(s.GetFromNode()), nodeName(s.GetToNode())
	switch s.GetKind() {
	case admin.KindMove:
		return fmt.Sprintf("move %s from %s to %s", shard, from, to)
	case admin.KindAddReplica:
		if s.GetLearner() {
			return fmt.Sprintf("add a learner of %s on %s", shard, to)
		}
		return fmt.Sprintf("add a replica of %s on %s", shard, to)
	case admin.KindRemoveReplica:
		return fmt.Sprintf("remove the replica of %s from %s", shard, from)
	case admin.KindPromote:
		return fmt.Sprintf("promote the learner of %s on %s", shard, to)
	case admin.KindDrain:
		if s.GetReplicas() {
			return fmt.Sprintf("drain %s of leaderships and replicas", from)
		}
		return fmt.Sprintf("drain %s of leaderships", from)
	case admin.KindVerify:
		if s.GetShardId() == 0 {
			return "verify all shards"
		}
		return "verify " + shard
	case admin.KindSplit:
		return splitTitle(s)
	case admin.KindMerge:
		if s.GetRightShardId() == 0 {
			return "merge " + shard + " with its right neighbour"
		}
		return fmt.Sprintf("merge %s into %s", shardName(s.GetRightShardId()), shard)
	case admin.KindScatter:
		if s.GetShardId() != 0 {
			return "scatter " + shard
		}
		start, end := userKey(s.GetStart()), userEnd(s.GetEnd())
		if start == "" && end == "" {
			return "scatter all shards"
		}
		return fmt.Sprintf("scatter %s .. %s", orElse(start, "first"), orElse(end, "last"))
	case admin.KindDecommission:
		return "decommission " + from
	}
	return s.GetKind() // of a newer node
}

func splitTitle(s *sharddv1.JobSpec) string {
	title := "split"
	if s.GetShardId() != 0 {
		title += " " + shardName(s.GetShardId())
	}
	switch keys := s.GetKeys(); {
	case len(keys) == 1:
		return title + " at " + userKey(keys[0])
	case len(keys) > 1:
		return fmt.Sprintf("%s at %d keys, %s to %s", title, len(keys), userKey(keys[0]), userKey(keys[len(keys)-1]))
	}
	title += fmt.Sprintf(" in %d", max(s.GetParts(), 2))
	if by := s.GetSplitBy(); by != "" {
		title += " by " + by
	}
	return title
}

// currentStep is the name of the step that a job is at, "" once it has ended.
func currentStep(j *sharddv1.Job) string {
	if admin.Ended(j) {
		return ""
	}
	for _, s := range j.GetSteps() {
		if s.GetState() == stepRunning {
			return s.GetName()
		}
	}
	for _, s := range j.GetSteps() {
		if s.GetState() == stepWaiting {
			return s.GetName()
		}
	}
	return ""
}

// States of a step.
const (
	stepWaiting = "waiting"
	stepRunning = "running"
	stepFailed  = "failed"
)

// took is how long a job ran, or has run as far as the node knows.
func took(j *sharddv1.Job) time.Duration {
	end := j.GetEndedUnixMs()
	if end == 0 {
		end = j.GetUpdatedUnixMs()
	}
	if end <= j.GetStartedUnixMs() || j.GetStartedUnixMs() == 0 {
		return 0
	}
	return time.Duration(end-j.GetStartedUnixMs()) * time.Millisecond
}

// clockFace shows a time span as 0:07, 12:34 or 1:02:03.
func clockFace(d time.Duration) string {
	s := int(d.Round(time.Second).Seconds())
	if s >= 3600 {
		return fmt.Sprintf("%d:%02d:%02d", s/3600, s/60%60, s%60)
	}
	return fmt.Sprintf("%d:%02d", s/60, s%60)
}

// jobEnd is the result of a job that has ended: nil only for one that reached what it was for.
func jobEnd(j *sharddv1.Job) error {
	name := jobName(j.GetJobId())
	switch {
	case j.GetState() == admin.JobCancelled:
		return cli.Fail(cli.ExitCancelled, "Its shards are whole; the same command begins again.",
			"job %s was cancelled%s", name, because(j.GetError()))
	case j.GetState() == admin.JobFailed:
		return cli.Fail(cli.ExitFailed, fmt.Sprintf("`shardctl jobs describe %s` shows how far it came.", name),
			"job %s failed%s", name, because(j.GetError()))
	case j.GetState() == admin.JobDone && len(j.GetFindings()) > 0:
		return cli.Fail(cli.ExitUnhealthy, "Replace the replica that is wrong: `shardctl shards remove-replica`, then "+
			"`shardctl shards add-replica`.", "job %s found differences: %d", name, len(j.GetFindings()))
	case j.GetState() == admin.JobDone:
		return nil
	}
	return cli.Fail(cli.ExitFailed, "A newer shardctl may know it.", "job %s is in a state unknown here: %q", name,
		j.GetState())
}

func because(text string) string {
	if text == "" {
		return ""
	}
	return ": " + strings.TrimSpace(text)
}
