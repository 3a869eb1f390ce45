package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	tea "charm.land/bubbletea/v2"
	"github.com/spf13/cobra"

	sharddv1 "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/client/admin"
	"github.com/shardd/shardd/internal/cli"
)

func newTop(o *conn) *cobra.Command {
	var by string
	var once bool
	var every time.Duration
	var shards uint32
	c := &cobra.Command{
		Use:   "top",
		Short: "Watch nodes and the busiest shards",
		Long: `Watch nodes and the busiest shards, redrawn every second on the whole screen. Where standard output is no
terminal, or with --once, it is printed once.

Keys: r, b, c, s order the shards by requests, bytes, processor, size; blank holds the picture still; q ends.`,
		Example: `  shardctl top
  shardctl top --by cpu --once`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			asJSON, err := o.json()
			if err != nil {
				return err
			}
			if err := checkMeasure(by, measures); err != nil {
				return err
			}
			if every < 100*time.Millisecond {
				return cli.Usagef("--every %s: want 100ms or more", every)
			}
			out := c.OutOrStdout()
			if columns, _ := cli.Size(out); !asJSON && !once && columns > 0 && canAsk(c.InOrStdin()) {
				return o.watchTop(c, by, every)
			}
			return o.withAdmin(c, func(ctx context.Context, a *admin.Client) error {
				t, err := a.Top(ctx, shards, by)
				if err != nil {
					return err
				}
				if asJSON {
					return cli.JSON(out, topJSON(t))
				}
				return topText(out, t)
			})
		},
	}
	c.Flags().StringVar(&by, "by", admin.ByRequests, "order of the shards: "+strings.Join(measures, ", "))
	c.Flags().BoolVar(&once, "once", false, "print once and end")
	c.Flags().DurationVar(&every, "every", time.Second, "how often to ask")
	c.Flags().Uint32Var(&shards, "shards", 0, "shards to print with --once; 0 is 20")
	return c
}

func topJSON(t *sharddv1.TopResponse) map[string]any {
	nodes, shards := []nodeJSON{}, []shardJSON{}
	for _, n := range t.GetNodes() {
		nodes = append(nodes, toNodeJSON(n))
	}
	for _, s := range t.GetShards() {
		shards = append(shards, toShardJSON(s))
	}
	return map[string]any{"shard_count": t.GetShardCount(), "load": toLoadJSON(t.GetTotal()), "nodes": nodes,
		"shards": shards}
}

func topText(w io.Writer, t *sharddv1.TopResponse) error {
	fmt.Fprintf(w, "%s\n\n", topSum(t))
	if err := cli.Table(w, topNodeHeader, topNodeRows(t.GetNodes())); err != nil {
		return err
	}
	fmt.Fprintln(w)
	return cli.Table(w, hotHeader, hotRows(t.GetShards()))
}

// topSum is the cluster in one line.
func topSum(t *sharddv1.TopResponse) string {
	up, all := nodesUp(t.GetNodes())
	l := t.GetTotal()
	return fmt.Sprintf("%d of %d nodes up, %d shards, %s requests/s (%s reads, %s writes), %s", up, all,
		t.GetShardCount(), requests(l), rate(l.GetReads()), rate(l.GetWrites()), loadBytes(l))
}

var topNodeHeader = []string{"NODE", "UP", "REQ/S", "BYTES/S", "CPU", "LEADERS", "REPLICAS", "SIZE", "FREE", "STATE"}

func topNodeRows(nodes []*sharddv1.NodeInfo) [][]string {
	var rows [][]string
	for _, n := range nodes {
		if removed(n) {
			continue
		}
		up := "yes"
		if !n.GetAlive() {
			up = "NO"
		}
		rows = append(rows, []string{nodeName(n.GetNodeId()), up, requests(n.GetLoad()), loadBytes(n.GetLoad()), nodeCPU(n),
			fmt.Sprint(n.GetLeaders()), fmt.Sprint(n.GetReplicas()), cli.Bytes(n.GetShardBytes()), diskFree(n), nodeState(n)})
	}
	return rows
}

// watchTop shows the live view until the user ends it.
func (o *conn) watchTop(c *cobra.Command, by string, every time.Duration) error {
	a, err := admin.Open(o.endpoints)
	if err != nil {
		return o.explain(c.Context(), err)
	}
	defer a.Close()
	ask := func(by string, shards uint32) (*sharddv1.TopResponse, error) {
		ctx, cancel := context.WithTimeout(c.Context(), o.timeout)
		defer cancel()
		return a.Top(ctx, shards, by)
	}
	m := &topModel{ask: ask, now: time.Now, topScreen: topScreen{by: by, every: every, width: 80, height: 24}}
	p := tea.NewProgram(m, tea.WithContext(c.Context()), tea.WithInput(c.InOrStdin()), tea.WithOutput(c.OutOrStdout()),
		tea.WithoutSignalHandler())
	_, err = p.Run()
	if errors.Is(err, tea.ErrProgramKilled) && c.Context().Err() != nil {
		return nil // ended from outside, with the terminal restored
	}
	if err != nil {
		return fmt.Errorf("show the screen: %w", err)
	}
	return o.explain(c.Context(), m.fatal)
}
