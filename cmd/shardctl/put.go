package main

import (
	"context"
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/shardd/shardd/client"
	"github.com/shardd/shardd/internal/cli"
)

// maxValue is the limit of one value; the cluster checks it again.
const maxValue = 1 << 20

func newPut(o *conn) *cobra.Command {
	var isHex bool
	c := &cobra.Command{
		Use:   "put KEY VALUE",
		Short: "Store a value; VALUE - reads standard input",
		Example: `  shardctl put greeting hello
  shardctl put picture - < picture.png
  shardctl put --hex 00ff 68656c6c6f`,
		Args: cobra.ExactArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			asJSON, err := o.json()
			if err != nil {
				return err
			}
			key, value, err := keyValue(c, args[0], args[1], isHex)
			if err != nil {
				return err
			}
			return o.withDB(c, func(ctx context.Context, db *client.DB) error {
				version, err := db.All().Put(ctx, key, value)
				if err != nil {
					return err
				}
				return written(c, asJSON, key, version)
			})
		},
	}
	hexFlag(c, &isHex)
	return c
}

func newCAS(o *conn) *cobra.Command {
	var isHex bool
	c := &cobra.Command{
		Use:   "cas KEY VERSION VALUE",
		Short: "Store a value if the key has this version (0: if it is absent)",
		Long: `Store a value only if the key has this version, as shown by "shardctl get -o json"; version 0 means that the
key must be absent. Exits with 6 and writes nothing if it has another one.`,
		Args: cobra.ExactArgs(3),
		RunE: func(c *cobra.Command, args []string) error {
			asJSON, err := o.json()
			if err != nil {
				return err
			}
			expect, err := strconv.ParseUint(args[1], 10, 64)
			if err != nil {
				return cli.Usagef("%q is not a version: want a whole number, 0 for absent", args[1])
			}
			key, value, err := keyValue(c, args[0], args[2], isHex)
			if err != nil {
				return err
			}
			return o.withDB(c, func(ctx context.Context, db *client.DB) error {
				version, err := db.All().CompareAndSwap(ctx, key, expect, value)
				if err != nil {
					return err
				}
				return written(c, asJSON, key, version)
			})
		},
	}
	hexFlag(c, &isHex)
	return c
}

func hexFlag(c *cobra.Command, to *bool) {
	c.Flags().BoolVar(to, "hex", false, "keys and values are given as hex digits")
}

func keyValue(c *cobra.Command, key, value string, isHex bool) ([]byte, []byte, error) {
	k, err := cli.Key(key, isHex)
	if err != nil {
		return nil, nil, err
	}
	v, err := cli.Value(value, isHex, c.InOrStdin(), maxValue)
	return k, v, err
}

func written(c *cobra.Command, asJSON bool, key []byte, version uint64) error {
	if asJSON {
		return cli.JSON(c.OutOrStdout(), withKey(withVersion(version), key))
	}
	_, err := fmt.Fprintf(c.OutOrStdout(), "%s: version %d\n", cli.Quote(key), version)
	return err
}
