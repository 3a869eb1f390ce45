package main

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	sharddv1 "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/internal/cli"
)

// limitsOfBalance are the driver's limits in JSON output.
type limitsOfBalance struct {
	Operators     uint32  `json:"operators"`
	NodeSnapshots uint32  `json:"node_snapshots"`
	NodeTransfers uint32  `json:"node_transfers"`
	DownAfterMS   uint64  `json:"down_after_ms"`
	SplitBytes    uint64  `json:"split_bytes"`
	MergeBytes    uint64  `json:"merge_bytes"`
	MergeAgeMS    uint64  `json:"merge_age_ms"`
	SplitRequests float64 `json:"split_requests_per_second"`
}

func toLimitsJSON(l *sharddv1.BalanceLimits) limitsOfBalance {
	return limitsOfBalance{Operators: l.GetOperators(), NodeSnapshots: l.GetNodeSnapshots(),
		NodeTransfers: l.GetNodeTransfers(), DownAfterMS: l.GetDownAfterMs(), SplitBytes: l.GetSplitBytes(),
		MergeBytes: l.GetMergeBytes(), MergeAgeMS: l.GetMergeAgeMs(), SplitRequests: l.GetSplitRequests()}
}

// balanceLimit is one limit: its name for --set, what it means, how it is shown and read.
type balanceLimit struct {
	name, means string
	show        func(l *sharddv1.BalanceLimits) string
	set         func(l *sharddv1.BalanceLimits, value string) error
}

func balanceLimits() []balanceLimit {
	return []balanceLimit{
		countLimit("operators", "operators that run at once",
			func(l *sharddv1.BalanceLimits) *uint32 { return &l.Operators }),
		countLimit("node-snapshots", "snapshots that a node sends or receives at once for the driver",
			func(l *sharddv1.BalanceLimits) *uint32 { return &l.NodeSnapshots }),
		countLimit("node-transfers", "leadership transfers at once per node",
			func(l *sharddv1.BalanceLimits) *uint32 { return &l.NodeTransfers }),
		timeLimit("down-after", "a node that is silent for this long is lost, its replicas are replaced",
			func(l *sharddv1.BalanceLimits) *uint64 { return &l.DownAfterMs }),
		sizeLimit("split-bytes", "larger shards split",
			func(l *sharddv1.BalanceLimits) *uint64 { return &l.SplitBytes }),
		{"split-requests", "shards with more requests per second split",
			func(l *sharddv1.BalanceLimits) string { return rate(l.GetSplitRequests()) + "/s" },
			func(l *sharddv1.BalanceLimits, value string) error {
				n, err := strconv.ParseFloat(strings.TrimSuffix(value, "/s"), 64)
				if err != nil || !(n > 0) || n > 1e12 {
					return cli.Usagef("split-requests=%s: want a number above 0, such as 2500", value)
				}
				l.SplitRequests = n
				return nil
			}},
		sizeLimit("merge-bytes", "smaller cold neighbours merge",
			func(l *sharddv1.BalanceLimits) *uint64 { return &l.MergeBytes }),
		timeLimit("merge-age", "shards younger than this do not merge",
			func(l *sharddv1.BalanceLimits) *uint64 { return &l.MergeAgeMs }),
	}
}

func countLimit(name, means string, field func(*sharddv1.BalanceLimits) *uint32) balanceLimit {
	return balanceLimit{name, means,
		func(l *sharddv1.BalanceLimits) string { return fmt.Sprint(*field(l)) },
		func(l *sharddv1.BalanceLimits, value string) error {
			n, err := strconv.ParseUint(value, 10, 32)
			if err != nil || n == 0 {
				return cli.Usagef("%s=%s: want a whole number above 0 (`shardctl balance pause` stops the driver)", name, value)
			}
			*field(l) = uint32(n)
			return nil
		}}
}

func timeLimit(name, means string, field func(*sharddv1.BalanceLimits) *uint64) balanceLimit {
	return balanceLimit{name, means,
		func(l *sharddv1.BalanceLimits) string { return span(millis(*field(l))) },
		func(l *sharddv1.BalanceLimits, value string) error {
			d, err := time.ParseDuration(value)
			if err != nil || d < time.Millisecond {
				return cli.Usagef("%s=%s: want a time, such as 90s or 5m", name, value)
			}
			*field(l) = uint64(d.Milliseconds())
			return nil
		}}
}

func sizeLimit(name, means string, field func(*sharddv1.BalanceLimits) *uint64) balanceLimit {
	return balanceLimit{name, means,
		func(l *sharddv1.BalanceLimits) string { return cli.Bytes(*field(l)) },
		func(l *sharddv1.BalanceLimits, value string) error {
			n, err := bytesFlag("set", value)
			if err != nil || n == 0 {
				return cli.Usagef("%s=%s: want a number of bytes above 0, such as 256MiB", name, value)
			}
			*field(l) = n
			return nil
		}}
}

func newBalanceLimits(o *conn) *cobra.Command {
	var sets []string
	var help strings.Builder
	for _, l := range balanceLimits() {
		fmt.Fprintf(&help, "  %-15s %s\n", l.name, l.means)
	}
	c := &cobra.Command{
		Use:   "limits [--set NAME=VALUE ...]",
		Short: "Show or set the limits of the placement driver",
		Long: `Show or set the limits of the placement driver. They are kept by the cluster and hold from the next round. How
many bytes per second a move takes is the nodes' own limit: see "shardctl snapshots limits". Names:

` + strings.TrimRight(help.String(), "\n"),
		Example: `  shardctl balance limits
  shardctl balance limits --set split-bytes=512MiB --set down-after=10m`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			limits, err := readLimits(sets)
			if err != nil {
				return err
			}
			return o.setBalance(c, &sharddv1.SetBalanceRequest{Limits: limits}, limitTable)
		},
	}
	c.Flags().StringArrayVar(&sets, "set", nil, "set a limit, such as split-bytes=512MiB; may be repeated")
	return c
}

// readLimits are the limits to set; those that are not named stay 0.
func readLimits(sets []string) (*sharddv1.BalanceLimits, error) {
	limits := &sharddv1.BalanceLimits{}
	for _, s := range sets {
		name, value, ok := strings.Cut(s, "=")
		if !ok {
			return nil, cli.Usagef("--set %s: want NAME=VALUE", s)
		}
		name = strings.ReplaceAll(name, "_", "-")
		all := balanceLimits()
		i := slices.IndexFunc(all, func(l balanceLimit) bool { return l.name == name })
		if i < 0 {
			var names []string
			for _, l := range all {
				names = append(names, l.name)
			}
			return nil, cli.Usagef("--set %s: no limit has this name: want %s", s, strings.Join(names, ", "))
		}
		if err := all[i].set(limits, value); err != nil {
			return nil, err
		}
	}
	return limits, nil
}

func limitTable(c *cobra.Command, r *sharddv1.SetBalanceResponse) error {
	var rows [][]string
	for _, l := range balanceLimits() {
		rows = append(rows, []string{l.name, l.show(r.GetLimits()), l.means})
	}
	return cli.Table(c.OutOrStdout(), []string{"LIMIT", "VALUE", ""}, rows)
}
