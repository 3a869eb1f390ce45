package node

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/placement"
)

const (
	foundingPoll = 50 * time.Millisecond
	// createPage is how many shards are made before their flags are cleared.
	createPage = 512
	// createAtOnce is how many replicas a store makes at the same time: each needs a synced write, and they share syncs.
	createAtOnce = 64
)

// foundingLoop finishes the making of the cluster. It runs at every start of every node: while there is a replica of the
// meta shard here, which may come later, it looks for the founding record, and it ends once a replica has none. The
// founder adopts the other nodes, since before that there may be no quorum; whoever leads the meta shard adopts as well,
// and makes the shards.
func (m *member) foundingLoop(ctx context.Context) {
	adopted := map[base.StoreID]bool{m.self: true}
	var last string
	for {
		if !m.hasMeta() {
			if pause(ctx, m.n.cfg.Settings.ReportInterval); ctx.Err() != nil {
				return
			}
			continue
		}
		f, err := m.localFounding()
		if err == nil && f == nil {
			if m.hasMeta() { // it was there when the record was not
				return
			}
			continue
		}
		if err == nil {
			err = m.advanceFounding(ctx, f, adopted)
		}
		if ctx.Err() != nil {
			return
		}
		if err != nil && err.Error() != last {
			last = err.Error()
			m.log.Warn("making the cluster: will be repeated", "err", err)
		}
		if pause(ctx, foundingPoll); ctx.Err() != nil {
			return
		}
	}
}

// localFounding reads the founding record of this node's replica. It may be behind: then steps are repeated.
func (m *member) localFounding() (*placement.Founding, error) {
	_, v, ok, err := m.n.eng.Get(placement.FoundingKey(), nil)
	if err != nil {
		return nil, fmt.Errorf("read founding record: %w", err)
	}
	if !ok {
		return nil, nil
	}
	return placement.DecodeFounding(v)
}

// advanceFounding runs the next steps that this node is in charge of. adopted collects the nodes that need nothing.
func (m *member) advanceFounding(ctx context.Context, f *placement.Founding, adopted map[base.StoreID]bool) error {
	_, leads := m.leadsMeta()
	if !leads && m.self != f.Nodes[0].ID {
		return nil
	}
	// The local replica may be far behind. A finished cluster adopts nobody: a node at a founding address that is empty
	// now has lost its disk and must not come back under its old name. In its first life the founder need not ask, and
	// without a quorum there is nobody to ask.
	if leads || m.incarnation > 1 {
		ask, cancel := context.WithTimeout(ctx, forwardTimeout)
		now, err := m.dir.Founding(ask)
		cancel()
		if err == nil && now == nil {
			return nil
		}
	}
	errs := []error{m.adoptAll(ctx, f, adopted)}
	if _, leads = m.leadsMeta(); !leads {
		return errors.Join(errs...)
	}
	open, err := m.createShards(ctx)
	errs = append(errs, err)
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if open == 0 && len(adopted) == len(f.Nodes) {
		if err := m.dir.FinishFounding(ctx); err != nil {
			return err
		}
		m.log.Info("cluster is made", "cluster", m.cluster.String())
	}
	return nil
}

// adoptAll asks every founding node that is not known to be a member to become one.
func (m *member) adoptAll(ctx context.Context, f *placement.Founding, adopted map[base.StoreID]bool) error {
	meta, _ := f.Descriptors()
	var contents []*pb.KeyValue
	var errs []error
	for _, r := range f.Nodes {
		if adopted[r.ID] {
			continue
		}
		// A node that has registered is a member. Were it asked again after losing its disk, a voter without its log would
		// come back under its old name.
		if ok, err := m.hasRegistered(r.ID); err != nil || ok {
			adopted[r.ID] = ok
			if err != nil {
				delete(adopted, r.ID)
				errs = append(errs, err)
			}
			continue
		}
		if contents == nil {
			for _, p := range f.Contents() {
				contents = append(contents, &pb.KeyValue{Key: p.Key, Value: p.Value})
			}
		}
		req := &pb.AdoptRequest{
			ClusterId: m.cluster[:], NodeId: uint64(r.ID), MetaDescriptor: meta.Append(nil), MetaData: contents,
			Addresses: map[uint64]string{},
		}
		for id, addr := range foundingAddrs(f) {
			req.Addresses[uint64(id)] = addr
		}
		if err := m.adopt(ctx, r, req); err != nil {
			errs = append(errs, fmt.Errorf("adopt %s at %s: %w", r.ID, r.Address, err))
			continue
		}
		adopted[r.ID] = true
		if err := m.n.point("node adopted"); err != nil {
			return err
		}
	}
	return errors.Join(errs...)
}

