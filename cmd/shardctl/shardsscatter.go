package main

import (
	"bytes"

	"github.com/spf13/cobra"

	sharddv1 "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/client/admin"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/cli"
)

func newShardsScatter(o *conn) *cobra.Command {
	var f jobFlags
	var from, to string
	var isHex bool
	c := &cobra.Command{
		Use:   "scatter [SHARD | --from KEY --to KEY]",
		Short: "Spread neighbouring shards and their leaders over the nodes",
		Long: `Spread the replicas and leaders of the shards of a range over the nodes that the placement rules allow, or those
of one shard; without either all shards. Shards that come from one by splitting begin on the same nodes: scattering
them spreads a load before it comes, where the driver would wait until it sees one.` + jobHelp,
		Example: `  shardctl shards scatter --from user --to uses --wait
  shardctl shards scatter s12`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			spec, err := scatterSpec(args, from, to, isHex)
			if err != nil {
				return err
			}
			return o.startJob(c, spec, &f)
		},
	}
	c.Flags().StringVar(&from, "from", "", "first key of the range, quoted as shardctl prints keys (default: the first)")
	c.Flags().StringVar(&to, "to", "", "key that the range ends before (default: after the last)")
	c.Flags().BoolVar(&isHex, "hex", false, "keys are hex digits")
	f.add(c)
	return c
}

func scatterSpec(args []string, from, to string, isHex bool) (*sharddv1.JobSpec, error) {
	spec := &sharddv1.JobSpec{Kind: admin.KindScatter}
	var err error
	if len(args) > 0 {
		if from != "" || to != "" {
			return nil, cli.Usagef("give SHARD or --from and --to, not both")
		}
		spec.ShardId, err = number("shard", "s", args[0])
		return spec, err
	}
	spec.Start, spec.End = base.UserStart(), base.UserEnd()
	if from != "" {
		k, err := readKey(from, isHex)
		if err != nil {
			return nil, cli.Usagef("--from: %w", err)
		}
		spec.Start = base.UserKey(k)
	}
	if to != "" {
		k, err := readKey(to, isHex)
		if err != nil {
			return nil, cli.Usagef("--to: %w", err)
		}
		spec.End = base.UserKey(k)
	}
	if bytes.Compare(spec.GetStart(), spec.GetEnd()) >= 0 {
		return nil, cli.Usagef("--from %s is not below --to %s", from, to)
	}
	return spec, nil
}
