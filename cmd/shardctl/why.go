package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	sharddv1 "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/client/admin"
	"github.com/shardd/shardd/internal/cli"
)

// decisionJSON is one entry of the driver's journal.
type decisionJSON struct {
	Time       string          `json:"time,omitempty"` // RFC 3339, the clock of the node that led the meta shard
	By         string          `json:"by"`             // the checker or scheduler
	Subject    string          `json:"subject,omitempty"`
	Outcome    string          `json:"outcome"`
	Operator   string          `json:"operator,omitempty"`
	Candidates []candidateJSON `json:"candidates,omitempty"`
}

type candidateJSON struct {
	What    string  `json:"what"`
	Verdict string  `json:"verdict"` // chosen, or the filter that rejected it
	Detail  string  `json:"detail,omitempty"`
	Score   float64 `json:"score,omitempty"`
}

func toDecisionsJSON(decisions []*sharddv1.Decision) []decisionJSON {
	out := []decisionJSON{}
	for _, d := range decisions {
		j := decisionJSON{Time: rfc3339(d.GetUnixMs()), By: d.GetBy(), Subject: d.GetSubject(), Outcome: d.GetOutcome(),
			Candidates: toCandidatesJSON(d.GetCandidates())}
		if d.GetOperatorId() != 0 {
			j.Operator = operatorName(d.GetOperatorId())
		}
		out = append(out, j)
	}
	return out
}

func toCandidatesJSON(candidates []*sharddv1.Candidate) []candidateJSON {
	var out []candidateJSON
	for _, k := range candidates {
		out = append(out, candidateJSON{What: k.GetWhat(), Verdict: k.GetVerdict(), Detail: k.GetDetail(),
			Score: k.GetScore()})
	}
	return out
}

func newWhy(o *conn) *cobra.Command {
	var limit uint32
	var full bool
	c := &cobra.Command{
		Use:   "why shard|node|operator ID",
		Short: "Say why a shard, a node or an operator is as it is, and what comes next",
		Long: `Say why a shard, a node or an operator of the placement driver is as it is: its state, what the driver would do
with it now (each node that it considers, and what speaks against those that it does not take), and what it decided
before, newest first. The letter of an id says what it is, so "why s12" is enough; an operator or a job is j9,
a transfer of a leadership t7.

The journal holds the latest decisions only. With --full the candidates of past decisions are shown as well.`,
		Example: `  shardctl why s12
  shardctl why node 3
  shardctl why operator j9 --full`,
		Args:      cobra.RangeArgs(1, 2),
		ValidArgs: []string{"shard", "node", "operator"},
		RunE: func(c *cobra.Command, args []string) error {
			asJSON, err := o.json()
			if err != nil {
				return err
			}
			name, ask, err := whySubject(args)
			if err != nil {
				return err
			}
			return o.withAdmin(c, func(ctx context.Context, a *admin.Client) error {
				r, err := ask(a, ctx, limit)
				if err != nil {
					return err
				}
				if asJSON {
					return cli.JSON(c.OutOrStdout(), map[string]any{"subject": name, "summary": r.GetSummary(),
						"now": toDecisionsJSON(r.GetNow()), "past": toDecisionsJSON(r.GetPast())})
				}
				return whyText(c.OutOrStdout(), name, r, time.Now(), full)
			})
		},
	}
	c.Flags().Uint32Var(&limit, "limit", 0, "show at most this many past decisions; 0 is 20")
	c.Flags().BoolVar(&full, "full", false, "show the candidates of past decisions too")
	return c
}

// asker asks why for one subject.
type asker func(a *admin.Client, ctx context.Context, limit uint32) (*sharddv1.WhyResponse, error)

// whySubject reads what is asked about: "shard 12", "node n3", "operator j9", or the id alone.
func whySubject(args []string) (name string, ask asker, err error) {
	id := args[len(args)-1]
	kind := ""
	if len(args) == 2 {
		kind = args[0]
	} else if id != "" {
		kind = map[string]string{"s": "shard", "n": "node", "j": "operator", "t": "operator"}[strings.ToLower(id[:1])]
	}
	var n uint64
	switch kind {
	case "shard":
		n, err = number("shard", "s", id)
		return shardName(n), func(a *admin.Client, ctx context.Context, limit uint32) (*sharddv1.WhyResponse, error) {
			return a.WhyShard(ctx, n, limit)
		}, err
	case "node":
		n, err = number("node", "n", id)
		return nodeName(n), func(a *admin.Client, ctx context.Context, limit uint32) (*sharddv1.WhyResponse, error) {
			return a.WhyNode(ctx, n, limit)
		}, err
	case "operator", "job":
		if strings.HasPrefix(strings.ToLower(id), "t") {
			n, err = number("transfer", "t", id)
			n += admin.FirstTransfer
		} else {
			n, err = number("operator", "j", id)
		}
		return operatorName(n), func(a *admin.Client, ctx context.Context, limit uint32) (*sharddv1.WhyResponse, error) {
			return a.WhyOperator(ctx, n, limit)
		}, err
	}
	return "", nil, cli.Usagef("%q is not what the driver decides about: want a shard (s12), a node (n3) or an operator (j9)",
		strings.Join(args, " "))
}

