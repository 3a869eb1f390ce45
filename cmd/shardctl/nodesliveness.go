package main

import (
	"context"
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	sharddv1 "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/client/admin"
	"github.com/shardd/shardd/internal/cli"
)

// livenessJSON is what one node says of itself and the others.
type livenessJSON struct {
	Node        string             `json:"node"`
	Incarnation uint64             `json:"incarnation"`
	SupportMS   uint64             `json:"support_ms"` // 0: takes no part in leases
	QuietMS     uint64             `json:"quiet_ms"`
	Peers       []peerLivenessJSON `json:"peers"`
}

type peerLivenessJSON struct {
	Peer         string       `json:"peer"`
	Incarnation  uint64       `json:"incarnation"`
	HeardMSAgo   *uint64      `json:"heard_ms_ago"` // null: never
	SharesShards bool         `json:"shares_shards"`
	Gives        *supportJSON `json:"gives"` // null: none
	Has          *supportJSON `json:"has"`
	PendingHints uint64       `json:"pending_hints"`
}

type supportJSON struct {
	Incarnation uint64 `json:"incarnation"` // of the node that gives it
	Epoch       uint64 `json:"epoch"`
	LeftMS      uint64 `json:"left_ms"`
}

func newNodesLiveness(o *conn) *cobra.Command {
	var node string
	c := &cobra.Command{
		Use:   "liveness",
		Short: "Show which nodes support each other's leaders",
		Long: `Show which nodes support each other's leaders. A node that gives another one support will not elect leaders
in place of those there until the time left is over; it renews that as long as it hears from it. A leader with the
support of a quorum answers reads alone, and an idle shard sleeps under it.

GIVES is the support that the node gives the peer, HAS the support of the peer that it counts on; 7.2 is the second
promise that the supporter has begun since its seventh start. Nodes that are down are left out.`,
		RunE: func(c *cobra.Command, _ []string) error {
			asJSON, err := o.json()
			if err != nil {
				return err
			}
			var rows [][]string
			out := []livenessJSON{}
			err = o.eachNode(c, node, func(ctx context.Context, n *sharddv1.NodeInfo, a *admin.Client) error {
				r, err := a.Liveness(ctx)
				if err != nil {
					return err
				}
				out = append(out, toLivenessJSON(r))
				for _, p := range r.GetPeers() {
					rows = append(rows, livenessRow(n.GetNodeId(), p))
				}
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
			header := []string{"NODE", "PEER", "HEARD", "GIVES", "LEFT", "HAS", "LEFT", "HINTS"}
			if terr := cli.Table(c.OutOrStdout(), header, rows); terr != nil {
				return terr
			}
			for _, n := range out {
				switch {
				case n.SupportMS == 0:
					fmt.Fprintf(c.OutOrStdout(), "%s takes no part in leases.\n", n.Node)
				case n.QuietMS > 0:
					fmt.Fprintf(c.OutOrStdout(), "%s was started and keeps out of elections for another %d ms.\n", n.Node, n.QuietMS)
				}
			}
			return err
		},
	}
	c.Flags().StringVar(&node, "node", "", "only this node, such as n3 (default: all)")
	return c
}

func toLivenessJSON(r *sharddv1.LivenessResponse) livenessJSON {
	out := livenessJSON{Node: nodeName(r.GetNodeId()), Incarnation: r.GetIncarnation(), SupportMS: r.GetSupportMs(),
		QuietMS: r.GetQuietMs(), Peers: []peerLivenessJSON{}}
	for _, p := range r.GetPeers() {
		out.Peers = append(out.Peers, peerLivenessJSON{Peer: nodeName(p.GetNodeId()), Incarnation: p.GetIncarnation(),
			HeardMSAgo: p.HeardMsAgo, SharesShards: p.GetSharesShards(), Gives: toSupportJSON(p.GetGives()),
			Has: toSupportJSON(p.GetHas()), PendingHints: p.GetPendingHints()})
	}
	return out
}

func toSupportJSON(s *sharddv1.Support) *supportJSON {
	if s == nil {
		return nil
	}
	return &supportJSON{Incarnation: s.GetIncarnation(), Epoch: s.GetEpoch(), LeftMS: s.GetLeftMs()}
}

func livenessRow(node uint64, p *sharddv1.PeerLiveness) []string {
	heard := "never"
	if p.HeardMsAgo != nil {
		heard = strconv.FormatUint(p.GetHeardMsAgo(), 10) + "ms ago"
	}
	gives, givesLeft := supportCells(p.GetGives())
	has, hasLeft := supportCells(p.GetHas())
	return []string{nodeName(node), nodeName(p.GetNodeId()), heard, gives, givesLeft, has, hasLeft,
		strconv.FormatUint(p.GetPendingHints(), 10)}
}

func supportCells(s *sharddv1.Support) (epoch, left string) {
	if s == nil {
		return "none", "-"
	}
	return fmt.Sprintf("%d.%d", s.GetIncarnation(), s.GetEpoch()), fmt.Sprintf("%dms", s.GetLeftMs())
}
