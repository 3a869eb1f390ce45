package main

import (
	"github.com/spf13/cobra"

	sharddv1 "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/client/admin"
)

func newNodesDrain(o *conn) *cobra.Command {
	var f jobFlags
	var replicas bool
	c := &cobra.Command{
		Use:   "drain NODE",
		Short: "Move leaderships, and with --replicas the replicas too, off a node",
		Long: `Move the leaderships off a node, before it is stopped for a while; with --replicas its replicas too, before
it is stopped for long. The node gets none of them again until "shardctl nodes undrain". Cancelling the job leaves what
was moved where it is now, and the node draining. A node that goes for good is decommissioned instead.` + jobHelp,
		Example: `  shardctl nodes drain n3 --wait
  shardctl nodes drain n3 --replicas`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			node, err := number("node", "n", args[0])
			if err != nil {
				return err
			}
			return o.startJob(c, &sharddv1.JobSpec{Kind: admin.KindDrain, FromNode: node, Replicas: replicas}, &f)
		},
	}
	c.Flags().BoolVar(&replicas, "replicas", false, "move replicas away as well as leaderships")
	f.add(c)
	return c
}
