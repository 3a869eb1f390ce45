package main

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/shardd/shardd/client"
	"github.com/shardd/shardd/internal/cli"
)

func newGet(o *conn) *cobra.Command {
	var isHex, raw bool
	var from readFlags
	c := &cobra.Command{
		Use:   "get KEY",
		Short: "Print the value of a key; exit 3 if it is absent",
		Long: `Print the value of a key. A value that is not printable text is quoted; --raw writes its exact bytes, --hex
takes the key and prints the value as hex digits. JSON has "value", or "value_base64" for bytes that are not UTF-8, and
"version" as a string, since it does not fit the numbers of most JSON tools.

The leader of the shard is read, unless --follower or --stale let any replica serve.`,
		Example: "  shardctl get greeting\n  shardctl get --raw picture > picture.png\n" +
			"  shardctl get greeting --stale 2s --labels zone=a",
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			asJSON, err := o.json()
			if err != nil {
				return err
			}
			key, err := cli.Key(args[0], isHex)
			if err != nil {
				return err
			}
			opts, err := from.options(c, o)
			if err != nil {
				return err
			}
			return o.withDB(c, func(ctx context.Context, db *client.DB) error {
				v, err := db.All().Get(ctx, key, opts...)
				if errors.Is(err, client.ErrNotFound) {
					return cli.Fail(cli.ExitNotFound, "", "%s: not found", cli.Quote(key))
				}
				if err != nil {
					return err
				}
				switch {
				case asJSON:
					return cli.JSON(c.OutOrStdout(), withValue(withKey(withVersion(v.Version), key), v.Bytes))
				case raw:
					_, err = c.OutOrStdout().Write(v.Bytes)
				default:
					_, err = fmt.Fprintln(c.OutOrStdout(), show(v.Bytes, isHex))
				}
				return err
			})
		},
	}
	hexFlag(c, &isHex)
	from.add(c)
	c.Flags().BoolVar(&raw, "raw", false, "write the exact bytes, without a line end")
	return c
}

func show(b []byte, isHex bool) string {
	if isHex {
		return hex.EncodeToString(b)
	}
	return cli.QuoteText(b)
}

// withVersion begins a JSON object. Versions are strings: they do not fit the numbers of jq and JavaScript.
func withVersion(v uint64) map[string]any {
	return map[string]any{"version": strconv.FormatUint(v, 10)}
}

func withKey(m map[string]any, key []byte) map[string]any     { return withBytes(m, "key", key) }
func withValue(m map[string]any, value []byte) map[string]any { return withBytes(m, "value", value) }

// withBytes adds bytes as a string, or as base64 under another name if they are not UTF-8.
func withBytes(m map[string]any, name string, b []byte) map[string]any {
	if utf8.Valid(b) {
		m[name] = string(b)
	} else {
		m[name+"_base64"] = base64.StdEncoding.EncodeToString(b)
	}
	return m
}

func newDel(o *conn) *cobra.Command {
	var isHex bool
	c := &cobra.Command{
		Use:   "del KEY",
		Short: "Remove a key; removing an absent one succeeds",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			asJSON, err := o.json()
			if err != nil {
				return err
			}
			key, err := cli.Key(args[0], isHex)
			if err != nil {
				return err
			}
			return o.withDB(c, func(ctx context.Context, db *client.DB) error {
				if err := db.All().Delete(ctx, key); err != nil {
					return err
				}
				if asJSON {
					return cli.JSON(c.OutOrStdout(), withKey(map[string]any{"deleted": true}, key))
				}
				_, err := fmt.Fprintf(c.OutOrStdout(), "%s: gone\n", cli.Quote(key))
				return err
			})
		},
	}
	hexFlag(c, &isHex)
	return c
}
