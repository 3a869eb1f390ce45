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

func newZones(o *conn) *cobra.Command {
	c := &cobra.Command{
		Use:   "zones",
		Short: "Show and change the placement rules, and ask why a shard is where it is",
		Long: `Show and change the placement rules, and ask why a shard is where it is. The rules say, by prefix of the keys,
how many replicas a shard has, over which labels of the nodes (zone, rack, host) they are spread, which nodes may hold
them and which should lead. docs/reference/zones.md describes the file.`,
	}
	c.AddCommand(newZonesGet(o), newZonesApply(o), newZonesExplain(o))
	return c
}

func newZonesGet(o *conn) *cobra.Command {
	return &cobra.Command{
		Use:   "get",
		Short: "Print the placement rules as YAML",
		Long: `Print the placement rules as YAML, the form that "shardctl zones apply" takes. Revision 0 are the built-in
defaults.`,
		Example: `  shardctl zones get > rules.yaml`,
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			asJSON, err := o.json()
			if err != nil {
				return err
			}
			return o.withAdmin(c, func(ctx context.Context, a *admin.Client) error {
				r, err := a.GetZones(ctx)
				if err != nil {
					return err
				}
				if asJSON {
					return cli.JSON(c.OutOrStdout(), map[string]any{"revision": r.GetRevision(), "yaml": r.GetYaml()})
				}
				yaml := strings.TrimSpace(r.GetYaml())
				if yaml == "" {
					yaml = "# No rules: the built-in one holds for all keys. docs/reference/zones.md says what it is."
				}
				_, err = fmt.Fprintf(c.OutOrStdout(), "# revision %d\n%s\n", r.GetRevision(), yaml)
				return err
			})
		},
	}
}

func newZonesExplain(o *conn) *cobra.Command {
	return &cobra.Command{
		Use:   "explain SHARD",
		Short: "Say why the replicas of a shard are where they are",
		Long: `Say why the replicas of a shard are where they are: the rule that its keys fall under, what each replica
satisfies or why it is misplaced, how well they are spread, and why each other node has none.`,
		Example: "  shardctl zones explain s12",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			asJSON, err := o.json()
			if err != nil {
				return err
			}
			id, err := number("shard", "s", args[0])
			if err != nil {
				return err
			}
			return o.withAdmin(c, func(ctx context.Context, a *admin.Client) error {
				r, err := a.ExplainZones(ctx, id)
				if err != nil {
					return err
				}
				if asJSON {
					return cli.JSON(c.OutOrStdout(), explainJSON(id, r))
				}
				return explainText(c.OutOrStdout(), id, r)
			})
		},
	}
}

type explainedJSON struct {
	Node   string `json:"node"`
	Role   string `json:"role"`
	Labels string `json:"labels,omitempty"`
	Why    string `json:"why,omitempty"`
	Fits   bool   `json:"fits"`
}

func explainJSON(id uint64, r *sharddv1.ExplainZonesResponse) map[string]any {
	replicas := []explainedJSON{}
	for _, e := range r.GetReplicas() {
		replicas = append(replicas, explainedJSON{Node: nodeName(e.GetNodeId()), Role: e.GetRole(), Labels: e.GetLabels(),
			Why: e.GetWhy(), Fits: e.GetFits()})
	}
	return map[string]any{"shard": shardName(id), "rule": r.GetRule(), "replicas": replicas,
		"problems": append([]string{}, r.GetProblems()...), "others": append([]candidateJSON{},
			toCandidatesJSON(r.GetOthers())...), "spread": append([]string{}, r.GetSpread()...)}
}

func explainText(w io.Writer, id uint64, r *sharddv1.ExplainZonesResponse) error {
	state := "all is well"
	if n := len(r.GetProblems()); n > 0 {
		state = fmt.Sprintf("%d problems, see below", n)
		if n == 1 {
			state = "a problem, see below"
		}
	}
	if err := cli.Fields(w, "shard", shardName(id), "rule", r.GetRule(), "state", state,
		"spread", strings.Join(r.GetSpread(), "; ")); err != nil {
		return err
	}
	var rows [][]string
	for _, e := range r.GetReplicas() {
		fits := "yes"
		if !e.GetFits() {
			fits = "NO"
		}
		rows = append(rows, []string{nodeName(e.GetNodeId()), e.GetRole(), fits, orElse(e.GetLabels(), "-"),
			cli.Cut(e.GetWhy(), 1<<16)})
	}
	fmt.Fprintln(w)
	if err := cli.Table(w, []string{"NODE", "ROLE", "FITS", "LABELS", "WHY"}, rows); err != nil {
		return err
	}
	if err := listed(w, "problems", r.GetProblems()); err != nil {
		return err
	}
	if len(r.GetOthers()) == 0 {
		return nil
	}
	if _, err := fmt.Fprintln(w, "\nnodes that have no replica"); err != nil {
		return err
	}
	return candidateTable(w, r.GetOthers(), "")
}
