package node

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"

	"github.com/shardd/shardd/engine"
	"github.com/shardd/shardd/internal/clock"
)

// Config says what a node is made of. Zero values mean the defaults named at each field.
type Config struct {
	// DataDir is the directory of the store; it is made if absent. With FS set it is a path inside that FS.
	DataDir string
	// FS replaces the disk, for tests. Nil: the disk.
	FS *engine.FS
	// Listen is the host:port of the gRPC server. Port 0 takes a free one; see Node.Addr. Required.
	Listen string
	// Advertise is the host:port under which other nodes and clients reach this one. Default: the bound address.
	Advertise string
	// HTTP is the host:port of /metrics, /livez and /readyz. Empty: no HTTP server.
	HTTP string
	// Join lists addresses of members to ask when the directory holds no ident. A member only checks that they belong
	// to its own cluster, and ends with exit code 11 if not.
	Join []string
	// Labels describe where the node is (zone=a); placement reads them.
	Labels map[string]string
	// Logger takes the node's log. Default: slog.Default().
	Logger *slog.Logger
	// Clock decides everything that time decides. Default: clock.System().
	Clock clock.Clock
	// Version is the text of this binary's version, as reported to the cluster.
	Version string
	// PProf adds net/http/pprof to the HTTP server. It shows memory contents: never on an open port.
	PProf bool
	// Settings tunes the store; see there.
	Settings Settings
	// StopTimeout bounds the graceful stop: handing over, draining, closing. Default 10 s.
	StopTimeout time.Duration
	// Fatal is called once on the first sync error of the store. Default: log and exit the process with 1.
	Fatal func(error)
}

// Settings are the tunable numbers of a node. Zero means the default.
type Settings struct {
	// Tick is raft's unit of time; all nodes of a cluster must agree. Default 100 ms.
	Tick time.Duration
	// ElectionTick is how many ticks without a leader start an election. Default 10.
	ElectionTick int
	// HeartbeatTick is how many ticks lie between heartbeats. Default 2.
	HeartbeatTick int
	// Workers is the number of goroutines that drive raft groups. Default: the store's.
	Workers int
	// ApplyWorkers is the number of goroutines that apply committed entries. Default: the store's.
	ApplyWorkers int
	// NoLeases keeps this node from asking for lease support and from giving any.
	NoLeases bool
	// NoSleep keeps idle shards awake.
	NoSleep bool
	// LeaseSupport is for how long a node promises another one to elect no leaders in place of those there. All nodes of a
	// cluster should agree: between two that do not the lower one holds. Default 8 ticks, at least 250 ms.
	LeaseSupport time.Duration
	// ClockMargin bounds the relative error between the rates of two nodes' clocks. Default 0.05. Between two nodes the
	// greater one holds.
	ClockMargin float64
	// CacheBytes is Pebble's block cache. Default: the engine's.
	CacheBytes int64
	// MemTableBytes is the size of one memtable. Default: the engine's.
	MemTableBytes int64
	// Compression of tables. Default: the engine's.
	Compression engine.Compression
	// EntryCacheBytes bounds the store-wide cache of recent log entries. Default: the engine's.
	EntryCacheBytes int64
	// RowCacheBytes bounds the rows kept in memory because they are read again and again; negative: none. Default: the
	// engine's.
	RowCacheBytes int64
	// ReportInterval is the time between reports to the meta shard's leader. Default 1 s.
	ReportInterval time.Duration
	// StreamOps bounds the operations of one client stream that have no answer yet; more are answered Busy.
	// Default 16384.
	StreamOps int
	// StreamBytes bounds their bytes. Default 64 MiB.
	StreamBytes int
	// ScanWorkers bounds the scans of batched streams that run at the same time. Default 4.
	ScanWorkers int
	// SnapshotSendBytes and SnapshotReceiveBytes bound what all snapshots take together, in bytes a second each.
	// Default 32 MiB/s. SetSnapshotLimits changes them until the next start.
	SnapshotSendBytes    uint64
	SnapshotReceiveBytes uint64
	// StagingBytes bounds received snapshots that wait on disk to be installed. Default: the engine's.
	StagingBytes int64
	// LogFactor, LogFloorBytes, LogShardCapBytes, LogStoreCapBytes and LogSpareBytes bound the raft log that is kept for followers; see
	// shard.Compaction. Default: the store's.
	LogFactor        int
	LogFloorBytes    int64
	LogShardCapBytes int64
	LogStoreCapBytes int64
	LogSpareBytes    int64
	// LowSpaceBytes and CriticalSpaceBytes are the thresholds of free disk space, ReserveBytes the size of the file that
	// is given up at a start on a full disk (-1: none). Default: the engine's.
	LowSpaceBytes      int64
	CriticalSpaceBytes int64
	ReserveBytes       int64
	// SplitBytes is the size at which shards split, SplitLoadRequests and SplitLoadBytes the requests per second, and their
	// bytes, at which they split by load; see shard.SplitLimits for the defaults. Negative: never. What is set for the
	// cluster comes before the first two.
	SplitBytes        int64
	SplitLoadRequests float64
	SplitLoadBytes    float64
	// NoBalance keeps the placement driver from working where this node leads the meta shard. Its reports are taken all
	// the same.
	NoBalance bool
	// DownAfter is the silence of a node after which its replicas are replaced. Default 5 min.
	DownAfter time.Duration
	// MergeBytes is the size up to which cold neighbours are merged. Default: a tenth of the split size; -1: none.
	MergeBytes int64
	// MergeAge is how long after a split or merge a shard is not merged. Default 10 min.
	MergeAge time.Duration
	// PlanInterval is the time between two rounds of the placement driver. Default 1 s.
	PlanInterval time.Duration
}

