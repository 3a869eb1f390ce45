package node

import (
	"context"
	"errors"
	"fmt"
	"maps"
	rtm "runtime/metrics"
	"slices"
	"time"

	pb "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/clock"
	"github.com/shardd/shardd/shard"
)

// Reporting, the sender's side: each interval a node tells the leader of the meta shard what its store holds. While the
// leader is unknown it asks around with an empty report, whose answer names leader and place of the meta shard. The
// receiver's side is in takereport.go.

// sentReports is what the report loop, which owns it, remembers. A report looks at the replicas that something has happened
// to, and at those of which the leader does not know all yet; the others are as they were.
type sentReports struct {
	held     holdings
	answered map[base.ShardID]*told // what the leader has been told
	// open has those of which the leader may not know all: not told, or not exactly; true: told in a report that has had no
	// answer, so that the leader may have it or not.
	open   map[base.ShardID]bool
	full   bool   // the next report is to be full
	number uint64 // of the last report
	to     base.StoreID
	turn   int            // places asked without knowing the leader
	look   []base.ShardID // whose turn comes to be looked at without news
	// skipped is when, in Boot time, news was last dropped.
	skipped time.Duration
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
	poke(r.wake)
}

// await waits for the next report to be due, or for news; false if ctx has ended.
func (r *reports) await(ctx context.Context, interval time.Duration) bool {
	gap, began := min(reportGap, interval), time.Now()
	t := time.NewTimer(max(gap, clock.UntilAligned(interval)))
	defer t.Stop()
	select {
	case <-t.C:
	case <-r.wake:
		pause(ctx, gap-time.Since(began))
		select {
		case <-r.wake: // what has happened meanwhile shares the report
		default:
		}
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
			m.reports.sent.skip(m.store, m.clock.Boot())
			return err
		}
	}
	s := &m.reports.sent
	if lead != s.to {
		s.to, s.full = lead, true
	}
	req := m.reportHead(0, 0)
	answered := m.tellReplicas(ctx, m.store, req)
	addr, _ := m.book.Addr(lead)
	resp, err := m.sendReport(ctx, place{lead, addr}, req)
	if err != nil {
		return err
	}
	answered()
	s.full = resp.WantFull
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
	req := m.reportHead(m.store.Counts())
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

// reportHead is a report of the node itself, with the next number.
func (m *member) reportHead(replicas, leaders int) *pb.ReportRequest {
	free, disk := m.n.eng.DiskStats()
	m.reports.sent.number++
	req := &pb.ReportRequest{
		ClusterId: m.cluster[:], NodeId: uint64(m.self), Incarnation: m.incarnation,
		Number: m.reports.sent.number, Address: m.n.addr,
		HttpAddress: m.n.publicHTTP(), Labels: m.n.cfg.Labels, Version: m.n.cfg.Version,
		DiskBytes: disk, GoHeapBytes: heapBytes(), DiskFreeBytes: free, DiskLevel: m.n.diskLevel(),
		ReplicaCount: uint32(replicas), LeaderCount: uint32(leaders),
		DiskCapacityBytes: m.n.eng.DiskCapacity(), CpuMillis: m.cpu.millis(m.clock.Boot()), Slow: m.slow.why(m.clock.Boot()),
	}
	// That the meta leader cannot be reached is no news to it.
	for _, c := range m.n.checks() {
		if !c.Ok && c.Name != metaCheck {
			req.Unhealthy = c.Name + ": " + c.Detail
			break
		}
	}
	return req
}

// lookTurn is how many replicas a report looks at that have no news: should one have changed unnoticed, it is found.
const lookTurn = 16

// replicaSource is the part of shard.Store that reports are made of.
type replicaSource interface {
	Changed() ([]shard.Summary, []base.ShardID)
	Summaries() []shard.Summary
	Summary(base.ShardID) (shard.Summary, bool)
	ProgressOf(context.Context, []base.ShardID) map[base.ShardID][]shard.Progress
}

