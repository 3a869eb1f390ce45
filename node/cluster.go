package node

import (
	"context"
	"errors"
	"math"
	"sync"
	"time"

	pb "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/placement"
	"github.com/shardd/shardd/placement/plan"
)

// clusterView is the planner's picture of the cluster on the node that leads the meta shard, behind one lock. It is fed by
// reports and by the records of the nodes; any other node has an empty one. What the data path asks for is in
// placement.View, so that no look-up waits for a round of the planner.
type clusterView struct {
	mu sync.Mutex
	// term is that of the meta leadership that the picture belongs to; a later one starts anew.
	term uint64
	view *plan.View
	// Guarded by mu as well: what is made of the view.
	*driverState
}

// enter starts anew at a later term. The caller holds mu.
func (c *clusterView) enterLocked(term uint64) {
	if c.term == term && c.view != nil {
		return
	}
	c.term, c.view = term, plan.NewView()
	c.driverState = newDriverState()
}

// report takes a report in. wantFull: the sender is to tell everything.
func (c *clusterView) report(term uint64, r *plan.StoreReport) (wantFull bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if term < c.term {
		return true, nil // a later leadership of this node has begun meanwhile, and has heard nothing of this
	}
	c.enterLocked(term)
	wantFull, err = c.view.Report(r)
	if errors.Is(err, plan.ErrStale) {
		err = errors.Join(err, placement.ErrStale)
	}
	return wantFull, err
}

// planReport is a report as the planner takes it.
func planReport(req *pb.ReportRequest, descs []*base.Descriptor, now time.Duration) *plan.StoreReport {
	r := &plan.StoreReport{
		Store: base.StoreID(req.NodeId), Incarnation: req.Incarnation, Number: req.Number, At: now, Full: req.Full,
		Digest:    req.Digest,
		DiskBytes: req.DiskBytes, DiskFree: req.DiskFreeBytes, DiskCapacity: req.DiskCapacityBytes,
		Disk: plan.ParseDisk(req.DiskLevel), Unhealthy: req.Unhealthy, Slow: req.Slow, CPUMillis: req.CpuMillis,
	}
	for i, rep := range req.Replicas {
		r.Replicas = append(r.Replicas, plan.ReplicaReport{
			Shard: base.ShardID(rep.ShardId), Replica: base.ReplicaID(rep.ReplicaId), Desc: descs[i], Leads: rep.Leads,
			Term: rep.Term, Faulted: rep.Faulted, Uninitialised: rep.Uninitialised, Put: rep.PutBytes, Size: rep.SizeBytes,
			MergingInto: base.ShardID(rep.MergingInto), MergeID: rep.MergeId, Load: planLoad(rep.Load),
			HotKey: rep.HotKey, SplitKey: rep.LoadSplitKey, Silent: replicaIDs(rep.Silent), Behind: replicaIDs(rep.Behind),
		})
	}
	for _, id := range req.Removed {
		r.Removed = append(r.Removed, base.ShardID(id))
	}
	return r
}

func replicaIDs(in []uint64) (out []base.ReplicaID) {
	for _, id := range in {
		out = append(out, base.ReplicaID(id))
	}
	return out
}

func planLoad(l *pb.Load) plan.Load {
	u := func(x float64) uint32 { return uint32(min(max(x, 0), math.MaxUint32)) }
	return plan.Load{
		Reads: u(l.GetReads()), Writes: u(l.GetWrites()), ReadBytes: u(l.GetReadBytes()), WriteBytes: u(l.GetWriteBytes()),
		CPUMicros: u(l.GetCpuMicros()),
	}
}

// members brings what the meta shard's records say of the nodes into the view.
func (m *member) updateMembers(ctx context.Context, term uint64) error {
	records, err := m.nodes(ctx)
	if err != nil {
		return err
	}
	marks, err := m.jobs.marks.all(ctx, m.dir, m.clock.Boot())
	if err != nil {
		return err
	}
	now := m.clock.Boot()
	c := &m.plan
	c.mu.Lock()
	defer c.mu.Unlock()
	if term < c.term {
		return nil
	}
	c.enterLocked(term)
	listed := make(map[base.StoreID]bool, len(records))
	for _, r := range records {
		listed[r.ID] = true
		c.view.SetMember(plan.Member{
			ID: r.ID, Labels: r.Labels, Commission: plan.Commission(marks.commissions[r.ID]),
			Drain: plan.Drain(marks.modes[r.ID]),
		}, now)
	}
	for _, s := range c.view.Stores() {
		if s.Listed && !listed[s.ID] {
			c.view.Forget(s.ID)
			break // the slice has changed; the next one in the next round
		}
	}
	return nil
}
