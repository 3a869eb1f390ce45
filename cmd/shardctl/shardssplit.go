package main

import (
	"bytes"
	"io"
	"slices"

	"github.com/spf13/cobra"

	sharddv1 "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/client/admin"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/cli"
)

// splitFlags say where shards are split: at keys that are named or read, or into parts that the cluster measures.
type splitFlags struct {
	at     []string
	hex    bool
	file   string
	sample string
	column int
	parts  uint32
	by     string
}

func newShardsSplit(o *conn) *cobra.Command {
	var f jobFlags
	var s splitFlags
	c := &cobra.Command{
		Use:   "split [SHARD] [--at KEY ... | --parts N [--by size|load] | --keys-file FILE | --sample FILE --parts N]",
		Short: "Split a shard in two or more, or many shards at the keys of a file",
		Long: `Split shards. No data moves: the new shards have their replicas on the same nodes, and writes stand still for
milliseconds. The placement driver splits by itself too; this is for a load that is known to come.

  SHARD --at KEY             at a key, which becomes the first of the new shard; several at once with --at again
  SHARD [--parts N]          into parts of about equal size (2 by default), or with --by load of about equal load
  --keys-file FILE           at each key of the file, whichever shards hold them
  --sample FILE --parts N    at the keys that divide a sample of the data to come into N parts of equal number

In a file there is one key a line, as shardctl prints keys: as it is, or quoted if it holds blanks or bytes that do not
print; with --hex hex digits. Of a sample whose name ends in .csv the first column is taken, or --column. A name of -
reads standard input. With SHARD the keys of a file must lie in that shard; keys where a shard begins already are left
out by the cluster. Keys inside a group that a rule keeps together are moved to the group's start.` + jobHelp,
		Example: `  shardctl shards split s12 --at user5000 --wait
  shardctl shards split s12 --parts 4 --by load --wait
  shardctl shards split --keys-file keys.txt --dry-run
  shardctl shards split --sample users.csv --column 2 --parts 64 --wait`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			spec, err := s.spec(args, c.InOrStdin())
			if err != nil {
				return err
			}
			return o.startJob(c, spec, &f)
		},
	}
	fl := c.Flags()
	fl.StringArrayVar(&s.at, "at", nil, "a key at which to split, quoted as shardctl prints keys; may be repeated")
	fl.BoolVar(&s.hex, "hex", false, "keys are hex digits")
	fl.StringVar(&s.file, "keys-file", "", "file of keys at which to split, one a line; - is standard input")
	fl.StringVar(&s.sample, "sample", "", "file of keys like those to come, one a line or CSV; - is standard input")
	fl.IntVar(&s.column, "column", 1, "column of the keys in a sample that is CSV")
	fl.Uint32Var(&s.parts, "parts", 0, "how many parts; 0 is 2")
	fl.StringVar(&s.by, "by", "", "size or load: by what the parts are to be equal (default: size)")
	c.MarkFlagsMutuallyExclusive("at", "keys-file", "sample")
	c.MarkFlagsMutuallyExclusive("parts", "at")
	c.MarkFlagsMutuallyExclusive("parts", "keys-file")
	for _, keys := range []string{"at", "keys-file", "sample"} {
		c.MarkFlagsMutuallyExclusive("by", keys)
	}
	f.add(c)
	return c
}

// spec is the job that the flags ask for. in is standard input.
func (s *splitFlags) spec(args []string, in io.Reader) (*sharddv1.JobSpec, error) {
	spec := &sharddv1.JobSpec{Kind: admin.KindSplit}
	var err error
	if len(args) > 0 {
		if spec.ShardId, err = number("shard", "s", args[0]); err != nil {
			return nil, err
		}
	}
	var keys [][]byte
	switch {
	case len(s.at) > 0:
		for _, text := range s.at {
			k, err := readKey(text, s.hex)
			if err != nil {
				return nil, cli.Usagef("--at: %w", err)
			}
			keys = append(keys, k)
		}
	case s.file != "":
		if keys, err = readKeys("keys-file", s.file, in, s.hex); err != nil {
			return nil, err
		}
	case s.sample != "":
		if s.parts < 2 {
			return nil, cli.Usagef("--sample needs --parts 2 or more")
		}
		if keys, err = s.readSample(in); err != nil {
			return nil, err
		}
		if keys, err = quantiles(keys, int(s.parts)); err != nil {
			return nil, err
		}
	default:
		return spec, s.intoParts(spec)
	}
	if len(keys) == 0 {
		return nil, cli.Usagef("there is no key to split at")
	}
	slices.SortFunc(keys, bytes.Compare)
	for _, k := range slices.CompactFunc(keys, bytes.Equal) {
		if len(k) == 0 {
			return nil, cli.Usagef("the empty key is where the first shard begins: no split there")
		}
		spec.Keys = append(spec.Keys, base.UserKey(k))
	}
	return spec, nil
}

// intoParts completes the job of a split whose keys the cluster chooses.
func (s *splitFlags) intoParts(spec *sharddv1.JobSpec) error {
	if spec.GetShardId() == 0 {
		return cli.Usagef("name a shard, or keys by --at, --keys-file or --sample (`shardctl shards list` shows the shards)")
	}
	if s.by != "" && s.by != admin.BySize && s.by != admin.ByLoad {
		return cli.Usagef("--by %q: want size or load", s.by)
	}
	if s.parts == 1 {
		return cli.Usagef("--parts 1 splits nothing: want 2 or more")
	}
	spec.Parts, spec.SplitBy = s.parts, s.by
	return nil
}
