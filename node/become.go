package node

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/engine"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/placement"
)

// foundingStamp is the version of every row of the meta shard's first contents, the same on all replicas.
const foundingStamp = 1

// become makes this empty node a member: the replica of the meta shard, if the descriptor lists one here, then the
// ident, each synced. The caller holds the init token and has seen that there is no ident.
//
// The ident is what counts: a crash before it leaves an empty node, whose next attempt clears what this one wrote.
func (n *Node) become(id engine.Ident, contents []placement.Pair) error {
	if rep, ok := id.Meta.ReplicaOn(id.Store); ok {
		kvs := make([]engine.KV, len(contents))
		for i, p := range contents {
			kvs[i] = engine.KV{Key: p.Key, Value: p.Value}
		}
		b := n.eng.NewBatch()
		defer b.Close()
		b.DeleteRange(base.SystemStart(), base.SystemEnd())
		b.CreateReplica(id.Meta, rep.Replica, foundingStamp, kvs)
		if err := n.eng.Commit(b, true); err != nil {
			return fmt.Errorf("write first replica of the meta shard: %w", err)
		}
	}
	if err := n.point("meta replica written"); err != nil {
		return err
	}
	if err := n.eng.WriteIdent(id); err != nil {
		return fmt.Errorf("write ident: %w", err)
	}
	if err := n.point("ident written"); err != nil {
		return err
	}
	close(n.identSet)
	n.log.Info("became a member", "cluster", id.Cluster.String(), "node", id.Store.String())
	return nil
}

// identOf builds the ident of a new member.
func identOf(c base.ClusterID, self base.StoreID, meta *base.Descriptor, addrs map[base.StoreID]string) engine.Ident {
	id := engine.Ident{Cluster: c, Store: self, Meta: meta}
	for _, s := range slices.Sorted(maps.Keys(addrs)) {
		if s != self {
			id.Peers = append(id.Peers, engine.PeerRecord{Store: s, Addr: addrs[s]})
		}
	}
	return id
}

// Adopt implements InternalService: the founder makes this node a member.
func (s *internalService) Adopt(ctx context.Context, req *pb.AdoptRequest) (*pb.AdoptResponse, error) {
	n := s.n
	cluster, err := clusterID(req.ClusterId)
	if err != nil {
		return nil, err
	}
	meta, rest, err := base.DecodeDescriptor(req.MetaDescriptor)
	if err != nil || len(rest) > 0 || meta.Shard != base.MetaShard || req.NodeId == 0 {
		return nil, status.Errorf(codes.InvalidArgument, "adopt: node %d with meta descriptor %v: %v", req.NodeId, meta, err)
	}
	if err := n.lockInit(ctx); err != nil {
		return nil, status.FromContextError(err).Err()
	}
	defer n.unlockInit()
	if id, ok := n.eng.Ident(); ok {
		if id.Cluster != cluster {
			return nil, otherCluster(n.addr, id.Cluster, cluster)
		}
		if id.Store != base.StoreID(req.NodeId) {
			return nil, status.Errorf(codes.FailedPrecondition,
				"node %s is %s of this cluster, not n%d (exit code %d)", n.addr, id.Store, req.NodeId, engine.ExitOtherStore)
		}
		return &pb.AdoptResponse{Incarnation: id.Incarnation}, nil
	}
	contents := make([]placement.Pair, len(req.MetaData))
	for i, kv := range req.MetaData {
		if len(kv.Key) < 2 || kv.Key[0] != base.SpaceSystem {
			return nil, status.Errorf(codes.InvalidArgument, "adopt: key %x lies outside the meta shard", kv.Key)
		}
		contents[i] = placement.Pair{Key: kv.Key, Value: kv.Value}
	}
	if err := n.become(identOf(cluster, base.StoreID(req.NodeId), meta, addresses(req.Addresses)), contents); err != nil {
		return nil, status.Errorf(codes.Internal, "adopt: %v", err)
	}
	return &pb.AdoptResponse{}, nil
}

// otherCluster is the refusal of a node that belongs to have, asked in the name of want.
func otherCluster(addr string, have, want base.ClusterID) error {
	return status.Errorf(codes.FailedPrecondition,
		"node %s belongs to cluster %s and refuses cluster %s (exit code %d): use an empty data directory",
		addr, have, want, engine.ExitOtherCluster)
}

