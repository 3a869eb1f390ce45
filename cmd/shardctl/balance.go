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

func newBalance(o *conn) *cobra.Command {
	c := &cobra.Command{
		Use:   "balance",
		Short: "See and steer the placement driver, which splits, merges, moves and heals",
		Long: `See and steer the placement driver: the part of the cluster that splits and merges shards, moves replicas and
leaderships to spread the load, and replaces replicas that are lost. It runs on the node that leads the cluster's own
shard (s1). Reads and writes never wait for it.`,
	}
	c.AddCommand(newBalanceStatus(o), newBalancePause(o), newBalanceResume(o), newBalanceLimits(o), newBalanceSimulate(o))
	return c
}

// operatorJSON is work of the driver.
type operatorJSON struct {
	ID     string `json:"id"`
	Kind   string `json:"kind"`
	Shard  string `json:"shard,omitempty"`
	Reason string `json:"reason,omitempty"`
	Step   string `json:"step,omitempty"`
	AgeMS  uint64 `json:"age_ms"`
	Bytes  uint64 `json:"bytes,omitempty"`
	State  string `json:"state"`
	Error  string `json:"error,omitempty"`
}

func toOperatorsJSON(ops []*sharddv1.Operator) []operatorJSON {
	out := []operatorJSON{}
	for _, p := range ops {
		j := operatorJSON{ID: operatorName(p.GetOperatorId()), Kind: p.GetKind(), Reason: p.GetReason(), Step: p.GetStep(),
			AgeMS: p.GetAgeMs(), Bytes: p.GetBytes(), State: p.GetState(), Error: p.GetError()}
		if p.GetShardId() != 0 {
			j.Shard = shardName(p.GetShardId())
		}
		out = append(out, j)
	}
	return out
}

// balanceJSON is the driver's state in JSON output.
type balanceJSON struct {
	State       string            `json:"state"` // running, paused or waiting
	Detail      string            `json:"detail,omitempty"`
	Term        uint64            `json:"term"`
	Rounds      uint64            `json:"rounds"`
	RoundMicros uint64            `json:"last_round_micros"`
	QuietRounds uint64            `json:"quiet_rounds"` // rounds in a row in which nothing was proposed
	QuietMS     uint64            `json:"quiet_ms"`
	Paused      []string          `json:"paused"`
	Problems    map[string]uint64 `json:"problems"`
	Replicas    uint32            `json:"replica_spread"` // largest less smallest number of a live node
	Leaders     uint32            `json:"leader_spread"`
	Running     []operatorJSON    `json:"running"`
	Recent      []operatorJSON    `json:"recent"`
	Limits      limitsOfBalance   `json:"limits"`
}

func toBalanceJSON(b *sharddv1.BalanceStatusResponse) balanceJSON {
	out := balanceJSON{State: b.GetState(), Detail: b.GetDetail(), Term: b.GetTerm(), Rounds: b.GetRounds(),
		RoundMicros: b.GetLastRoundMicros(), QuietRounds: b.GetQuietRounds(), QuietMS: b.GetQuietMs(),
		Paused: append([]string{}, b.GetPaused()...), Problems: map[string]uint64{}, Replicas: b.GetReplicaSpread(),
		Leaders: b.GetLeaderSpread(), Running: toOperatorsJSON(b.GetRunning()), Recent: toOperatorsJSON(b.GetRecent()),
		Limits: toLimitsJSON(b.GetLimits())}
	for _, p := range b.GetProblems() {
		out.Problems[p.GetWhat()] = p.GetCount()
	}
	return out
}

