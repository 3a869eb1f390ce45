package main

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	sharddv1 "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/client/admin"
	"github.com/shardd/shardd/internal/cli"
)

// decommissionJSON is what a decommission takes; Job is left out of a plan.
type decommissionJSON struct {
	Node     string   `json:"node"`
	Replicas uint32   `json:"replicas"`
	Leaders  uint32   `json:"leaders"`
	Bytes    uint64   `json:"bytes"`
	TookMS   uint64   `json:"estimate_ms"`
	Blocked  []string `json:"blocked"`
	Job      *jobJSON `json:"job,omitempty"`
}

func newNodesDecommission(o *conn) *cobra.Command {
	var f jobFlags
	c := &cobra.Command{
		Use:   "decommission NODE",
		Short: "Have all replicas leave a node for good",
		Long: `Have all replicas leave a node for good; nothing new is placed on it. The placement driver moves them by the
rules, so that each shard keeps as many replicas and as good a spread as before. What is in the way (no room, no other
node in a zone that a rule asks for) is said at once, with --dry-run before anything is begun, and goes on being said by
"shardctl why NODE": the job then waits, and goes on when that is mended.

After it "shardctl nodes remove" strikes the node from the cluster. "shardctl nodes recommission" takes it back at any
time before; replicas that have left do not return by it.

A dry run exits with 6 if something is in the way.` + jobHelp,
		Example: `  shardctl nodes decommission n3 --dry-run
  shardctl nodes decommission n3 --wait`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			asJSON, err := o.json()
			if err != nil {
				return err
			}
			node, err := number("node", "n", args[0])
			if err != nil {
				return err
			}
			var r *sharddv1.DecommissionNodeResponse
			if err := o.withAdmin(c, func(ctx context.Context, a *admin.Client) (err error) {
				r, err = a.Decommission(ctx, node, f.dryRun)
				return err
			}); err != nil {
				return err
			}
			return o.decommission(c, node, r, &f, asJSON)
		},
	}
	f.add(c)
	return c
}

// decommission shows what a decommission takes, and follows it if it was begun and the flags ask for that.
func (o *conn) decommission(c *cobra.Command, node uint64, r *sharddv1.DecommissionNodeResponse, f *jobFlags,
	asJSON bool) error {
	job := r.GetJob()
	if asJSON && !f.wait {
		out := decommissionJSON{Node: nodeName(node), Replicas: r.GetReplicas(), Leaders: r.GetLeaders(),
			Bytes: r.GetBytes(), TookMS: r.GetTookMs(), Blocked: append([]string{}, r.GetBlocked()...)}
		if !f.dryRun {
			j := toJobJSON(job)
			out.Job = &j
		}
		if err := cli.JSON(c.OutOrStdout(), out); err != nil {
			return err
		}
	}
	if err := decommissionText(messages(c, asJSON), node, r, f.dryRun); err != nil {
		return err
	}
	switch {
	case f.dryRun && len(r.GetBlocked()) > 0:
		return cli.Fail(cli.ExitConflict, "Mend what is listed, or begin it all the same: what can move moves, the rest waits.",
			"%s cannot be emptied as things are", nodeName(node))
	case f.dryRun:
		return nil
	case admin.Ended(job) && asJSON:
		return jobEnd(job)
	case admin.Ended(job):
		return endJob(c, job, false)
	case f.wait:
		return o.withWatch(c, job.GetJobId(), job, asJSON)
	}
	_, err := fmt.Fprintf(messages(c, asJSON), "\njob %s: %s\nIt goes on by itself; `shardctl jobs watch %[1]s` shows it.\n",
		jobName(job.GetJobId()), jobTitle(job.GetSpec()))
	return err
}

func decommissionText(w io.Writer, node uint64, r *sharddv1.DecommissionNodeResponse, plan bool) error {
	verb := "move"
	if plan {
		verb = "would move"
	}
	took := ""
	if r.GetTookMs() > 0 {
		took = "about " + span(millis(r.GetTookMs()))
	}
	if err := cli.Fields(w, "node", nodeName(node),
		verb, fmt.Sprintf("%d replicas, %d of them leaders, %s", r.GetReplicas(), r.GetLeaders(), cli.Bytes(r.GetBytes())),
		"takes", took); err != nil {
		return err
	}
	return listed(w, "in the way", r.GetBlocked())
}

// listed writes lines under a title, nothing if there are none.
func listed(w io.Writer, title string, lines []string) error {
	if len(lines) == 0 {
		return nil
	}
	if _, err := fmt.Fprintf(w, "\n%s\n", title); err != nil {
		return err
	}
	for _, l := range lines {
		if _, err := fmt.Fprintln(w, "  "+cli.Cut(l, 1<<16)); err != nil {
			return err
		}
	}
	return nil
}
