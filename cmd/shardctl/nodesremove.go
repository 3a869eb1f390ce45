package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/shardd/shardd/client/admin"
	"github.com/shardd/shardd/internal/cli"
)

func newNodesRemove(o *conn) *cobra.Command {
	var dead, yes bool
	c := &cobra.Command{
		Use:   "remove NODE",
		Short: "Strike a decommissioned node, or with --dead a lost one, from the cluster",
		Long: `Strike a node from the cluster. Without --dead it must be empty: decommissioned, its process stopped or about to
be. With --dead it is a node that is gone for good, such as one whose disk is lost: its replicas are replaced at once,
and if its process ever comes back it is refused. That cannot be taken back, so the name of the node must be typed; in
scripts --yes stands for that.

Shards that have lost most of their replicas are not helped by this: see "shardctl unsafe recover-quorum".`,
		Example: `  shardctl nodes remove n3
  shardctl nodes remove n3 --dead`,
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
			name := nodeName(node)
			if dead && !yes {
				if err := confirm(c, fmt.Sprintf("%s is given up for ever: its replicas are replaced from others, and it can never "+
					"come back with its data.", name), name, "--yes"); err != nil {
					return err
				}
			}
			return o.withAdmin(c, func(ctx context.Context, a *admin.Client) error {
				shards, err := a.RemoveNode(ctx, node, dead)
				if err != nil {
					return err
				}
				if asJSON {
					return cli.JSON(c.OutOrStdout(), map[string]any{"node": name, "commission": "removed", "shards": shards})
				}
				text := name + ": removed\n"
				if shards > 0 {
					text = fmt.Sprintf("%s: removed; %d shards had a replica there and are given another one where a node can take it\n"+
						"`shardctl balance status` shows how far that is.\n", name, shards)
				}
				_, err = fmt.Fprint(c.OutOrStdout(), text)
				return err
			})
		},
	}
	c.Flags().BoolVar(&dead, "dead", false, "the node is gone for good: replace its replicas at once, never let it back")
	c.Flags().BoolVar(&yes, "yes", false, "do not ask for confirmation")
	return c
}
