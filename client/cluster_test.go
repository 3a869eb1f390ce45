package client_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/shardd/shardd/client/admin"
	"github.com/shardd/shardd/engine"
	"github.com/shardd/shardd/node"
)

// cluster is a few real nodes in this process, on stores in memory.
type cluster struct {
	endpoints []string
	nodes     []*node.Node
	stops     []func() error // one per node; may be called again
}

// startCluster makes a cluster whose user keys are divided at splits.
func startCluster(ctx context.Context, count int, splits ...string) (*cluster, error) {
	c := &cluster{}
	for i := range count {
		n, err := node.New(node.Config{
			DataDir: fmt.Sprintf("node%d", i+1), FS: engine.NewMemFS(), Listen: "127.0.0.1:0",
			Logger: slog.New(slog.DiscardHandler), StopTimeout: 2 * time.Second,
			Labels: map[string]string{"zone": string(rune('a' + i)), "kind": "test"},
			Settings: node.Settings{
				Tick: 20 * time.Millisecond, ReportInterval: 100 * time.Millisecond,
				CacheBytes: 8 << 20, MemTableBytes: 8 << 20, EntryCacheBytes: 8 << 20,
				NoBalance: true,
			},
		})
		if err != nil {
			return nil, errors.Join(err, c.stop())
		}
		run, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- n.Run(run) }()
		c.endpoints, c.nodes = append(c.endpoints, n.Addr()), append(c.nodes, n)
		c.stops = append(c.stops, sync.OnceValue(func() error {
			cancel()
			return <-done
		}))
	}
	a, err := admin.Open(c.endpoints)
	if err != nil {
		return nil, errors.Join(err, c.stop())
	}
	defer a.Close()
	keys := make([][]byte, len(splits))
	for i, s := range splits {
		keys[i] = []byte(s)
	}
	if _, err := a.Init(ctx, c.endpoints, keys); err != nil {
		return nil, errors.Join(err, c.stop())
	}
	return c, nil
}

// stop ends all nodes that still run.
func (c *cluster) stop() error {
	errs := make([]error, len(c.stops))
	var wg sync.WaitGroup
	for i, stop := range c.stops {
		wg.Go(func() { errs[i] = stop() })
	}
	wg.Wait()
	return errors.Join(errs...)
}
