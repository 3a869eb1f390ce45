package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/shardd/shardd/client/admin"
	"github.com/shardd/shardd/internal/cli"
	"github.com/shardd/shardd/node"
)

// demoCluster is a few nodes in this process. start and stop are called once each, in this order.
type demoCluster struct {
	nodes  []*node.Node
	ctx    context.Context
	cancel context.CancelCauseFunc
	wg     sync.WaitGroup

	mu struct {
		sync.Mutex
		errs []error
	}
}

// errAsked is why the nodes stop when nothing went wrong.
var errAsked = errors.New("asked to stop")

// demoFile remembers the addresses of a demo that keeps its data: its nodes find each other by them.
const demoFile = "demo.json"

type demoState struct {
	Nodes []string `json:"nodes"`
}

// newDemoCluster opens the nodes; they run from start on, until ctx ends or one of them fails.
func newDemoCluster(ctx context.Context, dir string, count int, log *slog.Logger) (*demoCluster, error) {
	var st demoState
	path := filepath.Join(dir, demoFile)
	b, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, err
	default:
		if err := json.Unmarshal(b, &st); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		if len(st.Nodes) != count {
			return nil, cli.Usagef("%s holds a demo of %d nodes: give --nodes %[2]d or another --data-dir", dir, len(st.Nodes))
		}
	}
	d := &demoCluster{}
	d.ctx, d.cancel = context.WithCancelCause(ctx)
	for i := range count {
		listen := "127.0.0.1:0"
		if len(st.Nodes) > 0 {
			listen = st.Nodes[i]
		}
		n, err := node.New(node.Config{
			DataDir: filepath.Join(dir, fmt.Sprintf("node%d", i+1)), Listen: listen, HTTP: "127.0.0.1:0", Logger: log,
			Version: cli.ReadVersion().String(), StopTimeout: 5 * time.Second,
			Settings: node.Settings{CacheBytes: 64 << 20, MemTableBytes: 32 << 20, EntryCacheBytes: 32 << 20,
				RowCacheBytes: 16 << 20, NoBalance: true}, // the demo moves replicas itself
			Fatal: d.fatal,
		})
		if err != nil {
			return nil, errors.Join(startError(err), d.abandon())
		}
		d.nodes = append(d.nodes, n)
	}
	if b, err = json.Marshal(demoState{Nodes: d.addrs()}); err == nil {
		err = os.WriteFile(path, append(b, '\n'), 0o644)
	}
	if err != nil {
		return nil, errors.Join(err, d.abandon())
	}
	return d, nil
}

// start runs all nodes. The context that it returns ends with that of newDemoCluster or with the first node that fails.
func (d *demoCluster) start() context.Context {
	for _, n := range d.nodes {
		d.wg.Go(func() {
			if err := n.Run(d.ctx); err != nil && !errors.Is(err, context.Canceled) {
				d.fatal(startError(err))
			}
		})
	}
	return d.ctx
}

// abandon closes nodes that were opened and never run.
func (d *demoCluster) abandon() error {
	d.cancel(errAsked)
	d.start()
	return d.stop()
}

func (d *demoCluster) fatal(err error) {
	d.mu.Lock()
	d.mu.errs = append(d.mu.errs, err)
	d.mu.Unlock()
	d.cancel(err)
}

// stop ends all nodes gracefully and returns what went wrong with any.
func (d *demoCluster) stop() error {
	d.cancel(errAsked)
	d.wg.Wait()
	d.mu.Lock()
	defer d.mu.Unlock()
	return errors.Join(d.mu.errs...)
}

func (d *demoCluster) addrs() []string {
	var out []string
	for _, n := range d.nodes {
		out = append(out, n.Addr())
	}
	return out
}

// init makes the cluster, or finds the one that the directory holds, and waits until every shard has a leader.
func (d *demoCluster) init(ctx context.Context, out io.Writer, splits [][]byte) error {
	from := time.Now()
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	a, err := admin.Open(d.addrs())
	if err != nil {
		return err
	}
	defer a.Close()
	r, err := a.Init(ctx, d.addrs(), splits)
	if err != nil {
		return fmt.Errorf("make the cluster: %w", err)
	}
	var last error
	for {
		st, err := a.ClusterStatus(ctx)
		switch {
		case err == nil && st.GetShards() > 0 && st.GetShardsCreating() == 0 && st.GetShardsWithoutLeader() == 0:
			verb := "made"
			if r.GetExisted() {
				verb = "found again"
			}
			fmt.Fprintf(out, "Cluster %s %s in %.1f s: %d shards with %d replicas each, and the system's own\n\n",
				r.GetClusterId(), verb, time.Since(from).Seconds(), st.GetShards()-1, len(d.nodes))
			for _, n := range st.GetNodes() {
				fmt.Fprintf(out, "  n%d  %-21s  http://%s/metrics\n", n.GetNodeId(), n.GetAddress(), n.GetHttpAddress())
			}
			fmt.Fprintln(out)
			return nil
		case err == nil:
			last = fmt.Errorf("%d of %d shards have no leader, %d are being made", st.GetShardsWithoutLeader(), st.GetShards(),
				st.GetShardsCreating())
		case ctx.Err() == nil:
			last = err
		}
		timer := time.NewTimer(50 * time.Millisecond)
		select {
		case <-ctx.Done():
			return fmt.Errorf("the cluster did not come up: %w", errors.Join(last, context.Cause(ctx)))
		case <-timer.C:
		}
		timer.Stop()
	}
}
