package node

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/shardd/shardd/internal/base"
)

// findShard returns the newest descriptor of a shard that this node can find: that of the local replica or, on the meta
// leader, of the reports; else the one of the index, which is a walk, since the index is ordered by keys.
func (m *member) findShard(ctx context.Context, id base.ShardID) (*base.Descriptor, error) {
	if id == base.MetaShard {
		return m.metaDesc(), nil
	}
	var best *base.Descriptor
	if d, ok := m.store.Descriptor(id); ok && d != nil {
		best = d
	}
	if _, leads := m.leadsMeta(); leads {
		if d, ok := m.reports.view.Descriptor(id); ok && (best == nil || d.Epoch.Newer(best.Epoch)) {
			best = d
		}
	}
	if best != nil {
		return best, nil
	}
	return m.indexed(ctx, id)
}

// indexed finds a shard in the index.
func (m *member) indexed(ctx context.Context, id base.ShardID) (*base.Descriptor, error) {
	for after := []byte(nil); ; {
		page, next, err := m.dir.ListShards(ctx, after, maxListPage)
		if err != nil {
			return nil, directoryStatus(err)
		}
		for _, s := range page {
			if s.Desc.Shard == id {
				return s.Desc, nil
			}
		}
		if after = next; next == nil {
			return nil, status.Errorf(codes.NotFound, "no shard %s", id)
		}
	}
}

// leaderOf returns the node that is thought to lead a shard, 0 if nothing is known.
func (m *member) leaderOf(d *base.Descriptor) base.StoreID {
	if d.Shard == base.MetaShard {
		return m.metaLeader()
	}
	return m.hint([]*base.Descriptor{d})[0].Leader
}

// notLead is what a node answers that does not lead the shard; leader is 0 if it does not know who does.
type notLead struct{ leader base.StoreID }

func (e *notLead) Error() string {
	return fmt.Sprintf("it does not lead; the leader may be %s", e.leader)
}

// atLeader calls the node that leads a shard: first the one that is thought to, then where the answers point, then the
// replicas in turn, until one call ends with something else than *notLead or Unavailable, or ctx ends (Unavailable).
func (m *member) atLeader(ctx context.Context, id base.ShardID, call func(at base.StoreID) error) error {
	d, err := m.findShard(ctx, id)
	if err != nil {
		return err
	}
	at, hinted := m.leaderOf(d), true
	for turn, failed := 0, 0; ; {
		if at == 0 {
			at, hinted = d.Replicas[turn%len(d.Replicas)].Store, false
			turn++
		}
		err := call(at)
		not, isNot := err.(*notLead)
		if !isNot && status.Code(err) != codes.Unavailable {
			return err
		}
		last := fmt.Errorf("%s: %w", at, err)
		next := base.StoreID(0)
		if isNot && not.leader != at {
			next = not.leader
		}
		if next != 0 && !hinted {
			at, hinted = next, true // follow it at once
			continue
		}
		at, hinted = next, next != 0
		if failed++; failed%len(d.Replicas) == 0 {
			// Nobody of those leads: have they moved?
			if newer, err := m.indexedOrMeta(ctx, id); err == nil && newer.Epoch.Newer(d.Epoch) {
				d = newer
			}
		}
		pause(ctx, initPoll)
		if ctx.Err() != nil {
			return status.Errorf(codes.Unavailable, "no leader of %s could be asked; last: %v", id, last)
		}
	}
}

func (m *member) indexedOrMeta(ctx context.Context, id base.ShardID) (*base.Descriptor, error) {
	if id == base.MetaShard {
		return m.metaDesc(), nil
	}
	read, cancel := context.WithTimeout(ctx, forwardTimeout)
	defer cancel()
	return m.indexed(read, id)
}

// leaderTimeout bounds the search for a leader together with the call at it.
const leaderTimeout = 10 * time.Second