func (c Config) withDefaults() Config {
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	if c.Clock == nil {
		c.Clock = clock.System()
	}
	if c.StopTimeout == 0 {
		c.StopTimeout = 10 * time.Second
	}
	c.Settings = c.Settings.withDefaults()
	return c
}

func (s Settings) withDefaults() Settings {
	set := func(p *int, v int) {
		if *p == 0 {
			*p = v
		}
	}
	if s.Tick == 0 {
		s.Tick = 100 * time.Millisecond
	}
	if s.ReportInterval == 0 {
		s.ReportInterval = time.Second
	}
	if s.PlanInterval == 0 {
		s.PlanInterval = time.Second
	}
	if s.DownAfter == 0 {
		s.DownAfter = 5 * time.Minute
	}
	if s.MergeAge == 0 {
		s.MergeAge = 10 * time.Minute
	}
	if s.LeaseSupport == 0 {
		s.LeaseSupport = max(8*s.Tick, 250*time.Millisecond)
	}
	if s.ClockMargin == 0 {
		s.ClockMargin = 0.05
	}
	set(&s.ElectionTick, 10)
	set(&s.HeartbeatTick, 2)
	set(&s.StreamOps, 16384)
	set(&s.StreamBytes, 64<<20)
	set(&s.ScanWorkers, 4)
	return s
}

// Validate checks the config without opening anything. The error names the field and the remedy.
func (c Config) Validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if c.DataDir == "" {
		bad("data directory is empty: set --data-dir")
	}
	checkAddr := func(name, addr string) {
		if _, _, err := net.SplitHostPort(addr); err != nil {
			bad("%s %q is not host:port: %w", name, addr, err)
		}
	}
	checkAddr("listen address", c.Listen)
	if c.Advertise != "" {
		checkAddr("advertised address", c.Advertise)
		if host, port, _ := net.SplitHostPort(c.Advertise); host == "" || port == "0" {
			bad("advertised address %q has no host or port: others could not reach it", c.Advertise)
		}
	} else if host, _, err := net.SplitHostPort(c.Listen); err == nil && unspecified(host) {
		bad("listen address %q names no host: set --advertise to one that others can reach", c.Listen)
	}
	if c.HTTP != "" {
		checkAddr("http address", c.HTTP)
	}
	for _, j := range c.Join {
		checkAddr("join address", j)
	}
	s := c.Settings.withDefaults()
	switch {
	case s.Tick < time.Millisecond:
		bad("tick %s is below 1ms", s.Tick)
	case s.ElectionTick <= s.HeartbeatTick:
		bad("election tick %d must be above heartbeat tick %d", s.ElectionTick, s.HeartbeatTick)
	case s.HeartbeatTick < 1:
		bad("heartbeat tick %d is below 1", s.HeartbeatTick)
	case s.LeaseSupport < 10*time.Millisecond || s.LeaseSupport > time.Hour:
		bad("lease support of %s: it must be between 10ms and 1h", s.LeaseSupport)
	case !(s.ClockMargin > 0 && s.ClockMargin < 1):
		bad("clock margin %g: it must be between 0 and 1", s.ClockMargin)
	case s.StreamOps < 1 || s.StreamBytes < 1 || s.ScanWorkers < 1:
		bad("stream limits must be positive")
	case s.DownAfter < 0 || s.MergeAge < 0 || s.PlanInterval < 0:
		bad("down-after %s, merge-age %s and the plan interval %s may not be negative", s.DownAfter, s.MergeAge, s.PlanInterval)
	case s.ReportInterval <= 0:
		bad("report interval %s must be positive", s.ReportInterval)
	case s.StagingBytes < 0 || s.LogFactor < 0 || s.LogFloorBytes < 0 || s.LogShardCapBytes < 0 || s.LogStoreCapBytes < 0 || s.LogSpareBytes < 0 ||
		s.LowSpaceBytes < 0 || s.CriticalSpaceBytes < 0:
		bad("limits of staging, raft logs and free disk space may not be negative: 0 means the default")
	case c.StopTimeout < 0:
		bad("stop time-out %s is negative", c.StopTimeout)
	}
	return errors.Join(errs...)
}

func unspecified(host string) bool {
	if host == "" {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsUnspecified()
}
