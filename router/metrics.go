package router

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	lookups   prometheus.Counter
	ambiguous prometheus.Counter
	retries   *prometheus.CounterVec
	near      *prometheus.CounterVec
}

func newMetrics(reg prometheus.Registerer) *metrics {
	return &metrics{
		lookups: register(reg, prometheus.NewCounter(prometheus.CounterOpts{
			Name: "shardd_router_lookups_total", Help: "Questions to the directory.",
		})),
		ambiguous: register(reg, prometheus.NewCounter(prometheus.CounterOpts{
			Name: "shardd_router_ambiguous_total", Help: "Writes that ended with an unknown outcome.",
		})),
		retries: register(reg, prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "shardd_router_retries_total", Help: "Attempts that were followed by another one or by giving up.",
		}, []string{"reason"})),
		near: register(reg, prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "shardd_router_replica_reads_total", Help: "Reads that any replica may serve, by who served them.",
		}, []string{"by"})),
	}
}

// servedBy counts a read that any replica may serve.
func (m *metrics) servedBy(f *flight) {
	by := "follower"
	if uint64(f.store) == f.entry.leader.Load() {
		by = "leader"
	}
	m.near.WithLabelValues(by).Inc()
}

type muxMetrics struct {
	frames prometheus.Counter
	ops    prometheus.Counter
	broken prometheus.Counter
	failed prometheus.Counter
}

func newMuxMetrics(reg prometheus.Registerer) *muxMetrics {
	counter := func(name, help string) prometheus.Counter {
		return register(reg, prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help}))
	}
	return &muxMetrics{
		frames: counter("shardd_router_mux_frames_total", "Frames sent to nodes."),
		ops:    counter("shardd_router_mux_operations_total", "Operations sent to nodes."),
		broken: counter("shardd_router_mux_broken_streams_total", "Streams that ended while open."),
		failed: counter("shardd_router_mux_failed_opens_total", "Streams that could not be opened."),
	}
}

// register adds c, or returns the one that is there already, so that several routers can share a registry.
func register[C prometheus.Collector](reg prometheus.Registerer, c C) C {
	if reg == nil {
		return c
	}
	var have prometheus.AlreadyRegisteredError
	if err := reg.Register(c); errors.As(err, &have) {
		if old, ok := have.ExistingCollector.(C); ok {
			return old
		}
	}
	return c
}
