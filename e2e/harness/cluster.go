package harness

import (
	"context"
	"fmt"
	"math"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	sharddv1 "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/client"
	"github.com/shardd/shardd/client/admin"
)

// Patience is how long a condition may take that should hold within seconds: tests assert what happens, not how fast.
const Patience = 90 * time.Second

// Node is one member and its process, if it runs.
type Node struct {
	Index   int
	Dir     string
	Addr    string
	HTTP    string
	LogPath string
	Proc    *Proc
	Args    []string // further flags of shardd start
	Balance bool     // the placement driver works; most tests place replicas by hand
	Link    *Proxy   // what the others reach it through; nil: its own address
}

// Public is the address that the node is known by in the cluster.
func (n *Node) Public() string {
	if n.Link != nil {
		return n.Link.Addr
	}
	return n.Addr
}

// Cluster is a set of shardd processes on this machine.
type Cluster struct {
	t     testing.TB
	bin   Binaries
	Dir   string
	Nodes []*Node
	Admin *admin.Client
}

// New prepares a cluster of n nodes; nothing runs yet. All its processes are killed at the end of the test, and its
// folder is removed unless the test failed or SHARDD_E2E_KEEP is set.
func New(t testing.TB, bin Binaries, n int) *Cluster {
	t.Helper()
	dir, err := os.MkdirTemp("", "shardd-e2e-")
	if err != nil {
		t.Fatal(err)
	}
	c := &Cluster{t: t, bin: bin, Dir: dir}
	ports := freePorts(t, 2*n)
	var addrs []string
	for i := range n {
		nd := &Node{Index: i, Dir: filepath.Join(dir, fmt.Sprintf("node%d", i)), Addr: ports[2*i], HTTP: ports[2*i+1],
			LogPath: filepath.Join(dir, fmt.Sprintf("node%d.log", i))}
		c.Nodes = append(c.Nodes, nd)
		addrs = append(addrs, nd.Addr)
	}
	if c.Admin, err = admin.Open(addrs); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.close)
	return c
}

// T is the test that the cluster belongs to.
func (c *Cluster) T() testing.TB { return c.t }

func (c *Cluster) close() {
	_ = c.Admin.Close()
	for _, n := range c.Nodes {
		if n.Proc != nil {
			n.Proc.Kill()
		}
	}
	if c.t.Failed() || os.Getenv("SHARDD_E2E_KEEP") != "" {
		c.t.Logf("logs and data are kept in %s", c.Dir)
		for _, n := range c.Nodes {
			if n.Proc == nil {
				continue
			}
			c.t.Logf("last lines of %s:\n%s", n.LogPath, Tail(n.LogPath, 15))
		}
		return
	}
	if err := os.RemoveAll(c.Dir); err != nil {
		c.t.Errorf("remove %s: %v", c.Dir, err)
	}
}

// Tail returns the last lines of a file.
func Tail(path string, lines int) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimRight(string(b), "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// freePorts returns loopback addresses that nobody listens on.
func freePorts(t testing.TB, n int) []string {
	t.Helper()
	var out []string
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close() // held until all are known, so that no port comes twice
		out = append(out, l.Addr().String())
	}
	return out
}

// Addrs are the addresses of all nodes.
func (c *Cluster) Addrs() []string {
	var out []string
	for _, n := range c.Nodes {
		out = append(out, n.Addr)
	}
	return out
}

// Endpoints is Addrs as --endpoints takes them.
func (c *Cluster) Endpoints() string { return strings.Join(c.Addrs(), ",") }

// Start starts the process of node i and waits until it answers or ends.
func (c *Cluster) Start(i int) {
	c.t.Helper()
	c.Launch(i)
	n := c.Nodes[i]
	at := c.Admin.At(n.Addr)
	c.Until("node answers", func(ctx context.Context) error {
		if !n.Proc.Running() {
			code, _ := n.Proc.Wait(0)
			c.t.Fatalf("node %d ended with %d while it should start:\n%s", i, code, Tail(n.LogPath, 15))
		}
		_, err := at.NodeStatus(ctx)
		return err
	})
}

// Launch starts the process of node i and waits for nothing.
func (c *Cluster) Launch(i int) {
	c.t.Helper()
	n := c.Nodes[i]
	if n.Proc != nil && n.Proc.Running() {
		c.t.Fatalf("node %d runs already", i)
	}
	args := append([]string{"start", "--data-dir", n.Dir, "--listen", n.Addr, "--http", n.HTTP}, n.Args...)
	if !n.Balance {
		args = append(args, "--balance=false")
	}
	if n.Link != nil {
		args = append(args, "--advertise", n.Link.Addr)
	}
	p, err := StartProc(fmt.Sprintf("node%d", i), n.LogPath, c.bin.Shardd, args...)
	if err != nil {
		c.t.Fatal(err)
	}
	n.Proc = p
}

// StartAll starts every node that does not run.
func (c *Cluster) StartAll() {
	c.t.Helper()
	for i, n := range c.Nodes {
		if n.Proc == nil || !n.Proc.Running() {
			c.Start(i)
		}
	}
}

// Init makes the cluster and waits until it is healthy.
func (c *Cluster) Init(splits [][]byte) {
	c.t.Helper()
	c.Until("init", func(ctx context.Context) error {
		_, err := c.Admin.Init(ctx, c.Addrs(), splits)
		return err
	})
	c.WaitHealthy()
}

