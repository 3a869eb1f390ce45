package engine

import (
	"math"
	"strconv"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

// engineMetrics holds what is counted as it happens; the rest is read from Pebble when scraped.
type engineMetrics struct {
	flushes, compactions, stalls, diskSlow prometheus.Counter
	backgroundErrors, corruptions          prometheus.Counter
	flushSeconds, compactionSeconds        prometheus.Counter
	stallSeconds                           prometheus.Counter
	commitSeconds                          prometheus.Histogram
	cacheHits, cacheMisses, cacheMissBytes prometheus.Counter
	syncedBatches, unsyncedBatches, probes prometheus.Counter
	syncedBatchBytes, unsyncedBatchBytes   prometheus.Counter
	chunksBuilt, chunksStaged, installs    prometheus.Counter
	chunkBytesBuilt, chunkBytesStaged      prometheus.Counter
	installSeconds                         prometheus.Counter
	all                                    []prometheus.Collector
}

func (m *engineMetrics) init() {
	counter := func(dst *prometheus.Counter, name, help string) {
		*dst = prometheus.NewCounter(prometheus.CounterOpts{
			Namespace: "shardd", Subsystem: "engine", Name: name, Help: help,
		})
		m.all = append(m.all, *dst)
	}
	counter(&m.flushes, "flushes_total", "Memtables written to tables.")
	counter(&m.flushSeconds, "flush_seconds_total", "Time spent in flushes.")
	counter(&m.compactions, "compactions_total", "Compactions ended.")
	counter(&m.compactionSeconds, "compaction_seconds_total", "Time spent in compactions.")
	counter(&m.stalls, "write_stalls_total", "Times that writes were stopped until flushes or compactions caught up.")
	counter(&m.stallSeconds, "write_stall_seconds_total", "Time that writes were stopped.")
	counter(&m.diskSlow, "disk_slow_total", "Reports of a disk operation that takes too long.")
	counter(&m.backgroundErrors, "background_errors_total", "Errors of flushes and compactions.")
	counter(&m.corruptions, "corruptions_total", "Damaged blocks or files found.")
	counter(&m.cacheHits, "entry_cache_hits_total", "Reads of raft entries answered from memory.")
	counter(&m.cacheMisses, "entry_cache_misses_total", "Reads of raft entries that went to Pebble.")
	counter(&m.cacheMissBytes, "entry_cache_miss_bytes_total", "Bytes of raft entries read from Pebble.")
	counter(&m.syncedBatches, "synced_batches_total", "Batches committed with a sync.")
	counter(&m.syncedBatchBytes, "synced_batch_bytes_total", "Bytes of batches committed with a sync.")
	counter(&m.unsyncedBatches, "unsynced_batches_total", "Batches committed without a sync.")
	counter(&m.unsyncedBatchBytes, "unsynced_batch_bytes_total", "Bytes of batches committed without a sync.")
	counter(&m.probes, "probes_total", "Probe writes of an idle log.")
	counter(&m.chunksBuilt, "chunks_built_total", "Chunks of snapshots built from views.")
	counter(&m.chunkBytesBuilt, "chunk_built_bytes_total", "Bytes of tables in chunks built.")
	counter(&m.chunksStaged, "chunks_staged_total", "Chunks of snapshots checked and written to staging.")
	counter(&m.chunkBytesStaged, "chunk_staged_bytes_total", "Bytes of tables written to staging.")
	counter(&m.installs, "snapshots_installed_total", "Snapshots ingested.")
	counter(&m.installSeconds, "snapshot_install_seconds_total", "Time spent in ingesting snapshots.")
	m.commitSeconds = prometheus.NewHistogram(prometheus.HistogramOpts{
		Namespace: "shardd", Subsystem: "engine", Name: "commit_sync_seconds",
		Help:    "From handing a batch to the log until it is durable.",
		Buckets: prometheus.ExponentialBuckets(50e-6, 2, 18), // 50 us to 6.5 s
	})
	m.all = append(m.all, m.commitSeconds)
}

// gauge is one figure read from Pebble's metrics at scrape time.
type gauge struct {
	desc *prometheus.Desc
	kind prometheus.ValueType
	read func(*pebble.Metrics) float64
}

// collector reads Pebble's metrics, which takes Pebble's lock, once per scrape.
type collector struct {
	e      *Engine
	gauges []gauge
	level  *prometheus.Desc
	fsync  *prometheus.Desc
	cache  *prometheus.Desc
	drops  *prometheus.Desc
	age    *prometheus.Desc
	staged *prometheus.Desc
	free   *prometheus.Desc
	space  *prometheus.Desc
}

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("shardd_engine_"+name, help, labels, nil)
}

