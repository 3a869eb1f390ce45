package main

import (
	"github.com/spf13/cobra"

	"github.com/shardd/shardd/client/admin"
)

func newShardsRemoveReplica(o *conn) *cobra.Command {
	var f jobFlags
	var from string
	c := &cobra.Command{
		Use:   "remove-replica SHARD --from NODE",
		Short: "Take a replica of a shard away from a node",
		Long: `Take a replica of a shard away from a node: a leader hands over first, a voter becomes a learner, the learner
goes and its data is deleted. The node may be down; its replica goes when it comes back. Refused if the voters that
are left could not serve.` + jobHelp,
		Example: "  shardctl shards remove-replica s2 --from n3 --wait",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			spec, err := replicaSpec(admin.KindRemoveReplica, args[0], place{"from", from})
			if err != nil {
				return err
			}
			return o.startJob(c, spec, &f)
		},
	}
	c.Flags().StringVar(&from, "from", "", "node that gives its replica up, such as n3")
	f.add(c)
	return c
}
