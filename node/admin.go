package node

import (
	"context"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/placement"
)

// adminService is what shardctl uses. Init is in init.go, the calls about shards in adminshards.go.
type adminService struct {
	pb.UnimplementedAdminServiceServer
	n *Node
}

// NodeStatus implements AdminService; it works without an ident.
func (s *adminService) NodeStatus(context.Context, *pb.NodeStatusRequest) (*pb.NodeStatusResponse, error) {
	n := s.n
	free, disk := n.eng.DiskStats()
	resp := &pb.NodeStatusResponse{
		Address: n.addr, Version: n.cfg.Version, Labels: n.cfg.Labels, Waiting: n.waiting(),
		UptimeMs: uint64((n.cfg.Clock.Boot() - n.born).Milliseconds()), GoHeapBytes: heapBytes(), DiskBytes: disk,
		CpuMs: cpuMS(), DiskFreeBytes: free, DiskLevel: n.diskLevel(),
	}
	if id, ok := n.eng.Ident(); ok {
		resp.ClusterId, resp.NodeId, resp.Incarnation = id.Cluster.String(), uint64(id.Store), id.Incarnation
	}
	if m := n.member.Load(); m != nil {
		for _, sum := range m.store.Summaries() {
			resp.Replicas++
			if sum.Leads {
				resp.Leaders++
			}
		}
	}
	return resp, nil
}

// cpuMS returns the processor time of the whole process, which several nodes may share.
func cpuMS() uint64 {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return uint64(time.Duration(u.Utime.Nano()+u.Stime.Nano()) / time.Millisecond)
}

// toMeta runs a call on the leader of the meta shard: here if this node is it, else there, once. While no leader is
// known it waits for one.
func toMeta[Req, Resp any](
	ctx context.Context, n *Node, req Req,
	local func(context.Context, *member, Req) (Resp, error),
	remote func(pb.AdminServiceClient, context.Context, Req, ...grpc.CallOption) (Resp, error),
) (resp Resp, err error) {
	m, err := n.needMember()
	if err != nil {
		return resp, err
	}
	wait, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	t := time.NewTicker(initPoll)
	defer t.Stop()
	for {
		lead := m.metaLeader()
		if term, leads := m.leadsMeta(); leads {
			m.reports.enterTerm(term)
			return local(ctx, m, req)
		}
		if isHop(ctx) {
			return resp, status.Errorf(codes.Unavailable, "%s does not lead the meta shard; the leader is %s", m.self, lead)
		}
		if addr, ok := m.book.Addr(lead); ok {
			cc, cerr := n.conns.to(addr)
			if cerr != nil {
				return resp, status.Error(codes.Unavailable, cerr.Error())
			}
			if resp, err = remote(pb.NewAdminServiceClient(cc), withHop(wait), req); status.Code(err) != codes.Unavailable {
				return resp, err
			}
		}
		select {
		case <-t.C:
		case <-wait.Done():
			text := "the meta shard has no leader that this node knows of"
			if lead != 0 {
				text = fmt.Sprintf("%s, which leads the meta shard as far as is known here, cannot be asked", lead)
			}
			if err != nil {
				text += ": " + status.Convert(err).Message()
			}
			return resp, status.Error(codes.Unavailable, text)
		}
	}
}

// ListNodes implements AdminService.
func (s *adminService) ListNodes(ctx context.Context, req *pb.ListNodesRequest) (*pb.ListNodesResponse, error) {
	return toMeta(ctx, s.n, req, listNodes, pb.AdminServiceClient.ListNodes)
}

func listNodes(ctx context.Context, m *member, _ *pb.ListNodesRequest) (*pb.ListNodesResponse, error) {
	nodes, err := m.nodeInfos(ctx)
	return &pb.ListNodesResponse{Nodes: nodes}, err
}

// nodeInfos joins the node records with what the nodes have reported.
func (m *member) nodeInfos(ctx context.Context) ([]*pb.NodeInfo, error) {
	records, err := m.dir.Nodes(ctx)
	if err != nil {
		return nil, directoryStatus(err)
	}
	marks, err := readMarks(ctx, m.dir) // a person has just seen a job end: no cache
	if err != nil {
		return nil, directoryStatus(err)
	}
	stores := m.reports.view.Stores()
	lead := m.metaLeader()
	out := make([]*pb.NodeInfo, 0, len(records))
	for _, r := range records {
		info := &pb.NodeInfo{
			NodeId: uint64(r.ID), Address: r.Address, HttpAddress: r.HTTP, Labels: r.Labels, Version: r.Version,
			Incarnation: r.Incarnation, MetaLeader: r.ID == lead,
		}
		if st, ok := stores[r.ID]; ok {
			info.Alive, info.LastSeenMs = st.Alive, uint64(st.LastSeen.Milliseconds())
			info.Replicas, info.Leaders = st.Replicas, st.Leaders
			info.DiskBytes, info.GoHeapBytes = st.DiskBytes, st.HeapBytes
			info.DiskFreeBytes, info.DiskLevel, info.Unhealthy = st.FreeBytes, st.Level, st.Unhealthy
		}
		info.Draining, info.Commission = marks.modes[r.ID].String(), marks.commissions[r.ID].String()
		out = append(out, info)
	}
	m.describeNodes(out)
	return out, nil
}