func newCollector(e *Engine) *collector {
	const G, C = prometheus.GaugeValue, prometheus.CounterValue
	g := func(name, help string, kind prometheus.ValueType, read func(*pebble.Metrics) float64) gauge {
		return gauge{desc: desc(name, help), kind: kind, read: read}
	}
	type M = pebble.Metrics
	return &collector{
		e:      e,
		level:  desc("level_bytes", "Bytes of tables by level.", "level"),
		fsync:  desc("wal_sync_seconds", "Time of each sync of the write-ahead log."),
		cache:  desc("entry_cache_bytes", "Raft entries held in memory."),
		drops:  desc("events_dropped_total", "Log lines dropped because the logger did not keep up."),
		age:    desc("sync_age_seconds", "Age of the oldest unfinished sync."),
		staged: desc("staging_bytes", "Bytes of snapshots under way, staged or announced."),
		free:   desc("disk_free_bytes", "Bytes free on the store's file system."),
		space:  desc("disk_space_level", "Level of free disk space: 0 enough, 1 low, 2 critical."),
		gauges: []gauge{
			g("block_cache_bytes", "Bytes in the block cache.", G,
				func(m *M) float64 { return float64(m.BlockCache.Size) }),
			g("block_cache_hits_total", "Hits.", C, func(m *M) float64 { return float64(m.BlockCache.Hits) }),
			g("block_cache_misses_total", "Misses.", C, func(m *M) float64 { return float64(m.BlockCache.Misses) }),
			g("l0_files", "Tables in L0.", G, func(m *M) float64 { return float64(m.Levels[0].TablesCount) }),
			g("l0_sublevels", "Sublevels of L0, which reads pay for.", G,
				func(m *M) float64 { return float64(m.Levels[0].Sublevels) }),
			g("read_amplification", "Tables that a read may have to look into.", G,
				func(m *M) float64 { return float64(m.ReadAmp()) }),
			g("memtable_bytes", "Bytes of memtables.", G, func(m *M) float64 { return float64(m.MemTable.Size) }),
			g("memtables", "Memtables.", G, func(m *M) float64 { return float64(m.MemTable.Count) }),
			g("compaction_debt_bytes", "Bytes to compact until the store is at rest.", G,
				func(m *M) float64 { return float64(m.Compact.EstimatedDebt) }),
			g("compactions_running", "Compactions at work.", G,
				func(m *M) float64 { return float64(m.Compact.NumInProgress) }),
			g("wal_bytes_total", "Bytes written to the log.", C,
				func(m *M) float64 { return float64(m.WAL.BytesWritten) }),
			g("flushed_bytes_total", "Bytes that flushes wrote to tables and blob files.", C, func(m *M) (sum float64) {
				for i := range m.Levels {
					sum += float64(m.Levels[i].TableBytesFlushed + m.Levels[i].BlobBytesFlushed)
				}
				return sum
			}),
			g("compacted_bytes_total", "Bytes that compactions wrote to tables and blob files.", C, func(m *M) (sum float64) {
				for i := range m.Levels {
					sum += float64(m.Levels[i].TableBytesCompacted + m.Levels[i].BlobBytesCompacted)
				}
				return sum
			}),
			g("row_cache_bytes", "Rows held in memory.", G,
				func(*M) float64 { return float64(e.RowCacheBytes()) }),
			g("row_cache_hits_total", "Gets answered from memory.", C, func(*M) float64 {
				hits, _ := e.rows.counts()
				return float64(hits)
			}),
			g("row_cache_misses_total", "Gets that went to Pebble.", C, func(*M) float64 {
				_, misses := e.rows.counts()
				return float64(misses)
			}),
			g("wal_files", "Live log files.", G, func(m *M) float64 { return float64(m.WAL.Files) }),
			g("blob_bytes", "Bytes of separated values.", G,
				func(m *M) float64 { return float64(m.BlobFiles.LiveSize) }),
			g("disk_used_bytes", "Bytes of all files of the store.", G,
				func(m *M) float64 { return float64(diskUsed(m)) }),
			g("tombstones", "Deleted keys not yet compacted away.", G,
				func(m *M) float64 { return float64(m.Keys.TombstoneCount) }),
			g("open_table_iterators", "Open iterators over tables.", G,
				func(m *M) float64 { return float64(m.TableIters) }),
		},
	}
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, g := range c.gauges {
		ch <- g.desc
	}
	for _, d := range []*prometheus.Desc{c.level, c.fsync, c.cache, c.drops, c.age, c.staged, c.free, c.space} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	ch <- prometheus.MustNewConstMetric(c.cache, prometheus.GaugeValue, float64(c.e.EntryCacheBytes()))
	ch <- prometheus.MustNewConstMetric(c.drops, prometheus.CounterValue, float64(c.e.events.dropped.Load()))
	ch <- prometheus.MustNewConstMetric(c.age, prometheus.GaugeValue, c.e.SyncAge().Seconds())
	if level, free, _, _ := c.e.Space(); free != math.MaxUint64 {
		ch <- prometheus.MustNewConstMetric(c.free, prometheus.GaugeValue, float64(free))
		ch <- prometheus.MustNewConstMetric(c.space, prometheus.GaugeValue, float64(level))
	}
	ch <- prometheus.MustNewConstMetric(c.staged, prometheus.GaugeValue, float64(c.e.StagedBytes()))
	m := c.e.pebbleMetrics()
	if m == nil {
		return
	}
	for _, g := range c.gauges {
		ch <- prometheus.MustNewConstMetric(g.desc, g.kind, g.read(m))
	}
	for i := range m.Levels {
		ch <- prometheus.MustNewConstMetric(c.level, prometheus.GaugeValue, float64(m.Levels[i].TablesSize),
			strconv.Itoa(i))
	}
	if h := secondsHistogram(c.fsync, m.LogWriter.FsyncLatency); h != nil {
		ch <- h
	}
}

// secondsHistogram turns Pebble's histogram of nanoseconds into one of seconds.
func secondsHistogram(d *prometheus.Desc, h prometheus.Histogram) prometheus.Metric {
	var out dto.Metric
	if h == nil || h.Write(&out) != nil || out.Histogram == nil {
		return nil
	}
	buckets := make(map[float64]uint64, len(out.Histogram.Bucket))
	for _, b := range out.Histogram.Bucket {
		buckets[b.GetUpperBound()/float64(time.Second)] = b.GetCumulativeCount()
	}
	m, err := prometheus.NewConstHistogram(d, out.Histogram.GetSampleCount(),
		out.Histogram.GetSampleSum()/float64(time.Second), buckets)
	if err != nil {
		return nil
	}
	return m
}
