package main

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	sharddv1 "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/client/admin"
	"github.com/shardd/shardd/internal/cli"
)

// stageJSON is one stage of one operation at one node; times are microseconds.
type stageJSON struct {
	Node      string  `json:"node"`
	Operation string  `json:"operation"`
	Stage     string  `json:"stage"`
	Samples   uint64  `json:"samples"`
	Mean      float64 `json:"mean_us"`
	P50       float64 `json:"p50_us"`
	P90       float64 `json:"p90_us"`
	P99       float64 `json:"p99_us"`
}

func newDebugLatency(o *conn) *cobra.Command {
	var node string
	var over time.Duration
	c := &cobra.Command{
		Use:   "latency",
		Short: "Show where the time of writes and reads goes, by stage",
		Long: `Show where the time of writes and reads goes, by stage, at the nodes that lead their shards: the samples of the next
seconds (--for), or with --for 0 all since each node was started. Nodes follow a few hundred requests a second.

A write goes through queue (until its pass begins), propose (into the log, on its way to disk and followers), commit
(until a quorum has it), apply and answer. Inside commit run sync, on the leader's own disk, and replicate, until the
first follower says that it has it. Of a read, queue and replicate are what a leader without a lease needs to ask the
others; apply waits for what the read must see, read is the look-up. total is from the arrival at the node until the
answer leaves.

Quantiles are interpolated in buckets a factor of two wide; means are exact.`,
		Example: `  shardctl debug latency
  shardctl debug latency --for 30s --node n2 -o json`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			asJSON, err := o.json()
			if err != nil {
				return err
			}
			if over < 0 || over >= time.Hour {
				return cli.Usagef("--for %s: want 0 to an hour", over)
			}
			before, err := o.latencies(c, node)
			if len(before) == 0 && err != nil {
				return err
			}
			after := before
			if over > 0 {
				select {
				case <-c.Context().Done():
					return c.Context().Err()
				case <-time.After(over):
				}
				if after, err = o.latencies(c, node); len(after) == 0 && err != nil {
					return err
				}
			}
			out := []stageJSON{}
			for id, now := range after {
				var was *sharddv1.LatencyResponse
				if over > 0 {
					was = before[id]
				}
				out = append(out, stagesOf(now, was)...)
			}
			sortStages(out)
			if asJSON {
				if jerr := cli.JSON(c.OutOrStdout(), out); jerr != nil {
					return jerr
				}
				return err
			}
			if len(out) == 0 && err == nil {
				_, err := fmt.Fprintf(c.OutOrStdout(), "No request was followed in %s. Is there any load?\n", over)
				return err
			}
			rows := make([][]string, len(out))
			for i, s := range out {
				rows[i] = []string{s.Node, s.Operation, s.Stage, strconv.FormatUint(s.Samples, 10), micros(uint64(s.Mean)), micros(uint64(s.P50)),
					micros(uint64(s.P90)), micros(uint64(s.P99))}
			}
			if terr := cli.Table(c.OutOrStdout(), []string{"NODE", "OPERATION", "STAGE", "SAMPLES", "MEAN", "P50", "P90", "P99"},
				rows); terr != nil {
				return terr
			}
			return err
		},
	}
	c.Flags().StringVar(&node, "node", "", "only this node, such as n3 (default: all)")
	c.Flags().DurationVar(&over, "for", 5*time.Second, "how long to look; 0: since each node was started")
	return c
}

// latencies asks the nodes. An error with answers beside it is of those that did not answer.
func (o *conn) latencies(c *cobra.Command, node string) (map[uint64]*sharddv1.LatencyResponse, error) {
	out := map[uint64]*sharddv1.LatencyResponse{}
	err := o.eachNode(c, node, func(ctx context.Context, n *sharddv1.NodeInfo, a *admin.Client) error {
		r, err := a.Latency(ctx)
		if err == nil {
			out[n.GetNodeId()] = r
		}
		return err
	})
	return out, err
}

// stagesOf is what a node has measured since it said was; a node that was started in between starts at nothing.
func stagesOf(now, was *sharddv1.LatencyResponse) (out []stageJSON) {
	type key struct{ op, stage string }
	old := map[key]*sharddv1.StageLatency{}
	if was != nil && was.GetIncarnation() == now.GetIncarnation() {
		for _, s := range was.GetStages() {
			old[key{s.GetOperation(), s.GetStage()}] = s
		}
	}
	for _, s := range now.GetStages() {
		o := old[key{s.GetOperation(), s.GetStage()}] // its getters take nil for zero
		n := s.GetCount() - o.GetCount()
		if n == 0 {
			continue
		}
		buckets := append([]uint64(nil), s.GetBuckets()...)
		for i, b := range o.GetBuckets() {
			if i < len(buckets) {
				buckets[i] -= b
			}
		}
		q := func(p float64) float64 { return quantile(now.GetBounds(), buckets, p) * 1e6 }
		out = append(out, stageJSON{Node: nodeName(now.GetNodeId()), Operation: s.GetOperation(), Stage: s.GetStage(), Samples: n,
			Mean: (s.GetSeconds() - o.GetSeconds()) / float64(n) * 1e6, P50: q(0.5), P90: q(0.9), P99: q(0.99)})
	}
	return out
}

// quantile interpolates within the bucket that holds the p-quantile. What lies above the last bound counts as that.
func quantile(bounds []float64, buckets []uint64, p float64) float64 {
	total := uint64(0)
	for _, b := range buckets {
		total += b
	}
	rank, below := p*float64(total), 0.0
	for i, b := range buckets {
		if below+float64(b) < rank || b == 0 {
			below += float64(b)
			continue
		}
		if i >= len(bounds) {
			break
		}
		from := 0.0
		if i > 0 {
			from = bounds[i-1]
		}
		return from + (bounds[i]-from)*(rank-below)/float64(b)
	}
	if len(bounds) == 0 {
		return 0
	}
	return bounds[len(bounds)-1]
}

// sortStages orders by node and operation; the stages of a node come in order.
func sortStages(s []stageJSON) {
	slices.SortStableFunc(s, func(a, b stageJSON) int {
		x, y := nodeOrder(a.Node), nodeOrder(b.Node)
		return cmp.Or(cmp.Compare(x, y), -cmp.Compare(a.Operation, b.Operation)) // writes first
	})
}

// nodeOrder is the number in a node's name.
func nodeOrder(name string) uint64 {
	n, _ := strconv.ParseUint(strings.TrimPrefix(name, "n"), 10, 64) // made by nodeName
	return n
}
