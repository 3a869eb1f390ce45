package main

import (
	"context"
	"fmt"
	"sort"
	"strings"
	"time"

	"github.com/spf13/cobra"

	sharddv1 "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/client/admin"
	"github.com/shardd/shardd/internal/cli"
)

// nodeJSON is a node in JSON output.
type nodeJSON struct {
	ID          string            `json:"id"`
	Address     string            `json:"address"`
	HTTPAddress string            `json:"http_address,omitempty"`
	Alive       bool              `json:"alive"`
	LastSeenMS  uint64            `json:"last_seen_ms"`
	Replicas    uint32            `json:"replicas"`
	Leaders     uint32            `json:"leaders"`
	MetaLeader  bool              `json:"meta_leader"`
	Incarnation uint64            `json:"incarnation"`
	DiskBytes   uint64            `json:"disk_bytes"`
	HeapBytes   uint64            `json:"go_heap_bytes"`
	Labels      map[string]string `json:"labels,omitempty"`
	Version     string            `json:"version"`
}

func toNodeJSON(n *sharddv1.NodeInfo) nodeJSON {
	return nodeJSON{ID: nodeName(n.GetNodeId()), Address: n.GetAddress(), HTTPAddress: n.GetHttpAddress(),
		Alive: n.GetAlive(), LastSeenMS: n.GetLastSeenMs(),
		Replicas: n.GetReplicas(), Leaders: n.GetLeaders(), MetaLeader: n.GetMetaLeader(),
		Incarnation: n.GetIncarnation(), DiskBytes: n.GetDiskBytes(), HeapBytes: n.GetGoHeapBytes(), Labels: n.GetLabels(),
		Version: n.GetVersion()}
}

func nodeName(id uint64) string {
	if id == 0 {
		return "-"
	}
	return fmt.Sprintf("n%d", id)
}

func nodeTable(c *cobra.Command, nodes []*sharddv1.NodeInfo) error {
	var rows [][]string
	for _, n := range nodes {
		state := "up"
		if !n.GetAlive() {
			state = "down, seen " + ago(n.GetLastSeenMs())
		}
		if n.GetMetaLeader() {
			state += ", leads meta"
		}
		rows = append(rows, []string{nodeName(n.GetNodeId()), n.GetAddress(), state, fmt.Sprint(n.GetReplicas()),
			fmt.Sprint(n.GetLeaders()), cli.Bytes(n.GetDiskBytes()), cli.Bytes(n.GetGoHeapBytes()), labels(n.GetLabels())})
	}
	return cli.Table(c.OutOrStdout(), []string{"NODE", "ADDRESS", "STATE", "REPLICAS", "LEADERS", "DISK", "HEAP",
		"LABELS"}, rows)
}

func ago(ms uint64) string {
	if ms == 0 {
		return "never"
	}
	return (time.Duration(ms) * time.Millisecond).Round(time.Second).String() + " ago"
}

func labels(m map[string]string) string {
	if len(m) == 0 {
		return "-"
	}
	var l []string
	for k, v := range m {
		l = append(l, k+"="+v)
	}
	sort.Strings(l)
	return strings.Join(l, ",")
}

func newStatus(o *conn) *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Sum the cluster up: nodes, shards, leaders",
		RunE: func(c *cobra.Command, _ []string) error {
			asJSON, err := o.json()
			if err != nil {
				return err
			}
			return o.withAdmin(c, func(ctx context.Context, a *admin.Client) error {
				if err := o.refuseWaiting(ctx, a); err != nil {
					return err
				}
				st, err := a.ClusterStatus(ctx)
				if err != nil {
					return err
				}
				alive := 0
				nodes := []nodeJSON{}
				for _, n := range st.GetNodes() {
					if n.GetAlive() {
						alive++
					}
					nodes = append(nodes, toNodeJSON(n))
				}
				if asJSON {
					return cli.JSON(c.OutOrStdout(), map[string]any{"cluster_id": st.GetClusterId(), "shards": st.GetShards(),
						"shards_without_leader": st.GetShardsWithoutLeader(), "shards_creating": st.GetShardsCreating(),
						"shards_under_replicated": st.GetShardsUnderReplicated(), "meta_leader": nodeName(st.GetMetaLeader()),
						"nodes": nodes})
				}
				if err := cli.Fields(c.OutOrStdout(),
					"cluster", st.GetClusterId(),
					"nodes", fmt.Sprintf("%d of %d up", alive, len(nodes)),
					"shards", shardLine(st)); err != nil {
					return err
				}
				fmt.Fprintln(c.OutOrStdout())
				return nodeTable(c, st.GetNodes())
			})
		},
	}
}

// shardLine is "64 and the system's own", and what is wrong with some.
func shardLine(st *sharddv1.ClusterStatusResponse) string {
	s := fmt.Sprintf("%d and the system's own", max(st.GetShards(), 1)-1)
	for _, p := range []struct {
		n    uint32
		what string
	}{{st.GetShardsWithoutLeader(), "without leader"}, {st.GetShardsUnderReplicated(), "with a replica down"},
		{st.GetShardsCreating(), "being made"}} {
		if p.n > 0 {
			s += fmt.Sprintf("; %d %s", p.n, p.what)
		}
	}
	return s
}

// refuseWaiting fails with advice if the node that answers belongs to no cluster yet.
func (o *conn) refuseWaiting(ctx context.Context, a *admin.Client) error {
	st, err := a.NodeStatus(ctx)
	if err != nil {
		return err
	}
	if st.GetClusterId() == "" {
		return cli.Fail(cli.ExitUnhealthy,
			"`shardctl init --nodes "+st.GetAddress()+",...` makes a cluster of it and others.",
			"the node at %s belongs to no cluster: %s", st.GetAddress(), orElse(st.GetWaiting(), "it waits"))
	}
	return nil
}

func orElse(s, other string) string {
	if s == "" {
		return other
	}
	return s
}
