// Package config holds the settings of shardd: one table that says name, unit, default and reason of each, and the
// order in which they are given: defaults < YAML file < environment (SHARDD_*) < flags. A key that is not in the table
// is refused with the nearest one that is. It never opens anything but the settings file and decides nothing.
package config

import (
	"fmt"
	"strings"
	"time"
)

// Config is what `shardd start` runs with.
type Config struct {
	DataDir   string
	Listen    string
	Advertise string
	HTTP      string
	Join      []string
	Labels    map[string]string
	PProf     bool

	StopTimeout time.Duration

	LogFormat string
	LogLevel  string

	MemoryLimit int64 // bytes; 0: half of what the machine or its cgroup has; -1: none
	GCPercent   int
	GCSlack     int64

	Tick           time.Duration
	HeartbeatTicks int
	ElectionTicks  int
	Workers        int
	ApplyWorkers   int

	Leases       bool
	Sleep        bool
	LeaseSupport time.Duration
	ClockMargin  float64

	CacheBytes      int64
	MemTableBytes   int64
	Compression     string
	EntryCacheBytes int64
	RowCacheBytes   int64 // -1: none

	SnapshotSendBytes    int64 // a second
	SnapshotReceiveBytes int64 // a second
	StagingBytes         int64

	LogFactor        int
	LogFloorBytes    int64
	LogShardCapBytes int64
	LogStoreCapBytes int64
	LogSpareBytes    int64

	LowSpaceBytes      int64
	CriticalSpaceBytes int64
	ReserveBytes       int64

	SplitBytes        int64 // -1: never by size
	SplitLoadRequests int   // a second; 0: never by requests
	SplitLoadBytes    int64 // a second; -1: never by their bytes

	Balance    bool
	DownAfter  time.Duration
	MergeBytes int64 // 0: a tenth of the split size; -1: none merge
	MergeAge   time.Duration
}

// Source says where the value of a setting came from.
type Source string

// Sources, lowest first.
const (
	FromDefault Source = "default"
	FromFile    Source = "file"
	FromEnv     Source = "environment"
	FromFlag    Source = "flag"
)

// Setting is one row of the table. Its name is the key in the YAML file and the name of the flag.
type Setting struct {
	Name  string
	Doc   string
	Value Value
	From  Source
}

// Env is the environment variable of a setting: SHARDD_DATA_DIR for data-dir.
func (s *Setting) Env() string {
	return "SHARDD_" + strings.ToUpper(strings.ReplaceAll(s.Name, "-", "_"))
}

