package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	sharddv1 "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/client/admin"
	"github.com/shardd/shardd/internal/cli"
)

// jobFlags are the flags of every verb that begins a job.
type jobFlags struct {
	wait   bool
	dryRun bool
}

func (f *jobFlags) add(c *cobra.Command) {
	c.Flags().BoolVar(&f.wait, "wait", false, "follow the job to its end; Ctrl-C stops the following, not the job")
	c.Flags().BoolVar(&f.dryRun, "dry-run", false, "only print what would be done")
	c.MarkFlagsMutuallyExclusive("wait", "dry-run")
}

// jobHelp ends the help text of every verb that begins a job.
const jobHelp = `

The work is a job that the cluster goes on with by itself. Its id is printed; --wait follows it and exits with its
result: 0 done, 1 failed, 8 cancelled.`

// startJob begins a job as the flags say: print the plan, print the id, or follow it.
func (o *conn) startJob(c *cobra.Command, spec *sharddv1.JobSpec, f *jobFlags) error {
	asJSON, err := o.json()
	if err != nil {
		return err
	}
	var started *sharddv1.Job
	if err := o.withAdmin(c, func(ctx context.Context, a *admin.Client) (err error) {
		started, err = a.StartJob(ctx, spec, f.dryRun)
		return err
	}); err != nil {
		return err
	}
	out := c.OutOrStdout()
	switch {
	case f.dryRun && asJSON:
		return cli.JSON(out, toJobJSON(started))
	case f.dryRun:
		return printPlan(c, started)
	case admin.Ended(started): // nothing was to be done, or nothing can be
		return endJob(c, started, asJSON)
	case f.wait:
		return o.withWatch(c, started.GetJobId(), started, asJSON)
	case asJSON:
		return cli.JSON(out, toJobJSON(started))
	}
	name := jobName(started.GetJobId())
	_, err = fmt.Fprintf(out, "job %s: %s\nIt goes on by itself; `shardctl jobs watch %[1]s` shows it.\n", name,
		jobTitle(started.GetSpec()))
	return err
}

// withWatch follows a job over a client of its own, which is not bound to the time-out of one call.
func (o *conn) withWatch(c *cobra.Command, id uint64, last *sharddv1.Job, asJSON bool) error {
	a, err := admin.Open(o.endpoints)
	if err != nil {
		return o.explain(c.Context(), err)
	}
	defer a.Close()
	return o.explain(c.Context(), o.watchJob(c, a, id, last, asJSON))
}

// printPlan prints the steps that a job would take.
func printPlan(c *cobra.Command, j *sharddv1.Job) error {
	out := c.OutOrStdout()
	if len(j.GetSteps()) == 0 {
		_, err := fmt.Fprintf(out, "%s: nothing to do\n", jobTitle(j.GetSpec()))
		return err
	}
	if _, err := fmt.Fprintf(out, "%s, not started:\n\n", jobTitle(j.GetSpec())); err != nil {
		return err
	}
	var rows [][]string
	for i, s := range j.GetSteps() {
		rows = append(rows, []string{fmt.Sprint(i + 1), s.GetName(), figures(s, true)})
	}
	return cli.Table(out, []string{"STEP", "WHAT", "DETAIL"}, rows)
}
