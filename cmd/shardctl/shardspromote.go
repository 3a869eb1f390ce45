package main

import (
	"github.com/spf13/cobra"

	"github.com/shardd/shardd/client/admin"
)

func newShardsPromote(o *conn) *cobra.Command {
	var f jobFlags
	var on string
	c := &cobra.Command{
		Use:     "promote SHARD --on NODE",
		Short:   "Make a learner a voter",
		Long:    `Make a learner, as add-replica --learner makes them, a voter once it has caught up.` + jobHelp,
		Example: "  shardctl shards promote s2 --on n3 --wait",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			spec, err := replicaSpec(admin.KindPromote, args[0], place{"on", on})
			if err != nil {
				return err
			}
			return o.startJob(c, spec, &f)
		},
	}
	c.Flags().StringVar(&on, "on", "", "node that holds the learner, such as n3")
	f.add(c)
	return c
}
