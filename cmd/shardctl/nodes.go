package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/shardd/shardd/client/admin"
	"github.com/shardd/shardd/internal/cli"
)

func newNodes(o *conn) *cobra.Command {
	c := &cobra.Command{Use: "nodes", Short: "Show the nodes of the cluster, empty and remove them"}
	c.AddCommand(&cobra.Command{
		Use:   "list",
		Short: "List every registered node",
		RunE: func(c *cobra.Command, _ []string) error {
			asJSON, err := o.json()
			if err != nil {
				return err
			}
			return o.withAdmin(c, func(ctx context.Context, a *admin.Client) error {
				nodes, err := a.ListNodes(ctx)
				if err != nil {
					return err
				}
				if !asJSON {
					return nodeTable(c, nodes)
				}
				out := []nodeJSON{}
				for _, n := range nodes {
					out = append(out, toNodeJSON(n))
				}
				return cli.JSON(c.OutOrStdout(), out)
			})
		},
	}, newNodesDrain(o), newNodesUndrain(o), newNodesDecommission(o), newNodesRecommission(o), newNodesRemove(o),
		newNodesLiveness(o))
	return c
}
