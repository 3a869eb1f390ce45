package main

import (
	"github.com/spf13/cobra"

	"github.com/shardd/shardd/client/admin"
)

func newShardsAddReplica(o *conn) *cobra.Command {
	var f jobFlags
	var to string
	var learner bool
	c := &cobra.Command{
		Use:   "add-replica SHARD --to NODE",
		Short: "Give a shard one more replica",
		Long: `Give a shard one more replica: add a learner, send it a snapshot, let it catch up, make it a voter. An odd
number of voters is worth having: two hold no longer than one, three outlive the loss of any one.` + jobHelp,
		Example: `  shardctl shards add-replica s2 --to n2 --wait
  shardctl shards add-replica s2 --to n3 --learner`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			spec, err := replicaSpec(admin.KindAddReplica, args[0], place{"to", to})
			if err != nil {
				return err
			}
			spec.Learner = learner
			return o.startJob(c, spec, &f)
		},
	}
	c.Flags().StringVar(&to, "to", "", "node that gets the replica, such as n2")
	c.Flags().BoolVar(&learner, "learner", false, "leave it a learner, which holds the data and does not vote; "+
		"`shardctl shards promote` makes it a voter")
	f.add(c)
	return c
}
