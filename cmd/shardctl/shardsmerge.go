package main

import (
	"github.com/spf13/cobra"

	sharddv1 "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/client/admin"
)

func newShardsMerge(o *conn) *cobra.Command {
	var f jobFlags
	var right string
	c := &cobra.Command{
		Use:   "merge SHARD",
		Short: "Have a shard take in its right neighbour",
		Long: `Have a shard take in its right neighbour, the one whose keys begin where its own end. Replicas are first brought
onto the same nodes, which may move data; then the neighbour stands still for a moment, and its keys are the shard's.
SHARD keeps its id, that of the neighbour is never used again. With --right the merge is refused if that shard is not
the neighbour.

The placement driver splits what is too large or too busy again: it takes a merge of such shards back.` + jobHelp,
		Example: `  shardctl shards merge s12 --dry-run
  shardctl shards merge s12 --right s13 --wait`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			spec := &sharddv1.JobSpec{Kind: admin.KindMerge}
			var err error
			if spec.ShardId, err = number("shard", "s", args[0]); err != nil {
				return err
			}
			if right != "" {
				if spec.RightShardId, err = number("shard", "s", right); err != nil {
					return err
				}
			}
			return o.startJob(c, spec, &f)
		},
	}
	c.Flags().StringVar(&right, "right", "", "the neighbour, such as s13 (default: whichever it is)")
	f.add(c)
	return c
}
