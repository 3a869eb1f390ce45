package node

import (
	"bytes"
	"context"
	"crypto/rand"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	pb "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/engine"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/placement"
)

// Init. One node, the lowest of the addresses given, makes the cluster; the others forward to it.
//
//	preflight   every node answers and belongs to no cluster                     crash: nothing has happened
//	become      ident and meta replica of the founder, synced                    crash: the founder resumes at boot
//	adopt       ident and meta replica of the others, synced, repeated           (foundingLoop)
//	create      the meta leader makes first replicas, repeated, clears flags     (foundingLoop, any meta leader)
//	finish      the founding record goes                                         Init returns
//
// Everything after become follows from the founding record in the meta shard alone. A second Init, at any time and any
// node, finds the ident and waits for the same end.

const (
	preflightTimeout = 5 * time.Second
	initPoll         = 25 * time.Millisecond
)

// Init implements AdminService.
func (s *adminService) Init(ctx context.Context, req *pb.InitRequest) (*pb.InitResponse, error) {
	n := s.n
	nodes := slices.Clone(req.Nodes)
	if len(nodes) == 0 {
		nodes = []string{n.addr}
	}
	slices.Sort(nodes)
	nodes = slices.Compact(nodes)
	if _, ok := n.eng.Ident(); !ok && !isHop(ctx) && nodes[0] != n.addr {
		cc, err := n.conns.to(nodes[0])
		if err != nil {
			return nil, status.Error(codes.Unavailable, err.Error())
		}
		resp, err := pb.NewAdminServiceClient(cc).Init(withHop(ctx), &pb.InitRequest{Nodes: nodes, Splits: req.Splits})
		if err != nil {
			return nil, status.Errorf(status.Code(err), "init by %s: %s", nodes[0], status.Convert(err).Message())
		}
		return resp, nil
	}
	existed, err := n.found(ctx, nodes, req.Splits)
	if err != nil {
		return nil, err
	}
	return n.awaitFounded(ctx, nodes, existed)
}

// found makes the cluster if this node belongs to none.
func (n *Node) found(ctx context.Context, nodes []string, splits [][]byte) (existed bool, err error) {
	if err := n.lockInit(ctx); err != nil {
		return false, status.FromContextError(err).Err()
	}
	defer n.unlockInit()
	if _, ok := n.eng.Ident(); ok {
		return true, n.checkMembers(ctx, nodes)
	}
	n.founding.Store(true)
	defer n.founding.Store(false)
	records, err := n.preflight(ctx, nodes)
	if err != nil {
		return false, err
	}
	c := placement.Cluster{CreatedMS: uint64(n.cfg.Clock.Wall().UnixMilli())}
	rand.Read(c.ID[:]) // never fails
	f, err := placement.NewFounding(c, records, splits)
	if err != nil {
		return false, status.Error(codes.InvalidArgument, err.Error())
	}
	meta, _ := f.Descriptors()
	n.log.Info("making a cluster", "cluster", c.ID.String(), "nodes", nodes, "shards", len(f.Splits)+1)
	if err := n.become(identOf(c.ID, f.Nodes[0].ID, meta, foundingAddrs(f)), f.Contents()); err != nil {
		return false, status.Errorf(codes.Internal, "init: %v", err)
	}
	return false, nil
}

// preflight asks every node whether it can take part and returns their records, this node's first.
func (n *Node) preflight(ctx context.Context, nodes []string) ([]placement.Node, error) {
	records := []placement.Node{{
		Address: n.addr, HTTP: n.publicHTTP(), Version: n.cfg.Version, Labels: n.cfg.Labels,
	}}
	seen := map[string]string{n.addr: n.addr}
	for i, addr := range nodes {
		// A forwarded call came to the lowest address given, under whatever name: that is this node.
		if i == 0 || addr == n.addr {
			continue
		}
		st, err := n.askStatus(ctx, addr)
		if err != nil {
			return nil, status.Errorf(codes.Unavailable, "node %s does not answer, nothing was changed: %v",
				addr, status.Convert(err).Message())
		}
		if st.ClusterId != "" {
			return nil, status.Errorf(codes.FailedPrecondition,
				"node %s belongs to cluster %s and refuses another one (exit code %d): use an empty data directory",
				addr, st.ClusterId, engine.ExitOtherCluster)
		}
		if st.Waiting != waitingText {
			return nil, status.Errorf(codes.Aborted, "node %s is %s: try again", addr, st.Waiting)
		}
		if other, dup := seen[st.Address]; dup {
			return nil, status.Errorf(codes.InvalidArgument, "%s and %s are the same node (%s)", other, addr, st.Address)
		}
		seen[st.Address] = addr
		records = append(records, placement.Node{Address: st.Address, Version: st.Version, Labels: st.Labels})
	}
	return records, nil
}

