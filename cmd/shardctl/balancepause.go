package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	sharddv1 "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/client/admin"
	"github.com/shardd/shardd/internal/cli"
)

const partsHelp = `  all       everything
  split     splits by size and by load
  merge     merges of small cold neighbours
  replicas  moves of replicas for balance
  leaders   transfers of leaderships for balance
  hot       moves and transfers of hot shards
  repair    replacement of lost replicas, moves that the rules ask for`

func newBalancePause(o *conn) *cobra.Command {
	return &cobra.Command{
		Use:   "pause [PART ...]",
		Short: "Stop the placement driver, or parts of it, until they are resumed",
		Long: `Stop the placement driver, or parts of it, until they are resumed. What runs goes on to its end ("shardctl jobs
cancel" ends it); nothing new of these parts is begun. The pause is kept by the cluster over restarts. Parts:

` + partsHelp,
		Example: `  shardctl balance pause
  shardctl balance pause merge replicas`,
		Args:      cobra.ArbitraryArgs,
		ValidArgs: admin.Parts(),
		RunE: func(c *cobra.Command, args []string) error {
			parts, err := someParts(args)
			if err != nil {
				return err
			}
			return o.setBalance(c, &sharddv1.SetBalanceRequest{Pause: parts}, pausedText)
		},
	}
}

func newBalanceResume(o *conn) *cobra.Command {
	return &cobra.Command{
		Use:   "resume [PART ...]",
		Short: "Let the placement driver, or parts of it, go on",
		Long: `Let the placement driver, or parts of it, go on; without PART all of it. Parts:

` + partsHelp,
		Example: `  shardctl balance resume
  shardctl balance resume merge`,
		Args:      cobra.ArbitraryArgs,
		ValidArgs: admin.Parts(),
		RunE: func(c *cobra.Command, args []string) error {
			parts, err := someParts(args)
			if err != nil {
				return err
			}
			return o.setBalance(c, &sharddv1.SetBalanceRequest{Resume: parts}, pausedText)
		},
	}
}

// someParts are the parts named, separated by blanks or commas; all if none is.
func someParts(args []string) ([]string, error) {
	var parts []string
	for _, a := range args {
		for _, p := range strings.Split(a, ",") {
			if !slices.Contains(admin.Parts(), p) {
				return nil, cli.Usagef("%q is not a part of the driver: want %s", p, strings.Join(admin.Parts(), ", "))
			}
			parts = append(parts, p)
		}
	}
	if len(parts) == 0 {
		return []string{admin.PartAll}, nil
	}
	return parts, nil
}

// setBalance makes the call and shows what holds now.
func (o *conn) setBalance(c *cobra.Command, req *sharddv1.SetBalanceRequest,
	show func(c *cobra.Command, r *sharddv1.SetBalanceResponse) error) error {
	asJSON, err := o.json()
	if err != nil {
		return err
	}
	return o.withAdmin(c, func(ctx context.Context, a *admin.Client) error {
		r, err := a.SetBalance(ctx, req)
		if err != nil {
			return err
		}
		if asJSON {
			return cli.JSON(c.OutOrStdout(), map[string]any{"paused": append([]string{}, r.GetPaused()...),
				"limits": toLimitsJSON(r.GetLimits())})
		}
		return show(c, r)
	})
}

func pausedText(c *cobra.Command, r *sharddv1.SetBalanceResponse) error {
	if len(r.GetPaused()) == 0 {
		_, err := fmt.Fprintln(c.OutOrStdout(), "driver: nothing is paused")
		return err
	}
	_, err := fmt.Fprintf(c.OutOrStdout(), "driver: paused: %s\n", strings.Join(r.GetPaused(), " "))
	return err
}
