package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	sharddv1 "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/client/admin"
	"github.com/shardd/shardd/internal/cli"
)

func newJobs(o *conn) *cobra.Command {
	c := &cobra.Command{
		Use:   "jobs",
		Short: "Show, follow and cancel long work",
		Long: `Show, follow and cancel long work: moves of replicas, splits, merges, drains, verification; that of people and
that of the placement driver.

A job is kept by the cluster and goes on whoever watches. Jobs are named j1, j2 and so on; the plain number works too.`,
	}
	c.AddCommand(newJobsList(o), newJobsDescribe(o), newJobsWatch(o), newJobsCancel(o))
	return c
}

func newJobsList(o *conn) *cobra.Command {
	var running bool
	var limit uint32
	c := &cobra.Command{
		Use:   "list",
		Short: "List jobs, newest first",
		RunE: func(c *cobra.Command, _ []string) error {
			asJSON, err := o.json()
			if err != nil {
				return err
			}
			return o.withAdmin(c, func(ctx context.Context, a *admin.Client) error {
				jobs, err := a.ListJobs(ctx, running, limit)
				if err != nil {
					return err
				}
				if !asJSON {
					return jobTable(c, jobs)
				}
				out := []jobJSON{}
				for _, j := range jobs {
					out = append(out, toJobJSON(j))
				}
				return cli.JSON(c.OutOrStdout(), out)
			})
		},
	}
	c.Flags().BoolVar(&running, "running", false, "only jobs that have not ended")
	c.Flags().Uint32Var(&limit, "limit", 0, "list at most this many; 0 is 100")
	return c
}

func jobTable(c *cobra.Command, jobs []*sharddv1.Job) error {
	var rows [][]string
	for _, j := range jobs {
		state := j.GetState()
		if n := len(j.GetFindings()); n > 0 {
			state += fmt.Sprintf(", %d findings", n)
		}
		rows = append(rows, []string{jobName(j.GetJobId()), jobTitle(j.GetSpec()), origin(j.GetSpec()), state, orElse(currentStep(j), "-"),
			localTime(j.GetStartedUnixMs()), clockFace(took(j)), j.GetError()})
	}
	return cli.Table(c.OutOrStdout(), []string{"JOB", "WHAT", "BY", "STATE", "STEP", "STARTED", "TOOK", ""}, rows)
}

// origin is who wants a job: user or driver. Jobs of before there was a driver do not say.
func origin(s *sharddv1.JobSpec) string { return orElse(s.GetOrigin(), "user") }

func localTime(ms uint64) string {
	if ms == 0 {
		return "-"
	}
	return time.UnixMilli(int64(ms)).Format(time.DateTime)
}
