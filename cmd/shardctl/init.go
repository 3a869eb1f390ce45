package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/shardd/shardd/client/admin"
	"github.com/shardd/shardd/internal/cli"
)

type initFlags struct {
	nodes  []string
	splits []string
	file   string
	shards int
	hex    bool
}

func newInit(o *conn) *cobra.Command {
	var f initFlags
	c := &cobra.Command{
		Use:   "init [ADDR ...] [--shards N | --split KEY ... | --splits-file FILE]",
		Short: "Make a cluster of one waiting node, or of several",
		Long: `Make a cluster. With one address, or none (the first endpoint is taken then), that node holds the only
replica of each shard: a cluster that begins small and grows. Nodes join it at any time (shardd start --join ADDR),
and the placement driver gives the shards replicas on them, until each has as many as the rules say. With several
addresses, of nodes that all wait, each shard gets a replica on each of them from the start.

Shards split by themselves as they grow. Dividing the keys from the start is for a load that is known to come.

Repeating it is safe: if the cluster exists it is left alone. --shards divides the keys evenly by their first two bytes,
which suits keys whose first bytes are spread evenly. Keys that share a prefix need their own splits: --split or
--splits-file, one key a line (quoted as shardctl prints them, or hex digits with --hex; - reads standard input).`,
		Example: `  shardctl init 127.0.0.1:7400 --shards 16
  shardctl init a:7400 b:7400 c:7400 --split g --split n --split t
  shardctl bench ycsb splits --shards 16 | shardctl init a:7400 b:7400 c:7400 --splits-file -`,
		Args: cobra.ArbitraryArgs,
		RunE: func(c *cobra.Command, args []string) error {
			asJSON, err := o.json()
			if err != nil {
				return err
			}
			splits, err := f.keys(c.InOrStdin())
			if err != nil {
				return err
			}
			nodes, err := f.addresses(args, o.endpoints)
			if err != nil {
				return err
			}
			// The nodes themselves are asked, so that --endpoints is not needed as well.
			asked := *o
			if len(args)+len(f.nodes) > 0 {
				asked.endpoints = nodes
			}
			return asked.withAdmin(c, func(ctx context.Context, a *admin.Client) error {
				r, err := a.Init(ctx, nodes, splits)
				if err != nil {
					return err
				}
				if asJSON {
					return cli.JSON(c.OutOrStdout(), map[string]any{"cluster_id": r.GetClusterId(), "existed": r.GetExisted(),
						"shards": r.GetShards(), "nodes": nodes})
				}
				state := "made"
				if r.GetExisted() {
					state = "existed before, left as it is"
				}
				_, err = fmt.Fprintf(c.OutOrStdout(), "cluster %s: %s, %d shards\n", r.GetClusterId(), state, r.GetShards())
				if err == nil && len(nodes) == 1 && !r.GetExisted() {
					_, err = fmt.Fprintf(c.OutOrStdout(), growText, nodes[0])
				}
				return err
			})
		},
	}
	fl := c.Flags()
	fl.StringSliceVar(&f.nodes, "nodes", nil, "addresses of the nodes, separated by commas; the same as ADDR ...")
	fl.IntVar(&f.shards, "shards", 0, "divide the keys evenly by their first two bytes into this many shards")
	fl.StringArrayVar(&f.splits, "split", nil, "a key at which a shard begins; may be repeated")
	fl.StringVar(&f.file, "splits-file", "", "file of such keys, one a line; - is standard input")
	fl.BoolVar(&f.hex, "hex", false, "the keys of --split and --splits-file are hex digits")
	c.MarkFlagsMutuallyExclusive("shards", "split")
	c.MarkFlagsMutuallyExclusive("shards", "splits-file")
	return c
}

// growText says how a cluster of one node becomes one that outlives the loss of a node.
const growText = `Every shard has its only replica on this node. Join two more nodes, and the shards are given replicas
on them, as the placement rules say:
  shardd start --data-dir DIR --listen ADDR --join %s
  shardctl balance status
`

// addresses are the nodes named as arguments or by --nodes, else the first endpoint.
func (f *initFlags) addresses(args, endpoints []string) ([]string, error) {
	switch {
	case len(args) > 0 && len(f.nodes) > 0:
		return nil, cli.Usagef("addresses are given twice: as arguments and by --nodes")
	case len(args) == 0 && len(f.nodes) == 0:
		return endpoints[:1], nil
	}
	nodes := append(args, f.nodes...)
	for _, n := range nodes {
		if !strings.Contains(n, ":") {
			return nil, cli.Usagef("address %q is not host:port (such as %s)", n, defaultEndpoint)
		}
	}
	return nodes, nil
}

func (f *initFlags) keys(in io.Reader) ([][]byte, error) {
	if f.shards != 0 {
		return evenSplits(f.shards)
	}
	var keys [][]byte
	add := func(text string) error {
		k, err := cli.Key(text, f.hex)
		if err == nil && !f.hex {
			k, err = cli.Unquote(text)
		}
		if err != nil {
			return cli.Usagef("split key: %w", err)
		}
		keys = append(keys, k)
		return nil
	}
	for _, s := range f.splits {
		if err := add(s); err != nil {
			return nil, err
		}
	}
	if f.file == "" {
		return keys, nil
	}
	if f.file != "-" {
		file, err := os.Open(f.file)
		if err != nil {
			return nil, cli.Usagef("--splits-file: %w", err)
		}
		defer file.Close()
		in = file
	}
	lines := bufio.NewScanner(in)
	for lines.Scan() {
		line := bytes.TrimSpace(lines.Bytes())
		if len(line) == 0 {
			continue
		}
		if err := add(string(line)); err != nil {
			return nil, err
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("read %s: %w", f.file, err)
	}
	return keys, nil
}

// evenSplits returns the n-1 keys that divide the two-byte prefixes into n equal parts.
func evenSplits(n int) ([][]byte, error) {
	if n < 1 || n > 1<<16 {
		return nil, cli.Usagef("--shards %d: want 1 to 65536", n)
	}
	keys := make([][]byte, 0, n-1)
	for i := 1; i < n; i++ {
		keys = append(keys, binary.BigEndian.AppendUint16(nil, uint16(i*(1<<16)/n)))
	}
	return keys, nil
}
