package engine

import (
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"
	"github.com/prometheus/client_golang/prometheus"
)

// FormatMajor is the format of Pebble's files that this version writes: the newest of Pebble v2.1. It has sync offsets
// in the log (damage in the middle of a log is told from a torn end), checksummed table footers, value separation, and
// excises that need no flush (FormatFlushableIngestExcises, the least that snapshots will need).
const FormatMajor = pebble.FormatValueSeparation

// Options configure Open. The zero value of every field but Dir is useful.
type Options struct {
	// Dir is the data directory; it is created if missing. Required.
	Dir string
	// FS is where Dir lives; nil means the disk. Tests give a NewMemFS, for which the sizes below default small.
	FS *FS
	// Logger receives Pebble's events; nil discards them. It is called from a goroutine of its own and may block.
	Logger *slog.Logger
	// Registerer receives the metrics; nil means none. Close takes them out again.
	Registerer prometheus.Registerer

	// CacheBytes is the block cache, in bytes; default 256 MiB (8 MiB in memory). Raise it to hold the hot tables.
	CacheBytes int64
	// RowCacheBytes bounds the rows that are kept in memory because they are read again and again; default 64 MiB (1 MiB
	// in memory). Negative: none.
	RowCacheBytes int64
	// MemTableBytes is the size of one memtable; default 64 MiB (4 MiB in memory). Smaller ones cost write
	// amplification: 16 MiB was measured slower. A batch above half of it bypasses the memtable.
	MemTableBytes int64
	// EntryCacheBytes bounds the raft entries kept in memory for all replicas; default 128 MiB (8 MiB in memory).
	EntryCacheBytes int64
	// ProbeInterval is how long the log may be idle before a probe write tests it; default 1 s. Negative: no probe.
	ProbeInterval time.Duration
	// Compression is how the tables of data are compressed; what is there already stays as it is. Default CompressFast.
	Compression Compression
	// StagingBytes bounds the snapshots that are being received, staged or announced, in bytes; default 64 GiB (256 MiB in
	// memory). A shard larger than this cannot move to the store.
	StagingBytes int64
	// DiskSlow is how long a write or sync may take before it is reported as slow; default 2 s. Not used in memory.
	DiskSlow time.Duration

	// LowSpaceBytes is the free space on the disk below which Space says SpaceLow, in bytes; default 3 % of the disk,
	// at least 512 MiB and at most 8 GiB. Raise it if the store grows fast compared with how fast somebody reacts.
	LowSpaceBytes int64
	// CriticalSpaceBytes is the free space below which Space says SpaceCritical, in bytes; default a quarter of
	// LowSpaceBytes. It must hold what is under way when writes are cut off: a few memtables.
	CriticalSpaceBytes int64
	// ReserveBytes is the size of the file that is kept to be freed when the store starts on a full disk, in bytes;
	// default 1 % of the disk, at most 64 MiB. Negative: none.
	ReserveBytes int64

	// OnCorrupt is called for each damaged file with the bounds of the keys in it, [lo, hi), as the engine stores them:
	// data families as routing keys; LocalShards explains others. Both are nil if it is not known which keys. It runs on
	// a goroutine of the engine's own that Close joins: it may call the engine, but not Close, nor wait for it.
	OnCorrupt func(lo, hi []byte)

	// Fatal is called once, on the first error of a sync or of Pebble that the store cannot outlive; nothing is
	// acknowledged afterwards. Default: log the reason and end the process with code 1. It may be called on any
	// goroutine and while Pebble's locks are held: it must not call the engine, and Close only from elsewhere.
	Fatal func(error)

	damageHold, spaceWait time.Duration // see the constants; tests shorten them
}

