package main

import (
	"context"

	"github.com/spf13/cobra"

	sharddv1 "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/client/admin"
	"github.com/shardd/shardd/internal/cli"
)

// limitsJSON is how fast one node sends and receives snapshots.
type limitsJSON struct {
	Node    string `json:"node"`
	Send    uint64 `json:"send_bytes_per_second"`
	Receive uint64 `json:"receive_bytes_per_second"`
}

func newSnapshotsLimits(o *conn) *cobra.Command {
	var node, send, receive string
	c := &cobra.Command{
		Use:   "limits",
		Short: "Show or set how fast nodes send and receive snapshots",
		Long: `Show or set how fast nodes send and receive snapshots. Without --send and --receive nothing is changed. What
is set holds at once, for streams under way too, and until the node restarts: the settings of "shardd start" hold for
good.`,
		Example: `  shardctl snapshots limits
  shardctl snapshots limits --send 16MiB --receive 16MiB
  shardctl snapshots limits --node n3 --receive 128MiB`,
		RunE: func(c *cobra.Command, _ []string) error {
			asJSON, err := o.json()
			if err != nil {
				return err
			}
			sendRate, err := bytesFlag("send", send)
			if err != nil {
				return err
			}
			receiveRate, err := bytesFlag("receive", receive)
			if err != nil {
				return err
			}
			var rows [][]string
			out := []limitsJSON{}
			err = o.eachNode(c, node, func(ctx context.Context, n *sharddv1.NodeInfo, a *admin.Client) error {
				s, r, err := a.SetSnapshotLimits(ctx, sendRate, receiveRate)
				if err != nil {
					return err
				}
				rows = append(rows, []string{nodeName(n.GetNodeId()), cli.Bytes(s) + "/s", cli.Bytes(r) + "/s"})
				out = append(out, limitsJSON{Node: nodeName(n.GetNodeId()), Send: s, Receive: r})
				return nil
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
			if terr := cli.Table(c.OutOrStdout(), []string{"NODE", "SEND", "RECEIVE"}, rows); terr != nil {
				return terr
			}
			return err
		},
	}
	c.Flags().StringVar(&node, "node", "", "only this node, such as n3 (default: all)")
	c.Flags().StringVar(&send, "send", "", "most bytes per second that the node sends, such as 16MiB")
	c.Flags().StringVar(&receive, "receive", "", "most bytes per second that the node receives")
	return c
}
