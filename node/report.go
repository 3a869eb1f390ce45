package node

import (
	"context"
	"errors"
	"fmt"
	rtm "runtime/metrics"
	"time"

	pb "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/placement/plan"
	"github.com/shardd/shardd/shard"
)

// Reporting, the sender's side: each interval a node tells the leader of the meta shard what its store holds. While the
// leader is unknown it asks around with an empty report, whose answer names leader and place of the meta shard. The
// receiver's side is in takereport.go.

// sentReports is what the report loop, which owns it, remembers.
type sentReports struct {
	answered map[base.ShardID]reported // what the leader has been told
	full     bool                      // the next report is to be full
	to       base.StoreID
	turn     int // places asked without knowing the leader
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
			if m.metaSeen.Load() == 0 || m.metaLeader() == 0 {
				pause = min(pause, firstReports)
			} else if err.Error() != last {
				last = err.Error()
				m.log.Warn("report to the meta shard's leader", "err", err)
			}
		}
		if d, ok := m.store.Descriptor(base.MetaShard); ok {
			m.learnMeta(d)
		}
		m.n.setHealth(m.ready() == nil)
		if !m.reports.await(ctx, pause) {
			return
		}
	}
}

// reportGap is the least time between a report and one that news has woken: what happens within it shares one.
const reportGap = 5 * time.Millisecond

// wakeUp has the next report sent at once.
func (r *reports) wakeUp() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// await waits for the next report to be due, or for news; false if ctx has ended.
func (r *reports) await(ctx context.Context, interval time.Duration) bool {
	gap := min(reportGap, interval)
	pause(ctx, gap)
	t := time.NewTimer(interval - gap)
	defer t.Stop()
	select {
	case <-t.C:
	case <-r.wake:
	case <-ctx.Done():
	}
	return ctx.Err() == nil
}

// report sends one report and takes the answer in.
func (m *member) report(ctx context.Context) error {
	lead := m.metaLeader()
	if lead == 0 {
		var err error
		if lead, err = m.findMetaLeader(ctx); err != nil {
			return err
		}
	}
	s := &m.reports.sent
	if lead != s.to {
		s.to, s.full = lead, true
	}
	req, now := m.buildReport(ctx)
	addr, _ := m.book.Addr(lead)
	resp, err := m.sendReport(ctx, place{lead, addr}, req)
	if err != nil {
		return err
	}
	s.full = resp.WantFull
	s.answered = now
	m.learnUnfit(resp.Unfit)
	m.learnFences(resp.Fenced)
	m.learnSplit(resp.SplitBytes, resp.SplitRequests)
	m.obeyDrain(resp.Draining)
	return nil
}

// findMetaLeader asks the next place for the leader of the meta shard, with a report that says nothing of replicas.
func (m *member) findMetaLeader(ctx context.Context) (base.StoreID, error) {
	places := m.metaPlaces()
	p := places[m.reports.sent.turn%len(places)]
	req := m.reportHead(m.store.Summaries())
	if _, err := m.sendReport(ctx, p, req); err != nil {
		return 0, err
	}
	m.reports.sent.full = true // that was no report that deltas could build on
	if lead := m.metaLeader(); lead != 0 {
		return lead, nil
	}
	return base.StoreID(m.metaHint.Load()), nil
}

// sendReport brings a report to a place, and learns from the answer where the meta shard is. It fails unless the
// receiver leads the meta shard.
func (m *member) sendReport(ctx context.Context, p place, req *pb.ReportRequest) (*pb.ReportResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	var resp *pb.ReportResponse
	var err error
	switch {
	case p.id == m.self:
		resp, err = m.takeReport(ctx, req)
	case p.addr == "":
		err = fmt.Errorf("address of %s is unknown", p.id)
	default:
		var c pb.InternalServiceClient
		if c, err = m.internalAt(p); err == nil {
			resp, err = c.Report(ctx, req)
		}
	}
	who := p.addr
	if p.id != 0 {
		who = p.id.String()
	}
	if err != nil {
		m.ifRemoved(err)
		m.reports.sent.turn++
		m.metaHint.CompareAndSwap(uint64(p.id), 0)
		return nil, fmt.Errorf("report to %s: %w", who, err)
	}
	m.book.learn(withoutSelf(addresses(resp.Addresses), m.self))
	if len(resp.MetaDescriptor) > 0 {
		d, _, err := base.DecodeDescriptor(resp.MetaDescriptor)
		if err != nil {
			return nil, fmt.Errorf("answer to the report to %s: %w", who, err)
		}
		m.learnMeta(d)
	}
	if resp.NotLeader {
		m.reports.sent.turn++
		// What a former leader says of itself, or what leads in a circle, is no hint.
		if hint := base.StoreID(resp.Leader); hint != p.id && hint != m.self {
			m.metaHint.Store(resp.Leader)
		} else {
			m.metaHint.CompareAndSwap(uint64(p.id), 0)
		}
		return nil, fmt.Errorf("report to %s: it does not lead the meta shard", who)
	}
	m.metaHint.Store(resp.Leader)
	return resp, nil
}

// reportHead is a report of the node itself.
func (m *member) reportHead(sums []shard.Summary) *pb.ReportRequest {
	free, disk := m.n.eng.DiskStats()
	req := &pb.ReportRequest{
		ClusterId: m.cluster[:], NodeId: uint64(m.self), Incarnation: m.incarnation, Address: m.n.addr,
		HttpAddress: m.n.publicHTTP(), Labels: m.n.cfg.Labels, Version: m.n.cfg.Version,
		DiskBytes: disk, GoHeapBytes: heapBytes(), DiskFreeBytes: free, DiskLevel: m.n.diskLevel(),
		DiskCapacityBytes: m.n.eng.DiskCapacity(), CpuMillis: m.cpu.millis(m.clock.Boot()), Slow: m.slow.why(m.clock.Boot()),
	}
	// That the meta leader cannot be reached is no news to it.
	for _, c := range m.n.checks() {
		if !c.Ok && c.Name != metaCheck {
			req.Unhealthy = c.Name + ": " + c.Detail
			break
		}
	}
	for i := range sums {
		if sums[i].Desc == nil {
			continue
		}
		req.ReplicaCount++
		if sums[i].Leads {
			req.LeaderCount++
		}
	}
	return req
}

// buildReport returns the next report, and what the receiver has been told once it has answered it.
func (m *member) buildReport(ctx context.Context) (*pb.ReportRequest, map[base.ShardID]reported) {
	sums := m.store.Summaries()
	m.followers.look(ctx, m.store, sums)
	s, boot := &m.reports.sent, m.clock.Boot()
	req := m.reportHead(sums)
	req.Full = s.full
	now := make(map[base.ShardID]reported, len(sums))
	var digest plan.Digest
	var load shard.Load
	for i := range sums {
		sum := &sums[i]
		r := m.reportedOf(sum, boot)
		digest.Add(r.digested(sum.Shard))
		if sum.Leads {
			load = load.Plus(sum.Load)
		}
		if old, ok := s.answered[sum.Shard]; !s.full && ok && !r.worth(&old) {
			now[sum.Shard] = old
			continue
		}
		now[sum.Shard] = r
		req.Replicas = append(req.Replicas, r.proto(sum.Shard, sum.Desc))
	}
	req.Digest, req.Load = digest.Sum(), loadProto(load)
	if !s.full {
		for id := range s.answered {
			if _, ok := now[id]; !ok {
				req.Removed = append(req.Removed, uint64(id))
			}
		}
	}
	return req, now
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
