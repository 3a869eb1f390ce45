package node

import (
	"context"
	"errors"
	"math/rand/v2"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/engine"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/clock"
	"github.com/shardd/shardd/shard"
)

// Orphans (I5). A replica that missed its own removal hears of its group no more. It asks those that may know: the
// members of its own last descriptor, and those that the index has. What an initialised replica has applied is proof,
// if its descriptor does not list the asking replica and gives out higher ids: the id can never be a member again. The
// index itself is none, nor is silence, nor a node that says it has no replica. A replica that is still listed stays,
// also a faulted one: it goes when it has been replaced.
//
// Of a shard that was merged into its neighbour there are no members any more. The mark that it left on a store that had
// it is proof for every other one. If the index does not have the shard, that is asked for where its range is now, and
// then of every node.

const (
	// orphanPause is the time between rounds, in report intervals, jittered by half; orphanAsks the most orphans that
	// one round asks about; orphanPatience the longest pause between questions about one of them, in rounds.
	orphanPause    = 2
	orphanAsks     = 32
	orphanPatience = 16
)

// orphanAsk remembers when to ask about an orphan again.
type orphanAsk struct {
	replica base.ReplicaID
	rounds  int // to wait still
	pause   int // after the next question
}

// orphanLoop removes replicas of this store that are proved not to be members any more.
func (m *member) orphanLoop(ctx context.Context) {
	asked := make(map[base.ShardID]*orphanAsk)
	for {
		every := orphanPause * m.n.cfg.Settings.ReportInterval
		pause(ctx, clock.InStep(every/2+rand.N(every), every/8))
		if ctx.Err() != nil {
			return
		}
		m.reconcile(ctx, asked)
	}
}

// reconcile is one round.
func (m *member) reconcile(ctx context.Context, asked map[base.ShardID]*orphanAsk) {
	orphans := m.store.Orphans()
	m.n.metrics.orphans.Set(float64(len(orphans)))
	listed := make(map[base.ShardID]bool, len(orphans))
	budget := orphanAsks
	for _, o := range orphans {
		listed[o.Shard] = true
		a := asked[o.Shard]
		if a == nil || a.replica != o.Replica {
			a = &orphanAsk{replica: o.Replica, pause: 1}
			asked[o.Shard] = a
		}
		if a.rounds > 0 {
			a.rounds--
			continue
		}
		if budget--; budget < 0 || ctx.Err() != nil {
			return // the others come first in a later round: these wait then
		}
		a.rounds, a.pause = a.pause, min(2*a.pause, orphanPatience)
		m.askAboutOrphan(ctx, o)
	}
	for id := range asked {
		if !listed[id] {
			delete(asked, id)
		}
	}
}

// askAboutOrphan looks for a proof and removes the replica on one.
func (m *member) askAboutOrphan(ctx context.Context, o shard.Orphan) {
	ctx, cancel := context.WithTimeout(ctx, leaderTimeout)
	defer cancel()
	proof := m.proofOfRemoval(ctx, o)
	name := base.ReplicaName(o.Shard, o.Replica)
	var err error
	switch {
	case proof.merged:
		err = m.store.RemoveMerged(ctx, o.Shard, o.Replica)
	case proof.desc != nil:
		err = m.store.RemoveReplica(ctx, o.Shard, o.Replica, proof.desc)
	default:
		m.n.metrics.orphanAsks.WithLabelValues("kept").Inc()
		return
	}
	if err != nil {
		m.n.metrics.orphanAsks.WithLabelValues("failed").Inc()
		m.log.Warn("remove replica that is no member any more", "replica", name, "proof", proof.String(), "err", err)
		return
	}
	m.n.metrics.orphanAsks.WithLabelValues("removed").Inc()
	m.log.Info("replica removed: it is no member any more", "replica", name, "was", o.Reason, "proof", proof.String(),
		"from", proof.from.String())
}

// proofOf is what a node knows that proves a replica to be gone for good; the zero value: nothing.
type proofOf struct {
	desc   *base.Descriptor // the shard's, without the replica
	merged bool             // the shard was merged away
	from   base.StoreID
}

