package shard

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/shardd/shardd/internal/wire"
)

// metrics are the store's; none has a label that grows with the data.
type metrics struct {
	passes       prometheus.Counter
	passGroups   prometheus.Histogram
	commits      prometheus.Counter
	commitGroups prometheus.Histogram
	commitWrites prometheus.Histogram
	commitBytes  prometheus.Counter
	syncSeconds  prometheus.Histogram

	proposals     prometheus.Counter
	commitSeconds prometheus.Histogram
	applied       prometheus.Counter
	applyEntries  prometheus.Histogram
	applyGroups   prometheus.Histogram

	readIndexes prometheus.Counter
	readyReads  prometheus.Counter
	leaseReads  prometheus.Counter

	ignoredVotes *prometheus.CounterVec
	runOuts      prometheus.Counter
	abdications  prometheus.Counter

	followerReads *prometheus.CounterVec
	indexAsks     *prometheus.CounterVec

	busy    *prometheus.CounterVec
	refusal *prometheus.CounterVec
	drops   *prometheus.CounterVec
	faults  prometheus.Counter

	truncations      prometheus.Counter
	truncatedEntries prometheus.Counter
	truncatedBytes   prometheus.Counter

	measures prometheus.Counter

	leaders prometheus.Gauge

	created, removed, installed, ignored prometheus.Counter
	snapshots, snapshotFailures          prometheus.Counter
	installSeconds                       prometheus.Histogram
	declines                             *prometheus.CounterVec

	freezes, merges *prometheus.CounterVec
}

