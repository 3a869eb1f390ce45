package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	sharddv1 "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/client/admin"
	"github.com/shardd/shardd/internal/cli"
)

func newUnsafe(o *conn) *cobra.Command {
	c := &cobra.Command{
		Use:   "unsafe",
		Short: "Last resorts that may lose data",
	}
	c.AddCommand(newRecoverQuorum(o))
	return c
}

type recoverFlags struct {
	failed  []string
	confirm string
	status  bool
	cancel  bool
	dryRun  bool
}

func newRecoverQuorum(o *conn) *cobra.Command {
	var f recoverFlags
	c := &cobra.Command{
		Use:   "recover-quorum --failed NODE,NODE | --status | --cancel",
		Short: "Bring back shards that have lost most of their replicas for ever",
		Long: `Bring back shards that have lost most of their replicas for ever. Of each such shard the replica that is furthest
ahead becomes the only one, and others are made from it again. Writes that the lost replicas had acknowledged, and that
had not reached the surviving one, are lost; a shard with no replica left is made anew, empty. Shards that have kept most
of their replicas are not touched.

It prints the plan, with what may be lost in each shard, and asks for a phrase to be typed; in scripts --confirm gives
it. Then the failed nodes are struck out first: a process of theirs that comes back is refused for ever. So be sure that
they are lost: if their disks can be brought back, do that instead. docs/runbooks/quorum-loss.md leads through it.

The work goes in stages (fence, meta, shards) that can be repeated. If the viewer goes or a node dies, the same command,
or --status, shows how far it is; the same command goes on with it.

Exits with 0 once all is recovered, 1 if a shard could not be, 8 if it was cancelled.`,
		Example: `  shardctl unsafe recover-quorum --failed n2,n3 --dry-run
  shardctl unsafe recover-quorum --failed n2,n3
  shardctl unsafe recover-quorum --status`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			asJSON, err := o.json()
			if err != nil {
				return err
			}
			switch {
			case f.status:
				return o.recoveryStatus(c, asJSON)
			case f.cancel:
				return o.cancelRecovery(c, asJSON)
			}
			failed, err := f.nodes()
			if err != nil {
				return err
			}
			return o.recoverQuorum(c, failed, &f, asJSON)
		},
	}
	fl := c.Flags()
	fl.StringSliceVar(&f.failed, "failed", nil, "nodes that are lost for ever, such as n2,n3")
	fl.StringVar(&f.confirm, "confirm", "", "the phrase that the plan shows, for scripts")
	fl.BoolVar(&f.dryRun, "dry-run", false, "only print the plan")
	fl.BoolVar(&f.status, "status", false, "show how far the recovery is")
	fl.BoolVar(&f.cancel, "cancel", false, "stop the recovery; shards that are recovered stay so")
	c.MarkFlagsMutuallyExclusive("failed", "status", "cancel")
	c.MarkFlagsMutuallyExclusive("confirm", "dry-run", "status", "cancel")
	return c
}

