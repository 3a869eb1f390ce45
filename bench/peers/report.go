package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/shardd/shardd/bench/ycsb"
)

// stat is a figure over repeats.
type stat struct {
	Median float64 `json:"median"`
	Min    float64 `json:"min"`
	Max    float64 `json:"max"`
}

func statOf(v []float64) stat {
	if len(v) == 0 {
		return stat{}
	}
	v = slices.Sorted(slices.Values(v))
	return stat{Median: (v[len(v)/2] + v[(len(v)-1)/2]) / 2, Min: v[0], Max: v[len(v)-1]}
}

// figures is one system in one kind of cell.
type figures struct {
	OpsPerSec stat  `json:"ops_per_sec"`
	P50       stat  `json:"p50_us"`
	P99       stat  `json:"p99_us"`
	ServerCPU stat  `json:"server_cpu_us_per_op"`
	ClientCPU stat  `json:"client_cpu_us_per_op"`
	RSSMiB    stat  `json:"server_rss_mib"`
	Errors    int64 `json:"errors"`
	Repeats   int   `json:"repeats"`
}

// row compares both systems. Ratios are Shardd over etcd: that of the medians, and the least and largest of any pair of
// one repeat.
type row struct {
	Workload string  `json:"workload"`
	Clients  int     `json:"clients"`
	Etcd     figures `json:"etcd"`
	Shardd   figures `json:"shardd"`
	Ratio    stat    `json:"throughput_ratio"`
	P50Ratio stat    `json:"p50_ratio"`
	P99Ratio stat    `json:"p99_ratio"`
	CPURatio stat    `json:"server_cpu_ratio"`
}

type results struct {
	Machine ycsb.Machine    `json:"machine"`
	Config  config          `json:"config"`
	Etcd    string          `json:"etcd_version"`
	Shardd  string          `json:"shardd_version"`
	Date    string          `json:"date"`
	Rows    []row           `json:"rows"`
	Limits  map[string]stat `json:"limits"`
}

// report reads every repeat in a folder and writes the table, the results and the plot there.
func report(dir string) error {
	paths, err := filepath.Glob(filepath.Join(dir, "*-[0-9]*.json"))
	if err != nil {
		return err
	}
	var all []repeatFile
	for _, p := range paths {
		var r repeatFile
		if _, err := readJSON(p, &r); err != nil {
			return err
		}
		all = append(all, r)
	}
	res := summarise(all)
	if err := writeJSON(filepath.Join(dir, "results.json"), res); err != nil {
		return err
	}
	text := res.table()
	fmt.Print("\n" + text)
	if err := os.WriteFile(filepath.Join(dir, "table.md"), []byte(text), 0o644); err != nil {
		return err
	}
	return res.plot(filepath.Join(dir, "plot.png"))
}

func summarise(all []repeatFile) *results {
	res := &results{Machine: ycsb.DescribeMachine(), Limits: map[string]stat{}}
	limit := map[string][]float64{}
	for _, r := range all {
		res.Config = r.Config
		switch {
		case r.System == "etcd":
			res.Etcd = r.Version
		case r.System == "shardd":
			res.Shardd, res.Date = r.Version, r.Started.Format("2006-01-02")
		case r.Limits != nil:
			limit["Pebble alone, synced puts of 1 KiB, 1 writer"] = append(limit["Pebble alone, synced puts of 1 KiB, 1 writer"], r.Limits.SyncedPuts1)
			limit["Pebble alone, synced puts of 1 KiB, 256 writers"] = append(limit["Pebble alone, synced puts of 1 KiB, 256 writers"], r.Limits.SyncedPuts256)
			limit["Pebble alone, gets of 1 KiB, 64 readers"] = append(limit["Pebble alone, gets of 1 KiB, 64 readers"], r.Limits.Gets)
			limit["gRPC unary echo of 1 KiB, 64 callers"] = append(limit["gRPC unary echo of 1 KiB, 64 callers"], r.Limits.UnaryEcho)
			limit["gRPC stream echo of 1 KiB, 64 streams"] = append(limit["gRPC stream echo of 1 KiB, 64 streams"], r.Limits.StreamEcho)
		}
	}
	for name, v := range limit {
		res.Limits[name] = statOf(v)
	}
	for _, s := range specs() {
		e, sh := pick(all, "etcd", s), pick(all, "shardd", s)
		if len(e) == 0 && len(sh) == 0 {
			continue
		}
		res.Rows = append(res.Rows, row{Workload: s.Workload, Clients: s.Clients, Etcd: sum(e), Shardd: sum(sh),
			Ratio:    ratio(e, sh, func(c cell) float64 { return c.Report.Total.OpsPerSec }),
			P50Ratio: ratio(e, sh, func(c cell) float64 { return c.Report.Total.Latency.P50 }),
			P99Ratio: ratio(e, sh, func(c cell) float64 { return c.Report.Total.Latency.P99 }),
			CPURatio: ratio(e, sh, func(c cell) float64 { return c.ServerCPU })})
	}
	return res
}

