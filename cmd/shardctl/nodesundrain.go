package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/shardd/shardd/client/admin"
	"github.com/shardd/shardd/internal/cli"
)

func newNodesUndrain(o *conn) *cobra.Command {
	return &cobra.Command{
		Use:     "undrain NODE",
		Short:   "Let a node have leaderships and replicas again; ends a drain that runs",
		Example: "  shardctl nodes undrain n3",
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
				if err := a.Undrain(ctx, node); err != nil {
					return err
				}
				if asJSON {
					return cli.JSON(c.OutOrStdout(), map[string]string{"node": nodeName(node), "draining": "none"})
				}
				_, err := fmt.Fprintf(c.OutOrStdout(), "%s: may have leaderships and replicas again\n", nodeName(node))
				return err
			})
		},
	}
}
