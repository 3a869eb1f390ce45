package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	sharddv1 "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/client/admin"
	"github.com/shardd/shardd/internal/cli"
)

// simulateFlags are the changes that a simulation tries.
type simulateFlags struct {
	add      []string
	remove   []string
	lose     string
	loseZone string
	rules    string
}

type simulatedMoveJSON struct {
	AtMS   uint64 `json:"at_ms"`
	Kind   string `json:"kind"`
	Shard  string `json:"shard"`
	From   string `json:"from,omitempty"`
	To     string `json:"to,omitempty"`
	Bytes  uint64 `json:"bytes,omitempty"`
	Reason string `json:"reason,omitempty"`
}

type simulatedNodeJSON struct {
	Node     string    `json:"node"`
	Labels   string    `json:"labels,omitempty"`
	Replicas [2]uint32 `json:"replicas"` // before, after
	Leaders  [2]uint32 `json:"leaders"`
	Bytes    [2]uint64 `json:"bytes"`
	Note     string    `json:"note,omitempty"`
}

func newBalanceSimulate(o *conn) *cobra.Command {
	var f simulateFlags
	var moves int
	c := &cobra.Command{
		Use:   "simulate [--add-node LABELS] [--remove-node NODE] [--lose-zone ZONE] [--lose KEY=VALUE] [--rules FILE]",
		Short: "Try a change on a copy of the cluster: what would move, how long, how it ends",
		Long: `Try a change on a copy of the cluster as it is now: the planner itself decides, the moves take as long as their
bytes take within the limits. Nothing is changed. Without a flag it says what the driver would still do as things are.

Prints the moves, their bytes, the time, replicas and leaders of each node before and after, and what stays wrong. New
nodes get the next free ids. A zone is what the nodes' label "zone" says (shardd start --labels zone=a); --lose takes any
label.`,
		Example: `  shardctl balance simulate --add-node zone=a --add-node zone=b
  shardctl balance simulate --remove-node n3
  shardctl balance simulate --lose-zone b
  shardctl balance simulate --lose rack=r7 --rules rules.yaml`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			asJSON, err := o.json()
			if err != nil {
				return err
			}
			req, err := f.request(c.InOrStdin())
			if err != nil {
				return err
			}
			// A simulation takes as long as it takes, unless --timeout says otherwise.
			asked := *o
			if !c.Flags().Changed("timeout") {
				asked.timeout = maxSilence
			}
			return asked.withAdmin(c, func(ctx context.Context, a *admin.Client) error {
				r, err := a.Simulate(ctx, req)
				if err != nil {
					return err
				}
				if asJSON {
					return cli.JSON(c.OutOrStdout(), simulationJSON(r))
				}
				return simulationText(c.OutOrStdout(), r, moves)
			})
		},
	}
	fl := c.Flags()
	fl.StringArrayVar(&f.add, "add-node", nil, "a node more, with these labels, such as zone=a,rack=r1; may be repeated")
	fl.StringSliceVar(&f.remove, "remove-node", nil, "a node less, by decommission; may be repeated")
	fl.StringVar(&f.loseZone, "lose-zone", "", "all nodes with this label zone fail at once")
	fl.StringVar(&f.lose, "lose", "", "all nodes with this label fail at once, such as rack=r7")
	fl.StringVar(&f.rules, "rules", "", "placement rules to try, a YAML file; - is standard input")
	fl.IntVar(&moves, "moves", 20, "print at most this many moves; 0: all (JSON has all that the cluster returns)")
	c.MarkFlagsMutuallyExclusive("lose", "lose-zone")
	return c
}

func (f *simulateFlags) request(in io.Reader) (*sharddv1.SimulateRequest, error) {
	req := &sharddv1.SimulateRequest{AddNodes: f.add, Lose: f.lose}
	if f.loseZone != "" {
		req.Lose = "zone=" + f.loseZone
	}
	if req.Lose != "" && !isLabel(req.Lose) {
		return nil, cli.Usagef("--lose %s: want KEY=VALUE, such as rack=r7", req.Lose)
	}
	for _, labels := range f.add {
		for _, l := range strings.Split(labels, ",") {
			if labels != "" && !isLabel(l) {
				return nil, cli.Usagef("--add-node %s: want KEY=VALUE,..., such as zone=a,rack=r1", labels)
			}
		}
	}
	for _, n := range f.remove {
		id, err := number("node", "n", n)
		if err != nil {
			return nil, err
		}
		req.RemoveNodes = append(req.RemoveNodes, id)
	}
	if f.rules == "" {
		return req, nil
	}
	yaml, err := readInput("rules", f.rules, in)
	req.RulesYaml = string(yaml)
	return req, err
}

