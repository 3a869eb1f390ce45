package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	sharddv1 "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/client/admin"
	"github.com/shardd/shardd/internal/cli"
)

// Following a recovery: as with a job, whatever happens here, it goes on. The nodes that are asked are those of a cluster
// in trouble, so silence is borne as long as with jobs.

// runRecovery begins the recovery of a plan, or goes on with it, and follows it to its end.
func (o *conn) runRecovery(c *cobra.Command, failed []uint64, plan *sharddv1.RecoverQuorumResponse, asJSON bool) error {
	a, err := admin.Open(o.endpoints)
	if err != nil {
		return o.explain(c.Context(), err)
	}
	defer a.Close()
	ctx := c.Context()
	if c.Flags().Changed("timeout") {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, o.timeout)
		defer cancel()
	}
	r, err := a.StartRecovery(ctx, failed, plan.GetPlanToken())
	if err != nil && !askAgain(err) {
		return o.explain(ctx, err)
	}
	if err != nil {
		r = plan // whether it has begun the next answer tells
	}
	v := &recoveryView{asJSON: asJSON, c: c, screen: cli.NewScreen(c.OutOrStdout())}
	r, err = followRecovery(ctx, a.RecoveryStatus, v, r)
	switch {
	case c.Context().Err() != nil:
		return cli.Fail(cli.ExitInterrupted, "It goes on: `shardctl unsafe recover-quorum --status` shows it, --cancel stops it.",
			"no longer watching the recovery")
	case errors.Is(err, context.DeadlineExceeded) && ctx.Err() != nil:
		return cli.Fail(cli.ExitTimeout, "It goes on: `shardctl unsafe recover-quorum --status` shows it.",
			"the recovery had not ended after %s", o.timeout)
	case err != nil && askAgain(err):
		return cli.Fail(cli.ExitUnreachable, "Start the nodes that are left and give the same command again: it goes on with it.",
			"nothing heard of the recovery for %s: %w", maxSilence, err)
	case err != nil:
		return o.explain(ctx, err)
	}
	if asJSON {
		if err := cli.JSON(c.OutOrStdout(), toRecoveryJSON(r, r.GetFailedNodes())); err != nil {
			return err
		}
	}
	if r.GetStage() == "" {
		return cli.Fail(cli.ExitCancelled, "Shards that were recovered stay so; the same command plans again.",
			"the recovery was cancelled")
	}
	if err := recoveryFailure(r); err != nil {
		return err
	}
	_, err = fmt.Fprintf(messages(c, asJSON), "recovered %s. Each has one replica now; the placement driver makes more as soon as "+
		"there are\nnodes for them: `shardctl balance status` shows how far that is.\n", recovered(r))
	return err
}

// followRecovery shows a recovery until it has ended and returns it as it was then. begun is the answer to its start.
func followRecovery(ctx context.Context, get func(context.Context) (*sharddv1.RecoverQuorumResponse, error),
	v *recoveryView, begun *sharddv1.RecoverQuorumResponse) (*sharddv1.RecoverQuorumResponse, error) {
	answered, r := time.Now(), begun
	for {
		one, cancel := context.WithTimeout(ctx, askLimit)
		now, err := get(one)
		cancel()
		trouble := ""
		switch {
		case err == nil:
			answered, r = time.Now(), now
		case ctx.Err() != nil:
			return r, ctx.Err()
		case !askAgain(err), time.Since(answered) > maxSilence:
			return r, err
		default:
			trouble = fmt.Sprintf("no answer for %s, asking again", clockFace(time.Since(answered)))
		}
		if err := v.show(r, trouble); err != nil {
			return r, err
		}
		if trouble == "" && !recovering(r) {
			return r, nil
		}
		pause(ctx, askEvery)
	}
}

// recoveryView shows how far a recovery is: redrawn in place on a terminal, a line per change elsewhere, nothing for
// JSON.
type recoveryView struct {
	c      *cobra.Command
	screen *cli.Screen
	asJSON bool
	last   string
}

func (v *recoveryView) show(r *sharddv1.RecoverQuorumResponse, trouble string) error {
	if v.asJSON || r.GetStage() == "" {
		return nil
	}
	line := stageText(r.GetStage()) + ", recovered " + recovered(r)
	if v.screen == nil {
		if trouble != "" {
			line = trouble[:len("no answer")] // once, not with every question
		}
		if line == v.last {
			return nil
		}
		v.last = line
		_, err := fmt.Fprintln(v.c.OutOrStdout(), line)
		return err
	}
	lines := []string{line}
	for _, s := range r.GetShards() {
		if s.GetState() == "failed" && len(lines) < mostNames {
			lines = append(lines, fmt.Sprintf("  %s: %s", shardName(s.GetShardId()), s.GetError()))
		}
	}
	for _, p := range r.GetProblems() {
		lines = append(lines, "  "+p)
	}
	if trouble != "" {
		lines = append(lines, "  "+trouble)
	}
	return v.screen.Draw(lines)
}
