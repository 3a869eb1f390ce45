package node

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/internal/base"
)

func TestARemovedNodeIsReplacedAndNeverComesBack(t *testing.T) {
	seed := startSeed(t)
	ps := byAddress(startProcs(t, 4))
	initAll(t, ps[0], ps, 4)
	settled(t, ps[0], 4)
	l := newLedger(seed)
	l.put(t, ps[0], 40, 4)
	victim := ps[3]
	id := victim.id(t)
	remove := func(dead bool) error {
		_, err := ps[0].admin().RemoveNode(testContext(t), &pb.RemoveNodeRequest{NodeId: id, Dead: dead})
		return err
	}
	refused := func(what, want string, err error) {
		t.Helper()
		if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", what, err, want)
		}
	}
	refused("a node with replicas", "decommission it first", remove(false))
	refused("a live node as dead", "is alive", remove(true))
	if _, err := ps[0].admin().RemoveNode(testContext(t), &pb.RemoveNodeRequest{NodeId: 99}); status.Code(err) != codes.NotFound {
		t.Errorf("an unknown node: %v", err)
	}
	victim.kill(50, seed)
	eventually(t, "it counts as dead", func(ctx context.Context) error {
		_, err := ps[0].admin().RemoveNode(ctx, &pb.RemoveNodeRequest{NodeId: id, Dead: true})
		return err
	})
	for _, p := range ps[:3] { // those that answer know at once
		if !p.n.member.Load().book.isFenced(base.StoreID(id)) {
			t.Errorf("%s has not fenced it", p.name)
		}
	}
	if err := remove(true); err != nil {
		t.Errorf("a second time: %v", err)
	}
	refusedForGood(t, victim)
	l.check(t, ps[1])
	nodes, err := ps[1].admin().ListNodes(testContext(t), &pb.ListNodesRequest{})
	if err != nil || nodes.Nodes[id-1].Commission != "removed" {
		t.Errorf("nodes %v %v", nodes, err)
	}
}

// TestANodeIsNotRemovedAsDeadWhereAShardNeedsIt: with two of three nodes down neither may be struck out, since a shard
// has no quorum without it; a recovery is for that.
func TestANodeIsNotRemovedAsDeadWhereAShardNeedsIt(t *testing.T) {
	seed := startSeed(t)
	ps := byAddress(startProcs(t, 5))
	initAll(t, ps[0], ps, 5)
	settled(t, ps[0], 5)
	// The meta shard is on the first three; shards on (1,2,3), (2,3,4), (3,4,5), (4,5,1), (5,1,2) of them.
	ids := []uint64{ps[3].id(t), ps[4].id(t)}
	ps[3].kill(50, seed)
	ps[4].kill(50, seed)
	eventually(t, "refusal", func(ctx context.Context) error {
		_, err := ps[0].admin().RemoveNode(ctx, &pb.RemoveNodeRequest{NodeId: ids[0], Dead: true})
		if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "recover-quorum") {
			return fmt.Errorf("remove: %v", err)
		}
		return nil
	})
	if ps[0].n.member.Load().book.isFenced(base.StoreID(ids[0])) {
		t.Error("it was fenced all the same")
	}
	ps[3].start()
	eventually(t, "it can be removed once the other is back", func(ctx context.Context) error {
		_, err := ps[0].admin().RemoveNode(ctx, &pb.RemoveNodeRequest{NodeId: ids[1], Dead: true})
		return err
	})
}

// TestADecommissionedNodeIsRemovedWhileItRuns and ends by itself.
func TestADecommissionedNodeIsRemovedWhileItRuns(t *testing.T) {
	ps := byAddress(startProcs(t, 4))
	initAll(t, ps[0], ps, 2)
	settled(t, ps[0], 2)
	victim := ps[3]
	id := victim.id(t)
	if _, err := ps[0].admin().RemoveNode(testContext(t), &pb.RemoveNodeRequest{NodeId: id}); status.Code(err) != codes.FailedPrecondition {
		t.Fatalf("before it was decommissioned: %v", err)
	}
	eventually(t, "decommission", func(ctx context.Context) error {
		_, err := ps[0].admin().DecommissionNode(ctx, &pb.DecommissionNodeRequest{NodeId: id})
		return err
	})
	eventually(t, "removal", func(ctx context.Context) error {
		_, err := ps[0].admin().RemoveNode(ctx, &pb.RemoveNodeRequest{NodeId: id})
		return err
	})
	select {
	case <-victim.done:
	case <-time.After(patience):
		t.Fatal("it goes on")
	}
	if victim.err == nil || !strings.Contains(victim.err.Error(), "removed from the cluster") {
		t.Errorf("it ended with %v", victim.err)
	}
}