func newBalanceStatus(o *conn) *cobra.Command {
	var ended int
	c := &cobra.Command{
		Use:   "status",
		Short: "Say what the placement driver does, what it waits for and what is not as it should be",
		Long: `Say what the placement driver does, what it waits for and what is not as it should be.

An operator j9 is a job ("shardctl jobs describe j9"); one of the form t7 is a transfer of a leadership. "shardctl why"
explains both.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			asJSON, err := o.json()
			if err != nil {
				return err
			}
			return o.withAdmin(c, func(ctx context.Context, a *admin.Client) error {
				b, err := a.BalanceStatus(ctx)
				if err != nil {
					return err
				}
				if asJSON {
					return cli.JSON(c.OutOrStdout(), toBalanceJSON(b))
				}
				return balanceText(c.OutOrStdout(), b, ended)
			})
		},
	}
	c.Flags().IntVar(&ended, "ended", 10, "print at most this many operators that have ended; 0: all that are remembered")
	return c
}

func balanceText(w io.Writer, b *sharddv1.BalanceStatusResponse, ended int) error {
	round := ""
	if b.GetRounds() > 0 {
		round = fmt.Sprintf("%d in term %d, the last took %s", b.GetRounds(), b.GetTerm(), micros(b.GetLastRoundMicros()))
	}
	quiet := "no: something was proposed or runs"
	if b.GetQuietRounds() > 0 || b.GetQuietMs() > 0 {
		quiet = fmt.Sprintf("for %s, %d rounds", span(millis(b.GetQuietMs())), b.GetQuietRounds())
	}
	if err := cli.Fields(w, "driver", driverState(b), "paused", strings.Join(b.GetPaused(), " "), "rounds", round,
		"quiet", quiet, "problems", orElse(problemLine(b), "none"),
		"spread", fmt.Sprintf("replicas %d, leaders %d (most of a node less fewest)", b.GetReplicaSpread(),
			b.GetLeaderSpread())); err != nil {
		return err
	}
	if err := operatorTable(w, "running", b.GetRunning()); err != nil {
		return err
	}
	recent := b.GetRecent()
	more := 0
	if ended > 0 && len(recent) > ended {
		recent, more = recent[:ended], len(recent)-ended
	}
	if err := operatorTable(w, "ended lately", recent); err != nil || more == 0 {
		return err
	}
	_, err := fmt.Fprintf(w, "and %d more\n", more)
	return err
}

// driverState is the driver's state and why: "running", "waiting: for reports of n2".
func driverState(b *sharddv1.BalanceStatusResponse) string {
	s := orElse(b.GetState(), "unknown")
	if d := strings.TrimSpace(b.GetDetail()); d != "" && !strings.HasPrefix(d, "paused: ") { // the pauses have their own line
		s += ": " + cli.Cut(d, 1<<16)
	}
	return s
}

// problemLine is "3 short of voters, 1 over size", "" if there is nothing.
func problemLine(b *sharddv1.BalanceStatusResponse) string {
	var parts []string
	for _, p := range b.GetProblems() {
		if p.GetCount() > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", p.GetCount(), p.GetWhat()))
		}
	}
	return strings.Join(parts, ", ")
}

// operatorName is a job's name, or t1, t2 and so on for a transfer; an operator that is about to begin has none yet.
func operatorName(id uint64) string {
	switch {
	case id == 0:
		return "-"
	case id >= admin.FirstTransfer:
		return fmt.Sprintf("t%d", id-admin.FirstTransfer)
	}
	return jobName(id)
}

func micros(n uint64) string {
	switch {
	case n < 1000:
		return fmt.Sprintf("%d us", n)
	case n < 1e6:
		return fmt.Sprintf("%.1f ms", float64(n)/1e3)
	}
	return fmt.Sprintf("%.1f s", float64(n)/1e6)
}

// operatorTable is a titled table of operators, nothing if there are none.
func operatorTable(w io.Writer, title string, ops []*sharddv1.Operator) error {
	if len(ops) == 0 {
		return nil
	}
	if _, err := fmt.Fprintf(w, "\n%s\n", title); err != nil {
		return err
	}
	var rows [][]string
	for _, p := range ops {
		state := orElse(p.GetState(), "-")
		if p.GetStep() != "" && state == "running" {
			state = cli.Cut(p.GetStep(), 1<<16)
		}
		if p.GetError() != "" {
			state += ": " + cli.Cut(p.GetError(), 1<<16)
		}
		bytes := "-"
		if p.GetBytes() > 0 {
			bytes = cli.Bytes(p.GetBytes())
		}
		what, reason := operatorTitle(p)
		rows = append(rows, []string{operatorName(p.GetOperatorId()), what, span(millis(p.GetAgeMs())), bytes, reason, state})
	}
	return cli.Table(w, []string{"OPERATOR", "WHAT", "AGE", "BYTES", "REASON", "STATE"}, rows)
}

// operatorTitle is what an operator does and why. The reason that nodes give begins with what it does, where that says
// more than its kind and its shard.
func operatorTitle(p *sharddv1.Operator) (what, reason string) {
	what, reason = p.GetKind(), cli.Cut(p.GetReason(), 1<<16)
	if p.GetShardId() != 0 {
		what += " " + shardName(p.GetShardId())
	}
	if full, rest, ok := strings.Cut(reason, "; "); ok && strings.HasPrefix(full, what) {
		return full, rest
	}
	return what, reason
}
