package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/shardd/shardd/client"
	"github.com/shardd/shardd/internal/cli"
)

type scanFlags struct {
	prefix   string
	limit    int
	reverse  bool
	keysOnly bool
	hex      bool
	parallel int
	from     readFlags
}

func newScan(o *conn) *cobra.Command {
	var f scanFlags
	c := &cobra.Command{
		Use:   "scan [START [END]]",
		Short: "List keys and values from START up to, not including, END",
		Long: `List keys and values in key order, one a line with a tab between, from START (default: the first key) up to,
not including, END (default: the last key included). What is not printable is quoted. -o json writes one JSON object a
line.

Rows are read page by page: each page is consistent, all together are not one snapshot. The leaders of the shards are
read, unless --follower or --stale let any replica serve.`,
		Example: "  shardctl scan --prefix user --limit 10\n  shardctl scan a m --reverse --keys-only\n" +
			"  shardctl scan --parallel 8 --stale 5s --labels zone=a > all.txt",
		Args: cobra.MaximumNArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			asJSON, err := o.json()
			if err != nil {
				return err
			}
			if f.prefix != "" && len(args) > 0 {
				return cli.Usagef("give --prefix or START and END, not both")
			}
			if f.limit < 0 {
				return cli.Usagef("--limit %d: want 0 (no limit) or more", f.limit)
			}
			if f.parallel < 0 || f.parallel > 256 {
				return cli.Usagef("--parallel %d: want 0 to 256", f.parallel)
			}
			opts, err := f.from.options(c, o)
			if err != nil {
				return err
			}
			return o.withDB(c, func(ctx context.Context, db *client.DB) error {
				r, err := f.bounds(db, args)
				if err != nil {
					return err
				}
				return f.run(ctx, c, r, asJSON, opts)
			})
		},
	}
	fl := c.Flags()
	fl.StringVar(&f.prefix, "prefix", "", "only keys that start with this")
	fl.IntVar(&f.limit, "limit", 0, "stop after this many rows; 0: no limit")
	fl.BoolVar(&f.reverse, "reverse", false, "from the highest key down")
	fl.BoolVar(&f.keysOnly, "keys-only", false, "leave the values out")
	fl.IntVar(&f.parallel, "parallel", 0, "read this many shards at the same time; 0: one after the other")
	f.from.add(c)
	hexFlag(c, &f.hex)
	return c
}

func (f *scanFlags) bounds(db *client.DB, args []string) (*client.Range, error) {
	if f.prefix != "" {
		p, err := cli.Key(f.prefix, f.hex)
		if err != nil {
			return nil, err
		}
		return db.Prefix(p), nil
	}
	var b [2][]byte
	for i, a := range args {
		k, err := cli.Key(a, f.hex)
		if err != nil {
			return nil, err
		}
		if len(k) > 0 { // an empty argument is an open end
			b[i] = k
		}
	}
	if b[0] == nil && b[1] == nil {
		return db.All(), nil
	}
	return db.Range(b[0], b[1])
}

func (f *scanFlags) run(
	ctx context.Context, c *cobra.Command, r *client.Range, asJSON bool, from []client.ReadOption,
) error {
	opts := []client.ScanOption{client.Limit(f.limit), client.Prefetch(), client.Parallel(f.parallel)}
	for _, o := range from {
		opts = append(opts, o)
	}
	if f.reverse {
		opts = append(opts, client.Reverse())
	}
	if f.keysOnly {
		opts = append(opts, client.KeysOnly())
	}
	out := bufio.NewWriterSize(c.OutOrStdout(), 64<<10)
	enc := json.NewEncoder(out)
	enc.SetEscapeHTML(false)
	for row, err := range r.Scan(ctx, opts...) {
		if err != nil {
			_ = out.Flush() // what was found is worth having
			return err
		}
		switch {
		case asJSON:
			m := withKey(withVersion(row.Version), row.Key)
			if !f.keysOnly {
				withValue(m, row.Value)
			}
			err = enc.Encode(m)
		case f.keysOnly:
			_, err = fmt.Fprintln(out, f.show(row.Key))
		default:
			_, err = fmt.Fprintf(out, "%s\t%s\n", f.show(row.Key), f.show(row.Value))
		}
		if err != nil {
			return err
		}
	}
	return out.Flush()
}

func (f *scanFlags) show(b []byte) string {
	if f.hex {
		return show(b, true)
	}
	return cli.Quote(b)
}
