package node

import (
	"context"
	"errors"
	"fmt"
	rtm "runtime/metrics"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/placement"
	"github.com/shardd/shardd/shard"
)

// reports is both ends of reporting: what this node last told the meta leader, and, where it leads the meta shard,
// what the others told it.
type reports struct {
	view *placement.View

	mu struct {
		sync.Mutex
		term       uint64 // of the meta leadership that the view belongs to
		registered map[base.StoreID]placement.Node
		nodes      []placement.Node
		nodesAt    time.Duration // Boot time of nodes
	}

	sent struct { // owned by the report loop
		answered map[base.ShardID]reported // what the leader has been told
		full     bool                      // the next report is to be full
		to       base.StoreID
		turn     int // meta members asked without knowing the leader
	}
}

// reported is the part of a replica's summary whose change is worth a report.
type reported struct {
	epoch    base.Epoch
	leads    bool
	term     uint64
	putBytes uint64
	faulted  string
}

// firstReports is the pause between reports until the first is answered.
const firstReports = 50 * time.Millisecond

// reportLoop tells the meta leader each interval what this store holds, and hears who else is there.
func (m *member) reportLoop(ctx context.Context) {
	m.reports.sent.full = true
	var last string
	for {
		pause := m.n.cfg.Settings.ReportInterval
		err := m.report(ctx)
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			m.metaSeen.Store(int64(max(m.clock.Boot(), 1)))
			m.n.metrics.reports.WithLabelValues("answered").Inc()
			last = ""
		} else {
			m.n.metrics.reports.WithLabelValues("failed").Inc()
			if m.metaSeen.Load() == 0 {
				pause = min(pause, firstReports)
			} else if err.Error() != last {
				last = err.Error()
				m.log.Warn("report to the meta shard's leader", "err", err)
			}
		}
		m.n.setHealth(m.ready() == nil)
		t := time.NewTimer(pause)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return
		}
	}
}

// report sends one report and takes the answer in.
func (m *member) report(ctx context.Context) error {
	to := m.reportTo()
	if to != m.reports.sent.to {
		m.reports.sent.to, m.reports.sent.full = to, true
	}
	req, now := m.buildReport()
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	var resp *pb.ReportResponse
	var err error
	if to == m.self {
		resp, err = m.takeReport(ctx, req)
	} else {
		var c pb.InternalServiceClient
		if c, err = m.internal(to); err == nil {
			resp, err = c.Report(ctx, req)
		}
	}
	if err != nil {
		m.reports.sent.turn++
		m.metaHint.CompareAndSwap(uint64(to), 0)
		return fmt.Errorf("report to %s: %w", to, err)
	}
	if resp.NotLeader {
		m.reports.sent.turn++
		m.metaHint.Store(resp.Leader)
		return fmt.Errorf("report to %s: it does not lead the meta shard", to)
	}
	m.metaHint.Store(uint64(to))
	m.book.learn(withoutSelf(addresses(resp.Addresses), m.self))
	m.reports.sent.full = resp.WantFull
	m.reports.sent.answered = now
	return nil
}

// reportTo picks the meta leader, or the members of the meta shard in turn while it is unknown.
func (m *member) reportTo() base.StoreID {
	if lead := m.metaLeader(); lead != 0 {
		return lead
	}
	members := m.metaDesc().Replicas
	return members[m.reports.sent.turn%len(members)].Store
}

func (m *member) buildReport() (*pb.ReportRequest, map[base.ShardID]reported) {
	sums := m.store.Summaries()
	s := &m.reports.sent
	_, disk := m.n.eng.DiskStats()
	req := &pb.ReportRequest{
		ClusterId: m.cluster[:], NodeId: uint64(m.self), Incarnation: m.incarnation, Address: m.n.addr,
		HttpAddress: m.n.publicHTTP(), Labels: m.n.cfg.Labels, Version: m.n.cfg.Version,
		DiskBytes: disk, GoHeapBytes: heapBytes(), Full: s.full,
	}
	now := make(map[base.ShardID]reported, len(sums))
	for i := range sums {
		sum := &sums[i]
		if sum.Desc == nil {
			continue
		}
		req.ReplicaCount++
		if sum.Leads {
			req.LeaderCount++
		}
		r := reportedOf(sum)
		now[sum.Desc.Shard] = r
		if old, ok := s.answered[sum.Desc.Shard]; s.full || !ok || old != r {
			req.Replicas = append(req.Replicas, &pb.ReplicaReport{
				Descriptor_: sum.Desc.Append(nil), Leads: r.leads, Term: r.term, PutBytes: r.putBytes, Faulted: r.faulted,
			})
		}
	}
	return req, now
}

