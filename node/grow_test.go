package node

import (
	"context"
	"fmt"
	"slices"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/shard"
)

// growProcs makes a cluster of one node with shards, and n-1 nodes that have joined it.
func growProcs(t *testing.T, n, shards int) []*proc {
	t.Helper()
	ps := []*proc{newProc(t, "p0").start()}
	resp, err := ps[0].admin().Init(testContext(t), &pb.InitRequest{Splits: splitKeys(shards)})
	if err != nil || int(resp.Shards) != shards {
		t.Fatalf("init of one node: %v %v", resp, err)
	}
	for i := 1; i < n; i++ {
		ps = append(ps, joinProc(t, fmt.Sprintf("p%d", i), ps...))
	}
	return ps
}

// joinProc starts an empty node that joins by way of others, and waits until it serves.
func joinProc(t *testing.T, name string, by ...*proc) *proc {
	t.Helper()
	p := newProc(t, name)
	p.join = addrs(by)
	p.start()
	p.ready()
	return p
}

// ready waits until all checks of the node pass: the meta shard's leader has answered it.
func (p *proc) ready() {
	p.t.Helper()
	eventually(p.t, p.name+" is ready", func(ctx context.Context) error {
		h, err := p.admin().Health(ctx, &pb.HealthRequest{})
		if err == nil && !h.Ok {
			err = fmt.Errorf("checks %v", h.Checks)
		}
		return err
	})
}

// member returns the running member, once it runs.
func (p *proc) member() *member {
	p.t.Helper()
	select {
	case <-p.n.serving:
	case <-testContext(p.t).Done():
		p.t.Fatalf("%s does not come to serve", p.name)
	}
	return p.n.member.Load()
}

func (p *proc) store() base.StoreID { return p.n.self() }

// change makes one change of replicas from p, whoever leads, until the shard is as done says.
func (p *proc) change(id base.ShardID, done func(*base.Descriptor) bool, changes ...shard.ReplicaChange) {
	p.t.Helper()
	eventually(p.t, fmt.Sprintf("%v of %s", changes, id), func(ctx context.Context) error {
		now, err := p.member().shardNow(ctx, id)
		if err != nil {
			return err
		}
		if now.Joint() {
			return fmt.Errorf("joint: %s", now.Desc)
		}
		if done(now.Desc) {
			return nil
		}
		_, err = p.member().changeReplicas(ctx, id, now.Desc.Epoch.ConfVer, changes)
		switch status.Code(err) {
		case codes.OK:
			err = errPending // look again
		case codes.Aborted, codes.Unknown, codes.Unavailable:
		case codes.FailedPrecondition: // by the ConfVer, if the change before has just been made
			if again, nerr := p.member().shardNow(ctx, id); nerr == nil && again.Desc.Epoch == now.Desc.Epoch {
				p.t.Fatalf("%v of %s: %v", changes, now.Desc, err)
			}
		default:
			p.t.Fatalf("%v of %s: %v", changes, now.Desc, err)
		}
		return err
	})
}

func hasRole(at base.StoreID, role base.Role) func(*base.Descriptor) bool {
	return func(d *base.Descriptor) bool {
		r, ok := d.ReplicaOn(at)
		return ok && r.Role == role
	}
}

func gone(at base.StoreID) func(*base.Descriptor) bool {
	return func(d *base.Descriptor) bool {
		_, ok := d.ReplicaOn(at)
		return !ok
	}
}

// add makes a voter of a shard on a node.
func (p *proc) add(id base.ShardID, at base.StoreID) {
	p.t.Helper()
	p.change(id, func(d *base.Descriptor) bool { return !gone(at)(d) }, shard.ReplicaChange{Op: shard.AddLearner, Store: at})
	p.change(id, hasRole(at, base.RoleVoter), shard.ReplicaChange{Op: shard.Promote, Store: at})
}

// replace moves a voter of a shard from one node to another in one joint change.
func (p *proc) replace(id base.ShardID, from, to base.StoreID) {
	p.t.Helper()
	p.change(id, func(d *base.Descriptor) bool { return !gone(to)(d) }, shard.ReplicaChange{Op: shard.AddLearner, Store: to})
	p.change(id, hasRole(to, base.RoleVoter),
		shard.ReplicaChange{Op: shard.Promote, Store: to}, shard.ReplicaChange{Op: shard.Demote, Store: from})
	p.change(id, gone(from), shard.ReplicaChange{Op: shard.Remove, Store: from})
}

