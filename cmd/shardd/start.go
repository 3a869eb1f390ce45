package main

import (
	"context"
	"errors"
	"os"

	"github.com/spf13/cobra"

	"github.com/shardd/shardd/engine"
	"github.com/shardd/shardd/internal/cli"
	"github.com/shardd/shardd/internal/config"
	"github.com/shardd/shardd/node"
)

func newStart() *cobra.Command {
	c := &cobra.Command{
		Use:   "start --data-dir DIR [flags]",
		Short: "Run a node until SIGTERM or Ctrl-C",
		Long: `Run a node until SIGTERM or Ctrl-C.

A node with an empty directory waits: for "shardctl init", which makes a cluster of it, or, with --join, for a node of
an existing cluster to take it in. A node that was a member before needs neither.

Settings come from defaults, the file of --config, SHARDD_* in the environment and flags, the later ones winning.
On SIGTERM or Ctrl-C the node hands its leaderships over and drains, for at most --stop-timeout; a second signal ends
it at once.

` + exitHelp,
		Example: `  shardd start --data-dir n1 --listen 127.0.0.1:7400
  shardctl init 127.0.0.1:7400 --shards 16
  shardd start --data-dir n2 --listen 127.0.0.1:7401 --join 127.0.0.1:7400 --labels zone=b`,
		RunE: func(c *cobra.Command, _ []string) error {
			cfg, table, err := config.Load(c.Flags(), os.Environ())
			if err != nil {
				return badConfig(err)
			}
			return start(c, cfg, table)
		},
	}
	config.AddFlags(c.Flags())
	c.Flags().SortFlags = false
	return c
}

func start(c *cobra.Command, cfg *config.Config, table []*config.Setting) error {
	log, flush := cli.Logger(c.ErrOrStderr(), cfg.LogFormat, cfg.LogLevel)
	defer flush()
	stopTuning := limitMemory(cfg, log, table)
	defer stopTuning()
	n, err := node.New(node.Config{
		DataDir: cfg.DataDir, Listen: cfg.Listen, Advertise: cfg.Advertise, HTTP: cfg.HTTP, Join: cfg.Join,
		Labels: cfg.Labels, Logger: log, Version: cli.ReadVersion().String(), PProf: cfg.PProf,
		StopTimeout: cfg.StopTimeout, Settings: nodeSettings(cfg),
		Fatal: func(err error) {
			log.Error("the store cannot go on; nothing that was acknowledged is lost", "err", err)
			flush()
			os.Exit(max(engine.ExitCode(err), cli.ExitFailed))
		},
	})
	if err != nil {
		return startError(err)
	}
	log.Info("started", "address", n.Addr(), "http", n.HTTPAddr(), "data_dir", cfg.DataDir,
		"version", cli.ReadVersion().String())
	err = n.Run(c.Context())
	if err != nil && !errors.Is(err, context.Canceled) {
		return startError(err)
	}
	log.Info("stopped")
	return nil
}

func nodeSettings(cfg *config.Config) node.Settings {
	return node.Settings{
		Tick: cfg.Tick, HeartbeatTick: cfg.HeartbeatTicks, ElectionTick: cfg.ElectionTicks,
		Workers: cfg.Workers, ApplyWorkers: cfg.ApplyWorkers,
		NoLeases: !cfg.Leases, NoSleep: !cfg.Sleep, LeaseSupport: cfg.LeaseSupport, ClockMargin: cfg.ClockMargin,
		CacheBytes: cfg.CacheBytes, MemTableBytes: cfg.MemTableBytes, EntryCacheBytes: cfg.EntryCacheBytes,
		RowCacheBytes:        cfg.RowCacheBytes,
		Compression:          engine.Compression(cfg.Compression),
		SnapshotSendBytes:    uint64(max(cfg.SnapshotSendBytes, 0)),
		SnapshotReceiveBytes: uint64(max(cfg.SnapshotReceiveBytes, 0)), StagingBytes: cfg.StagingBytes,
		LogFactor: cfg.LogFactor, LogFloorBytes: cfg.LogFloorBytes, LogShardCapBytes: cfg.LogShardCapBytes,
		LogStoreCapBytes: cfg.LogStoreCapBytes, LogSpareBytes: cfg.LogSpareBytes,
		LowSpaceBytes: cfg.LowSpaceBytes, CriticalSpaceBytes: cfg.CriticalSpaceBytes, ReserveBytes: cfg.ReserveBytes,
		SplitBytes: cfg.SplitBytes, SplitLoadRequests: orNever(float64(cfg.SplitLoadRequests)),
		SplitLoadBytes: float64(cfg.SplitLoadBytes),
		NoBalance:      !cfg.Balance, DownAfter: cfg.DownAfter, MergeBytes: cfg.MergeBytes, MergeAge: cfg.MergeAge,
	}
}

// orNever turns the 0 of a setting into what the node takes for never, where 0 is its default.
func orNever(v float64) float64 {
	if v == 0 {
		return -1
	}
	return v
}

// startError gives an error its exit code. The engine's text names the directory and what to do.
func startError(err error) error {
	return &cli.Error{Code: max(engine.ExitCode(err), cli.ExitFailed), Err: err}
}