// ClusterStatus implements AdminService.
func (s *adminService) ClusterStatus(ctx context.Context, req *pb.ClusterStatusRequest) (
	*pb.ClusterStatusResponse, error) {
	return toMeta(ctx, s.n, req, clusterStatus, pb.AdminServiceClient.ClusterStatus)
}

func clusterStatus(ctx context.Context, m *member, _ *pb.ClusterStatusRequest) (*pb.ClusterStatusResponse, error) {
	nodes, err := m.nodeInfos(ctx)
	if err != nil {
		return nil, err
	}
	resp := &pb.ClusterStatusResponse{ClusterId: m.cluster.String(), Nodes: nodes, MetaLeader: uint64(m.metaLeader())}
	for after := []byte(nil); ; {
		page, next, err := m.dir.ListShards(ctx, after, listPage)
		if err != nil {
			return nil, directoryStatus(err)
		}
		for _, info := range m.shardInfos(page) {
			resp.Shards++
			switch {
			case info.creating:
				resp.ShardsCreating++
			case info.leader == 0:
				resp.ShardsWithoutLeader++
			}
			if !info.creating && info.live < len(info.desc.Replicas) {
				resp.ShardsUnderReplicated++
			}
		}
		if after = next; next == nil {
			return resp, nil
		}
	}
}

// shardInfo is an index record with what the reports and the local store say of it.
type shardInfo struct {
	desc     *base.Descriptor
	creating bool
	leader   base.StoreID
	term     uint64
	putBytes uint64
	live     int
}

func (m *member) shardInfos(page []placement.Shard) []shardInfo {
	descs := make([]*base.Descriptor, len(page))
	for i := range page {
		descs[i] = page[i].Desc
	}
	states := m.reports.view.Shards(descs)
	out := make([]shardInfo, len(page))
	for i, d := range descs {
		st := states[i]
		out[i] = shardInfo{
			desc: d, creating: page[i].Creating, leader: st.Leader, term: st.Term, putBytes: st.PutBytes, live: st.Live,
		}
		// The local replica knows of a new leader before its report comes.
		if lead, term, ok := m.store.Leader(d.Shard); ok && term > st.Term {
			out[i].leader, out[i].term = lead, term
		}
	}
	return out
}

// Health implements AdminService.
func (s *adminService) Health(context.Context, *pb.HealthRequest) (*pb.HealthResponse, error) {
	checks := s.n.checks()
	ok := !slices.ContainsFunc(checks, func(c *pb.HealthCheck) bool { return !c.Ok })
	return &pb.HealthResponse{Ok: ok, Checks: checks}, nil
}

// checks are the named checks of readiness.
func (n *Node) checks() []*pb.HealthCheck {
	var out []*pb.HealthCheck
	detail := "ok"
	add := func(name string, err error) {
		c := &pb.HealthCheck{Name: name, Ok: err == nil, Detail: detail}
		detail = "ok"
		if err != nil {
			c.Detail = err.Error()
		}
		out = append(out, c)
	}
	add("engine", n.engineHealthy())
	var spaceErr error
	detail, spaceErr = n.spaceHealthy()
	add("space", spaceErr)
	_, ident := n.eng.Ident()
	m := n.member.Load()
	if ident {
		add("ident", nil)
	} else {
		add("ident", fmt.Errorf("%s", n.waiting()))
	}
	switch {
	case n.stopping.Load(), n.leaving.Load():
		add("store", fmt.Errorf("stopping"))
	case m == nil:
		add("store", fmt.Errorf("not running: %s", n.waiting()))
	default:
		add("store", m.storeHealthy())
		add(metaCheck, m.metaReachable())
	}
	return out
}

// metaCheck is the name of the check that the meta leader can be reached.
const metaCheck = "meta"

// syncLimit is the age of the oldest unfinished sync past which the disk counts as stalled (L2).
const syncLimit = time.Second

func (n *Node) engineHealthy() error {
	if age := n.eng.SyncAge(); age > syncLimit {
		return fmt.Errorf("the oldest sync has waited for %s: the disk is stalled or overloaded", age.Round(time.Millisecond))
	}
	return nil
}

func (m *member) storeHealthy() error {
	if ok, detail := m.store.SyncHealthy(); !ok {
		return fmt.Errorf("%s", detail)
	}
	return nil
}

// ready returns the first failed check.
func (m *member) ready() error {
	for _, c := range m.n.checks() {
		if !c.Ok {
			return fmt.Errorf("%s: %s", c.Name, c.Detail)
		}
	}
	return nil
}
