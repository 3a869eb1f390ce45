package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	sharddv1 "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/client/admin"
	"github.com/shardd/shardd/internal/cli"
)

func newHot(o *conn) *cobra.Command {
	c := &cobra.Command{
		Use:   "hot",
		Short: "Show where the load is: busiest shards, busiest keys, a map of the key space",
	}
	c.AddCommand(newHotShards(o), newHotKeys(o), newHotMap(o))
	return c
}

// measures are what shards can be ordered by.
var measures = []string{admin.ByRequests, admin.ByBytes, admin.ByCPU, admin.BySize}

// checkMeasure checks the flag --by against the measures that a verb has.
func checkMeasure(by string, measures []string) error {
	if slices.Contains(measures, by) {
		return nil
	}
	return cli.Usagef("--by %q: want %s", by, strings.Join(measures, ", "))
}

func newHotShards(o *conn) *cobra.Command {
	var by string
	var limit uint32
	c := &cobra.Command{
		Use:   "shards",
		Short: "List the busiest shards",
		Long: `List the busiest shards, as their leaders last reported, averaged over the last half minute or so. A shard with
one key that has most of the load says so: no split would help it.`,
		Example: "  shardctl hot shards --by bytes --limit 5",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			asJSON, err := o.json()
			if err != nil {
				return err
			}
			if err := checkMeasure(by, measures); err != nil {
				return err
			}
			return o.withAdmin(c, func(ctx context.Context, a *admin.Client) error {
				r, err := a.Top(ctx, limit, by)
				if err != nil {
					return err
				}
				if !asJSON {
					return cli.Table(c.OutOrStdout(), hotHeader, hotRows(r.GetShards()))
				}
				out := []shardJSON{}
				for _, s := range r.GetShards() {
					out = append(out, toShardJSON(s))
				}
				return cli.JSON(c.OutOrStdout(), out)
			})
		},
	}
	c.Flags().StringVar(&by, "by", admin.ByRequests, strings.Join(measures, ", "))
	c.Flags().Uint32Var(&limit, "limit", 0, "list at most this many; 0 is 20")
	return c
}

var hotHeader = []string{"SHARD", "LEADER", "REQ/S", "READS", "WRITES", "BYTES/S", "CPU", "SIZE", "KEYS", ""}

func hotRows(shards []*sharddv1.ShardInfo) [][]string {
	var rows [][]string
	for _, s := range shards {
		l := s.GetLoad()
		reads, writes := "-", "-"
		if l != nil {
			reads, writes = rate(l.GetReads()), rate(l.GetWrites())
		}
		rows = append(rows, []string{shardName(s.GetShardId()), nodeName(s.GetLeader()), requests(l), reads, writes,
			loadBytes(l), loadCPU(l), cli.Bytes(s.GetSizeBytes()), keyRange(s), hotNote(s)})
	}
	return rows
}

// hotNote is what is special about a shard.
func hotNote(s *sharddv1.ShardInfo) string {
	var notes []string
	if k := userKey(s.GetHotKey()); k != "" {
		notes = append(notes, "hot key "+k)
	}
	if s.GetMergingInto() != 0 {
		notes = append(notes, "merging into "+shardName(s.GetMergingInto()))
	}
	return strings.Join(notes, ", ")
}

// hotKeyJSON is a busy key.
type hotKeyJSON struct {
	Key   string  `json:"key"`
	Share float64 `json:"share"` // of the shard's requests, at most
	Error float64 `json:"error"` // at least share less this
}

func newHotKeys(o *conn) *cobra.Command {
	var limit uint32
	c := &cobra.Command{
		Use:   "keys SHARD",
		Short: "List the busiest keys of a shard",
		Long: `List the busiest keys of a shard, sampled at its leader, with their share of the shard's requests. The count is
an estimate from above: the true share lies between the two figures.`,
		Example: "  shardctl hot keys s12",
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
				r, err := a.HotKeys(ctx, id, limit)
				if err != nil {
					return err
				}
				if !asJSON {
					return hotKeysText(c.OutOrStdout(), id, r)
				}
				keys := []hotKeyJSON{}
				for _, k := range r.GetKeys() {
					keys = append(keys, hotKeyJSON{Key: userKey(k.GetKey()), Share: k.GetShare(), Error: k.GetError()})
				}
				return cli.JSON(c.OutOrStdout(), map[string]any{"shard": shardName(id), "node": nodeName(r.GetNodeId()),
					"sampled": r.GetSampled(), "keys": keys})
			})
		},
	}
	c.Flags().Uint32Var(&limit, "limit", 0, "list at most this many; 0 is 20")
	return c
}

func hotKeysText(w io.Writer, shard uint64, r *sharddv1.HotKeysResponse) error {
	if r.GetSampled() == 0 {
		_, err := fmt.Fprintf(w, "%s: its leader %s has sampled no requests of late\n", shardName(shard), nodeName(r.GetNodeId()))
		return err
	}
	if len(r.GetKeys()) == 0 {
		_, err := fmt.Fprintf(w, "%s: no key stands out in %d requests sampled at %s\n", shardName(shard), r.GetSampled(),
			nodeName(r.GetNodeId()))
		return err
	}
	var rows [][]string
	for _, k := range r.GetKeys() {
		rows = append(rows, []string{percent(max(k.GetShare()-k.GetError(), 0)), percent(k.GetShare()), userKey(k.GetKey())})
	}
	if err := cli.Table(w, []string{"AT LEAST", "AT MOST", "KEY"}, rows); err != nil {
		return err
	}
	_, err := fmt.Fprintf(w, "of %d requests of %s sampled at %s\n", r.GetSampled(), shardName(shard),
		nodeName(r.GetNodeId()))
	return err
}

func percent(part float64) string { return fmt.Sprintf("%.1f %%", part*100) }