// indexed waits until the index has the voters of every shard on exactly these nodes, and everything reported is well.
func indexed(t *testing.T, p *proc, shards int, on ...*proc) {
	t.Helper()
	var want []uint64
	for _, o := range on {
		want = append(want, uint64(o.store()))
	}
	slices.Sort(want)
	settled(t, p, shards)
	eventually(t, "the index follows", func(ctx context.Context) error {
		list, err := p.admin().ListShards(ctx, &pb.ListShardsRequest{})
		if err != nil {
			return err
		}
		for _, s := range list.Shards {
			var have []uint64
			for _, r := range s.Replicas {
				if r.Role == base.RoleVoter.String() {
					have = append(have, r.NodeId)
				}
			}
			slices.Sort(have)
			if !slices.Equal(have, want) || len(s.Replicas) != len(want) {
				return fmt.Errorf("s%d is on %v, want %v", s.ShardId, s.Replicas, want)
			}
		}
		return nil
	})
}

func allShards(shards int) (out []base.ShardID) {
	for i := range shards + 1 {
		out = append(out, base.MetaShard+base.ShardID(i))
	}
	return out
}

func TestClusterGrowsFromOneNodeAndReplacesEveryNode(t *testing.T) {
	const shards = 3
	ps := growProcs(t, 3, shards)
	l := newLedger(startSeed(t))
	l.put(t, ps[2], 20, shards) // a node without replicas is a way in as good as any
	indexed(t, ps[1], shards, ps[0])
	for _, id := range allShards(shards) {
		ps[1].add(id, ps[1].store())
		ps[1].add(id, ps[2].store())
	}
	indexed(t, ps[2], shards, ps...)
	l.put(t, ps[1], 20, shards)

	old := slices.Clone(ps)
	for i, out := range old {
		in := joinProc(t, fmt.Sprintf("p%d", 3+i), ps...)
		for _, id := range allShards(shards) {
			in.replace(id, out.store(), in.store())
		}
		l.put(t, out, 5, shards) // it holds nothing any more, and still finds the way
		eventually(t, "nothing is left on the node", func(ctx context.Context) error {
			st, err := out.admin().NodeStatus(ctx, &pb.NodeStatusRequest{})
			if err == nil && st.Replicas != 0 {
				err = fmt.Errorf("%d replicas", st.Replicas)
			}
			return err
		})
		for _, id := range allShards(shards) {
			m, ok, err := out.n.eng.Mark(id)
			if err != nil || !ok || m.ReplicaID != 0 {
				t.Errorf("mark of %s on a node without it: %+v %v %v", id, m, ok, err)
			}
		}
		ps = append(slices.DeleteFunc(ps, func(p *proc) bool { return p == out }), in)
		if err := out.term(); err != nil {
			t.Fatal(err)
		}
		l.put(t, in, 10, shards)
	}
	indexed(t, ps[0], shards, ps...)
	for _, p := range ps {
		l.check(t, p)
		if d := p.member().metaDesc(); !gone(old[0].store())(d) {
			t.Errorf("%s knows the meta shard as %s", p.name, d)
		}
	}
	// All at once down and up: what the nodes know of the meta shard outlives them.
	for _, p := range ps {
		if err := p.term(); err != nil {
			t.Fatal(err)
		}
	}
	for _, p := range ps {
		p.start()
	}
	for _, p := range ps {
		p.ready()
		l.check(t, p)
	}
	for _, id := range allShards(shards) {
		findings, err := ps[0].member().verifyShard(testContext(t), id, 0, nil)
		if err != nil || len(findings) > 0 {
			t.Errorf("verify %s: %v %q", id, err, findings)
		}
	}
}

func TestNodeThatSleptFindsTheMetaShardThatMoved(t *testing.T) {
	const shards = 1
	ps := growProcs(t, 4, shards)
	sleeper := ps[3]
	if err := sleeper.term(); err != nil {
		t.Fatal(err)
	}
	// All that the sleeper knows of the meta shard is that it is on the first node.
	for _, id := range allShards(shards) {
		ps[1].replace(id, ps[0].store(), ps[1].store())
		ps[1].replace(id, ps[1].store(), ps[2].store())
	}
	indexed(t, ps[1], shards, ps[2])
	if err := ps[0].term(); err != nil {
		t.Fatal(err)
	}
	sleeper.start()
	sleeper.ready()
	l := newLedger(startSeed(t))
	l.put(t, sleeper, 10, shards)
	l.check(t, ps[1])
	eventually(t, "it learns the descriptor", func(context.Context) error {
		if d := sleeper.member().metaDesc(); gone(ps[2].store())(d) {
			return fmt.Errorf("it knows %s", d)
		}
		return nil
	})
	id, _ := sleeper.n.eng.Ident()
	if gone(ps[2].store())(id.Meta) {
		t.Errorf("its ident has %s", id.Meta)
	}
}

