package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	sharddv1 "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/client/admin"
	"github.com/shardd/shardd/internal/cli"
)

func newSnapshots(o *conn) *cobra.Command {
	c := &cobra.Command{
		Use:   "snapshots",
		Short: "Show the snapshots under way and set how fast they go",
		Long: `Show the snapshots under way and set how fast they go. A snapshot brings a replica the state of its shard: a
new one, or one that has been away for longer than the log is kept.`,
	}
	c.AddCommand(newSnapshotsList(o), newSnapshotsLimits(o))
	return c
}

// snapshotJSON is one stream as one of its ends sees it.
type snapshotJSON struct {
	SeenBy         string `json:"seen_by"`
	Sending        bool   `json:"sending"`
	Shard          string `json:"shard"`
	From           string `json:"from"`
	To             string `json:"to"`
	ToReplica      uint64 `json:"to_replica"`
	Phase          string `json:"phase"`
	BytesDone      uint64 `json:"bytes_done"`
	BytesTotal     uint64 `json:"bytes_total"` // an estimate while the stream runs
	BytesPerSecond uint64 `json:"bytes_per_second"`
	ElapsedMS      uint64 `json:"elapsed_ms"`
	Priority       string `json:"priority"`
}

func newSnapshotsList(o *conn) *cobra.Command {
	var node string
	c := &cobra.Command{
		Use:   "list",
		Short: "List the snapshots that the nodes send and receive",
		Long: `List the snapshots that the nodes send and receive; each stream appears once for each of its ends. Nodes that
are down are left out.`,
		RunE: func(c *cobra.Command, _ []string) error {
			asJSON, err := o.json()
			if err != nil {
				return err
			}
			var rows [][]string
			out := []snapshotJSON{}
			err = o.eachNode(c, node, func(ctx context.Context, n *sharddv1.NodeInfo, a *admin.Client) error {
				list, err := a.ListSnapshots(ctx)
				for _, s := range list {
					rows = append(rows, snapshotRow(n.GetNodeId(), s))
					out = append(out, snapshotJSON{SeenBy: nodeName(n.GetNodeId()), Sending: s.GetSending(),
						Shard: shardName(s.GetShardId()), From: nodeName(s.GetFromNode()), To: nodeName(s.GetToNode()),
						ToReplica: s.GetToReplicaId(), Phase: s.GetPhase(), BytesDone: s.GetBytesDone(), BytesTotal: s.GetBytesTotal(),
						BytesPerSecond: s.GetBytesPerSecond(), ElapsedMS: s.GetElapsedMs(), Priority: s.GetPriority()})
				}
				return err
			})
			if len(out) == 0 && err != nil {
				return err
			}
			if asJSON {
				if jerr := cli.JSON(c.OutOrStdout(), out); jerr != nil {
					return jerr
				}
				return err
			}
			header := []string{"NODE", "DIRECTION", "SHARD", "FROM", "TO", "PHASE", "BYTES", "RATE", "TOOK", "PRIORITY"}
			if terr := cli.Table(c.OutOrStdout(), header, rows); terr != nil {
				return terr
			}
			return err
		},
	}
	c.Flags().StringVar(&node, "node", "", "only this node, such as n3 (default: all)")
	return c
}

func snapshotRow(seenBy uint64, s *sharddv1.SnapshotProgress) []string {
	direction := "receives"
	if s.GetSending() {
		direction = "sends"
	}
	size := cli.Bytes(s.GetBytesDone())
	if s.GetBytesTotal() > 0 {
		size = partOf(s.GetBytesDone(), s.GetBytesTotal())
	}
	return []string{nodeName(seenBy), direction, fmt.Sprintf("%s/%d", shardName(s.GetShardId()), s.GetToReplicaId()),
		nodeName(s.GetFromNode()), nodeName(s.GetToNode()), s.GetPhase(), size, cli.Bytes(s.GetBytesPerSecond()) + "/s",
		clockFace(time.Duration(s.GetElapsedMs()) * time.Millisecond), s.GetPriority()}
}

// eachNode asks every node that is up, or the one that is named, one after the other. The error names the nodes that
// did not answer; the others have been asked all the same.
func (o *conn) eachNode(c *cobra.Command, only string,
	ask func(ctx context.Context, n *sharddv1.NodeInfo, a *admin.Client) error) error {
	want := uint64(0)
	if only != "" {
		var err error
		if want, err = number("node", "n", only); err != nil {
			return err
		}
	}
	return o.withAdmin(c, func(ctx context.Context, a *admin.Client) error {
		nodes, err := a.ListNodes(ctx)
		if err != nil {
			return err
		}
		asked := 0
		var silent []error
		for _, n := range nodes {
			if want != 0 && n.GetNodeId() != want || want == 0 && !n.GetAlive() {
				continue
			}
			asked++
			if err := ask(ctx, n, a.At(n.GetAddress())); err != nil {
				silent = append(silent, fmt.Errorf("%s: %w", nodeName(n.GetNodeId()), err))
			}
		}
		switch {
		case want != 0 && asked == 0:
			return cli.Fail(cli.ExitNotFound, "`shardctl nodes list` shows the nodes.", "no node %s", nodeName(want))
		case len(silent) > 0:
			return cli.Fail(cli.ExitUnreachable, "The other nodes have answered.", "%d of %d nodes could not be asked: %w",
				len(silent), asked, silent[0])
		}
		return nil
	})
}
