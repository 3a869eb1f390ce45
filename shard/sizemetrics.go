package shard

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/shardd/shardd/internal/base"
)

// sizeMetrics looks over the replicas when somebody scrapes: at what is known of them, without a measurement. No label
// names a shard.
type sizeMetrics struct {
	s                    *Store
	sizes, full, sampled *prometheus.Desc
}

func newSizeMetrics(s *Store) *sizeMetrics {
	desc := func(name, help string) *prometheus.Desc {
		return prometheus.NewDesc("shardd_shard_"+name, help, nil, nil)
	}
	return &sizeMetrics{
		s:       s,
		sizes:   desc("size_bytes", "Sizes of the replicas on this store, on disk and in memtables, by the last measurement."),
		full:    desc("full_shards", "Shards led by this store that take no writes that add bytes until they are split."),
		sampled: desc("sampled_shards", "Shards whose requests are sampled, since they are busy."),
	}
}

// sizeBuckets are upper bounds in bytes, around the sizes at which shards merge, split and are full.
var sizeBuckets = [...]float64{1 << 20, 4 << 20, 16 << 20, 64 << 20, 128 << 20, 256 << 20, 512 << 20, 1 << 30, 4 << 30, 16 << 30}

// Describe implements prometheus.Collector.
func (m *sizeMetrics) Describe(ch chan<- *prometheus.Desc) {
	ch <- m.sizes
	ch <- m.full
	ch <- m.sampled
}

// Collect implements prometheus.Collector.
func (m *sizeMetrics) Collect(ch chan<- prometheus.Metric) {
	buckets := make(map[float64]uint64, len(sizeBuckets))
	for _, b := range sizeBuckets {
		buckets[b] = 0
	}
	var count, sum uint64
	var full, sampled float64
	limit := m.s.splitLimits().fullBytes()
	for _, r := range m.s.all() {
		if r.uninitialised() {
			continue
		}
		size := r.size.bytes()
		count++
		sum += size
		for _, b := range sizeBuckets {
			if float64(size) <= b {
				buckets[b]++
			}
		}
		if limit > 0 && size >= limit && r.shard != base.MetaShard && r.lead.Load().leads {
			full++
		}
		if r.load.sampler.Load() != nil {
			sampled++
		}
	}
	ch <- prometheus.MustNewConstHistogram(m.sizes, count, float64(sum), buckets)
	ch <- prometheus.MustNewConstMetric(m.full, prometheus.GaugeValue, full)
	ch <- prometheus.MustNewConstMetric(m.sampled, prometheus.GaugeValue, sampled)
}