// Kill ends node i with SIGKILL.
func (c *Cluster) Kill(i int) { c.Nodes[i].Proc.Kill() }

// Pause stops the process of node i, as seen by the others, without ending it; Resume lets it go on.
func (c *Cluster) Pause(i int) { c.signal(i, syscall.SIGSTOP) }

// Resume ends a Pause.
func (c *Cluster) Resume(i int) { c.signal(i, syscall.SIGCONT) }

func (c *Cluster) signal(i int, sig syscall.Signal) {
	c.t.Helper()
	if err := c.Nodes[i].Proc.Signal(sig); err != nil {
		c.t.Fatalf("%s to node %d: %v", sig, i, err)
	}
}

// Until repeats try until it succeeds; the test fails after Patience.
func (c *Cluster) Until(what string, try func(ctx context.Context) error) {
	c.t.Helper()
	if err := Until(c.t.Context(), Patience, try); err != nil {
		c.t.Fatalf("%s: %v", what, err)
	}
}

// Until repeats try, each for at most 5 s, until it succeeds, patience is over or ctx ends; it returns try's last
// error.
func Until(ctx context.Context, patience time.Duration, try func(ctx context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var last error
	for {
		one, stop := context.WithTimeout(ctx, 5*time.Second)
		err := try(one)
		stop()
		if err == nil {
			return nil
		}
		if ctx.Err() == nil || last == nil {
			last = err
		}
		timer := time.NewTimer(50 * time.Millisecond)
		select {
		case <-ctx.Done():
			timer.Stop()
			return fmt.Errorf("not within %s: %w", patience, last)
		case <-timer.C:
		}
	}
}

// running is how many nodes' processes run.
func (c *Cluster) running() int {
	n := 0
	for _, nd := range c.Nodes {
		if nd.Proc != nil && nd.Proc.Running() {
			n++
		}
	}
	return n
}

// WaitHealthy waits until every node that runs is up and every shard has a leader and all its replicas.
func (c *Cluster) WaitHealthy() { c.waitStatus("healthy cluster", 0) }

// WaitServing waits until all nodes that run are up and every shard has a leader, also if replicas are down or faulted.
func (c *Cluster) WaitServing() { c.waitStatus("serving cluster", math.MaxUint32) }

func (c *Cluster) waitStatus(what string, underReplicated uint32) {
	c.t.Helper()
	c.Until(what, func(ctx context.Context) error {
		st, err := c.Admin.ClusterStatus(ctx)
		if err != nil {
			return err
		}
		alive := 0
		for _, n := range st.GetNodes() {
			if n.GetAlive() {
				alive++
			}
		}
		if running := c.running(); alive < running || st.GetShardsCreating() > 0 || st.GetShardsWithoutLeader() > 0 ||
			st.GetShardsUnderReplicated() > underReplicated {
			return fmt.Errorf("%d of %d nodes alive, shards: %d, creating %d, without leader %d, under-replicated %d", alive,
				c.running(), st.GetShards(), st.GetShardsCreating(), st.GetShardsWithoutLeader(), st.GetShardsUnderReplicated())
		}
		return nil
	})
}

// Info is what the cluster reports of node i.
func (c *Cluster) Info(i int) *sharddv1.NodeInfo {
	c.t.Helper()
	var found *sharddv1.NodeInfo
	id := c.ID(i)
	c.Until("list nodes", func(ctx context.Context) error {
		nodes, err := c.Admin.ListNodes(ctx)
		if err != nil {
			return err
		}
		at := slices.IndexFunc(nodes, func(n *sharddv1.NodeInfo) bool { return n.GetNodeId() == id })
		if at < 0 {
			return fmt.Errorf("node n%d at %s is not registered", id, c.Nodes[i].Public())
		}
		found = nodes[at]
		return nil
	})
	return found
}

// Leaders is how many shards each node leads; 0 for one that does not run.
func (c *Cluster) Leaders() []int {
	c.t.Helper()
	out := make([]int, len(c.Nodes))
	for i, n := range c.Nodes {
		if n.Proc != nil && n.Proc.Running() {
			out[i] = int(c.Info(i).GetLeaders())
		}
	}
	return out
}

// Busiest is the index of the node that leads most shards, and how many.
func (c *Cluster) Busiest() (index, leaders int) {
	c.t.Helper()
	for i, n := range c.Leaders() {
		if n > leaders || i == 0 {
			index, leaders = i, n
		}
	}
	return index, leaders
}

// DB opens a client to all nodes, closed at the end of the test.
func (c *Cluster) DB(opts ...client.Option) *client.DB {
	c.t.Helper()
	var db *client.DB
	c.Until("open a client", func(ctx context.Context) (err error) {
		db, err = client.Open(ctx, c.Addrs(), opts...)
		return err
	})
	c.t.Cleanup(func() { _ = db.Close() })
	return db
}

// Ctl runs shardctl against the cluster.
func (c *Cluster) Ctl(args ...string) (stdout, stderr string, code int) {
	c.t.Helper()
	return Run(c.t, "", c.bin.Shardctl, append(args, "--endpoints", c.Endpoints())...)
}
