package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"syscall"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/shardd/shardd/bench/ycsb"
)

// NodeUse is what one node has used since it started, and what it holds now.
type NodeUse struct {
	Node        uint64 `json:"node"`
	Address     string `json:"address"`
	Version     string `json:"version"`
	Incarnation uint64 `json:"incarnation"`
	CPUMillis   uint64 `json:"cpu_ms"`
	HeapBytes   uint64 `json:"heap_bytes"`
	DiskBytes   uint64 `json:"disk_bytes"`
	Replicas    uint32 `json:"replicas"`
	Leaders     uint32 `json:"leaders"`
	// RSSBytes, Groups and Writes come from the node's /metrics; Missing says why they are not there.
	RSSBytes uint64 `json:"rss_bytes,omitempty"`
	Groups   Sum    `json:"commit_groups"`
	Writes   Sum    `json:"commit_writes"`
	Missing  string `json:"missing,omitempty"`
}

// Sum is a histogram's sum and count; their quotient is the mean.
type Sum struct {
	Sum   float64 `json:"sum"`
	Count uint64  `json:"count"`
}

// cluster is what a matrix measures.
type cluster interface {
	// id names the cluster.
	id(ctx context.Context) (string, error)
	// open returns the store for a workload.
	open(p ycsb.Properties) (ycsb.DB, error)
	// use asks every node what it has used.
	use(ctx context.Context) ([]NodeUse, error)
}

// readMetrics takes what a matrix needs from metrics in Prometheus' text format.
func readMetrics(from io.Reader, u *NodeUse) error {
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(from)
	if err != nil {
		return fmt.Errorf("parse metrics: %w", err)
	}
	for _, m := range families["process_resident_memory_bytes"].GetMetric() {
		u.RSSBytes = uint64(m.GetGauge().GetValue() + m.GetUntyped().GetValue())
	}
	u.Groups = sumOf(families["shardd_shard_commit_groups"])
	u.Writes = sumOf(families["shardd_shard_commit_writes"])
	if u.Groups.Count == 0 {
		return errors.New("no shardd_shard_commit_groups among the metrics")
	}
	return nil
}

func sumOf(f *dto.MetricFamily) Sum {
	var s Sum
	for _, m := range f.GetMetric() {
		s.Sum += m.GetHistogram().GetSampleSum()
		s.Count += m.GetHistogram().GetSampleCount()
	}
	return s
}

// ownCPU is the processor time of this process.
func ownCPU() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0 // shown as 0, never as a guess
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
