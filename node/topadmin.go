package node

import (
	"cmp"
	"container/heap"
	"context"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/placement/plan"
)

const (
	topShards    = 20
	maxTopShards = 1000
	lifeEvents   = 100
	hotKeys      = 20
	maxHotKeys   = 1000
)

// ShardLog implements AdminService.
func (s *adminService) ShardLog(ctx context.Context, req *pb.ShardLogRequest) (*pb.ShardLogResponse, error) {
	return toMeta(ctx, s.n, req, func(ctx context.Context, m *member, req *pb.ShardLogRequest) (
		*pb.ShardLogResponse, error) {
		limit := int(req.Limit)
		if limit == 0 {
			limit = lifeEvents
		}
		id := base.ShardID(req.ShardId)
		events, err := m.dir.Life(ctx, id, limit)
		if err != nil {
			return nil, directoryStatus(err)
		}
		resp := &pb.ShardLogResponse{}
		for _, e := range events {
			resp.Events = append(resp.Events, &pb.ShardEvent{
				UnixMs: e.UnixMS, Kind: e.Kind.String(), Detail: e.Detail, OtherShardId: uint64(e.Other),
			})
		}
		if len(events) > 0 {
			return resp, nil
		}
		// None that this or an earlier driver has seen; but is there such a shard?
		if _, err := m.findShard(ctx, id); err != nil {
			return nil, err
		}
		return resp, nil
	}, pb.AdminServiceClient.ShardLog)
}

// Top implements AdminService.
func (s *adminService) Top(ctx context.Context, req *pb.TopRequest) (*pb.TopResponse, error) {
	return toMeta(ctx, s.n, req, func(ctx context.Context, m *member, req *pb.TopRequest) (*pb.TopResponse, error) {
		return m.top(ctx, req)
	}, pb.AdminServiceClient.Top)
}

func (m *member) top(ctx context.Context, req *pb.TopRequest) (*pb.TopResponse, error) {
	measure, err := measureOf(req.By)
	if err != nil {
		return nil, err
	}
	most := int(req.Shards)
	if most == 0 {
		most = topShards
	}
	most = min(most, maxTopShards)
	nodes, err := m.nodeInfos(ctx)
	if err != nil {
		return nil, err
	}
	resp := &pb.TopResponse{Nodes: nodes, Total: &pb.Load{}}
	now := m.clock.Boot()
	c := &m.plan
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.view == nil {
		return resp, nil
	}
	resp.ShardCount = uint64(c.view.Len())
	h := &shardHeap{measure: measure}
	for sh := range c.view.Shards("") {
		addLoad(resp.Total, loadOf(sh.Load))
		if h.Len() == most && !h.less(h.all[0], sh) {
			continue
		}
		heap.Push(h, sh)
		if h.Len() > most {
			heap.Pop(h)
		}
	}
	slices.SortFunc(h.all, func(a, b *plan.Shard) int {
		return cmp.Or(cmp.Compare(measure(b), measure(a)), cmp.Compare(a.ID, b.ID))
	})
	for _, sh := range h.all {
		info := shardInfo{desc: sh.Desc(), leader: sh.Leader, term: sh.Term, putBytes: sh.Put}
		out := info.proto()
		c.describe(out, now)
		resp.Shards = append(resp.Shards, out)
	}
	return resp, nil
}

// measureOf is what shards are compared by.
func measureOf(by string) (func(*plan.Shard) uint64, error) {
	switch by {
	case "", "requests":
		return func(s *plan.Shard) uint64 { return s.Load.Requests() }, nil
	case "bytes":
		return func(s *plan.Shard) uint64 { return s.Load.Bytes() }, nil
	case "cpu":
		return func(s *plan.Shard) uint64 { return uint64(s.Load.CPUMicros) }, nil
	case "size":
		return func(s *plan.Shard) uint64 { return s.Size }, nil
	}
	return nil, status.Errorf(codes.InvalidArgument, "by %.32q: want requests, bytes, cpu or size", by)
}

// shardHeap keeps the largest shards, the least of them on top.
type shardHeap struct {
	measure func(*plan.Shard) uint64
	all     []*plan.Shard
}

func (h *shardHeap) less(a, b *plan.Shard) bool {
	if x, y := h.measure(a), h.measure(b); x != y {
		return x < y
	}
	return a.ID > b.ID
}
func (h *shardHeap) Len() int           { return len(h.all) }
func (h *shardHeap) Less(i, j int) bool { return h.less(h.all[i], h.all[j]) }
func (h *shardHeap) Swap(i, j int)      { h.all[i], h.all[j] = h.all[j], h.all[i] }
func (h *shardHeap) Push(x any)         { h.all = append(h.all, x.(*plan.Shard)) }
func (h *shardHeap) Pop() any {
	x := h.all[len(h.all)-1]
	h.all = h.all[:len(h.all)-1]
	return x
}

func loadOf(l plan.Load) *pb.Load {
	return &pb.Load{
		Reads: float64(l.Reads), Writes: float64(l.Writes), ReadBytes: float64(l.ReadBytes),
		WriteBytes: float64(l.WriteBytes), CpuMicros: float64(l.CPUMicros),
	}
}

func addLoad(to, l *pb.Load) {
	to.Reads += l.Reads
	to.Writes += l.Writes
	to.ReadBytes += l.ReadBytes
	to.WriteBytes += l.WriteBytes
	to.CpuMicros += l.CpuMicros
}