func clusterID(b []byte) (c base.ClusterID, err error) {
	if len(b) != len(c) {
		return c, status.Errorf(codes.InvalidArgument, "cluster id of %d bytes, want %d", len(b), len(c))
	}
	copy(c[:], b)
	return c, nil
}

func addresses(in map[uint64]string) map[base.StoreID]string {
	out := make(map[base.StoreID]string, len(in))
	for id, a := range in {
		out[base.StoreID(id)] = a
	}
	return out
}

// joinLoop asks the members at Config.Join for membership until one gives it, the node is made a member otherwise, or
// ctx ends.
func (n *Node) joinLoop(ctx context.Context) error {
	nonce := make([]byte, 16)
	rand.Read(nonce) // never fails
	pause := 100 * time.Millisecond
	for {
		for _, addr := range n.cfg.Join {
			done, err := n.join(ctx, addr, nonce)
			if done {
				return err
			}
			if err != nil && ctx.Err() == nil {
				n.log.Info("join: no answer yet", "addr", addr, "err", err)
			}
		}
		t := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			t.Stop()
			return nil
		case <-n.identSet:
			t.Stop()
			return nil
		case <-t.C:
		}
		pause = min(2*pause, 2*time.Second)
	}
}

// join asks one member. done: there is nothing left to ask for, or no use in asking.
func (n *Node) join(ctx context.Context, addr string, nonce []byte) (done bool, err error) {
	if addr == n.addr {
		return false, nil
	}
	cc, err := n.conns.to(addr)
	if err != nil {
		return false, err
	}
	ask, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	resp, err := pb.NewInternalServiceClient(cc).Join(ask, &pb.JoinRequest{
		Address: n.addr, HttpAddress: n.publicHTTP(), Labels: n.cfg.Labels, Version: n.cfg.Version, Nonce: nonce,
	})
	if err != nil {
		return false, err
	}
	cluster, err := clusterID(resp.ClusterId)
	if err != nil {
		return false, err
	}
	meta, _, err := base.DecodeDescriptor(resp.MetaDescriptor)
	if err != nil {
		return false, fmt.Errorf("join answer of %s: %w", addr, err)
	}
	if err := n.lockInit(ctx); err != nil {
		return true, nil
	}
	defer n.unlockInit()
	if _, ok := n.eng.Ident(); ok {
		return true, nil
	}
	return true, n.become(identOf(cluster, base.StoreID(resp.NodeId), meta, addresses(resp.Addresses)), nil)
}

// Join implements InternalService: a node without ident asks to become a member.
func (s *internalService) Join(ctx context.Context, req *pb.JoinRequest) (*pb.JoinResponse, error) {
	m, err := s.n.needMember()
	if err != nil {
		return nil, err
	}
	// A founding node may have been told to join as well: it is adopted, under the id that the first contents gave it.
	f, err := m.dir.Founding(ctx)
	if err != nil {
		return nil, directoryStatus(err)
	}
	if f != nil {
		return nil, status.Error(codes.Unavailable, "the cluster is still being made: ask again")
	}
	id, err := m.dir.Join(ctx, req.Nonce, placement.Node{
		Address: req.Address, HTTP: req.HttpAddress, Version: req.Version, Labels: req.Labels,
	})
	if err != nil {
		return nil, directoryStatus(err)
	}
	nodes, err := m.dir.Nodes(ctx)
	if err != nil {
		return nil, directoryStatus(err)
	}
	resp := &pb.JoinResponse{
		ClusterId: m.cluster[:], NodeId: uint64(id), MetaDescriptor: m.metaDesc().Append(nil), Addresses: map[uint64]string{},
	}
	for _, r := range nodes {
		resp.Addresses[uint64(r.ID)] = r.Address
	}
	m.log.Info("node joined", "joined", id.String(), "addr", req.Address)
	return resp, nil
}

// directoryStatus maps errors of the directory to gRPC.
func directoryStatus(err error) error {
	switch {
	case errors.Is(err, placement.ErrInvalid):
		return status.Error(codes.InvalidArgument, err.Error())
	case errors.Is(err, placement.ErrNotFound):
		return status.Error(codes.NotFound, err.Error())
	case errors.Is(err, placement.ErrStale):
		return status.Error(codes.FailedPrecondition, err.Error())
	case errors.Is(err, base.ErrCorrupt):
		return status.Error(codes.DataLoss, err.Error())
	}
	return status.Errorf(codes.Unavailable, "meta shard: %v", err)
}