// Table binds every setting to its field of c and gives each its default. The order is that of the documentation.
func Table(c *Config) []*Setting {
	list := []*Setting{
		{Name: "data-dir", Value: stringVar(&c.DataDir, ""), Doc: "Directory of the store. Made if absent; used by one " +
			"process at a time. Required."},
		{Name: "listen", Value: addrVar(&c.Listen, "127.0.0.1:7400"), Doc: "Address on which clients and other nodes " +
			"are served. Port 0 takes a free one."},
		{Name: "advertise", Value: addrVar(&c.Advertise, ""), Doc: "Address that clients and other nodes are told, if " +
			"they cannot use the one of --listen (a wildcard, a NAT)."},
		{Name: "http", Value: addrVar(&c.HTTP, ""), Doc: "Address of /metrics, /livez and /readyz. Empty: no HTTP."},
		{Name: "join", Value: listVar(&c.Join), Doc: "Addresses of nodes of the cluster to join, separated by commas. " +
			"Needed once: a node that has joined remembers its peers."},
		{Name: "labels", Value: mapVar(&c.Labels), Doc: "What tells nodes apart, as key=value separated by commas, " +
			"such as zone=a,rack=3."},
		{Name: "pprof", Value: boolVar(&c.PProf, false), Doc: "Serve Go's profiles under /debug/pprof of the HTTP address."},
		{Name: "stop-timeout", Value: durationVar(&c.StopTimeout, 10*time.Second), Doc: "Longest time that a graceful " +
			"stop (SIGTERM, Ctrl-C) takes to hand leaderships over and drain. A second signal ends at once."},

		{Name: "log-format", Value: enumVar(&c.LogFormat, "text", "text", "json"), Doc: "text or json. Text is " +
			"coloured on a terminal."},
		{Name: "log-level", Value: enumVar(&c.LogLevel, "info", "debug", "info", "warn", "error"), Doc: "Lowest level " +
			"that is logged: debug, info, warn or error."},

		{Name: "memory-limit", Value: bytesVar(&c.MemoryLimit, 0), Doc: "Memory at which the collector works harder " +
			"instead of letting the heap grow. 0: half of what the machine, or its cgroup, has; -1: no limit."},
		{Name: "gc-percent", Value: intVar(&c.GCPercent, 400, 10, 10000), Doc: "Highest GOGC. On a small heap, higher saves " +
			"CPU: at Go's own 100 the collector takes a fifth of it. GOGC in the environment wins over the defaults of this and " +
			"of gc-slack."},
		{Name: "gc-slack", Value: bytesVar(&c.GCSlack, 256<<20), Doc: "Garbage that may pile up between two collections of a " +
			"large heap: GOGC is lowered so far that no more does. Caches and memtables count as live, so that a percentage of " +
			"them is far more than the collector needs. Higher costs memory and makes collections rarer. 0: gc-percent as it " +
			"is."},

		{Name: "tick", Value: durationVar(&c.Tick, 100*time.Millisecond), Doc: "Raft's unit of time. The same on all nodes."},
		{Name: "heartbeat-ticks", Value: intVar(&c.HeartbeatTicks, 2, 1, 100), Doc: "Ticks between heartbeats of a " +
			"leader. The same on all nodes."},
		{Name: "election-ticks", Value: intVar(&c.ElectionTicks, 10, 3, 1000), Doc: "Ticks without a heartbeat after which " +
			"a follower campaigns; it waits one to two times that. The same on all nodes."},
		{Name: "leases", Value: boolVar(&c.Leases, true), Doc: "Let leaders answer linearizable reads without asking the " +
			"others, and idle shards sleep. A node without leases neither asks for support nor gives any: leaders elsewhere " +
			"then need the other nodes' for theirs. The same on all nodes."},
		{Name: "sleep", Value: boolVar(&c.Sleep, true), Doc: "Let idle shards sleep: they send nothing and cost no time. " +
			"Off: they stay awake, and their leaders send a heartbeat every 40 ticks. Without leases no shard sleeps."},
		{Name: "lease-support", Value: durationVar(&c.LeaseSupport, 800*time.Millisecond), Doc: "For how long a node promises " +
			"another one not to elect new leaders in place of those there; renewed three times as often. Shorter: shards of " +
			"a dead node move on sooner, and a pause of a live one costs it its leases sooner. A started node stays out of " +
			"elections for as long as it promised before. The same on all nodes; where it differs, the lower one of two " +
			"nodes holds between them."},
		{Name: "clock-margin", Value: floatVar(&c.ClockMargin, 0.05, 0.001, 0.5), Doc: "Largest relative error between the " +
			"rates of two nodes' clocks; a leader takes that much off the support it counts on. Reads may be stale if clocks are " +
			"worse: quartz and virtual machines stay within 0.001. The same on all nodes; where it differs, the greater one of " +
			"two nodes holds between them."},

		{Name: "workers", Value: intVar(&c.Workers, 0, 0, 1024), Doc: "Workers that drive the Raft groups. 0: by the " +
			"number of CPUs."},
		{Name: "apply-workers", Value: intVar(&c.ApplyWorkers, 0, 0, 1024), Doc: "Workers that apply committed entries. " +
			"0: by the number of CPUs."},

		{Name: "cache", Value: bytesVar(&c.CacheBytes, 256<<20), Doc: "Block cache of the storage engine. Larger saves " +
			"reads once the data no longer fits."},
		{Name: "memtable", Value: bytesVar(&c.MemTableBytes, 64<<20), Doc: "Size at which a memtable is flushed; up to " +
			"four may exist. Larger means fewer flushes and a longer start after a crash."},
		{Name: "compression", Value: enumVar(&c.Compression, "fast", "fast", "balanced"), Doc: "How data is compressed on " +
			"disk. fast: MinLZ, or Snappy where that is faster. balanced: Zstd for what stays, which takes less space and a " +
			"tenth more of the processor when writing. What is there already stays as it is until it is compacted."},
		{Name: "entry-cache", Value: bytesVar(&c.EntryCacheBytes, 128<<20), Doc: "Recent log entries of all shards kept " +
			"in memory, so that followers are fed without reading the disk."},
		{Name: "row-cache", Value: bytesVar(&c.RowCacheBytes, 64<<20), Doc: "Single rows that are read again and again " +
			"kept in memory, beside the block cache: reading one of them costs a copy. -1: none."},

		{Name: "snapshot-send-limit", Value: bytesVar(&c.SnapshotSendBytes, 32<<20), Doc: "Bytes per second that all " +
			"snapshots sent by the node may take together. `shardctl` changes it while the node runs."},
		{Name: "snapshot-receive-limit", Value: bytesVar(&c.SnapshotReceiveBytes, 32<<20), Doc: "Bytes per second that " +
			"all snapshots received by the node may take together. `shardctl` changes it while the node runs."},
		{Name: "snapshot-staging", Value: bytesVar(&c.StagingBytes, 64<<30), Doc: "Most bytes of received snapshots that " +
			"wait on disk to be installed; it bounds the size of a shard that can be moved to the node."},

		{Name: "log-factor", Value: intVar(&c.LogFactor, 4, 1, 1000), Doc: "A follower is fed from the Raft log while the " +
			"log is at most this many times the size of the shard; beyond that a snapshot is cheaper."},
		{Name: "log-floor", Value: bytesVar(&c.LogFloorBytes, 1<<20), Doc: "Raft log that every shard may keep for its " +
			"followers, however small it is."},
		{Name: "log-shard-cap", Value: bytesVar(&c.LogShardCapBytes, 64<<20), Doc: "Most Raft log that one shard keeps for " +
			"a follower, however large it is."},
		{Name: "log-store-cap", Value: bytesVar(&c.LogStoreCapBytes, 1<<30), Doc: "Most Raft log of all shards together; " +
			"past it the largest logs are cut first."},
		{Name: "log-spare", Value: bytesVar(&c.LogSpareBytes, 16<<20), Doc: "Raft log of all shards that are written to " +
			"together that is kept though no follower is known to lack it: what a node that takes over a leadership can feed to one " +
			"that stopped with the old leader. More costs compactions: about so much lives and dies in a memtable."},

		{Name: "disk-low", Value: bytesVar(&c.LowSpaceBytes, 0), Doc: "Free disk space below which leaders on the node " +
			"refuse writes that add bytes, and no replica is moved to it. 0: 3% of the disk, within 512MiB and 8GiB."},
		{Name: "disk-critical", Value: bytesVar(&c.CriticalSpaceBytes, 0), Doc: "Free disk space below which followers on " +
			"the node refuse appends too. 0: a quarter of disk-low."},
		{Name: "disk-reserve", Value: bytesVar(&c.ReserveBytes, 0), Doc: "Size of a file that is given up at a start on a " +
			"full disk, so that recovery has room. 0: 1% of the disk, at most 64MiB; -1: none."},

		{Name: "split-size", Value: bytesVar(&c.SplitBytes, 256<<20), Doc: "Size on disk at which a shard is split. At " +
			"twice that its leader refuses writes that add bytes until it is. Smaller shards move and recover sooner, and " +
			"there are more of them to keep. -1: none is. `shardctl balance limits` and the rules change it for the cluster."},
		{Name: "split-load-requests", Value: intVar(&c.SplitLoadRequests, 2500, 0, 1<<30), Doc: "Reads and writes per " +
			"second at which a shard is split by its load, unless one key has most of it. The default is between a tenth and " +
			"a quarter of a core. 0: none is."},
		{Name: "split-load-bytes", Value: bytesVar(&c.SplitLoadBytes, 32<<20), Doc: "Bytes read and written per second at " +
			"which a shard is split by its load. The default is what snapshots may take, so that a shard can be moved " +
			"faster than it is written. -1: none is."},

		{Name: "balance", Value: boolVar(&c.Balance, true), Doc: "Let the placement driver work when the node leads the " +
			"meta shard: split, merge, repair and spread shards. `shardctl balance pause` does the same for the whole " +
			"cluster while it runs. The same on all nodes."},
		{Name: "down-after", Value: durationVar(&c.DownAfter, 5*time.Minute), Doc: "Silence of a node after which its " +
			"replicas are made anew on others. Shorter heals sooner, and copies data for a node that only restarts. " +
			"`shardctl balance limits` changes it for the cluster."},
		{Name: "merge-size", Value: bytesVar(&c.MergeBytes, 0), Doc: "Size up to which cold neighbouring shards are " +
			"merged, at most a quarter of the size at which they split. 0: a tenth of that; -1: none are."},
		{Name: "merge-age", Value: durationVar(&c.MergeAge, 10*time.Minute), Doc: "How long after a split or a merge a " +
			"shard is not merged, so that shards do not flap."},
	}
	for _, s := range list {
		s.From = FromDefault
	}
	return list
}