// nodes are the failed nodes, in order.
func (f *recoverFlags) nodes() ([]uint64, error) {
	var out []uint64
	for _, n := range f.failed {
		id, err := number("node", "n", strings.TrimSpace(n))
		if err != nil {
			return nil, err
		}
		out = append(out, id)
	}
	if len(out) == 0 {
		return nil, cli.Usagef("--failed is not set: name the nodes that are lost for ever, such as n2,n3 (`shardctl nodes " +
			"list` shows which are down)")
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}

// phrase is what must be typed: it names the nodes and how many shards may lose data, so that a plan that has become
// another one is not confirmed by it.
func phrase(plan *sharddv1.RecoverQuorumResponse, failed []uint64) string {
	n := len(plan.GetShards())
	what := fmt.Sprintf("%d shards", n)
	if n == 1 {
		what = "1 shard"
	}
	return fmt.Sprintf("give up %s and recover %s", nodeNames(failed), what)
}

func nodeNames(ids []uint64) string {
	var names []string
	for _, id := range ids {
		names = append(names, nodeName(id))
	}
	return strings.Join(names, " ")
}

// recovering reports whether a recovery is under way.
func recovering(r *sharddv1.RecoverQuorumResponse) bool {
	switch r.GetStage() {
	case admin.RecoverFence, admin.RecoverMeta, admin.RecoverShards:
		return true
	}
	return false
}

// recoverQuorum plans, asks, begins and follows; or goes on with a recovery from the same nodes that is under way. If more
// nodes have failed since, it plans anew.
func (o *conn) recoverQuorum(c *cobra.Command, failed []uint64, f *recoverFlags, asJSON bool) error {
	var plan *sharddv1.RecoverQuorumResponse
	under := false
	if err := o.withAdmin(c, func(ctx context.Context, a *admin.Client) error {
		now, err := a.RecoveryStatus(ctx)
		if err != nil && !errors.Is(err, admin.ErrNotFound) {
			return err
		}
		old := sorted(now.GetFailedNodes())
		under = recovering(now) && slices.Equal(old, failed)
		switch {
		case under && !f.dryRun:
			plan = now
			return nil
		case recovering(now) && !includes(failed, old):
			return cli.Fail(cli.ExitConflict, "`shardctl unsafe recover-quorum --status` shows it, --cancel stops it; nodes that have "+
				"failed since are named beside those.", "a recovery from the loss of %s is under way", nodeNames(old))
		}
		plan, err = a.PlanRecovery(ctx, failed)
		return err
	}); err != nil {
		return err
	}
	if under && !f.dryRun {
		fmt.Fprintf(messages(c, asJSON), "a recovery from the loss of %s is under way: going on with it\n", nodeNames(failed))
		return o.runRecovery(c, failed, plan, asJSON)
	}
	out := messages(c, asJSON)
	if asJSON && f.confirm == "" && !f.dryRun {
		out = c.ErrOrStderr() // who is asked must see what about
	}
	if err := recoveryText(out, plan, failed); err != nil {
		return err
	}
	switch {
	case len(plan.GetProblems()) > 0 && (len(plan.GetShards()) == 0 || plan.GetPlanToken() == ""): // not to be started
		if asJSON {
			if err := cli.JSON(c.OutOrStdout(), toRecoveryJSON(plan, failed)); err != nil {
				return err
			}
		}
		return cli.Fail(cli.ExitConflict, "Mend what is listed and plan again. Nothing was changed.",
			"no recovery from the loss of %s as things are", nodeNames(failed))
	case f.dryRun, len(plan.GetShards()) == 0:
		if asJSON {
			return cli.JSON(c.OutOrStdout(), toRecoveryJSON(plan, failed))
		}
		return nil
	}
	want := phrase(plan, failed)
	if f.confirm != "" && f.confirm != want {
		return cli.Fail(cli.ExitConflict, "Nothing was changed. Read the plan; --confirm takes the phrase that it ends with.",
			"--confirm %q is not the phrase of this plan", f.confirm)
	}
	if f.confirm == "" {
		question := fmt.Sprintf("\n%s can never come back after this, and what is listed may be lost.", nodeNames(failed))
		if err := confirm(c, question, want, "--confirm PHRASE"); err != nil {
			return err
		}
	}
	return o.runRecovery(c, failed, plan, asJSON)
}

// includes reports whether all has every one of some; both ascend.
func includes(all, some []uint64) bool {
	for _, id := range some {
		if _, ok := slices.BinarySearch(all, id); !ok {
			return false
		}
	}
	return true
}

func sorted(ids []uint64) []uint64 {
	ids = slices.Clone(ids)
	slices.Sort(ids)
	return ids
}

// recoveryStatus shows the recovery as it is; only one in which a shard failed is a failure.
func (o *conn) recoveryStatus(c *cobra.Command, asJSON bool) error {
	return o.withAdmin(c, func(ctx context.Context, a *admin.Client) error {
		r, err := a.RecoveryStatus(ctx)
		if err != nil {
			return err
		}
		if asJSON {
			if err := cli.JSON(c.OutOrStdout(), toRecoveryJSON(r, r.GetFailedNodes())); err != nil {
				return err
			}
		} else if err := recoveryProgress(c.OutOrStdout(), r); err != nil {
			return err
		}
		return recoveryFailure(r)
	})
}

func (o *conn) cancelRecovery(c *cobra.Command, asJSON bool) error {
	return o.withAdmin(c, func(ctx context.Context, a *admin.Client) error {
		r, err := a.CancelRecovery(ctx)
		if err != nil {
			return err
		}
		if asJSON {
			return cli.JSON(c.OutOrStdout(), toRecoveryJSON(r, r.GetFailedNodes()))
		}
		if r.GetStage() == "cancelled" {
			_, err = fmt.Fprintf(c.OutOrStdout(), "the recovery is called off, no replica was touched: %s may come back\n",
				nodeNames(r.GetFailedNodes()))
			return err
		}
		_, err = fmt.Fprintf(c.OutOrStdout(), "the recovery is stopped: %s recovered, the others are left as they are; %s stay "+
			"struck out\n", recovered(r), nodeNames(r.GetFailedNodes()))
		return err
	})
}