func (o Options) withDefaults() Options {
	pick := func(v *int64, disk, mem int64) {
		if *v == 0 {
			*v = disk
			if o.FS != nil && o.FS.mem != nil {
				*v = mem
			}
		}
	}
	if o.Compression == "" {
		o.Compression = CompressFast
	}
	pick(&o.CacheBytes, 256<<20, 8<<20)
	pick(&o.RowCacheBytes, 64<<20, 1<<20)
	pick(&o.MemTableBytes, 64<<20, 4<<20)
	pick(&o.EntryCacheBytes, 128<<20, 8<<20)
	pick(&o.StagingBytes, 64<<30, 256<<20)
	if o.ProbeInterval == 0 {
		o.ProbeInterval = time.Second
	}
	if o.DiskSlow == 0 {
		o.DiskSlow = 2 * time.Second
	}
	if o.damageHold == 0 {
		o.damageHold = damageHold
	}
	if o.spaceWait == 0 {
		o.spaceWait = spaceWait
	}
	if o.FS == nil {
		o.FS = newDiskFS()
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o
}

// Compression is how hard tables are compressed.
type Compression string

const (
	// CompressFast uses MinLZ (Snappy on arm64, where that is faster) on all levels. Zstd in Go costs a tenth of the
	// processor time of updates.
	CompressFast Compression = "fast"
	// CompressBalanced uses Zstd on the last two levels, where most bytes stay: smaller, for data that is read more than
	// written, or disks that are short.
	CompressBalanced Compression = "balanced"
)

// Validate reports the first option that cannot work.
func (o Options) Validate() error {
	switch {
	case o.Dir == "":
		return errors.New("engine: no data directory given")
	case o.CacheBytes < 0 || o.EntryCacheBytes < 0 || o.StagingBytes < 0:
		return errors.New("engine: negative cache or staging size")
	case o.LowSpaceBytes < 0 || o.CriticalSpaceBytes < 0:
		return errors.New("engine: negative threshold of free space")
	case o.CriticalSpaceBytes > 0 && o.LowSpaceBytes > 0 && o.CriticalSpaceBytes > o.LowSpaceBytes:
		return errors.New("engine: critical free space above low free space")
	case o.Compression != "" && o.Compression != CompressFast && o.Compression != CompressBalanced:
		return fmt.Errorf("engine: compression %q: want %s or %s", o.Compression, CompressFast, CompressBalanced)
	case o.MemTableBytes != 0 && (o.MemTableBytes < 64<<10 || o.MemTableBytes > 1<<30):
		return errors.New("engine: memtable size outside 64 KiB to 1 GiB")
	}
	return nil
}

// pebbleOptions are the tuned options; o has its defaults.
func (o Options) pebbleOptions() *pebble.Options {
	po := &pebble.Options{
		FormatMajorVersion: FormatMajor,
		Comparer:           pebble.DefaultComparer, // bytes order: keys are laid out for it

		// Every write is stored at least twice, in the log span and the data span; large memtables let log entries
		// die before they are flushed. Four of them ride out a compaction that holds up flushes.
		MemTableSize:                uint64(o.MemTableBytes),
		MemTableStopWritesThreshold: 4,

		// Compacting L0 at half of Pebble's default rate: 60-75 -> 41-47 us of CPU per update over three nodes, for
		// a few more tables per read, which the bloom filters mostly skip. A stop of writes is an outage of the store: it
		// lasts as long as the compaction under way, and its leaderships go. At 24 a bulk load of 10 GiB on two cores
		// stopped one for 20 s. A deep L0 makes gets look at more filters, and a compaction out of it cheaper per byte.
		L0CompactionThreshold: 8,
		L0StopWritesThreshold: 400,
		// L1 as large as one memtable: smaller, and every flush rewrites all of it several times.
		LBaseMaxBytes: max(o.MemTableBytes, 4<<20),
		// Cut flushed tables about every 2 MiB at the same keys, so that a compaction out of L0 can take one span of
		// keys (the logs, or one part of the data) and leave the rest alone.
		FlushSplitBytes: 2 << 20,

		// Hand dirty pages to the disk as they are made: without it one flush puts its whole table in front of the
		// log's next sync. The log itself is synced by every commit; the setting covers runs of unsynced ones.
		BytesPerSync:    512 << 10,
		WALBytesPerSync: 512 << 10,

		// One compaction at rest, more only in debt, never all cores: compactions compete with the workers.
		CompactionConcurrencyRange: func() (int, int) { return 1, compactionConcurrency() },
		// Deleting many tables at once stalls some SSDs.
		TargetByteDeletionRate: 128 << 20,
		// Range tombstones of truncated logs and dropped shards hold their space until they are flushed.
		FlushDelayDeleteRange: 10 * time.Second,
		// The manifest is read whole at open.
		MaxManifestFileSize: 32 << 20,
		MaxOpenFiles:        1000, // below the usual limit of 1,024
	}

	// Gets for absent keys and tables without the key: 10 bits per key make 99 % of them free of I/O. On the last level
	// too, since conditional puts ask for keys that are nowhere.
	for i := range po.Levels {
		po.Levels[i].FilterPolicy = bloom.FilterPolicy(10)
		po.Levels[i].FilterType = pebble.TableFilter
		// 32 KiB blocks compress better and need less index than 4 KiB ones; block cache and disk reads are by block.
		po.Levels[i].BlockSize = 32 << 10
		po.Levels[i].IndexBlockSize = 256 << 10
	}
	po.ApplyCompressionSettings(func() pebble.DBCompressionSettings {
		if o.Compression == CompressBalanced {
			return pebble.DBCompressionBalanced
		}
		return pebble.DBCompressionFastest
	})

	po.Experimental.EnableColumnarBlocks = func() bool { return true } // needed by value separation; cheaper seeks
	// Values from 256 bytes on live in blob files, which compactions carry along by reference: half of the write cost
	// of 1 KiB records. Blob files with a fifth of garbage are rewritten once they are old enough to have settled.
	po.Experimental.ValueSeparationPolicy = func() pebble.ValueSeparationPolicy {
		return pebble.ValueSeparationPolicy{
			Enabled:               true,
			MinimumSize:           256,
			MaxBlobReferenceDepth: 10,
			RewriteMinimumAge:     5 * time.Minute,
			TargetGarbageRatio:    0.2,
		}
	}
	po.Experimental.SpanPolicyFunc = spanPolicy
	// Sampling reads to trigger compactions pays for read-mostly tables only, and costs each iterator.
	po.Experimental.ReadSamplingMultiplier = -1
	// Few file cache shards: each costs a goroutine, and many stores run in one process in tests.
	po.Experimental.FileCacheShards = min(4, runtime.GOMAXPROCS(0))
	return po
}

func compactionConcurrency() int { return max(1, runtime.GOMAXPROCS(0)/2) }

// spanPolicy keeps the two key spaces apart: a table ends where the local space ends. Log entries and replica states
// are short-lived, so they stay in their tables, lightly compressed; data may have its values separated. Keys have no
// versions in their suffix, so Pebble need not look for any.
func spanPolicy(start []byte) (pebble.SpanPolicy, []byte, error) {
	if len(start) == 0 || start[0] < dataStart {
		return pebble.SpanPolicy{
			PreferFastCompression:          true,
			DisableValueSeparationBySuffix: true,
			ValueStoragePolicy:             pebble.ValueStorageLowReadLatency,
		}, []byte{dataStart}, nil
	}
	return pebble.SpanPolicy{DisableValueSeparationBySuffix: true}, nil, nil
}
