package harness

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	sharddv1 "github.com/shardd/shardd/api/shardd/v1"
)

// PutBehindProxy lets the others reach node i through a proxy, which it returns; the test itself goes past it. Call it
// before the node's first start.
func (c *Cluster) PutBehindProxy(i int) *Proxy {
	c.t.Helper()
	n := c.Nodes[i]
	n.Link = NewProxy(c.t, n.Addr)
	return n.Link
}

// InitOn makes a cluster of nodes first alone, which must run; with one node every shard has one replica.
func (c *Cluster) InitOn(splits [][]byte, nodes ...int) {
	c.t.Helper()
	var addrs []string
	for _, i := range nodes {
		addrs = append(addrs, c.Nodes[i].Public())
	}
	c.Until("init", func(ctx context.Context) error {
		_, err := c.Admin.At(c.Nodes[nodes[0]].Addr).Init(ctx, addrs, splits)
		return err
	})
	c.WaitHealthy()
}

// Join starts node i so that it joins the cluster through the nodes that run, and waits until it belongs to it. It
// returns its id.
func (c *Cluster) Join(i int) uint64 {
	c.t.Helper()
	n := c.Nodes[i]
	if at := slices.Index(n.Args, "--join"); at >= 0 {
		n.Args = slices.Delete(n.Args, at, at+2)
	}
	for _, other := range c.Nodes {
		if other != n && other.Proc != nil && other.Proc.Running() {
			n.Args = append(n.Args, "--join", other.Addr)
			break
		}
	}
	c.Start(i)
	id := c.ID(i)
	c.Until("the cluster lists the node that has joined", func(ctx context.Context) error {
		nodes, err := c.Admin.ListNodes(ctx)
		if err == nil && !slices.ContainsFunc(nodes, func(n *sharddv1.NodeInfo) bool {
			return n.GetNodeId() == id && n.GetAlive()
		}) {
			err = fmt.Errorf("n%d is not among them, or not alive", id)
		}
		return err
	})
	return id
}

// ID is the id of node i, which runs; it waits until the node has one.
func (c *Cluster) ID(i int) uint64 {
	c.t.Helper()
	var id uint64
	c.Until("node has an id", func(ctx context.Context) error {
		st, err := c.Admin.At(c.Nodes[i].Addr).NodeStatus(ctx)
		if err == nil && st.GetNodeId() == 0 {
			err = errors.New("it belongs to no cluster: " + st.GetWaiting())
		}
		id = st.GetNodeId()
		return err
	})
	return id
}

// Wipe removes the data of node i, which does not run.
func (c *Cluster) Wipe(i int) {
	c.t.Helper()
	n := c.Nodes[i]
	if n.Proc != nil && n.Proc.Running() {
		c.t.Fatalf("node %d runs: stop it before its data is wiped", i)
	}
	if err := os.RemoveAll(n.Dir); err != nil {
		c.t.Fatal(err)
	}
}
