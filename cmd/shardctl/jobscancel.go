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

func newJobsCancel(o *conn) *cobra.Command {
	var wait bool
	c := &cobra.Command{
		Use:   "cancel JOB",
		Short: "Ask a job to stop at its next safe point",
		Long: `Ask a job to stop at its next safe point. A replica that it has begun to make is removed again; once voters
have been exchanged it is too late, and the job goes on to its end. Its shards are whole either way. An operator of the
placement driver can be cancelled too; the driver may decide the same again, unless that part of it is paused
("shardctl balance pause").

With --wait it is followed until it has stopped. Exits with 0 if the job is or will be cancelled, 6 if it has ended in
another way before.`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			asJSON, err := o.json()
			if err != nil {
				return err
			}
			id, err := number("job", "j", args[0])
			if err != nil {
				return err
			}
			var j *sharddv1.Job
			if err := o.withAdmin(c, func(ctx context.Context, a *admin.Client) (err error) {
				j, err = a.CancelJob(ctx, id)
				return err
			}); err != nil {
				return err
			}
			if wait && !admin.Ended(j) {
				err := o.withWatch(c, id, j, asJSON)
				if cli.ExitCode(err) != cli.ExitCancelled {
					return tooLate(id, err)
				}
				_, err = fmt.Fprintf(messages(c, asJSON), "job %s was cancelled\n", jobName(id))
				return err
			}
			if asJSON {
				if err := cli.JSON(c.OutOrStdout(), toJobJSON(j)); err != nil {
					return err
				}
			}
			if admin.Ended(j) && j.GetState() != admin.JobCancelled {
				return cli.Fail(cli.ExitConflict, "", "job %s has ended before: %s", jobName(id), j.GetState())
			}
			_, err = fmt.Fprintf(messages(c, asJSON), "job %s: %s\n", jobName(id), j.GetState())
			return err
		},
	}
	c.Flags().BoolVar(&wait, "wait", false, "follow the job until it has stopped")
	return c
}

// tooLate is the result of a job that reached its own end although it was asked to stop.
func tooLate(id uint64, err error) error {
	if err == nil {
		return cli.Fail(cli.ExitConflict, "", "job %s was done before it could be cancelled", jobName(id))
	}
	return err
}

// messages is where text for people goes: nowhere beside JSON.
func messages(c *cobra.Command, asJSON bool) io.Writer {
	if asJSON {
		return io.Discard
	}
	return c.OutOrStdout()
}
