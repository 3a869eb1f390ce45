package node

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/shardd/shardd/placement"
)

// jobMetrics tell of the jobs that this node runs while it leads the meta shard.
type jobMetrics struct {
	running *prometheus.GaugeVec     // by kind
	ended   *prometheus.CounterVec   // by kind and outcome
	steps   *prometheus.CounterVec   // by outcome
	seconds *prometheus.HistogramVec // by kind
}

func newJobMetrics(reg prometheus.Registerer) *jobMetrics {
	m := &jobMetrics{
		running: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "shardd_node_jobs", Help: "Jobs that this node runs now.",
		}, []string{"kind"}),
		ended: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "shardd_node_jobs_ended_total", Help: "Jobs that came to their end on this node.",
		}, []string{"kind", "outcome"}),
		steps: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "shardd_node_job_steps_total", Help: "Steps of jobs that came to their end on this node.",
		}, []string{"outcome"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "shardd_node_job_seconds", Help: "How long jobs took from their start, by the wall clock.",
			Buckets: prometheus.ExponentialBuckets(0.1, 4, 10),
		}, []string{"kind"}),
	}
	reg.MustRegister(m.running, m.ended, m.steps, m.seconds)
	for k := placement.JobMove; k <= placement.JobDecommission; k++ {
		m.running.WithLabelValues(k.String())
	}
	return m
}