// checkMembers refuses if a reachable node of the list belongs to another cluster than this one.
func (n *Node) checkMembers(ctx context.Context, nodes []string) error {
	id, _ := n.eng.Ident()
	for _, addr := range nodes {
		if addr == n.addr {
			continue
		}
		st, err := n.askStatus(ctx, addr)
		if err == nil && st.ClusterId != "" && st.ClusterId != id.Cluster.String() {
			return status.Errorf(codes.FailedPrecondition,
				"node %s belongs to cluster %s, %s to %s (exit code %d): name nodes of one cluster, or empty ones",
				addr, st.ClusterId, n.addr, id.Cluster, engine.ExitOtherCluster)
		}
	}
	return nil
}

func (n *Node) askStatus(ctx context.Context, addr string) (*pb.NodeStatusResponse, error) {
	cc, err := n.conns.to(addr)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, preflightTimeout)
	defer cancel()
	return pb.NewAdminServiceClient(cc).NodeStatus(ctx, &pb.NodeStatusRequest{})
}

// awaitFounded waits until the making of the cluster is finished, or ctx ends; it goes on without the caller.
func (n *Node) awaitFounded(ctx context.Context, nodes []string, existed bool) (*pb.InitResponse, error) {
	select {
	case <-n.serving:
	case <-ctx.Done():
		return nil, notFinished(ctx, nil)
	case <-n.drain:
		return nil, status.Error(codes.Unavailable, "the node is stopping; init goes on when it is back")
	}
	m := n.member.Load()
	t := time.NewTicker(initPoll)
	defer t.Stop()
	for {
		f, err := m.dir.Founding(ctx)
		if err == nil && f == nil {
			if !existed {
				n.awaitLeaders(ctx)
			}
			return m.initDone(ctx, nodes, existed)
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return nil, notFinished(ctx, err)
		case <-n.drain:
			return nil, status.Error(codes.Unavailable, "the node is stopping; init goes on when it is back")
		}
	}
}

// settleTimeout bounds how long Init waits for the first leaders to be reported; the cluster is made all the same.
const settleTimeout = 5 * time.Second

// awaitLeaders waits until every shard is reported whole and led, so that a status right after Init shows a cluster at
// work. It is a courtesy: its end says nothing.
func (n *Node) awaitLeaders(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, settleTimeout)
	defer cancel()
	ctx = metadata.NewIncomingContext(ctx, nil) // Init may have been forwarded here; this question may travel on
	t := time.NewTicker(initPoll)
	defer t.Stop()
	for {
		st, err := (&adminService{n: n}).ClusterStatus(ctx, &pb.ClusterStatusRequest{})
		if err == nil && st.ShardsWithoutLeader == 0 && st.ShardsUnderReplicated == 0 {
			return
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		case <-n.drain:
			return
		}
	}
}

func notFinished(ctx context.Context, err error) error {
	text := "the cluster is made but not all of its shards yet; it goes on by itself, repeat the call to wait"
	if err != nil {
		text += ": " + err.Error()
	}
	return status.Error(status.FromContextError(ctx.Err()).Code(), text)
}

// initDone counts the shards and checks that every node asked for is a member.
func (m *member) initDone(ctx context.Context, nodes []string, existed bool) (*pb.InitResponse, error) {
	records, err := m.dir.Nodes(ctx)
	if err != nil {
		return nil, directoryStatus(err)
	}
	members := map[string]bool{m.n.addr: true}
	for _, r := range records {
		members[r.Address] = true
	}
	for _, addr := range nodes {
		if !existed || members[addr] {
			continue
		}
		if st, err := m.n.askStatus(ctx, addr); err == nil && st.ClusterId == "" {
			return nil, status.Errorf(codes.FailedPrecondition,
				"cluster %s exists and node %s does not belong to it: start that node with --join", m.cluster, addr)
		}
	}
	shards := 0
	for after := []byte(nil); ; {
		page, next, err := m.dir.ListShards(ctx, after, 1000)
		if err != nil {
			return nil, directoryStatus(err)
		}
		for _, s := range page {
			if bytes.Compare(s.Desc.Start, base.UserEnd()) < 0 {
				shards++
			}
		}
		if after = next; next == nil {
			break
		}
	}
	return &pb.InitResponse{ClusterId: m.cluster.String(), Existed: existed, Shards: uint32(shards)}, nil
}

func foundingAddrs(f *placement.Founding) map[base.StoreID]string {
	out := make(map[base.StoreID]string, len(f.Nodes))
	for _, r := range f.Nodes {
		out[r.ID] = r.Address
	}
	return out
}

// callTimeout bounds one call to another node in the loops.
const callTimeout = 5 * time.Second