// describe adds to a shard what the driver knows of it. The caller holds the lock.
func (c *clusterView) describe(out *pb.ShardInfo, now time.Duration) {
	sh := c.view.Shard(base.ShardID(out.ShardId))
	if sh == nil {
		return
	}
	out.SizeBytes, out.Load = sh.Size, loadOf(sh.Load)
	into, _ := sh.MergingInto()
	out.MergingInto = uint64(into)
	if k := sh.HotKey(); k != "" {
		out.HotKey = []byte(k)
	}
	if r := sh.Rule(); r != nil {
		out.Rule = r.Name()
	}
	if at, ok := c.changed[sh.ID]; ok {
		out.ChangedMsAgo = uint64(max((now - at).Milliseconds(), 1))
	}
}

// describeShards is describe for a page.
func (m *member) describeShards(infos []*pb.ShardInfo) {
	now := m.clock.Boot()
	m.plan.mu.Lock()
	defer m.plan.mu.Unlock()
	if m.plan.view == nil {
		return
	}
	for _, info := range infos {
		m.plan.describe(info, now)
	}
}

// describeNodes adds to nodes what the driver knows of them.
func (m *member) describeNodes(infos []*pb.NodeInfo) {
	m.plan.mu.Lock()
	defer m.plan.mu.Unlock()
	if m.plan.view == nil {
		return
	}
	for _, info := range infos {
		s := m.plan.view.Store(base.StoreID(info.NodeId))
		if s == nil {
			continue
		}
		load := &pb.Load{}
		s.Shards(func(sh *plan.Shard) bool {
			if sh.Leader == s.ID {
				addLoad(load, loadOf(sh.Load))
			}
			return true
		})
		info.Load, info.CpuMillis, info.ShardBytes = load, s.CPUMillis, s.Bytes
	}
}

// HotKeys implements AdminService: the leader of the shard answers from its samples.
func (s *adminService) HotKeys(ctx context.Context, req *pb.HotKeysRequest) (*pb.HotKeysResponse, error) {
	m, err := s.n.needMember()
	if err != nil {
		return nil, err
	}
	limit := req.Limit
	if limit == 0 {
		limit = hotKeys
	}
	id := base.ShardID(req.ShardId)
	ask := &pb.ShardKeysRequest{ClusterId: m.cluster[:], ShardId: req.ShardId, What: "hot", Limit: min(limit, maxHotKeys)}
	ctx, cancel := context.WithTimeout(ctx, leaderTimeout)
	defer cancel()
	out := &pb.HotKeysResponse{}
	err = m.atLeader(ctx, id, func(at base.StoreID) error {
		c, err := m.internalOf(at)
		if err != nil {
			return status.Error(codes.Unavailable, err.Error())
		}
		resp, err := c.ShardKeys(ctx, ask)
		switch {
		case err != nil:
			return err
		case resp.NotLeader:
			return &notLead{base.StoreID(resp.Leader)}
		}
		out.Keys, out.Sampled, out.NodeId = resp.Keys, resp.Sampled, uint64(at)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// Size of a heat map.
const (
	heatBack       = time.Hour
	maxHeatBack    = 7 * 24 * time.Hour
	heatMapColumns = 60
	heatMapRows    = 32
	maxHeatColumns = 1000
	maxHeatRows    = 512
)

// HotMap implements AdminService.
func (s *adminService) HotMap(ctx context.Context, req *pb.HotMapRequest) (*pb.HotMapResponse, error) {
	return toMeta(ctx, s.n, req, func(_ context.Context, m *member, req *pb.HotMapRequest) (*pb.HotMapResponse, error) {
		return m.hotMap(req)
	}, pb.AdminServiceClient.HotMap)
}

func (m *member) hotMap(req *pb.HotMapRequest) (*pb.HotMapResponse, error) {
	unit, ok := map[string]string{
		"": "requests per second", "requests": "requests per second", "bytes": "bytes per second",
		"cpu": "microseconds of processor per second",
	}[req.By]
	if !ok {
		return nil, status.Errorf(codes.InvalidArgument, "by %.32q: want requests, bytes or cpu", req.By)
	}
	orElse := func(v, def, most uint32) int {
		if v == 0 {
			v = def
		}
		return int(min(v, most))
	}
	back := heatBack
	if req.BackMs > 0 {
		back = time.Duration(min(req.BackMs, uint64(maxHeatBack.Milliseconds()))) * time.Millisecond
	}
	columns, rows := orElse(req.Columns, heatMapColumns, maxHeatColumns), orElse(req.Rows, heatMapRows, maxHeatRows)
	now, wall := m.clock.Boot(), m.clock.Wall()
	m.plan.mu.Lock()
	defer m.plan.mu.Unlock()
	resp := &pb.HotMapResponse{Unit: unit}
	if m.plan.view == nil {
		return resp, nil
	}
	heat := m.plan.heat.Map(now, back, columns, rows, req.By)
	for _, b := range heat.Bounds {
		resp.Bounds = append(resp.Bounds, []byte(b))
	}
	for _, e := range heat.Times {
		resp.Times = append(resp.Times, uint64(wall.Add(e-now).UnixMilli()))
	}
	resp.Cells = heat.Cells
	return resp, nil
}
