package main

import (
	"fmt"
	"sort"
	"strings"
	"time"

	"github.com/spf13/cobra"

	sharddv1 "github.com/shardd/shardd/api/shardd/v1"
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
	DiskFree    uint64            `json:"disk_free_bytes"`
	DiskLevel   string            `json:"disk_level"` // ok, low or critical
	Draining    string            `json:"draining"`   // none, leaders or replicas
	Unhealthy   string            `json:"unhealthy,omitempty"`
	HeapBytes   uint64            `json:"go_heap_bytes"`
	Commission  string            `json:"commission"` // none, decommissioning, decommissioned or removed
	ShardBytes  uint64            `json:"shard_bytes"`
	CPUMillis   uint64            `json:"cpu_millis"` // thousandths of a core
	Load        *loadJSON         `json:"load,omitempty"`
	Labels      map[string]string `json:"labels,omitempty"`
	Version     string            `json:"version"`
}

func toNodeJSON(n *sharddv1.NodeInfo) nodeJSON {
	return nodeJSON{ID: nodeName(n.GetNodeId()), Address: n.GetAddress(), HTTPAddress: n.GetHttpAddress(),
		Alive: n.GetAlive(), LastSeenMS: n.GetLastSeenMs(),
		Replicas: n.GetReplicas(), Leaders: n.GetLeaders(), MetaLeader: n.GetMetaLeader(),
		Incarnation: n.GetIncarnation(), DiskBytes: n.GetDiskBytes(), HeapBytes: n.GetGoHeapBytes(), Labels: n.GetLabels(),
		Version: n.GetVersion(), DiskFree: n.GetDiskFreeBytes(), DiskLevel: orElse(n.GetDiskLevel(), "ok"),
		Draining: orElse(n.GetDraining(), "none"), Unhealthy: n.GetUnhealthy(),
		Commission: orElse(n.GetCommission(), "none"), ShardBytes: n.GetShardBytes(), CPUMillis: n.GetCpuMillis(),
		Load: toLoadJSON(n.GetLoad())}
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
		rows = append(rows, []string{nodeName(n.GetNodeId()), n.GetAddress(), nodeState(n), fmt.Sprint(n.GetReplicas()),
			fmt.Sprint(n.GetLeaders()), cli.Bytes(n.GetDiskBytes()), diskFree(n), requests(n.GetLoad()), nodeCPU(n),
			labels(n.GetLabels())})
	}
	return cli.Table(c.OutOrStdout(), []string{"NODE", "ADDRESS", "STATE", "REPLICAS", "LEADERS", "DISK", "FREE", "REQ/S",
		"CPU", "LABELS"}, rows)
}

// nodeState is whether a node is up, and what is special about it.
func nodeState(n *sharddv1.NodeInfo) string {
	if removed(n) {
		return "removed"
	}
	state := "up"
	if !n.GetAlive() {
		state = "down, seen " + ago(n.GetLastSeenMs())
	}
	if n.GetMetaLeader() {
		state += ", leads meta"
	}
	if k := n.GetCommission(); k != "" {
		state += ", " + k
	}
	if d := n.GetDraining(); d != "" && d != "none" {
		state += ", draining of " + d
	}
	if u := n.GetUnhealthy(); u != "" {
		state += ", UNHEALTHY: " + u
	}
	return state
}

// removed reports whether a node was struck out: it is listed, and counts for nothing.
func removed(n *sharddv1.NodeInfo) bool { return n.GetCommission() == "removed" }

// nodesUp are how many nodes are up, and how many there are.
func nodesUp(nodes []*sharddv1.NodeInfo) (up, all int) {
	for _, n := range nodes {
		if !removed(n) {
			all++
		}
		if n.GetAlive() && !removed(n) {
			up++
		}
	}
	return up, all
}

// nodeCPU is the load of a node's processor, in per cent of one core.
func nodeCPU(n *sharddv1.NodeInfo) string {
	if n.GetCpuMillis() == 0 {
		return "-" // not reported
	}
	return cores(float64(n.GetCpuMillis()) / 1000)
}

// diskFree is the free space, and the level that it means if that is not ok.
func diskFree(n *sharddv1.NodeInfo) string {
	if n.GetDiskFreeBytes() == 0 && n.GetDiskLevel() == "" {
		return "-" // not reported
	}
	free := cli.Bytes(n.GetDiskFreeBytes())
	if l := n.GetDiskLevel(); l != "" && l != "ok" {
		free += " " + strings.ToUpper(l)
	}
	return free
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
