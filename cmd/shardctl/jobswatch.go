package main

import (
	"github.com/spf13/cobra"
)

func newJobsWatch(o *conn) *cobra.Command {
	return &cobra.Command{
		Use:   "watch JOB",
		Short: "Follow a job to its end",
		Long: `Follow a job to its end: with bars that are redrawn in place on a terminal, with a line per change elsewhere,
with -o json silently, printing the job once it has ended.

Nodes that stop answering and a change of the leader of the cluster's own shard only mean that shardctl asks again. It
gives up after a minute of silence, or after --timeout if that is given. Ctrl-C ends the watching; the job goes on.

Exits with the job's result: 0 done, 1 failed, 4 done with findings (verify), 8 cancelled.`,
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
			return o.withWatch(c, id, nil, asJSON)
		},
	}
}