func reportedOf(s *shard.Summary) reported {
	return reported{
		epoch: s.Desc.Epoch, leads: s.Leads, term: s.Term, putBytes: s.Stats.PutBytes, faulted: s.Faulted,
	}
}

// Report implements InternalService.
func (s *internalService) Report(ctx context.Context, req *pb.ReportRequest) (*pb.ReportResponse, error) {
	m, err := s.member(req.ClusterId)
	if err != nil {
		return nil, err
	}
	return m.takeReport(ctx, req)
}

// takeReport is the meta leader's side.
func (m *member) takeReport(ctx context.Context, req *pb.ReportRequest) (*pb.ReportResponse, error) {
	term, leads := m.leadsMeta()
	if !leads {
		return &pb.ReportResponse{NotLeader: true, Leader: uint64(m.metaLeader())}, nil
	}
	r := &placement.Report{
		Node: placement.Node{
			ID: base.StoreID(req.NodeId), Incarnation: req.Incarnation, Address: req.Address, HTTP: req.HttpAddress,
			Labels: req.Labels, Version: req.Version,
		},
		DiskBytes: req.DiskBytes, HeapBytes: req.GoHeapBytes, Replicas: req.ReplicaCount, Leaders: req.LeaderCount,
		Full: req.Full,
	}
	for _, rep := range req.Replicas {
		d, _, err := base.DecodeDescriptor(rep.Descriptor_)
		if err != nil {
			return nil, status.Errorf(codes.InvalidArgument, "report of n%d: %v", req.NodeId, err)
		}
		r.States = append(r.States, placement.ReplicaState{
			Desc: d, Leads: rep.Leads, Term: rep.Term, PutBytes: rep.PutBytes, Faulted: rep.Faulted,
		})
	}
	m.enterTerm(term)
	if err := m.register(ctx, &r.Node); err != nil {
		return nil, directoryStatus(err)
	}
	full, err := m.reports.view.Add(r)
	if err != nil {
		return nil, directoryStatus(err)
	}
	nodes, err := m.nodes(ctx)
	if err != nil {
		return nil, directoryStatus(err)
	}
	resp := &pb.ReportResponse{WantFull: full, Addresses: make(map[uint64]string, len(nodes))}
	for _, n := range nodes {
		resp.Addresses[uint64(n.ID)] = n.Address
	}
	return resp, nil
}

// enterTerm forgets what was heard under an earlier leadership.
func (m *member) enterTerm(term uint64) {
	mu := &m.reports.mu
	mu.Lock()
	defer mu.Unlock()
	if mu.term == term {
		return
	}
	mu.term, mu.registered, mu.nodes = term, map[base.StoreID]placement.Node{}, nil
	m.reports.view.Reset()
}

// register writes a node's record to the meta shard if it is not known to be there.
func (m *member) register(ctx context.Context, n *placement.Node) error {
	mu := &m.reports.mu
	mu.Lock()
	old, ok := mu.registered[n.ID]
	mu.Unlock()
	if ok && old.Equal(n) {
		return nil
	}
	if err := m.dir.RegisterNode(ctx, *n); err != nil {
		return err
	}
	mu.Lock()
	defer mu.Unlock()
	mu.registered[n.ID], mu.nodes = *n, nil
	return nil
}

// nodesFresh is how old the list of nodes may be that is sent with answers to reports.
const nodesFresh = time.Second

// nodes returns the node records, at most nodesFresh old.
func (m *member) nodes(ctx context.Context) ([]placement.Node, error) {
	mu := &m.reports.mu
	mu.Lock()
	nodes, at := mu.nodes, mu.nodesAt
	mu.Unlock()
	now := m.clock.Boot()
	if nodes != nil && now-at < nodesFresh {
		return nodes, nil
	}
	nodes, err := m.dir.Nodes(ctx)
	if err != nil {
		return nil, err
	}
	mu.Lock()
	defer mu.Unlock()
	mu.nodes, mu.nodesAt = nodes, now
	return nodes, nil
}

// metaSilence is how long the meta leader may not answer reports before the node says that it is not ready.
const metaSilence = 5 * time.Second

// metaReachable says when the meta leader last answered.
func (m *member) metaReachable() error {
	at := time.Duration(m.metaSeen.Load())
	if at == 0 {
		return errors.New("the meta shard's leader has not answered yet")
	}
	if age := m.clock.Boot() - at; age > metaSilence+m.n.cfg.Settings.ReportInterval {
		return fmt.Errorf("the meta shard's leader has not answered for %s", age.Round(time.Second))
	}
	return nil
}

// heapBytes returns the bytes of live and not yet swept objects, without stopping the world.
func heapBytes() uint64 {
	s := []rtm.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
	rtm.Read(s)
	return s[0].Value.Uint64()
}
