package main

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	sharddv1 "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/client/admin"
	"github.com/shardd/shardd/internal/cli"
)

// appliedJSON is what a change of the rules is, or was.
type appliedJSON struct {
	Applied  bool     `json:"applied"`
	Revision uint64   `json:"revision"`
	Diff     []string `json:"diff"`
	Warnings []string `json:"warnings"`
}

func newZonesApply(o *conn) *cobra.Command {
	var file string
	var dryRun, yes bool
	c := &cobra.Command{
		Use:   "apply -f FILE",
		Short: "Check new placement rules, show what they change, and make them the rules",
		Long: `Check new placement rules, show what they change and what the present nodes cannot satisfy, ask, and make them
the rules. What is applied is what was shown: if someone else has changed the rules in between, it is refused (exit code
6), and so are rules that the nodes there are can never satisfy. The placement driver then moves what has to move; "shardctl balance simulate --rules FILE" says before what that is.

In scripts --yes stands for the answer; --dry-run ends after the showing.`,
		Example: `  shardctl zones get > rules.yaml
  shardctl zones apply -f rules.yaml --dry-run
  shardctl zones apply -f rules.yaml`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			asJSON, err := o.json()
			if err != nil {
				return err
			}
			if file == "" {
				return cli.Usagef("-f is not set: name a file of rules (`shardctl zones get` prints the present ones)")
			}
			if file == "-" && !yes && !dryRun {
				return cli.Usagef("the rules come from standard input, so nobody can be asked: give --yes or --dry-run")
			}
			yaml, err := readInput("file", file, c.InOrStdin())
			if err != nil {
				return err
			}
			return o.applyZones(c, string(yaml), dryRun, yes, asJSON)
		},
	}
	c.Flags().StringVarP(&file, "file", "f", "", "file of rules; - is standard input")
	c.Flags().BoolVar(&dryRun, "dry-run", false, "only check and show")
	c.Flags().BoolVar(&yes, "yes", false, "do not ask")
	c.MarkFlagsMutuallyExclusive("dry-run", "yes")
	return c
}

// applyZones checks, shows, asks and applies. Each call has the whole time-out, for a person may think in between.
func (o *conn) applyZones(c *cobra.Command, yaml string, dryRun, yes, asJSON bool) error {
	var checked *sharddv1.ApplyZonesResponse
	var revision uint64
	if err := o.withAdmin(c, func(ctx context.Context, a *admin.Client) error {
		now, err := a.GetZones(ctx)
		if err != nil {
			return err
		}
		revision = now.GetRevision()
		checked, err = a.CheckZones(ctx, yaml, revision)
		return err
	}); err != nil {
		return err
	}
	out := messages(c, asJSON)
	if asJSON && !yes && !dryRun {
		out = c.ErrOrStderr() // who is asked must see what about
	}
	if err := zonesChange(out, checked, revision); err != nil {
		return err
	}
	if n := fatal(checked); n > 0 {
		if asJSON {
			if err := cli.JSON(c.OutOrStdout(), toAppliedJSON(checked, revision, false)); err != nil {
				return err
			}
		}
		return cli.Fail(cli.ExitConflict, "Change the rules, or add nodes first. Nothing was changed.",
			"the present nodes can never satisfy these rules (errors: %d)", n)
	}
	if dryRun || len(checked.GetDiff()) == 0 {
		if asJSON {
			return cli.JSON(c.OutOrStdout(), toAppliedJSON(checked, revision, false))
		}
		return nil
	}
	if !yes {
		if err := agree(c, "\nMake these the rules?", "--yes"); err != nil {
			return err
		}
	}
	return o.withAdmin(c, func(ctx context.Context, a *admin.Client) error {
		r, err := a.ApplyZones(ctx, yaml, revision)
		if err != nil {
			return err
		}
		if asJSON {
			return cli.JSON(c.OutOrStdout(), toAppliedJSON(r, r.GetRevision(), true))
		}
		_, err = fmt.Fprintf(c.OutOrStdout(), "\napplied: revision %d\n", r.GetRevision())
		return err
	})
}

// fatal counts what makes the cluster refuse the rules; the others are warnings.
func fatal(r *sharddv1.ApplyZonesResponse) int {
	n := 0
	for _, w := range r.GetWarnings() {
		if strings.HasPrefix(w, "error:") {
			n++
		}
	}
	return n
}

func toAppliedJSON(r *sharddv1.ApplyZonesResponse, revision uint64, applied bool) appliedJSON {
	return appliedJSON{Applied: applied, Revision: revision, Diff: append([]string{}, r.GetDiff()...),
		Warnings: append([]string{}, r.GetWarnings()...)}
}

func zonesChange(w io.Writer, r *sharddv1.ApplyZonesResponse, revision uint64) error {
	if len(r.GetDiff()) == 0 {
		if _, err := fmt.Fprintf(w, "nothing changes: these are the rules (revision %d)\n", revision); err != nil {
			return err
		}
	} else if _, err := fmt.Fprintln(w, "what changes"); err != nil {
		return err
	}
	for _, l := range r.GetDiff() {
		if _, err := fmt.Fprintln(w, "  "+cli.Cut(l, 1<<16)); err != nil {
			return err
		}
	}
	return listed(w, "what the present nodes cannot satisfy", r.GetWarnings())
}
