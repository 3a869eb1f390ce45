package shardtest

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/cockroachdb/datadriven"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/shard"
)

// membership runs the commands that ask a leader and wait for it elsewhere.
func (sc *script) membership(d *datadriven.TestData) {
	n := sc.node(d)
	if d.Cmd == "transfer" {
		sc.s.transfer(n, sc.id, base.StoreID(number(sc.t, d, "to", 0)))
		return
	}
	var changes []shard.ReplicaChange
	for _, op := range []struct {
		name string
		op   shard.ReplicaOp
	}{{"add", shard.AddLearner}, {"promote", shard.Promote}, {"demote", shard.Demote}, {"remove", shard.Remove}} {
		for _, on := range sc.nodes(d, op.name) {
			changes = append(changes, shard.ReplicaChange{Op: op.op, Store: on.id})
		}
	}
	sc.s.change(n, sc.id, uint64(number(sc.t, d, "ver", 0)), changes...)
}

// change asks a store for a change of replicas without waiting; its outcome is traced, and kept.
func (s *sim) change(n *node, id base.ShardID, confVer uint64, changes ...shard.ReplicaChange) *changeCall {
	var names []string
	for _, c := range changes {
		names = append(names, fmt.Sprintf("%s %s", c.Op, c.Store))
	}
	c := &changeCall{name: strings.Join(names, ", ")}
	store := n.store
	go func() {
		desc, err := store.ChangeReplicas(context.Background(), id, confVer, changes)
		s.trace.Lock()
		c.done, c.desc, c.err = true, desc, err
		s.trace.Unlock()
		var ce *shard.ChangeError
		switch {
		case err == nil:
			s.logf("%s: %s", c.name, shape(desc))
		case errors.As(err, &ce):
			s.logf("%s: refused: %s", c.name, ce.Reason)
		case errors.Is(err, shard.ErrAmbiguousChange):
			s.logf("%s: ambiguous", c.name)
		default:
			s.logf("%s: %v", c.name, err)
		}
	}()
	return c
}

// changeCall is one change asked for. Its fields are guarded by the sim's trace.
type changeCall struct {
	name string
	done bool
	desc *base.Descriptor
	err  error
}

func (s *sim) outcome(c *changeCall) (done bool, err error) {
	s.trace.Lock()
	defer s.trace.Unlock()
	return c.done, c.err
}

// transfer asks a store to hand a shard over without waiting.
func (s *sim) transfer(n *node, id base.ShardID, to base.StoreID) {
	store := n.store
	go func() {
		if term, err := store.Transfer(context.Background(), id, to); err != nil {
			s.logf("transfer to %s: %v", to, err)
		} else {
			s.logf("transfer to %s: term %d", to, term)
		}
	}()
}

// members shows what each store knows of the shard.
func (sc *script) members() string {
	var b strings.Builder
	for _, n := range sc.s.nodes {
		if n.store == nil {
			fmt.Fprintf(&b, "%s down\n", n.id)
			continue
		}
		if st, ok := n.store.Status(sc.id); ok {
			if st.Desc == nil {
				fmt.Fprintf(&b, "%s replica %d uninitialised\n", n.id, st.Replica)
			} else {
				fmt.Fprintf(&b, "%s replica %d %s\n", n.id, st.Replica, shape(st.Desc))
			}
			continue
		}
		if m, ok, err := n.eng.Mark(sc.id); err != nil {
			sc.t.Fatal(err)
		} else if ok {
			fmt.Fprintf(&b, "%s removed, next %d\n", n.id, m.NextReplicaID)
		}
	}
	return b.String()
}

// shape writes a descriptor as its ConfVer and roles: "4: n1/1 n3/3:learner".
func shape(d *base.Descriptor) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d:", d.Epoch.ConfVer)
	for _, r := range d.Replicas {
		fmt.Fprintf(&b, " %s/%d", r.Store, r.Replica)
		if r.Role != base.RoleVoter {
			b.WriteString(":" + r.Role.String())
		}
	}
	return b.String()
}
