package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/shardd/shardd/client/admin"
	"github.com/shardd/shardd/internal/cli"
)

func newNodesRecommission(o *conn) *cobra.Command {
	return &cobra.Command{
		Use:   "recommission NODE",
		Short: "Take a decommission back, under way or done",
		Long: `Take a decommission back, under way or done: its job is cancelled and the node may have replicas and leaderships
again. Replicas that have left return only as the placement driver balances the cluster.`,
		Example: "  shardctl nodes recommission n3",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			asJSON, err := o.json()
			if err != nil {
				return err
			}
			node, err := number("node", "n", args[0])
			if err != nil {
				return err
			}
			return o.withAdmin(c, func(ctx context.Context, a *admin.Client) error {
				if err := a.Recommission(ctx, node); err != nil {
					return err
				}
				if asJSON {
					return cli.JSON(c.OutOrStdout(), map[string]string{"node": nodeName(node), "commission": "none"})
				}
				_, err := fmt.Fprintf(c.OutOrStdout(), "%s: in commission, may have replicas and leaderships again\n",
					nodeName(node))
				return err
			})
		},
	}
}