func pick(all []repeatFile, system string, s cellSpec) (out []cell) {
	for _, r := range all {
		for _, c := range r.Cells {
			if c.System == system && c.Workload == s.Workload && c.Clients == s.Clients {
				out = append(out, c)
			}
		}
	}
	return out
}

func values(cells []cell, get func(cell) float64) (out []float64) {
	for _, c := range cells {
		out = append(out, get(c))
	}
	return out
}

func sum(cells []cell) figures {
	f := figures{Repeats: len(cells),
		OpsPerSec: statOf(values(cells, func(c cell) float64 { return c.Report.Total.OpsPerSec })),
		P50:       statOf(values(cells, func(c cell) float64 { return c.Report.Total.Latency.P50 })),
		P99:       statOf(values(cells, func(c cell) float64 { return c.Report.Total.Latency.P99 })),
		ServerCPU: statOf(values(cells, func(c cell) float64 { return c.ServerCPU })),
		ClientCPU: statOf(values(cells, func(c cell) float64 { return c.ClientCPU })),
		RSSMiB:    statOf(values(cells, func(c cell) float64 { return float64(c.RSS) / (1 << 20) }))}
	for _, c := range cells {
		f.Errors += c.Report.Total.ErrorCount
	}
	return f
}

func ratio(etcd, shardd []cell, get func(cell) float64) stat {
	e := statOf(values(etcd, get))
	if e.Median == 0 {
		return stat{}
	}
	var pairs []float64
	for _, a := range etcd {
		for _, b := range shardd {
			if a.Repeat == b.Repeat && get(a) > 0 {
				pairs = append(pairs, get(b)/get(a))
			}
		}
	}
	out := statOf(pairs)
	out.Median = statOf(values(shardd, get)).Median / e.Median
	return out
}

func (r *results) table() string {
	var b strings.Builder
	fmt.Fprintf(&b, "Three processes of each system, durable, and the clients on %s. %d records of 1 KiB, Shardd with %d "+
		"shards, %s a cell after %s, %d alternating repeats with a fresh cluster and load each; etcd %s, Shardd %s, %s. Figures are medians; "+
		"ratios are Shardd over etcd, of the medians, with the least and largest of any repeat. CPU is microseconds of all "+
		"server processes per operation, memory their resident sets.\n\n", r.Machine, r.Config.Records, r.Config.Shards,
		r.Config.Duration, r.Config.Warmup, r.Config.Repeats, r.Etcd, r.Shardd, r.Date)
	b.WriteString("| workload | clients | etcd ops/s | Shardd ops/s | ratio | p50 etcd / Shardd | p99 etcd / Shardd | p50 ratio | " +
		"server CPU us/op etcd / Shardd | client CPU us/op etcd / Shardd | memory MiB etcd / Shardd | errors |\n")
	b.WriteString("|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n")
	for _, w := range r.Rows {
		e, s := w.Etcd, w.Shardd
		fmt.Fprintf(&b, "| %s | %d | %.0f | %.0f | %.2f (%.2f-%.2f) | %.2f / %.2f ms | %.2f / %.2f ms | %.2f | %.1f / %.1f | "+
			"%.1f / %.1f | %.0f / %.0f | %d / %d |\n", label(w.Workload), w.Clients, e.OpsPerSec.Median, s.OpsPerSec.Median,
			w.Ratio.Median, w.Ratio.Min, w.Ratio.Max, e.P50.Median/1000, s.P50.Median/1000, e.P99.Median/1000,
			s.P99.Median/1000, w.P50Ratio.Median, e.ServerCPU.Median, s.ServerCPU.Median, e.ClientCPU.Median,
			s.ClientCPU.Median, e.RSSMiB.Median, s.RSSMiB.Median, e.Errors, s.Errors)
	}
	if len(r.Limits) > 0 {
		b.WriteString("\n| limit of the machine, in the same run | per second |\n|---|--:|\n")
		names := make([]string, 0, len(r.Limits))
		for n := range r.Limits {
			names = append(names, n)
		}
		slices.Sort(names)
		for _, n := range names {
			fmt.Fprintf(&b, "| %s | %.0f (%.0f-%.0f) |\n", n, r.Limits[n].Median, r.Limits[n].Min, r.Limits[n].Max)
		}
	}
	return b.String()
}

func label(w string) string {
	if w == "update" {
		return "update only"
	}
	return "YCSB " + strings.ToUpper(w)
}