func (p *proofOf) found() bool { return p.merged || p.desc != nil }

func (p *proofOf) String() string {
	if p.merged {
		return "merged away"
	}
	return p.desc.String()
}

// proofOfRemoval asks the nodes that may have a replica of the orphan's shard.
func (m *member) proofOfRemoval(ctx context.Context, o shard.Orphan) (p proofOf) {
	asked := map[base.StoreID]bool{m.self: true}
	ask := func(at base.StoreID) {
		if asked[at] || p.found() || ctx.Err() != nil {
			return
		}
		asked[at] = true
		var err error
		if p, err = m.proofAt(ctx, at, o); err != nil {
			m.log.Debug("ask about replica without leader", "replica", base.ReplicaName(o.Shard, o.Replica),
				"node", at.String(), "err", err)
		}
	}
	members := func(d *base.Descriptor) {
		if d != nil {
			for _, r := range d.Replicas {
				ask(r.Store)
			}
		}
	}
	if members(o.Desc); p.found() {
		return p
	}
	if o.Shard == base.MetaShard {
		members(m.metaDesc())
		return p
	}
	own, owner, err := m.indexedDescs(ctx, o)
	if members(own); p.found() || own != nil {
		return p
	}
	if status.Code(err) != codes.NotFound {
		m.log.Debug("find members of an orphan", "replica", base.ReplicaName(o.Shard, o.Replica), "err", err)
		return p
	}
	members(owner)
	for at := range m.book.all() {
		ask(at)
	}
	return p
}

// indexedDescs finds the shard of an orphan in the index, nil with codes.NotFound if it has none, and the one that has
// the start of its range, nil if the orphan has no range.
func (m *member) indexedDescs(ctx context.Context, o shard.Orphan) (own, owner *base.Descriptor, err error) {
	if o.Desc != nil {
		shards, err := m.dir.Lookup(ctx, o.Desc.Start, 1, false)
		if err != nil {
			return nil, nil, err
		}
		if len(shards) > 0 {
			owner = shards[0].Desc
		}
		if owner != nil && owner.Shard == o.Shard {
			return owner, owner, nil
		}
	}
	own, err = m.indexed(ctx, o.Shard)
	return own, owner, err
}

// proofAt asks one node.
func (m *member) proofAt(ctx context.Context, at base.StoreID, o shard.Orphan) (proofOf, error) {
	resp, err := m.askReplica(ctx, at, o.Shard)
	if resp != nil && base.ReplicaID(resp.MarkNextReplicaId) == engine.MergedAway {
		return proofOf{merged: true, from: at}, nil
	}
	if err != nil {
		return proofOf{}, err
	}
	d, err := descriptorOf(at, resp)
	if err != nil {
		return proofOf{}, err
	}
	if !provesRemoval(d, o) {
		return proofOf{}, nil
	}
	return proofOf{desc: d, from: at}, nil
}

// provesRemoval says whether an applied descriptor proves that an orphan is no member and never will be.
func provesRemoval(d *base.Descriptor, o shard.Orphan) bool {
	_, listed := d.Replica(o.Replica)
	return d.Shard == o.Shard && !listed && d.NextReplicaID > o.Replica
}

// errNoDescriptor says that a replica has applied nothing yet.
var errNoDescriptor = errors.New("the replica there is uninitialised")

// appliedAt returns the descriptor that the replica on a node has applied.
func (m *member) appliedAt(ctx context.Context, at base.StoreID, id base.ShardID) (*base.Descriptor, error) {
	resp, err := m.askReplica(ctx, at, id)
	if err != nil {
		return nil, err
	}
	return descriptorOf(at, resp)
}

func descriptorOf(at base.StoreID, resp *pb.ReplicaResponse) (*base.Descriptor, error) {
	if len(resp.Descriptor_) == 0 {
		return nil, errNoDescriptor
	}
	d, _, err := base.DecodeDescriptor(resp.Descriptor_)
	if err != nil {
		return nil, status.Errorf(codes.DataLoss, "descriptor from %s: %v", at, err)
	}
	return d, nil
}
