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
	}
	reg.MustRegister(m.frames, m.ops, m.refused, m.streams, m.scans, m.reports)
	return m
}
