package bench

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/shardd/shardd/bench/ycsb"
	"github.com/shardd/shardd/client"
	"github.com/shardd/shardd/client/admin"
)

// remote is a cluster of processes, reached through the public clients.
type remote struct {
	db    *client.DB
	admin *admin.Client
	http  *http.Client
}

func dial(ctx context.Context, endpoints []string) (*remote, error) {
	db, err := client.Open(ctx, endpoints)
	if err != nil {
		return nil, fmt.Errorf("open client: %w", err)
	}
	a, err := admin.Open(endpoints)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open admin client: %w", err), db.Close())
	}
	return &remote{db: db, admin: a, http: &http.Client{Timeout: 10 * time.Second}}, nil
}

func (r *remote) close() error { return errors.Join(r.db.Close(), r.admin.Close()) }

func (r *remote) id(ctx context.Context) (string, error) {
	s, err := r.admin.ClusterStatus(ctx)
	if err != nil {
		return "", fmt.Errorf("cluster status: %w", err)
	}
	return s.GetClusterId(), nil
}

func (r *remote) open(p ycsb.Properties) (ycsb.DB, error) { return ycsb.NewClient(r.db, p) }

func (r *remote) use(ctx context.Context) ([]NodeUse, error) {
	nodes, err := r.admin.ListNodes(ctx)
	if err != nil {
		return nil, fmt.Errorf("list nodes: %w", err)
	}
	var out []NodeUse
	for _, n := range nodes {
		u := NodeUse{Node: n.GetNodeId(), Address: n.GetAddress()}
		s, err := r.admin.At(n.GetAddress()).NodeStatus(ctx)
		if err != nil {
			return nil, fmt.Errorf("status of node n%d at %s: %w", u.Node, u.Address, err)
		}
		u.Version, u.Incarnation = s.GetVersion(), s.GetIncarnation()
		u.CPUMillis, u.HeapBytes, u.DiskBytes = s.GetCpuMs(), s.GetGoHeapBytes(), s.GetDiskBytes()
		u.Replicas, u.Leaders = s.GetReplicas(), s.GetLeaders()
		if err := r.scrape(ctx, n.GetHttpAddress(), &u); err != nil {
			u.Missing = err.Error()
		}
		out = append(out, u)
	}
	return out, nil
}

func (r *remote) scrape(ctx context.Context, address string, u *NodeUse) error {
	if address == "" {
		return errors.New("the node serves no HTTP: start it with --http to have its metrics")
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/metrics", nil)
	if err != nil {
		return fmt.Errorf("metrics of %s: %w", address, err)
	}
	res, err := r.http.Do(req)
	if err != nil {
		return fmt.Errorf("metrics of %s: %w", address, err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("metrics of %s: %s", address, res.Status)
	}
	return readMetrics(res.Body, u)
}