// tellReplicas puts into a report what it has to say of replicas, and returns what to call once the receiver has answered.
func (m *member) tellReplicas(ctx context.Context, from replicaSource, req *pb.ReportRequest) (answered func()) {
	s, boot := &m.reports.sent, m.clock.Boot()
	sums, gone := from.Changed()
	if s.full {
		sums, gone = from.Summaries(), nil
		s.held, s.open, s.look = holdings{}, nil, nil
	}
	s.held.init()
	if s.open == nil {
		s.open = make(map[base.ShardID]bool)
	}
	looked := make(map[base.ShardID]bool, len(sums))
	for i := range sums {
		looked[sums[i].Shard] = true
		s.held.lead(&sums[i])
	}
	// Those that have nothing new to say themselves: of which followers have news, of which not all was told, whose turn it is.
	again := append(m.followers.look(ctx, from, s.held.ledShards()), s.nextTurn()...)
	for id := range s.open {
		again = append(again, id)
	}
	for _, id := range again {
		if looked[id] || s.held.all[id] == nil {
			continue
		}
		looked[id] = true
		if sum, ok := from.Summary(id); ok {
			sums = append(sums, sum)
			s.held.lead(&sum)
		} else {
			gone = append(gone, id)
		}
	}
	telling := make(map[base.ShardID]*told)
	var replicas []*pb.ReplicaReport
	for i := range sums {
		sum := &sums[i]
		r := m.reportedOf(sum, boot)
		unsure := s.open[sum.Shard]
		delete(s.open, sum.Shard)
		kept := s.answered[sum.Shard]
		old := kept.reported()
		tell := s.full || kept == nil || unsure || r.worth(&old)
		if tell || !r.says(&old) {
			kept = r.keep()
		}
		s.held.put(sum, kept)
		switch {
		case tell:
			telling[sum.Shard] = kept
			s.open[sum.Shard] = true
			replicas = append(replicas, r.proto(sum.Shard, sum.Desc))
		case r.size != old.size || r.put != old.put:
			s.open[sum.Shard] = false
		}
	}
	for _, id := range gone {
		s.held.drop(id)
		s.open[id] = s.open[id] || s.answered[id] != nil
	}
	full := s.full
	var removed []base.ShardID
	for id := range s.open {
		if s.held.all[id] == nil {
			removed = append(removed, id)
		}
	}
	req.Full, req.Replicas = full, replicas
	req.ReplicaCount, req.LeaderCount = uint32(s.held.replicas), uint32(s.held.leaders)
	req.Digest, req.Load = s.held.digest.Sum(), loadProto(s.held.load())
	for _, id := range removed {
		if s.open[id] && !full {
			req.Removed = append(req.Removed, uint64(id))
		}
	}
	return func() {
		if full || s.answered == nil {
			s.answered = make(map[base.ShardID]*told, len(telling))
		}
		for id, r := range telling {
			s.answered[id] = r
			delete(s.open, id)
		}
		for _, id := range removed {
			delete(s.answered, id)
			delete(s.open, id)
		}
		if len(s.open) == 0 {
			s.open = nil // a map that once was large is walked, and kept, as one that is
		}
	}
}

// nextTurn returns the replicas whose turn it is to be looked at.
func (s *sentReports) nextTurn() []base.ShardID {
	if len(s.look) == 0 {
		s.look = slices.Collect(maps.Keys(s.held.all))
	}
	turn := s.look[:min(lookTurn, len(s.look))]
	s.look = s.look[len(turn):]
	return turn
}

// skipEach is how often what has changed is dropped while there is nobody to tell it to.
const skipEach = time.Second

// skip keeps the news of the store from piling up while there is nobody to tell it to. The next report tells everything.
func (s *sentReports) skip(from replicaSource, now time.Duration) {
	if now-s.skipped < skipEach {
		return
	}
	s.skipped, s.full = now, true
	from.Changed()
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
