package main

import (
	"math"

	"github.com/spf13/cobra"

	sharddv1 "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/client/admin"
	"github.com/shardd/shardd/internal/cli"
	"github.com/shardd/shardd/internal/config"
)

func newVerify(o *conn) *cobra.Command {
	var f jobFlags
	var shard, rate string
	c := &cobra.Command{
		Use:   "verify",
		Short: "Compare the replicas of every shard, byte by byte, while they serve",
		Long: `Compare the replicas of every shard, or of one: each computes a checksum over its data as of one and the same
applied entry, while it serves. A difference names the shard, the replicas and the first span of keys that
differs.` + jobHelp + `
Exits with 4 if a difference was found.`,
		Example: `  shardctl verify --wait
  shardctl verify --shard s12 --rate 16MiB --wait`,
		RunE: func(c *cobra.Command, _ []string) error {
			spec := &sharddv1.JobSpec{Kind: admin.KindVerify}
			var err error
			if shard != "" {
				if spec.ShardId, err = number("shard", "s", shard); err != nil {
					return err
				}
			}
			if spec.BytesPerSecond, err = bytesFlag("rate", rate); err != nil {
				return err
			}
			return o.startJob(c, spec, &f)
		},
	}
	c.Flags().StringVar(&shard, "shard", "", "only this shard, such as s12 (default: all)")
	c.Flags().StringVar(&rate, "rate", "", "most bytes per second that each replica reads, such as 16MiB "+
		"(default: the nodes' own)")
	f.add(c)
	return c
}

// bytesFlag reads a size of a flag; an empty one is 0.
func bytesFlag(flag, text string) (uint64, error) {
	if text == "" {
		return 0, nil
	}
	n, err := config.ParseBytes(text)
	if err != nil || n <= 0 || n == math.MaxInt64 {
		return 0, cli.Usagef("--%s %q: want a number of bytes above 0, such as 16MiB", flag, text)
	}
	return uint64(n), nil
}