func whyText(w io.Writer, name string, r *sharddv1.WhyResponse, now time.Time, full bool) error {
	summary := orElse(r.GetSummary(), "nothing is known")
	if !strings.HasPrefix(summary, name) {
		summary = name + ": " + summary
	}
	if _, err := fmt.Fprintln(w, cli.Cut(summary, 1<<16)); err != nil {
		return err
	}
	var decisions []*sharddv1.Decision
	for _, d := range r.GetNow() {
		if !found(d) {
			decisions = append(decisions, d)
		} else if err := findings(w, d); err != nil {
			return err
		}
	}
	if _, err := fmt.Fprintln(w, "\nwhat the driver would do now"); err != nil {
		return err
	}
	if len(decisions) == 0 {
		fmt.Fprintln(w, "  nothing")
	}
	for _, d := range decisions {
		if _, err := fmt.Fprintln(w, "  "+decisionLine(d)); err != nil {
			return err
		}
		if err := candidateTable(w, d.GetCandidates(), "    "); err != nil {
			return err
		}
	}
	if _, err := fmt.Fprintln(w, "\nwhat it decided before"); err != nil {
		return err
	}
	if len(r.GetPast()) == 0 {
		_, err := fmt.Fprintln(w, "  nothing that the journal still holds")
		return err
	}
	width := 0
	for _, d := range r.GetPast() {
		width = max(width, len(age(d.GetUnixMs(), now)))
	}
	for _, d := range r.GetPast() {
		if _, err := fmt.Fprintf(w, "  %-*s  %s\n", width, age(d.GetUnixMs(), now), decisionLine(d)); err != nil {
			return err
		}
		if full {
			if err := candidateTable(w, d.GetCandidates(), strings.Repeat(" ", width+6)); err != nil {
				return err
			}
		}
	}
	return nil
}

// found reports whether a decision is none, but what the checks have found: lines without a verdict.
func found(d *sharddv1.Decision) bool {
	for _, k := range d.GetCandidates() {
		if k.GetVerdict() != "" {
			return false
		}
	}
	return len(d.GetCandidates()) > 0
}

// findings are lines of what and how, indented.
func findings(w io.Writer, d *sharddv1.Decision) error {
	var rows [][]string
	for _, k := range d.GetCandidates() {
		rows = append(rows, []string{cli.Cut(k.GetWhat(), 1<<16), cli.Cut(k.GetDetail(), 1<<16)})
	}
	return indented(w, nil, rows, "  ")
}

// indented is a table with something in front of each line; without a header it has none.
func indented(w io.Writer, header []string, rows [][]string, indent string) error {
	var b strings.Builder
	if err := cli.Table(&b, header, rows); err != nil {
		return err
	}
	for l := range strings.Lines(b.String()) {
		if l == "\n" {
			continue // no header
		}
		if _, err := io.WriteString(w, indent+l); err != nil {
			return err
		}
	}
	return nil
}

func decisionLine(d *sharddv1.Decision) string {
	line := d.GetBy() + ": " + d.GetOutcome()
	if d.GetOperatorId() != 0 {
		line += " (" + operatorName(d.GetOperatorId()) + ")"
	}
	return cli.Cut(line, 1<<16)
}

// candidateTable is an indented table of what was considered; the score is left out where nothing has one.
func candidateTable(w io.Writer, candidates []*sharddv1.Candidate, indent string) error {
	if len(candidates) == 0 {
		return nil
	}
	scored := false
	for _, k := range candidates {
		scored = scored || k.GetScore() != 0
	}
	header := []string{"CANDIDATE", "VERDICT"}
	if scored {
		header = append(header, "SCORE")
	}
	header = append(header, "DETAIL")
	var rows [][]string
	for _, k := range candidates {
		row := []string{cli.Cut(k.GetWhat(), 1<<16), k.GetVerdict()}
		if scored {
			row = append(row, score(k.GetScore()))
		}
		rows = append(rows, append(row, cli.Cut(k.GetDetail(), 1<<16)))
	}
	return indented(w, header, rows, indent)
}

func score(f float64) string {
	if f == 0 {
		return "-"
	}
	return fmt.Sprintf("%.3g", f)
}
