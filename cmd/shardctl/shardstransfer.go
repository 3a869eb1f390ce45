package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/shardd/shardd/client/admin"
	"github.com/shardd/shardd/internal/cli"
)

func newShardsTransfer(o *conn) *cobra.Command {
	var to string
	c := &cobra.Command{
		Use:     "transfer-leader SHARD --to NODE",
		Short:   "Move the leadership of a shard to a node",
		Example: "  shardctl shards transfer-leader s7 --to n2",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			asJSON, err := o.json()
			if err != nil {
				return err
			}
			shard, err := number("shard", "s", args[0])
			if err != nil {
				return err
			}
			if to == "" {
				return cli.Usagef("--to is not set: name a node that holds a replica (`shardctl shards describe %s`)", args[0])
			}
			node, err := number("node", "n", to)
			if err != nil {
				return err
			}
			return o.withAdmin(c, func(ctx context.Context, a *admin.Client) error {
				r, err := a.TransferLeader(ctx, shard, node)
				if err != nil {
					return err
				}
				if asJSON {
					return cli.JSON(c.OutOrStdout(), map[string]any{"shard": shardName(shard), "from": nodeName(r.GetFromNode()),
						"to": nodeName(r.GetToNode()), "term": r.GetTerm()})
				}
				if r.GetFromNode() == r.GetToNode() {
					_, err = fmt.Fprintf(c.OutOrStdout(), "%s: already led by %s\n", shardName(shard), nodeName(r.GetToNode()))
					return err
				}
				_, err = fmt.Fprintf(c.OutOrStdout(), "%s: led by %s, before by %s\n", shardName(shard), nodeName(r.GetToNode()),
					nodeName(r.GetFromNode()))
				return err
			})
		},
	}
	c.Flags().StringVar(&to, "to", "", "node that is to lead, such as n2")
	return c
}
