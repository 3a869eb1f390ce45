package snapshotter

import (
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// How a snapshot ended.
type result uint8

const (
	resultInstalled result = iota
	resultDeclined
	resultCancelled
	resultFailed
	numResults
)

// metrics are those of one service. They name no shard and no store.
type metrics struct {
	send, receive side
	declines      *prometheus.CounterVec
	damaged       prometheus.Counter
	collectors    []prometheus.Collector
}

// side is one direction.
type side struct {
	bytes     prometheus.Counter
	resumes   prometheus.Counter
	throttle  prometheus.Counter
	results   [numResults]prometheus.Counter
	phases    [numPhases]prometheus.Observer
	verifying prometheus.Observer
}

func newMetrics() *metrics {
	m := &metrics{}
	opts := func(name, help string) prometheus.CounterOpts {
		return prometheus.CounterOpts{Namespace: "shardd", Subsystem: "snapshotter", Name: name, Help: help}
	}
	ended := prometheus.NewCounterVec(opts("ended_total", "Snapshots that ended, by side and result."),
		[]string{"side", "result"})
	resumes := prometheus.NewCounterVec(opts("resumes_total", "Streams that broke and were resumed."), []string{"side"})
	throttled := prometheus.NewCounterVec(
		opts("throttled_seconds_total", "Time that streams waited for the rate limit."), []string{"side"})
	phases := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Namespace: "shardd", Subsystem: "snapshotter", Name: "phase_seconds",
		Help: "Time that a snapshot spent in each phase; verify runs beside stream.",
		// 1 ms to 17 min.
		Buckets: prometheus.ExponentialBuckets(0.001, 4, 11),
	}, []string{"side", "phase"})
	sent := prometheus.NewCounter(opts("sent_bytes", "Bytes of chunks given to the network, repeated ones included."))
	received := prometheus.NewCounter(opts("received_bytes", "Bytes of chunks received, repeated ones included."))
	m.declines = prometheus.NewCounterVec(opts("declined_total", "Snapshots that this store declined, by reason."),
		[]string{"reason"})
	m.damaged = prometheus.NewCounter(opts("damaged_chunks_total", "Chunks that arrived with a wrong checksum."))
	m.collectors = []prometheus.Collector{ended, resumes, throttled, phases, sent, received, m.declines, m.damaged}

	fill := func(d *side, name string, bytes prometheus.Counter, words [numResults]string) {
		d.bytes, d.resumes, d.throttle = bytes, resumes.WithLabelValues(name), throttled.WithLabelValues(name)
		for r, word := range words {
			d.results[r] = ended.WithLabelValues(name, word)
		}
		for p, word := range [numPhases]string{"wait", "reserve", "stream", "finish", "install"} {
			d.phases[p] = phases.WithLabelValues(name, word)
		}
		d.verifying = phases.WithLabelValues(name, "verify")
	}
	fill(&m.send, "send", sent, [numResults]string{"sent", "declined", "cancelled", "failed"})
	fill(&m.receive, "receive", received, [numResults]string{"received", "declined", "cancelled", "failed"})
	return m
}

// gauges adds what is asked for when somebody looks, and registers everything.
func (m *metrics) gauges(s *Service, reg prometheus.Registerer) error {
	gauge := func(name, help, side string, f func() float64) {
		m.collectors = append(m.collectors, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Namespace: "shardd", Subsystem: "snapshotter", Name: name, Help: help,
			ConstLabels: prometheus.Labels{"side": side}}, f))
	}
	const active, waiting = "Snapshots that have a slot.", "Snapshots that wait for a slot."
	const memory, limit = "Memory held by chunks.", "Rate limit, in bytes per second."
	gauge("active", active, "send", func() float64 { n, _ := s.queue.state(); return float64(n) })
	gauge("waiting", waiting, "send", func() float64 { _, n := s.queue.state(); return float64(n) })
	gauge("active", active, "receive", func() float64 { n, _, _ := s.admission.state(); return float64(n) })
	gauge("waiting", waiting, "receive", func() float64 { _, _, n := s.admission.state(); return float64(n) })
	gauge("memory_bytes", memory, "send", func() float64 { return float64(s.sendMemory.used()) })
	gauge("memory_bytes", memory, "receive", func() float64 { return float64(s.receiveMemory.used()) })
	gauge("limit_bytes", limit, "send", func() float64 { return float64(s.send.limit.Load()) })
	gauge("limit_bytes", limit, "receive", func() float64 { return float64(s.receive.limit.Load()) })
	gauge("reserved_bytes", "Announced size of the snapshots that are being received.", "receive",
		func() float64 { _, n, _ := s.admission.state(); return float64(n) })
	return m.register(reg)
}

// register adds the metrics, all or none; nil means that nobody asks for them.
func (m *metrics) register(reg prometheus.Registerer) error {
	if reg == nil {
		return nil
	}
	for i, c := range m.collectors {
		if err := reg.Register(c); err != nil {
			for _, c := range m.collectors[:i] {
				reg.Unregister(c)
			}
			return errors.Join(errors.New("metrics: use another registerer for a second service"), err)
		}
	}
	return nil
}

func (m *metrics) unregister(reg prometheus.Registerer) {
	if reg == nil {
		return
	}
	for _, c := range m.collectors {
		reg.Unregister(c)
	}
}

func (m *metrics) declined(code string) { m.declines.WithLabelValues(code).Inc() }

func (d *side) throttled(t time.Duration) { d.throttle.Add(t.Seconds()) }

// ended counts a snapshot that ended. Phases that it never reached are not observed.
func (d *side) ended(r result, spent [numPhases]time.Duration, verifying time.Duration) {
	d.results[r].Inc()
	for p, t := range spent {
		if t > 0 {
			d.phases[p].Observe(t.Seconds())
		}
	}
	if verifying > 0 {
		d.verifying.Observe(verifying.Seconds())
	}
}
