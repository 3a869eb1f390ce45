package main

import (
	"fmt"
	"time"

	sharddv1 "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/internal/cli"
)

// loadJSON is what a shard or a node does, averaged over the last half minute or so.
type loadJSON struct {
	Reads      float64 `json:"reads_per_second"`
	Writes     float64 `json:"writes_per_second"`
	ReadBytes  float64 `json:"read_bytes_per_second"`
	WriteBytes float64 `json:"write_bytes_per_second"`
	CPUMicros  float64 `json:"cpu_micros_per_second"` // estimated from samples
}

// toLoadJSON is nil for a load that is not known.
func toLoadJSON(l *sharddv1.Load) *loadJSON {
	if l == nil {
		return nil
	}
	return &loadJSON{Reads: l.GetReads(), Writes: l.GetWrites(), ReadBytes: l.GetReadBytes(),
		WriteBytes: l.GetWriteBytes(), CPUMicros: l.GetCpuMicros()}
}

// requests is the rate of reads and writes together, "-" if it is not known.
func requests(l *sharddv1.Load) string {
	if l == nil {
		return "-"
	}
	return rate(l.GetReads() + l.GetWrites())
}

// loadBytes is the rate of bytes read and written together, "-" if it is not known.
func loadBytes(l *sharddv1.Load) string {
	if l == nil {
		return "-"
	}
	return cli.Bytes(uint64(l.GetReadBytes()+l.GetWriteBytes())) + "/s"
}

// loadCPU is the part of a core that a load takes.
func loadCPU(l *sharddv1.Load) string {
	if l == nil {
		return "-"
	}
	return cores(l.GetCpuMicros() / 1e6)
}

// loadLine is a load in words, "" if it is not known.
func loadLine(l *sharddv1.Load) string {
	if l == nil {
		return ""
	}
	return fmt.Sprintf("%s reads/s, %s writes/s, %s/s read, %s/s written, %s of a core", rate(l.GetReads()),
		rate(l.GetWrites()), cli.Bytes(uint64(l.GetReadBytes())), cli.Bytes(uint64(l.GetWriteBytes())), loadCPU(l))
}

// cores shows a number of cores in per cent of one, as top(1) does.
func cores(n float64) string { return fmt.Sprintf("%.0f %%", n*100) }

// rate shows a number per second in at most five columns: 0, 0.3, 12, 1234, 12.3k, 1.2M.
func rate(n float64) string {
	switch {
	case n == 0:
		return "0"
	case n < 9.95:
		return fmt.Sprintf("%.1f", n)
	case n < 9999.5:
		return fmt.Sprintf("%.0f", n)
	case n < 999950:
		return fmt.Sprintf("%.1fk", n/1e3)
	}
	return fmt.Sprintf("%.1fM", n/1e6)
}

// span shows a time span in its largest two units at most: 850ms, 12s, 3m20s, 2h5m, 4d3h.
func span(d time.Duration) string {
	day := 24 * time.Hour
	switch {
	case d < time.Second:
		return d.Round(time.Millisecond).String()
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return units(int(d/time.Minute), "m", int(d/time.Second)%60, "s")
	case d < day:
		return units(int(d/time.Hour), "h", int(d/time.Minute)%60, "m")
	}
	return units(int(d/day), "d", int(d/time.Hour)%24, "h")
}

func units(big int, bigUnit string, small int, smallUnit string) string {
	if small == 0 {
		return fmt.Sprintf("%d%s", big, bigUnit)
	}
	return fmt.Sprintf("%d%s%d%s", big, bigUnit, small, smallUnit)
}

func millis(ms uint64) time.Duration { return time.Duration(ms) * time.Millisecond }

// age is how long ago a moment on the cluster's clock was, in one unit, since two clocks may differ by seconds.
func age(unixMS uint64, now time.Time) string {
	if unixMS == 0 {
		return "-"
	}
	d := now.Sub(time.UnixMilli(int64(unixMS)))
	day := 24 * time.Hour
	switch {
	case d < 2*time.Second:
		return "now"
	case d < 2*time.Minute:
		return fmt.Sprintf("%ds ago", int(d.Seconds()))
	case d < 2*time.Hour:
		return fmt.Sprintf("%dm ago", int(d/time.Minute))
	case d < 2*day:
		return fmt.Sprintf("%dh ago", int(d/time.Hour))
	}
	return fmt.Sprintf("%dd ago", int(d/day))
}
