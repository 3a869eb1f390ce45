package node

import (
	"context"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/placement"
	"github.com/shardd/shardd/shard"
)

// jobWorld is what jobs see and do outside the meta shard's records. Errors are gRPC statuses; see changeReplicas.
type jobWorld interface {
	// leads says whether this node leads the meta shard, and at which term.
	leads() (term uint64, ok bool)
	// now looks at a shard. NotFound: there is none.
	now(ctx context.Context, id base.ShardID) (*placement.ShardNow, error)
	// change returns once the change is applied at the leader.
	change(ctx context.Context, id base.ShardID, confVer uint64, changes []placement.Change) error
	// transfer moves a leadership.
	transfer(ctx context.Context, id base.ShardID, to base.StoreID) error
	// disk says whether a node has anything of a shard.
	disk(ctx context.Context, at base.StoreID, id base.ShardID) placement.DiskState
	// verify compares the replicas of a shard.
	verify(ctx context.Context, id base.ShardID, rate uint64, report func(done, total uint64)) ([]string, error)
	// nodes returns what is known of all registered nodes.
	nodes(ctx context.Context) (map[base.StoreID]placement.NodeNow, error)
	// find returns the descriptor of the shard that holds a routing key, as the index has it.
	find(ctx context.Context, key []byte) (*base.Descriptor, error)
	// split returns once the split is applied at the leader; how many keys were chosen if none were given. It is refused,
	// FailedPrecondition, unless the shard's epoch is that of the descriptor.
	split(ctx context.Context, ask splitAsk) error
	// merge makes one attempt to merge a shard into its left neighbour; note is told of its phases. FailedPrecondition:
	// the two cannot be merged as they are; Aborted: it was not made, another attempt may be.
	merge(ctx context.Context, left, right base.ShardID, note func(phase string)) error
	// picker returns what chooses the node for a replica that leaves one, nil for placement.PickTarget.
	picker(from base.StoreID) func(*base.Descriptor, map[base.StoreID]placement.NodeNow) (base.StoreID, string)
	// fits returns what says whether the rules hold as well with a replica on another node.
	fits() func(d *base.Descriptor, from, to base.StoreID) bool
	// leader returns the node that is thought to lead a shard, 0 if nothing is known.
	leader(d *base.Descriptor) base.StoreID
	// listing returns the shards that list a node as far as the reports say.
	listing(id base.StoreID) []*base.Descriptor
}

// splitAsk is one command to split a shard: at keys, or into parts that its leader chooses.
type splitAsk struct {
	desc  *base.Descriptor
	keys  [][]byte
	by    placement.SplitBy
	parts uint32
	bytes uint64 // of the shard, about
}

// memberWorld is the jobWorld of a running node.
type memberWorld struct{ m *member }

func (w memberWorld) leads() (uint64, bool) { return w.m.leadsMeta() }

func (w memberWorld) now(ctx context.Context, id base.ShardID) (*placement.ShardNow, error) {
	return w.m.shardNow(ctx, id)
}

func (w memberWorld) change(ctx context.Context, id base.ShardID, confVer uint64, changes []placement.Change) error {
	ops := map[placement.ChangeOp]shard.ReplicaOp{
		placement.ChangeAddLearner: shard.AddLearner, placement.ChangePromote: shard.Promote,
		placement.ChangeDemote: shard.Demote, placement.ChangeRemove: shard.Remove,
	}
	out := make([]shard.ReplicaChange, len(changes))
	for i, c := range changes {
		out[i] = shard.ReplicaChange{Op: ops[c.Op], Store: c.Store, Replica: c.Replica}
	}
	_, err := w.m.changeReplicas(ctx, id, confVer, out)
	return err
}

func (w memberWorld) transfer(ctx context.Context, id base.ShardID, to base.StoreID) error {
	_, _, err := w.m.moveLeader(ctx, id, to)
	return err
}

// diskTimeout bounds the question to a node whether it has a replica.
const diskTimeout = 2 * time.Second

func (w memberWorld) disk(ctx context.Context, at base.StoreID, id base.ShardID) placement.DiskState {
	ctx, cancel := context.WithTimeout(ctx, diskTimeout)
	defer cancel()
	_, err := w.m.askReplica(ctx, at, id)
	switch status.Code(err) {
	case codes.OK:
		return placement.DiskHolds
	case codes.NotFound:
		return placement.DiskGone
	}
	st, heard := w.m.reports.view.Stores()[at]
	if heard && !st.Alive || !heard && w.m.jobs.leadsFor() >= placement.AliveFor {
		return placement.DiskDown
	}
	return placement.DiskSilent
}

func (w memberWorld) verify(ctx context.Context, id base.ShardID, rate uint64, report func(done, total uint64)) (
	[]string, error) {
	return w.m.verifyShard(ctx, id, rate, report)
}

func (w memberWorld) nodes(ctx context.Context) (map[base.StoreID]placement.NodeNow, error) {
	records, err := w.m.nodes(ctx)
	if err != nil {
		return nil, err
	}
	marks, err := readMarks(ctx, w.m.dir)
	if err != nil {
		return nil, err
	}
	stores := w.m.reports.view.Stores()
	out := make(map[base.StoreID]placement.NodeNow, len(records))
	for _, r := range records {
		st, heard := stores[r.ID]
		out[r.ID] = placement.NodeNow{
			ID: r.ID, Heard: heard, Alive: st.Alive, Draining: marks.mode(r.ID), Level: st.Level, FreeBytes: st.FreeBytes,
			Unhealthy: st.Unhealthy, Replicas: st.Replicas, Leaders: st.Leaders,
		}
	}
	return out, nil
}
