package main

import (
	"fmt"
	"io"
	"strings"

	sharddv1 "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/client/admin"
	"github.com/shardd/shardd/internal/cli"
)

// recoveryJSON is a plan of a recovery, or how far one is.
type recoveryJSON struct {
	Failed   []string             `json:"failed_nodes"`
	Stage    string               `json:"stage,omitempty"`  // fence, meta, shards or done; none: a plan
	Phrase   string               `json:"phrase,omitempty"` // what --confirm takes
	Shards   []recoveredShardJSON `json:"shards"`
	Problems []string             `json:"problems"`
}

type recoveredShardJSON struct {
	Shard     string   `json:"shard"`
	Start     string   `json:"start"`
	End       string   `json:"end"`
	Survivor  string   `json:"survivor,omitempty"` // none: the range is made anew, empty
	Applied   uint64   `json:"applied"`
	Commit    uint64   `json:"commit"`
	LastIndex uint64   `json:"last_index"`
	Loss      string   `json:"loss"`
	Dropped   []string `json:"dropped,omitempty"` // nodes whose surviving replica is given up
	State     string   `json:"state,omitempty"`   // waiting, done or failed
	Error     string   `json:"error,omitempty"`
}

func toRecoveryJSON(r *sharddv1.RecoverQuorumResponse, failed []uint64) recoveryJSON {
	out := recoveryJSON{Failed: []string{}, Stage: r.GetStage(), Shards: []recoveredShardJSON{},
		Problems: append([]string{}, r.GetProblems()...)}
	for _, id := range failed {
		out.Failed = append(out.Failed, nodeName(id))
	}
	if r.GetStage() == "" && r.GetPlanToken() != "" {
		out.Phrase = phrase(r, failed)
	}
	for _, s := range r.GetShards() {
		j := recoveredShardJSON{Shard: shardName(s.GetShardId()), Start: userKey(s.GetStart()), End: userEnd(s.GetEnd()),
			Applied: s.GetApplied(), Commit: s.GetCommit(), LastIndex: s.GetLastIndex(), Loss: s.GetLoss(),
			State: s.GetState(), Error: s.GetError()}
		if s.GetSurvivor() != 0 {
			j.Survivor = nodeName(s.GetSurvivor())
		}
		for _, n := range s.GetDropped() {
			j.Dropped = append(j.Dropped, nodeName(n))
		}
		out.Shards = append(out.Shards, j)
	}
	return out
}

// recoveryText is a plan.
func recoveryText(w io.Writer, r *sharddv1.RecoverQuorumResponse, failed []uint64) error {
	if len(r.GetShards()) == 0 && len(r.GetProblems()) > 0 {
		return listed(w, "in the way", r.GetProblems())
	}
	if len(r.GetShards()) == 0 {
		if _, err := fmt.Fprintf(w, "without %s no shard lacks a quorum: nothing to recover\n", nodeNames(failed)); err != nil {
			return err
		}
		return nil
	}
	if err := cli.Fields(w, "lost for ever", nodeNames(failed), "to recover", fmt.Sprintf("%d shards without a quorum",
		len(r.GetShards()))); err != nil {
		return err
	}
	var rows [][]string
	var losses []string
	for _, s := range r.GetShards() {
		from := "anew, empty"
		index := "-"
		if s.GetSurvivor() != 0 {
			from = "from " + nodeName(s.GetSurvivor())
			index = fmt.Sprintf("%d of %d", s.GetApplied(), s.GetLastIndex())
		}
		dropped := "-"
		if len(s.GetDropped()) > 0 {
			dropped = nodeNames(s.GetDropped())
		}
		rows = append(rows, []string{shardName(s.GetShardId()), recoveredRange(s), from, index, dropped})
		losses = append(losses, shardName(s.GetShardId())+": "+s.GetLoss())
	}
	fmt.Fprintln(w)
	if err := cli.Table(w, []string{"SHARD", "KEYS", "MADE", "APPLIED", "GIVEN UP"}, rows); err != nil {
		return err
	}
	if err := listed(w, "what may be lost", losses); err != nil {
		return err
	}
	if r.GetPlanToken() == "" { // not to be started
		return listed(w, "in the way", r.GetProblems())
	}
	if err := listed(w, "problems", r.GetProblems()); err != nil {
		return err
	}
	_, err := fmt.Fprintf(w, "\nphrase: %s\n", phrase(r, failed))
	return err
}

func recoveredRange(s *sharddv1.RecoverShard) string {
	return keyRange(&sharddv1.ShardInfo{Start: s.GetStart(), End: s.GetEnd()})
}

// recoveryProgress is how far a recovery is.
func recoveryProgress(w io.Writer, r *sharddv1.RecoverQuorumResponse) error {
	if r.GetStage() == "" {
		_, err := fmt.Fprintln(w, "no recovery is under way")
		return err
	}
	if err := cli.Fields(w, "lost for ever", nodeNames(r.GetFailedNodes()), "stage", stageText(r.GetStage()),
		"recovered", recovered(r)); err != nil {
		return err
	}
	var rows [][]string
	for _, s := range r.GetShards() {
		from := "anew, empty"
		if s.GetSurvivor() != 0 {
			from = "from " + nodeName(s.GetSurvivor())
		}
		rows = append(rows, []string{shardName(s.GetShardId()), recoveredRange(s), from, s.GetState(),
			cli.Cut(s.GetError(), 1<<16)})
	}
	if len(rows) > 0 {
		fmt.Fprintln(w)
		if err := cli.Table(w, []string{"SHARD", "KEYS", "MADE", "STATE", ""}, rows); err != nil {
			return err
		}
	}
	return listed(w, "problems", r.GetProblems())
}

// stageText is a stage with what happens in it.
func stageText(stage string) string {
	what := map[string]string{admin.RecoverFence: "the lost nodes are struck out", admin.RecoverMeta: "the cluster's own shard",
		admin.RecoverShards: "all other shards"}[stage]
	if what == "" {
		return stage
	}
	return stage + ": " + what
}

func recovered(r *sharddv1.RecoverQuorumResponse) string {
	text := fmt.Sprintf("%d of %d shards", countState(r, "done"), len(r.GetShards()))
	if n := countState(r, "failed"); n > 0 {
		text += fmt.Sprintf(", %d failed", n)
	}
	return text
}

func countState(r *sharddv1.RecoverQuorumResponse, state string) int {
	n := 0
	for _, s := range r.GetShards() {
		if s.GetState() == state {
			n++
		}
	}
	return n
}

// recoveryFailure is the failure of a recovery in which shards could not be brought back, nil if there is none.
func recoveryFailure(r *sharddv1.RecoverQuorumResponse) error {
	var names []string
	for _, s := range r.GetShards() {
		if s.GetState() == "failed" {
			names = append(names, shardName(s.GetShardId()))
		}
	}
	if len(names) == 0 {
		return nil
	}
	return cli.Fail(cli.ExitFailed, "`shardctl unsafe recover-quorum --status` says why; the same command tries them again.",
		"not recovered: %s", strings.Join(names, " "))
}