func newMetrics(s *Store, reg prometheus.Registerer) *metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "shardd_shard_" + name, Help: help})
	}
	vec := func(name, help, label string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: "shardd_shard_" + name, Help: help}, []string{label})
	}
	hist := func(name, help string, buckets []float64) prometheus.Histogram {
		return prometheus.NewHistogram(prometheus.HistogramOpts{Name: "shardd_shard_" + name, Help: help, Buckets: buckets})
	}
	counts := prometheus.ExponentialBuckets(1, 2, 13)          // 1 .. 4096
	seconds := prometheus.ExponentialBuckets(0.00025, 2.5, 12) // 250 us .. 6 s
	m := &metrics{
		passes:       counter("passes_total", "Passes of the workers over their groups."),
		passGroups:   hist("pass_groups", "Groups visited per pass.", counts),
		commits:      counter("commits_total", "Synced commits of the raft logs."),
		commitGroups: hist("commit_groups", "Groups per synced commit.", counts),
		commitWrites: hist("commit_writes", "Client writes proposed here per synced commit.",
			append([]float64{0}, counts...)),
		commitBytes: counter("commit_bytes_total", "Bytes of synced commits."),
		syncSeconds: hist("sync_seconds", "From the start of a synced commit's pass to the hand-back.", seconds),

		proposals: counter("proposals_total", "Log entries proposed; each holds one or more client writes."),
		commitSeconds: hist("propose_commit_seconds",
			"From the proposal of an entry to its commit by a quorum.", seconds),
		applied:      counter("applied_entries_total", "Log entries applied."),
		applyEntries: hist("apply_batch_entries", "Log entries per apply batch.", counts),
		applyGroups:  hist("apply_batch_groups", "Groups per apply batch.", counts),

		readIndexes: counter("read_indexes_total", "Read indexes asked for; each serves all reads that waited."),
		readyReads:  counter("ready_reads_total", "Reads that were allowed to run, by a read index or a lease."),
		leaseReads:  counter("lease_index_reads_total", "Reads whose index was known at once, by a lease."),

		ignoredVotes: vec("votes_ignored_total",
			"Requests for votes, and orders to campaign, dropped before raft: a promise forbids them.", "reason"),
		runOuts: counter("run_outs_total", "Election clocks run out because the leader's store, or the leadership, was gone."),
		abdications: counter("abdications_total",
			"Leaderships given up after a transfer that came to nothing, since there is no lease in that term any more."),

		followerReads: vec("follower_reads_total",
			"Reads served without leading the shard: proved fresh enough, or after the leader was asked.", "how"),
		indexAsks: vec("index_questions_total", "Questions to leaders for a read index, by answer.", "answer"),

		busy:    vec("busy_total", "Requests refused because of a limit on memory, or on the size of the shard.", "limit"),
		refusal: vec("refused_total", "Requests refused at intake, by answer.", "code"),
		drops:   vec("messages_dropped_total", "Raft messages dropped, by reason.", "reason"),
		faults:  counter("faults_total", "Replicas that stopped because of an error."),

		truncations:      counter("log_truncations_total", "Truncations of raft logs."),
		truncatedEntries: counter("log_truncated_entries_total", "Log entries truncated."),
		truncatedBytes:   counter("log_truncated_bytes_total", "Bytes of log entries truncated."),

		created:   counter("replicas_created_total", "Replicas created, by a message or with a new shard."),
		removed:   counter("replicas_removed_total", "Replicas removed."),
		installed: counter("snapshots_installed_total", "Snapshots that became the state of a replica."),
		ignored:   counter("snapshots_ignored_total", "Snapshots received whole that raft had no use for any more."),
		snapshots: counter("snapshots_wanted_total", "Snapshots that leaders here have asked for."),
		snapshotFailures: counter("snapshots_failed_total",
			"Snapshots wanted here that the receiver declined or did not get."),
		installSeconds: hist("snapshot_install_seconds",
			"From a staged snapshot to its replica: parking, ingest and publishing.", seconds),
		declines: vec("snapshots_declined_total", "Snapshots that this store did not take, by reason.", "reason"),

		freezes: vec("freezes_total", "Replicas frozen for a merge, and thawed again.", "step"),
		merges:  vec("merges_total", "Merges that the logs of replicas here have decided, by decision.", "decision"),

		measures: counter("size_measurements_total", "Looks at how large a shard is."),

		leaders: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "shardd_shard_leaders", Help: "Shards led by this store.",
		}),
	}
	if reg == nil {
		return m
	}
	gauge := func(name, help string, f func() float64) {
		reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "shardd_shard_" + name, Help: help}, f))
	}
	reg.MustRegister(m.passes, m.passGroups, m.commits, m.commitGroups, m.commitWrites, m.commitBytes, m.syncSeconds,
		m.proposals, m.commitSeconds, m.applied, m.applyEntries, m.applyGroups, m.readIndexes, m.readyReads,
		m.followerReads, m.indexAsks,
		m.busy, m.refusal, m.drops, m.faults, m.leaders, m.measures, m.truncations, m.truncatedEntries, m.truncatedBytes,
		m.created, m.removed, m.installed, m.ignored, m.snapshots, m.snapshotFailures, m.installSeconds, m.declines,
		m.freezes, m.merges, m.leaseReads, m.ignoredVotes, m.runOuts, m.abdications)
	reg.MustRegister(newSizeMetrics(s))
	gauge("log_bytes", "Bytes of all raft logs.", func() float64 { return float64(s.totalLogBytes()) })
	gauge("replicas", "Replicas on this store.", func() float64 {
		s.mu.RLock()
		defer s.mu.RUnlock()
		return float64(len(s.mu.replicas))
	})
	gauge("asleep", "Replicas that sleep: they are not ticked.", func() float64 { return float64(s.sleeping.Load()) })
	gauge("leaders_without_lease", "Shards led by this store without a lease: their reads cost a round of messages.",
		func() float64 { return float64(s.leaseless()) })
	reg.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{
		Name: "shardd_shard_lease_reads_total", Help: "Reads answered at once, by a lease.",
	}, func() float64 { return float64(s.leaseReads.Load()) }))
	gauge("inbox_bytes", "Received messages that wait.", func() float64 { return float64(s.used.inbox.Load()) })
	gauge("queue_bytes", "Writes that are not proposed yet.", func() float64 { return float64(s.used.queue.Load()) })
	gauge("uncommitted_bytes", "Entries proposed and not committed.",
		func() float64 { return float64(s.used.uncommitted.Load()) })
	gauge("apply_bytes", "Committed entries handed to apply.", func() float64 { return float64(s.used.apply.Load()) })
	gauge("waiting_reads", "Reads that wait.", func() float64 { return float64(s.used.reads.Load()) })
	return m
}

func (m *metrics) dropped(reason string)  { m.drops.WithLabelValues(reason).Inc() }
func (m *metrics) refused(code wire.Code) { m.refusal.WithLabelValues(code.String()).Inc() }