// Validate checks what must hold between settings; the error names the setting and the remedy.
func (c *Config) Validate() error {
	switch {
	case c.DataDir == "":
		return fmt.Errorf("data-dir is not set: give --data-dir DIR (or SHARDD_DATA_DIR, or data-dir in the settings file)")
	case c.Listen == "":
		return fmt.Errorf("listen is empty: give --listen HOST:PORT")
	case c.GCSlack < 0:
		return fmt.Errorf("gc-slack is %d: give bytes, or 0 to leave the collector to gc-percent", c.GCSlack)
	case c.PProf && c.HTTP == "":
		return fmt.Errorf("pprof needs an HTTP address: give --http HOST:PORT")
	case c.HeartbeatTicks >= c.ElectionTicks:
		return fmt.Errorf("heartbeat-ticks (%d) must be below election-ticks (%d), well below to survive a lost heartbeat",
			c.HeartbeatTicks, c.ElectionTicks)
	case c.Tick < time.Millisecond || c.Tick > time.Minute:
		return fmt.Errorf("tick is %s: it must be between 1ms and 1m", c.Tick)
	case c.LeaseSupport < 100*time.Millisecond || c.LeaseSupport > time.Minute:
		return fmt.Errorf("lease-support is %s: it must be between 100ms and 1m", c.LeaseSupport)
	case c.StopTimeout <= 0:
		return fmt.Errorf("stop-timeout is %s: it must be above 0", c.StopTimeout)
	case c.DownAfter < 10*time.Second:
		return fmt.Errorf("down-after is %s: it must be at least 10s, since nodes report each second", c.DownAfter)
	case c.SplitBytes < 1<<20 && c.SplitBytes != -1:
		return fmt.Errorf("split-size is %s: it must be at least 1MiB, or -1 for no splits by size", FormatBytes(c.SplitBytes))
	case c.SplitLoadBytes < 1 && c.SplitLoadBytes != -1:
		return fmt.Errorf("split-load-bytes is %d: it must be above 0, or -1 for no splits by bytes", c.SplitLoadBytes)
	case c.RowCacheBytes < 1<<20 && c.RowCacheBytes != -1:
		return fmt.Errorf("row-cache is %s: it must be at least 1MiB, or -1 for none", FormatBytes(c.RowCacheBytes))
	case c.MergeAge < 0:
		return fmt.Errorf("merge-age is %s: it may not be negative", c.MergeAge)
	case c.MemoryLimit < -1:
		return fmt.Errorf("memory-limit is %d: give bytes, 0 for half of the machine's memory, or -1 for none", c.MemoryLimit)
	}
	for _, s := range []struct {
		name  string
		bytes int64
	}{{"cache", c.CacheBytes}, {"memtable", c.MemTableBytes}, {"entry-cache", c.EntryCacheBytes}} {
		if s.bytes < 1<<20 {
			return fmt.Errorf("%s is %s: it must be at least 1MiB", s.name, FormatBytes(s.bytes))
		}
	}
	return nil
}
