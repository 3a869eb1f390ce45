package node

import "github.com/prometheus/client_golang/prometheus"

// metrics are the node's own; those of engine, shard, transport and router register themselves.
type metrics struct {
	frames  *prometheus.CounterVec // by direction
	ops     *prometheus.CounterVec // by class
	refused *prometheus.CounterVec // by reason
	streams prometheus.Gauge
	scans   prometheus.Gauge
	reports *prometheus.CounterVec // by outcome

	indexed    prometheus.Counter
	orphans    prometheus.Gauge
	orphanAsks *prometheus.CounterVec // by outcome
	verified   prometheus.Counter

	latency *latencies
}

func newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{
		frames: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "shardd_node_frames_total", Help: "Frames of batched operation streams.",
		}, []string{"direction"}),
		ops: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "shardd_node_operations_total", Help: "Operations received on batched streams.",
		}, []string{"class"}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "shardd_node_refused_operations_total", Help: "Operations answered without reaching the store.",
		}, []string{"reason"}),
		streams: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "shardd_node_operation_streams", Help: "Open batched operation streams.",
		}),
		scans: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "shardd_node_waiting_scans", Help: "Scans that wait for a scan worker.",
		}),
		reports: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "shardd_node_reports_total", Help: "Reports to the leader of the meta shard.",
		}, []string{"outcome"}),
		indexed: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "shardd_node_indexed_descriptors_total", Help: "Reported descriptors recorded in the meta shard's index.",
		}),
		orphans: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "shardd_node_orphans", Help: "Local replicas without a leader, or faulted, that ask whether they are members.",
		}),
		orphanAsks: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "shardd_node_orphan_questions_total", Help: "Questions about replicas that may be members no more.",
		}, []string{"outcome"}),
		verified: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "shardd_node_verify_bytes_total", Help: "Bytes of keys and values read for checksums.",
		}),
	}
	m.latency = newLatencies()
	reg.MustRegister(m.latency.vec)
	reg.MustRegister(m.indexed, m.orphans, m.orphanAsks, m.verified)
	reg.MustRegister(m.frames, m.ops, m.refused, m.streams, m.scans, m.reports)
	return m
}
