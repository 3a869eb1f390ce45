package node

import (
	"context"
	"errors"
	"math/rand/v2"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/shard"
)

// Orphans (I5). A replica that missed its own removal hears of its group no more. It asks those that may know: the
// members of its own last descriptor, and those that the index has. What an initialised replica has applied is proof,
// if its descriptor does not list the asking replica and gives out higher ids: the id can never be a member again. The
// index itself is none, nor is silence, nor a node that says it has no replica. A replica that is still listed stays,
// also a faulted one: it goes when it has been replaced.

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
		pause(ctx, every/2+rand.N(every))
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
	proof, from := m.proofOfRemoval(ctx, o)
	if proof == nil {
		m.n.metrics.orphanAsks.WithLabelValues("kept").Inc()
		return
	}
	name := base.ReplicaName(o.Shard, o.Replica)
	if err := m.store.RemoveReplica(ctx, o.Shard, o.Replica, proof); err != nil {
		m.n.metrics.orphanAsks.WithLabelValues("failed").Inc()
		m.log.Warn("remove replica that is no member any more", "replica", name, "proof", proof.String(), "err", err)
		return
	}
	m.n.metrics.orphanAsks.WithLabelValues("removed").Inc()
	m.log.Info("replica removed: it is no member any more", "replica", name, "was", o.Reason, "proof", proof.String(),
		"from", from.String())
}

// proofOfRemoval asks the nodes that may have a replica of the orphan's shard.
func (m *member) proofOfRemoval(ctx context.Context, o shard.Orphan) (*base.Descriptor, base.StoreID) {
	asked := map[base.StoreID]bool{m.self: true}
	ask := func(d *base.Descriptor) (*base.Descriptor, base.StoreID) {
		if d == nil {
			return nil, 0
		}
		for _, r := range d.Replicas {
			if asked[r.Store] || ctx.Err() != nil {
				continue
			}
			asked[r.Store] = true
			got, err := m.appliedAt(ctx, r.Store, o.Shard)
			if err != nil {
				m.log.Debug("ask about replica without leader", "replica", base.ReplicaName(o.Shard, o.Replica),
					"node", r.Store.String(), "err", err)
				continue
			}
			if provesRemoval(got, o) {
				return got, r.Store
			}
		}
		return nil, 0
	}
	if d, at := ask(o.Desc); d != nil {
		return d, at
	}
	var d *base.Descriptor
	var err error
	if o.Shard == base.MetaShard {
		d = m.metaDesc()
	} else if d, err = m.indexedDesc(ctx, o); err != nil {
		m.log.Debug("find members of an orphan", "replica", base.ReplicaName(o.Shard, o.Replica), "err", err)
	}
	return ask(d)
}

// indexedDesc finds the shard of an orphan in the index: by its range, if the orphan has one.
func (m *member) indexedDesc(ctx context.Context, o shard.Orphan) (*base.Descriptor, error) {
	if o.Desc != nil {
		shards, err := m.dir.Lookup(ctx, o.Desc.Start, 1, false)
		if err != nil {
			return nil, err
		}
		if len(shards) > 0 && shards[0].Desc.Shard == o.Shard {
			return shards[0].Desc, nil
		}
	}
	return m.indexed(ctx, o.Shard)
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
	if len(resp.Descriptor_) == 0 {
		return nil, errNoDescriptor
	}
	d, _, err := base.DecodeDescriptor(resp.Descriptor_)
	if err != nil {
		return nil, status.Errorf(codes.DataLoss, "descriptor from %s: %v", at, err)
	}
	return d, nil
}
