package transport

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"
)

// Why a message was dropped before it left this store.
const (
	dropFull     = "queue-full"
	dropDown     = "peer-down"
	dropBroken   = "link-broken"
	dropRefused  = "not-sendable"
	dropStopped  = "stopped"
	dropInbound  = "inbound-type"
	dropInternal = "own-store"
	dropReplaced = "replaced" // liveness only: by a later word to the same store
)

// metrics are those of one transport; lanes resolve their labels once.
type metrics struct {
	lanes      [numLanes]laneMetrics
	drops      *prometheus.CounterVec
	refusals   *prometheus.CounterVec
	malformed  prometheus.Counter
	compressIn prometheus.Counter
	compressed prometheus.Counter
	unreach    prometheus.Counter

	livenessDrops *prometheus.CounterVec
}

type laneMetrics struct {
	bytesOut, bytesIn     prometheus.Counter
	framesOut, framesIn   prometheus.Counter
	msgsOut, msgsIn       prometheus.Counter
	queue                 prometheus.Gauge
	connects, disconnects prometheus.Counter
	failures              prometheus.Counter
	links                 prometheus.Gauge
}

func newMetrics(reg prometheus.Registerer) *metrics {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return register(reg, prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: "shardd", Subsystem: "transport", Name: name, Help: help}, labels))
	}
	gauge := func(name, help string, labels ...string) *prometheus.GaugeVec {
		return register(reg, prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Namespace: "shardd", Subsystem: "transport", Name: name, Help: help}, labels))
	}
	sentBytes := counter("sent_bytes", "Bytes of peer frames given to the network.", "lane")
	recvBytes := counter("received_bytes", "Bytes of peer frames received.", "lane")
	sentFrames := counter("sent_frames_total", "Peer frames given to the network.", "lane")
	recvFrames := counter("received_frames_total", "Peer frames received.", "lane")
	sentMsgs := counter("sent_messages_total", "Raft messages given to the network.", "lane")
	recvMsgs := counter("received_messages_total", "Raft messages received.", "lane")
	queue := gauge("queue_bytes", "Bytes waiting in the queues of all peers.", "lane")
	links := gauge("links", "Outbound links that are up.", "lane")
	connects := counter("connects_total", "Outbound links that came up.", "lane")
	lost := counter("disconnects_total", "Outbound links that broke.", "lane")
	failed := counter("connect_failures_total", "Attempts to connect that failed or were refused.", "lane")
	m := &metrics{
		drops:      counter("dropped_messages_total", "Raft messages dropped, by reason.", "lane", "reason"),
		refusals:   counter("handshake_refusals_total", "Refused handshakes, by side and reason.", "side", "reason"),
		malformed:  counter("malformed_frames_total", "Inbound streams closed for their bytes.").WithLabelValues(),
		compressIn: counter("compress_input_bytes", "Bytes of bodies that were sent compressed, before.").WithLabelValues(),
		compressed: counter("compress_output_bytes", "Bytes of bodies that were sent compressed, after.").WithLabelValues(),
		unreach:    counter("unreachable_reports_total", "Lost appends reported to their groups.").WithLabelValues(),

		livenessDrops: counter("dropped_liveness_total", "Liveness bodies dropped, by reason.", "reason"),
	}
	for k := range m.lanes {
		name := laneKind(k).String()
		m.lanes[k] = laneMetrics{
			bytesOut: sentBytes.WithLabelValues(name), bytesIn: recvBytes.WithLabelValues(name),
			framesOut: sentFrames.WithLabelValues(name), framesIn: recvFrames.WithLabelValues(name),
			msgsOut: sentMsgs.WithLabelValues(name), msgsIn: recvMsgs.WithLabelValues(name),
			queue: queue.WithLabelValues(name), links: links.WithLabelValues(name),
			connects: connects.WithLabelValues(name), disconnects: lost.WithLabelValues(name),
			failures: failed.WithLabelValues(name),
		}
	}
	return m
}

// register adds a collector to reg; if the same one is there already it is shared.
func register[C prometheus.Collector](reg prometheus.Registerer, c C) C {
	if reg == nil {
		return c
	}
	err := reg.Register(c)
	var dup prometheus.AlreadyRegisteredError
	if errors.As(err, &dup) {
		if have, ok := dup.ExistingCollector.(C); ok {
			return have
		}
	}
	return c
}
