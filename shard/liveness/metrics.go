package liveness

import (
	"github.com/prometheus/client_golang/prometheus"
)

// What became of an inbound body.
const (
	taken = iota
	dropMalformed
	dropIncarnation
	dropOld
	outcomes
)

var outcomeNames = [outcomes]string{dropMalformed: "malformed", dropIncarnation: "old-incarnation", dropOld: "reordered"}

// metrics are those of one Monitor; none has a label that grows with the cluster.
type metrics struct {
	sent, received        prometheus.Counter
	dropped               [outcomes]prometheus.Counter
	supporting, supported prometheus.Gauge
	epochs                prometheus.Counter
	lapses, losses        *prometheus.CounterVec
	released, asked       prometheus.Counter
	forgotten             prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) *metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "shardd_liveness_" + name, Help: help})
	}
	vec := func(name, help, label string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(
			prometheus.CounterOpts{Name: "shardd_liveness_" + name, Help: help}, []string{label})
	}
	gauge := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Name: "shardd_liveness_" + name, Help: help})
	}
	drops := vec("dropped_bodies_total", "Bodies of other stores that were not taken, by reason.", "reason")
	m := &metrics{
		sent:       counter("sent_bodies_total", "Bodies handed to the transport."),
		received:   counter("received_bodies_total", "Bodies of other stores that were taken."),
		supporting: gauge("supported_stores", "Stores that this one supports."),
		supported:  gauge("supporting_stores", "Stores on whose support this one counts."),
		epochs:     counter("epochs_total", "Times that this store began to support another one."),
		lapses:     vec("lapses_total", "Times that support given by this store ended, by reason.", "reason"),
		losses:     vec("losses_total", "Times that support given to this store ended, by reason.", "reason"),
		released:   counter("releases_total", "Groups that other stores said they lead no more."),
		asked:      counter("questions_total", "Groups of which other stores asked whether they are still led here."),
		forgotten:  counter("forgotten_hints_total", "Releases and questions dropped because a store acknowledged none."),
	}
	for reason := range m.dropped {
		if name := outcomeNames[reason]; name != "" {
			m.dropped[reason] = drops.WithLabelValues(name)
		}
	}
	for _, why := range []string{"lapsed", "restart"} {
		m.lapses.WithLabelValues(why)
		m.losses.WithLabelValues(why)
	}
	if reg != nil {
		reg.MustRegister(m.sent, m.received, drops, m.supporting, m.supported, m.epochs, m.lapses, m.losses, m.released,
			m.asked, m.forgotten)
	}
	return m
}