func TestReplicaThatMissedItsRemovalGoesOnProof(t *testing.T) {
	const shards = 2
	ps := startProcs(t, 3)
	initAll(t, ps[0], ps, shards)
	settled(t, ps[0], shards)
	late := joinProc(t, "late", ps...)
	l := newLedger(startSeed(t))
	l.put(t, ps[0], 10, shards)
	out := ps[2]
	if err := out.term(); err != nil {
		t.Fatal(err)
	}
	for _, id := range allShards(shards) {
		ps[0].replace(id, out.store(), late.store())
	}
	out.start()
	eventually(t, "its replicas go", func(context.Context) error {
		if sums := out.member().store.Summaries(); len(sums) > 0 {
			return fmt.Errorf("%d replicas are left, such as %s", len(sums), base.ReplicaName(sums[0].Shard, sums[0].Replica))
		}
		return nil
	})
	for _, id := range allShards(shards) {
		if m, ok, err := out.n.eng.Mark(id); err != nil || !ok || m.ReplicaID != 0 || m.NextReplicaID < 4 {
			t.Errorf("mark of %s: %+v %v %v", id, m, ok, err)
		}
	}
	out.ready()
	l.put(t, out, 10, shards)
	l.check(t, late)
	indexed(t, out, shards, ps[0], ps[1], late)
}

func TestReplicaWithoutProofStays(t *testing.T) {
	o := shard.Orphan{Shard: 2, Replica: 3}
	d := &base.Descriptor{Shard: 2, NextReplicaID: 5, Replicas: []base.ReplicaDesc{{Replica: 4, Store: 1}}}
	if !provesRemoval(d, o) {
		t.Error("a newer descriptor without the replica is proof")
	}
	for name, change := range map[string]func(*base.Descriptor){
		"listed":        func(d *base.Descriptor) { d.Replicas[0].Replica = 3 },
		"older":         func(d *base.Descriptor) { d.NextReplicaID = 3 },
		"another shard": func(d *base.Descriptor) { d.Shard = 4 },
	} {
		c := d.Clone()
		change(c)
		if provesRemoval(c, o) {
			t.Errorf("%s: %s is taken for proof", name, c)
		}
	}
}

func TestWipedNodeComesBackAsANewStore(t *testing.T) {
	const shards = 2
	ps := growProcs(t, 3, shards)
	for _, id := range allShards(shards) {
		ps[0].add(id, ps[1].store())
		ps[0].add(id, ps[2].store())
	}
	l := newLedger(startSeed(t))
	l.put(t, ps[0], 10, shards)
	indexed(t, ps[0], shards, ps...)
	old, victim := ps[2].store(), ps[2]
	victim.halt()
	victim.fs = newProc(t, "").fs
	victim.join = addrs(ps[:2])
	victim.start()
	victim.ready()
	if victim.store() == old || victim.store() == 0 {
		t.Fatalf("it is %s, was %s", victim.store(), old)
	}
	// What is asked of the store that is no more is not answered by the one at its address.
	_, err := ps[0].member().askReplica(testContext(t), old, 2)
	if status.Code(err) != codes.Unavailable {
		t.Errorf("a question to %s: %v", old, err)
	}
	for _, id := range allShards(shards) {
		ps[0].replace(id, old, victim.store())
	}
	l.check(t, victim)
	indexed(t, victim, shards, ps...)
	list, err := ps[0].admin().ListNodes(testContext(t), &pb.ListNodesRequest{})
	if err != nil || len(list.Nodes) != 4 {
		t.Fatalf("nodes: %v %v", list, err)
	}
	if i := slices.IndexFunc(list.Nodes, func(n *pb.NodeInfo) bool { return n.NodeId == uint64(old) }); i < 0 {
		t.Error("the record of the store that is no more has gone")
	}
}
