package bench

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/shardd/shardd/bench/ycsb"
)

// Cell is one measurement of a matrix. Figures that could not be measured are 0, and a note says why. Nodes are taken
// to be processes of their own: those that share one, as in shardd demo, each report all of it.
type Cell struct {
	Cluster  string `json:"cluster"`
	Workload string `json:"workload"`
	Clients  int    `json:"clients"`
	// ServerCPU and ClientCPU are microseconds of processor time per operation, over all nodes and over this process.
	ServerCPU float64 `json:"server_cpu_us_per_op"`
	ClientCPU float64 `json:"client_cpu_us_per_op"`
	// GroupsPerCommit and WritesPerCommit are means over the synced commits of all nodes. A write is one client
	// operation and counts in the commit of the node that proposed it; the commits of its followers, which carry it as
	// well, count as commits only.
	GroupsPerCommit float64 `json:"groups_per_commit"`
	WritesPerCommit float64 `json:"writes_per_commit"`
	Commits         uint64  `json:"commits"`
	// RSSBytes and HeapBytes are sums over all nodes at the end.
	RSSBytes  uint64 `json:"rss_bytes"`
	HeapBytes uint64 `json:"heap_bytes"`

	Report *ycsb.Report `json:"report"`
	Before []NodeUse    `json:"nodes_before"`
	After  []NodeUse    `json:"nodes_after"`
	Notes  []string     `json:"notes,omitempty"`
}

func newCell(id, workload string, clients int, report *ycsb.Report, cpu time.Duration, before, after []NodeUse) *Cell {
	c := &Cell{Cluster: id, Workload: workload, Clients: clients, Report: report, Before: before, After: after}
	// Failed operations cost the nodes too.
	ops := float64(max(1, report.Total.Count+report.Total.ErrorCount))
	c.ClientCPU = float64(cpu.Microseconds()) / ops

	var millis uint64
	var groups, writes Sum
	for _, a := range after {
		c.RSSBytes += a.RSSBytes
		c.HeapBytes += a.HeapBytes
		if a.Missing != "" {
			c.Notes = append(c.Notes, fmt.Sprintf("node n%d: %s", a.Node, a.Missing))
		}
		i := slices.IndexFunc(before, func(b NodeUse) bool { return b.Node == a.Node })
		if i < 0 || before[i].Incarnation != a.Incarnation {
			c.Notes = append(c.Notes, fmt.Sprintf("node n%d started during the run: its use is left out", a.Node))
			continue
		}
		b := before[i]
		millis += a.CPUMillis - b.CPUMillis
		groups.addDifference(b.Groups, a.Groups)
		writes.addDifference(b.Writes, a.Writes)
	}
	c.ServerCPU = float64(millis) * 1000 / ops
	c.Commits = groups.Count
	c.GroupsPerCommit, c.WritesPerCommit = groups.mean(), writes.mean()
	return c
}

func (s *Sum) addDifference(before, after Sum) {
	if after.Count > before.Count {
		s.Sum += after.Sum - before.Sum
		s.Count += after.Count - before.Count
	}
}

func (s Sum) mean() float64 {
	if s.Count == 0 {
		return 0
	}
	return s.Sum / float64(s.Count)
}

// Cells reads every cell in a directory, by number of clients and workload.
func Cells(dir string) ([]Cell, error) {
	paths, err := filepath.Glob(filepath.Join(dir, "*-c*.json"))
	if err != nil {
		return nil, fmt.Errorf("list results: %w", err)
	}
	var out []Cell
	for _, path := range paths {
		var c Cell
		if _, err := readFile(path, &c); err != nil {
			return nil, err
		}
		if c.Report == nil {
			return nil, fmt.Errorf("read result %s: it has no report", path)
		}
		out = append(out, c)
	}
	slices.SortFunc(out, func(a, b Cell) int {
		return cmp.Or(cmp.Compare(a.Clients, b.Clients), cmp.Compare(a.Workload, b.Workload))
	})
	return out, nil
}

// Table is a markdown table of cells, under a line that describes the machine.
func Table(cells []Cell) string {
	var b strings.Builder
	if len(cells) == 0 {
		return "No results.\n"
	}
	r := cells[0].Report
	fmt.Fprintf(&b, "%d nodes; client on %s; %s records, %.0f s a cell. Groups and writes are means per "+
		"synced commit of any node; a write counts at the node that proposed it.\n\n", len(cells[0].After), r.Machine,
		r.Properties.Get("recordcount"), r.Seconds)
	b.WriteString("| workload | clients | ops/s | read p50 / p99 | write p50 / p99 | errors | server CPU us/op | " +
		"client CPU us/op | groups/commit | writes/commit | RSS MiB | heap MiB |\n")
	b.WriteString("|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n")
	for _, c := range cells {
		fmt.Fprintf(&b, "| %s | %d | %.0f | %s | %s | %d | %.1f | %.1f | %.1f | %.1f | %.0f | %.0f |\n",
			strings.ToUpper(c.Workload), c.Clients, c.Report.Total.OpsPerSec,
			latencies(c.Report, "READ", "SCAN"), latencies(c.Report, "READ_MODIFY_WRITE", "UPDATE", "INSERT"),
			c.Report.Total.ErrorCount, c.ServerCPU, c.ClientCPU, c.GroupsPerCommit, c.WritesPerCommit,
			float64(c.RSSBytes)/(1<<20), float64(c.HeapBytes)/(1<<20))
	}
	notes := map[string]bool{}
	for _, c := range cells {
		for _, n := range c.Notes {
			if !notes[n] {
				notes[n] = true
				fmt.Fprintf(&b, "\n- %s %d: %s", strings.ToUpper(c.Workload), c.Clients, n)
			}
		}
	}
	if len(notes) > 0 {
		b.WriteByte('\n')
	}
	return b.String()
}

// latencies shows the first kind of operation that occurred.
func latencies(r *ycsb.Report, names ...string) string {
	for _, name := range names {
		if o := r.Op(name); o.Count > 0 {
			return fmt.Sprintf("%.2f / %.2f ms", o.Latency.P50/1000, o.Latency.P99/1000)
		}
	}
	return ""
}

// readFile reports false if there is no such file.
func readFile(path string, into any) (bool, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err == nil {
		err = json.Unmarshal(text, into)
	}
	if err != nil {
		return false, fmt.Errorf("read result %s: %w", path, err)
	}
	return true, nil
}

func writeJSON(path string, v any) error {
	text, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("encode result %s: %w", path, err)
	}
	return writeFile(path, append(text, '\n'))
}

// writeFile is whole or not at all: a cell that was cut short would pass for one that is done.
func writeFile(path string, text []byte) error {
	temporary := path + ".tmp"
	if err := os.WriteFile(temporary, text, 0o644); err != nil {
		return fmt.Errorf("write result: %w", err)
	}
	if err := os.Rename(temporary, path); err != nil {
		return fmt.Errorf("write result: %w", err)
	}
	return nil
}
