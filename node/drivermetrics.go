package node

import (
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/shardd/shardd/placement/plan"
)

// driverMetrics tell of the placement driver while this node leads the meta shard. They name no shard and no node.
type driverMetrics struct {
	driving  prometheus.Gauge
	running  *prometheus.GaugeVec   // by kind
	started  *prometheus.CounterVec // by kind
	ended    *prometheus.CounterVec // by kind and outcome
	rounds   prometheus.Counter
	seconds  prometheus.Histogram
	problems *prometheus.GaugeVec // by kind
	spread   *prometheus.GaugeVec // by what
	noRoom   prometheus.Gauge
	shards   prometheus.Gauge
	mismatch prometheus.Gauge
}

func newDriverMetrics(reg prometheus.Registerer) *driverMetrics {
	m := &driverMetrics{
		driving: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "shardd_driver_active", Help: "1 while this node drives the placement of the cluster.",
		}),
		running: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "shardd_driver_operators", Help: "Operators of the placement driver that run now.",
		}, []string{"kind"}),
		started: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "shardd_driver_operators_started_total", Help: "Operators that this node's driver has started.",
		}, []string{"kind"}),
		ended: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "shardd_driver_operators_ended_total", Help: "Operators of the driver that came to their end on this node.",
		}, []string{"kind", "outcome"}),
		rounds: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "shardd_driver_rounds_total", Help: "Rounds of planning.",
		}),
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "shardd_driver_round_seconds", Help: "How long a round of planning took.",
			Buckets: prometheus.ExponentialBuckets(0.0001, 4, 9),
		}),
		problems: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "shardd_driver_problem_shards", Help: "Shards that are not as they should be, rule violations included.",
		}, []string{"kind"}),
		spread: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "shardd_driver_spread", Help: "Largest less smallest number per node that may have some, work in flight " +
				"counted as done.",
		}, []string{"of"}),
		noRoom: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "shardd_driver_nodes_without_room", Help: "Nodes whose disk is too full for balance to give them replicas.",
		}),
		shards: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "shardd_driver_shards", Help: "Shards that the driver knows of.",
		}),
		mismatch: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "shardd_driver_digest_mismatches", Help: "Full reports whose digest was not that of what they said.",
		}),
	}
	reg.MustRegister(m.driving, m.running, m.started, m.ended, m.rounds, m.seconds, m.problems, m.spread, m.noRoom, m.shards,
		m.mismatch)
	m.idle()
	return m
}

func opKinds() []plan.OpKind {
	return []plan.OpKind{
		plan.OpMove, plan.OpAdd, plan.OpRemove, plan.OpPromote, plan.OpSplit, plan.OpMerge, plan.OpTransfer,
	}
}

// idle shows that this node does not drive.
func (m *driverMetrics) idle() {
	m.driving.Set(0)
	m.noRoom.Set(0)
	m.problems.Reset()
	for _, k := range opKinds() {
		m.running.WithLabelValues(k.String()).Set(0)
	}
}

// round shows the state after a round; the caller holds the lock of the view.
func (m *driverMetrics) round(v *plan.View, st *driverState, r *plan.Round) {
	m.driving.Set(1)
	m.rounds.Inc()
	m.seconds.Observe(st.took.Seconds())
	kinds := make(map[plan.OpKind]int)
	for _, f := range st.running {
		kinds[f.Kind]++
	}
	for f := range st.starting {
		kinds[f.Kind]++
	}
	for _, k := range opKinds() {
		m.running.WithLabelValues(k.String()).Set(float64(kinds[k]))
	}
	m.problems.Reset()
	for what, n := range v.Needs() {
		m.problems.WithLabelValues(strings.ReplaceAll(what, " ", "_")).Set(float64(n))
	}
	m.spread.WithLabelValues("replicas").Set(float64(r.ReplicaSpread))
	m.spread.WithLabelValues("leaders").Set(float64(r.LeaderSpread))
	m.noRoom.Set(float64(r.NoRoom))
	m.shards.Set(float64(v.Len()))
	m.mismatch.Set(float64(v.Mismatches))
}
