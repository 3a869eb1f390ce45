package ycsb

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
)

// WriteText writes go-ycsb's lines: one for each operation and for TOTAL, errors as NAME_ERROR. An open loop has
// NAME_SERVICE besides, from the actual start. Lines that begin with # say what has no line in that format.
func (r *Report) WriteText(w io.Writer) error {
	b := bufio.NewWriter(w)
	for _, o := range append(slices.Clone(r.Operations), r.Total) {
		if o.Count > 0 {
			r.textLine(b, o.Name, o.Count, o.Latency)
			if o.Service != nil {
				r.textLine(b, o.Name+"_SERVICE", o.Count, *o.Service)
			}
		}
		if o.ErrorLatency != nil {
			r.textLine(b, o.Name+"_ERROR", o.ErrorCount, *o.ErrorLatency)
		}
	}
	if r.Total.Count+r.Total.ErrorCount == 0 {
		fmt.Fprintln(b, "# no operation was measured")
	}
	for _, class := range slices.Sorted(maps.Keys(r.Total.Errors)) {
		fmt.Fprintf(b, "# errors: %d %s, for example: %s\n", r.Total.Errors[class], class, r.ErrorExamples[class])
	}
	if r.Missed > 0 {
		fmt.Fprintf(b, "# missed: %d operations were due within the run and found no free worker\n", r.Missed)
	}
	return b.Flush()
}

func (r *Report) textLine(w io.Writer, name string, count int64, l Latency) {
	rate := 0.0
	if r.Seconds > 0 {
		rate = float64(count) / r.Seconds
	}
	fmt.Fprintf(w, "%-6s - Takes(s): %.1f, Count: %d, OPS: %.1f, Avg(us): %.0f, Min(us): %.0f, Max(us): %.0f, "+
		"50th(us): %.0f, 90th(us): %.0f, 95th(us): %.0f, 99th(us): %.0f, 99.9th(us): %.0f, 99.99th(us): %.0f\n",
		name, r.Seconds, count, rate, l.Mean, l.Min, l.Max, l.P50, l.P90, l.P95, l.P99, l.P999, l.P9999)
}

// WriteJSON writes the report as indented JSON.
func (r *Report) WriteJSON(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(r)
}

// WriteGoBench writes the Go benchmark format, which benchstat reads. The first line is the whole workload, where
// ns/op is the measured time divided by the operations, as of any parallel benchmark; one line for each kind of
// operation follows, where ns/op is the mean latency.
func (r *Report) WriteGoBench(w io.Writer) error {
	b := bufio.NewWriter(w)
	m := r.Machine
	fmt.Fprintf(b, "goos: %s\ngoarch: %s\npkg: github.com/shardd/shardd/bench/ycsb\n", m.GOOS, m.GOARCH)
	if m.CPU != "" {
		fmt.Fprintf(b, "cpu: %s\n", m.CPU)
	}
	base := "BenchmarkYCSB/workload=" + r.Workload
	if r.Phase == "load" {
		base += "/phase=load"
	}
	base += fmt.Sprintf("/clients=%d", r.Threads)
	if r.Target > 0 {
		base += fmt.Sprintf("/target=%g", r.Target)
	}
	if r.Total.Count > 0 {
		benchLine(b, base, r.Total, r.Seconds*1e9/float64(r.Total.Count))
		for _, o := range r.Operations {
			if o.Count > 0 {
				benchLine(b, base+"/op="+strings.ToLower(o.Name), o, o.Latency.Mean*1000)
			}
		}
	}
	return b.Flush()
}

func benchLine(w io.Writer, name string, o OpReport, ns float64) {
	fmt.Fprintf(w, "%s %d %.1f ns/op %.1f ops/s %.0f p50-us %.0f p99-us %d errors\n",
		name, o.Count, ns, o.OpsPerSec, o.Latency.P50, o.Latency.P99, o.ErrorCount)
}
