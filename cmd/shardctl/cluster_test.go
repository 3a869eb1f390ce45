package main

import (
	"context"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/shardd/shardd/node"
)

// startNodes runs nodes in this process until the test ends and returns their addresses; they join a cluster through
// the addresses in join, if there are any.
func startNodes(t *testing.T, n int, join ...string) []string {
	t.Helper()
	return runNodes(t, n, func(*node.Config) {}, join...)
}

// startDriven is startNodes with the placement driver at work, a node in each zone.
func startDriven(t *testing.T, zones []string, join ...string) []string {
	t.Helper()
	i := 0
	return runNodes(t, len(zones), func(cfg *node.Config) {
		cfg.Settings.NoBalance = false
		cfg.Settings.PlanInterval, cfg.Settings.ReportInterval = 100*time.Millisecond, 100*time.Millisecond
		cfg.Labels = map[string]string{"zone": zones[i]}
		i++
	}, join...)
}

func runNodes(t *testing.T, n int, tune func(*node.Config), join ...string) []string {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, n)
	var addrs []string
	for range n {
		cfg := node.Config{DataDir: t.TempDir(), Listen: "127.0.0.1:0", HTTP: "127.0.0.1:0", Version: "test",
			Join:   join,
			Logger: slog.New(slog.DiscardHandler), Labels: map[string]string{"zone": "a"}, StopTimeout: 5 * time.Second,
			Settings: node.Settings{Tick: 20 * time.Millisecond, CacheBytes: 8 << 20, MemTableBytes: 8 << 20,
				EntryCacheBytes: 8 << 20, NoBalance: true}}
		tune(&cfg)
		nd, err := node.New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		addrs = append(addrs, nd.Addr())
		go func() { ended <- nd.Run(ctx) }()
	}
	t.Cleanup(func() {
		cancel()
		for range n {
			if err := <-ended; err != nil {
				t.Errorf("a node ended with %v", err)
			}
		}
	})
	return addrs
}

func TestScriptsWithACluster(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a cluster; not with -short")
	}
	addrs := startNodes(t, 3)
	lonely := startNodes(t, 1)
	first := startNodes(t, 1)
	joining := startNodes(t, 2, first...)
	driven := startDriven(t, []string{"a"})
	driven = append(driven, startDriven(t, []string{"b", "c", "d"}, driven...)...)
	// The scripts run in parallel as subtests; the group holds the cleanup back until they have ended.
	t.Run("group", func(t *testing.T) {
		testscript.Run(t, testscript.Params{Dir: "testdata/cluster", UpdateScripts: *update, RequireExplicitExec: true,
			Setup: func(env *testscript.Env) error {
				env.Setenv("SHARDCTL_ENDPOINTS", strings.Join(addrs, ","))
				env.Setenv("FIRST", addrs[0])
				env.Setenv("WAITING", lonely[0])
				env.Setenv("DRIVEN", strings.Join(driven, ","))
				env.Setenv("FOUNDER", driven[0])
				env.Setenv("ALONE", first[0])
				env.Setenv("GROWN", strings.Join(append(joining, first...), ","))
				return nil
			}})
	})
}
