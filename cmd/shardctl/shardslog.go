package main

import (
	"context"
	"strings"
	"time"

	"github.com/spf13/cobra"

	sharddv1 "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/client/admin"
	"github.com/shardd/shardd/internal/cli"
)

// eventJSON is one event of the life of a shard.
type eventJSON struct {
	Time   string `json:"time"` // RFC 3339, the clock of the node that led the meta shard
	Kind   string `json:"kind"`
	Detail string `json:"detail,omitempty"`
	Other  string `json:"other_shard,omitempty"`
}

func newShardsLog(o *conn) *cobra.Command {
	var limit uint32
	c := &cobra.Command{
		Use:   "log SHARD",
		Short: "Show the life of a shard: splits, merges, moves, leaders",
		Long: `Show the life of a shard as far as the cluster remembers it, oldest first: what it was split from and into, what
it took in, which replicas and leaders it had. A shard that was merged away has a log as well.`,
		Example: "  shardctl shards log s12",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			asJSON, err := o.json()
			if err != nil {
				return err
			}
			id, err := number("shard", "s", args[0])
			if err != nil {
				return err
			}
			return o.withAdmin(c, func(ctx context.Context, a *admin.Client) error {
				events, err := a.ShardLog(ctx, id, limit)
				if err != nil {
					return err
				}
				if !asJSON {
					return eventTable(c, events)
				}
				out := []eventJSON{}
				for _, e := range events {
					j := eventJSON{Time: rfc3339(e.GetUnixMs()), Kind: e.GetKind(), Detail: e.GetDetail()}
					if e.GetOtherShardId() != 0 {
						j.Other = shardName(e.GetOtherShardId())
					}
					out = append(out, j)
				}
				return cli.JSON(c.OutOrStdout(), out)
			})
		},
	}
	c.Flags().Uint32Var(&limit, "limit", 0, "show at most this many; 0 is 100")
	return c
}

func eventTable(c *cobra.Command, events []*sharddv1.ShardEvent) error {
	var rows [][]string
	for _, e := range events {
		other := "-"
		if e.GetOtherShardId() != 0 {
			other = shardName(e.GetOtherShardId())
		}
		rows = append(rows, []string{localTime(e.GetUnixMs()), age(e.GetUnixMs(), time.Now()),
			strings.ReplaceAll(e.GetKind(), "-", " "), other, cli.Cut(e.GetDetail(), 1<<16)})
	}
	return cli.Table(c.OutOrStdout(), []string{"TIME", "AGE", "EVENT", "OTHER", "DETAIL"}, rows)
}
