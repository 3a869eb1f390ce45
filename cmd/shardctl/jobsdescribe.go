package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	sharddv1 "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/client/admin"
	"github.com/shardd/shardd/internal/cli"
)

func newJobsDescribe(o *conn) *cobra.Command {
	return &cobra.Command{
		Use:   "describe JOB",
		Short: "Show one job with its steps as they stand",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			asJSON, err := o.json()
			if err != nil {
				return err
			}
			id, err := number("job", "j", args[0])
			if err != nil {
				return err
			}
			return o.withAdmin(c, func(ctx context.Context, a *admin.Client) error {
				j, err := a.GetJob(ctx, id)
				if err != nil {
					return err
				}
				if asJSON {
					return cli.JSON(c.OutOrStdout(), toJobJSON(j))
				}
				return describeJob(c, j)
			})
		},
	}
}

func describeJob(c *cobra.Command, j *sharddv1.Job) error {
	out := c.OutOrStdout()
	ended := ""
	if j.GetEndedUnixMs() != 0 {
		ended = localTime(j.GetEndedUnixMs())
	}
	if err := cli.Fields(out, "job", jobName(j.GetJobId()), "what", jobTitle(j.GetSpec()),
		"by", origin(j.GetSpec()), "why", j.GetSpec().GetReason(), "state", j.GetState(),
		"error", strings.TrimSpace(j.GetError()), "started", localTime(j.GetStartedUnixMs()), "ended", ended,
		"took", clockFace(took(j))); err != nil {
		return err
	}
	var rows [][]string
	for i, s := range j.GetSteps() {
		part := ""
		if p, ok := progress(s); ok {
			part = fmt.Sprintf("%d %%", int(p*100))
		}
		rows = append(rows, []string{fmt.Sprint(i + 1), s.GetName(), s.GetState(), part, figures(s, true)})
	}
	if len(rows) > 0 {
		fmt.Fprintln(out)
		if err := cli.Table(out, []string{"STEP", "WHAT", "STATE", "DONE", "DETAIL"}, rows); err != nil {
			return err
		}
	}
	if len(j.GetFindings()) > 0 {
		fmt.Fprintln(out, "\nfindings")
		for _, f := range j.GetFindings() {
			fmt.Fprintln(out, "  "+cli.Cut(f, 1<<16))
		}
	}
	return nil
}