func (m *member) adopt(ctx context.Context, r placement.Node, req *pb.AdoptRequest) error {
	cc, err := m.n.conns.to(r.Address)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	_, err = pb.NewInternalServiceClient(cc).Adopt(ctx, req)
	return err
}

func (m *member) hasRegistered(id base.StoreID) (bool, error) {
	_, v, ok, err := m.n.eng.Get(placement.NodeKey(id), nil)
	if err != nil || !ok {
		return false, err
	}
	r, err := placement.DecodeNode(v)
	return r.Incarnation > 0, err
}

// createShards makes the replicas of shards that are flagged creating and clears the flags of those that exist on all
// their stores. It returns how many are left.
func (m *member) createShards(ctx context.Context) (open int, err error) {
	for {
		shards, err := m.dir.Creating(ctx, createPage)
		if err != nil || len(shards) == 0 {
			return 0, err
		}
		byStore := map[base.StoreID][]*base.Descriptor{}
		for _, s := range shards {
			for _, r := range s.Desc.Replicas {
				byStore[r.Store] = append(byStore[r.Store], s.Desc)
			}
		}
		missing, err := m.createOn(ctx, byStore)
		if perr := m.n.point("replicas made"); perr != nil {
			return len(shards), perr
		}
		var made []*base.Descriptor
		for _, s := range shards {
			if !missing[s.Desc.Shard] {
				made = append(made, s.Desc)
			}
		}
		if merr := m.dir.MarkCreated(ctx, made); merr != nil {
			return len(shards), errors.Join(err, merr)
		}
		if err != nil {
			return len(shards) - len(made), err
		}
		if err := m.n.point("flags cleared"); err != nil {
			return len(shards), err
		}
	}
}

// createOn asks the stores to make replicas, all at the same time, and returns the shards that not every store has made.
func (m *member) createOn(ctx context.Context, byStore map[base.StoreID][]*base.Descriptor) (
	map[base.ShardID]bool, error) {
	var mu sync.Mutex
	var errs []error
	missing := map[base.ShardID]bool{}
	var wg sync.WaitGroup
	for id, descs := range byStore {
		wg.Go(func() {
			err := m.createAt(ctx, id, descs)
			if err == nil {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			errs = append(errs, fmt.Errorf("make %d replicas on %s: %w", len(descs), id, err))
			for _, d := range descs {
				missing[d.Shard] = true
			}
		})
	}
	wg.Wait()
	return missing, errors.Join(errs...)
}

func (m *member) createAt(ctx context.Context, id base.StoreID, descs []*base.Descriptor) error {
	if id == m.self {
		return m.create(descs)
	}
	c, err := m.internal(id)
	if err != nil {
		return err
	}
	req := &pb.CreateReplicasRequest{ClusterId: m.cluster[:]}
	for _, d := range descs {
		req.Descriptors = append(req.Descriptors, d.Append(nil))
	}
	ctx, cancel := context.WithTimeout(ctx, 2*callTimeout)
	defer cancel()
	_, err = c.CreateReplicas(ctx, req)
	return err
}

// create makes this store's replicas of new shards; the one listed first campaigns.
func (m *member) create(descs []*base.Descriptor) error {
	var mu sync.Mutex
	var errs []error
	var wg sync.WaitGroup
	for from := range min(createAtOnce, len(descs)) {
		wg.Go(func() {
			for i := from; i < len(descs); i += createAtOnce {
				d := descs[i]
				err := m.store.Create(d, nil, len(d.Replicas) > 0 && d.Replicas[0].Store == m.self)
				if err != nil {
					mu.Lock()
					errs = append(errs, fmt.Errorf("make replica of %s: %w", d, err))
					mu.Unlock()
					return
				}
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// CreateReplicas implements InternalService.
func (s *internalService) CreateReplicas(ctx context.Context, req *pb.CreateReplicasRequest) (
	*pb.CreateReplicasResponse, error) {
	m, err := s.member(ctx, req.ClusterId)
	if err != nil {
		return nil, err
	}
	var descs []*base.Descriptor
	for _, b := range req.Descriptors {
		d, rest, err := base.DecodeDescriptor(b)
		if err != nil || len(rest) > 0 {
			return nil, status.Errorf(codes.InvalidArgument, "create replicas: descriptor: %v", err)
		}
		if _, ok := d.ReplicaOn(m.self); !ok || d.Shard == base.MetaShard {
			return nil, status.Errorf(codes.InvalidArgument, "create replicas: %s is not for %s", d, m.self)
		}
		descs = append(descs, d)
	}
	if err := m.create(descs); err != nil {
		return nil, status.Errorf(codes.FailedPrecondition, "%v", err)
	}
	return &pb.CreateReplicasResponse{}, nil
}