func isLabel(s string) bool {
	k, v, ok := strings.Cut(s, "=")
	return ok && k != "" && v != ""
}

// readInput reads a file that a flag names; - is standard input.
func readInput(flag, name string, in io.Reader) ([]byte, error) {
	if name == "-" {
		b, err := io.ReadAll(in)
		if err != nil {
			return nil, fmt.Errorf("read standard input: %w", err)
		}
		return b, nil
	}
	b, err := os.ReadFile(name)
	if err != nil {
		return nil, cli.Usagef("--%s: %w", flag, err)
	}
	return b, nil
}

func simulationJSON(r *sharddv1.SimulateResponse) map[string]any {
	moves, nodes := []simulatedMoveJSON{}, []simulatedNodeJSON{}
	for _, m := range r.GetMoves() {
		j := simulatedMoveJSON{AtMS: m.GetAtMs(), Kind: m.GetKind(), Shard: shardName(m.GetShardId()), Bytes: m.GetBytes(),
			Reason: m.GetReason()}
		if m.GetFromNode() != 0 {
			j.From = nodeName(m.GetFromNode())
		}
		if m.GetToNode() != 0 {
			j.To = nodeName(m.GetToNode())
		}
		moves = append(moves, j)
	}
	for _, n := range r.GetNodes() {
		nodes = append(nodes, simulatedNodeJSON{Node: nodeName(n.GetNodeId()), Labels: n.GetLabels(),
			Replicas: [2]uint32{n.GetReplicasBefore(), n.GetReplicasAfter()},
			Leaders:  [2]uint32{n.GetLeadersBefore(), n.GetLeadersAfter()},
			Bytes:    [2]uint64{n.GetBytesBefore(), n.GetBytesAfter()}, Note: n.GetNote()})
	}
	return map[string]any{"moves": moves, "moves_total": r.GetMovesTotal(), "bytes": r.GetBytes(), "took_ms": r.GetTookMs(),
		"nodes": nodes, "problems": append([]string{}, r.GetProblems()...), "unfinished": r.GetUnfinished()}
}

func simulationText(w io.Writer, r *sharddv1.SimulateResponse, most int) error {
	total := max(r.GetMovesTotal(), uint64(len(r.GetMoves())))
	took := span(millis(r.GetTookMs()))
	if r.GetUnfinished() {
		took = "not at rest after " + took
	}
	if total == 0 {
		took = "" // nothing to wait for
	}
	if err := cli.Fields(w, "moves", fmt.Sprint(total), "bytes", cli.Bytes(r.GetBytes()), "time", took); err != nil {
		return err
	}
	moves := r.GetMoves()
	if most > 0 && len(moves) > most {
		moves = moves[:most]
	}
	if len(moves) > 0 {
		var rows [][]string
		for _, m := range moves {
			bytes := "-"
			if m.GetBytes() > 0 {
				bytes = cli.Bytes(m.GetBytes())
			}
			rows = append(rows, []string{clockFace(millis(m.GetAtMs())), m.GetKind(), shardName(m.GetShardId()),
				nodeName(m.GetFromNode()), nodeName(m.GetToNode()), bytes, cli.Cut(m.GetReason(), 1<<16)})
		}
		fmt.Fprintln(w)
		if err := cli.Table(w, []string{"AT", "WHAT", "SHARD", "FROM", "TO", "BYTES", "REASON"}, rows); err != nil {
			return err
		}
		if more := total - uint64(len(moves)); more > 0 {
			fmt.Fprintf(w, "and %d more\n", more)
		}
	}
	if len(r.GetNodes()) > 0 {
		var rows [][]string
		for _, n := range r.GetNodes() {
			rows = append(rows, []string{nodeName(n.GetNodeId()), orElse(n.GetLabels(), "-"),
				change(n.GetReplicasBefore(), n.GetReplicasAfter()), change(n.GetLeadersBefore(), n.GetLeadersAfter()),
				cli.Bytes(n.GetBytesBefore()) + " -> " + cli.Bytes(n.GetBytesAfter()), n.GetNote()})
		}
		fmt.Fprintln(w)
		if err := cli.Table(w, []string{"NODE", "LABELS", "REPLICAS", "LEADERS", "BYTES", ""}, rows); err != nil {
			return err
		}
	}
	return listed(w, "what stays wrong", r.GetProblems())
}

// change is "12 -> 9", or one number if it stays.
func change(before, after uint32) string {
	if before == after {
		return fmt.Sprint(after)
	}
	return fmt.Sprintf("%d -> %d", before, after)
}
