package shard

import (
	"encoding/binary"
	"errors"
	"fmt"

	"go.etcd.io/etcd/raft/v3/raftpb"

	"github.com/shardd/shardd/internal/base"
)

// confContext is what a conf change entry carries beside raft's own change, in the change's Context: enough to compute
// the next descriptor from the present one and nothing else.
//
//	u8 layout version | u8 operations | u64 expected ConfVer | u64 proposal id
//	operations x { u8 operation | u64 replica | u64 store }
//
// No operations: the joint configuration is left. Every replica applies the same bytes to the same descriptor, so that
// all of them come to the same next one, or refuse it alike (I6, R8).
type confContext struct {
	confVer uint64 // of the descriptor that the change was made for
	id      uint64 // finds the waiter; unique in one life of the proposing store
	ops     []confOp
}

type confOp struct {
	op      ReplicaOp
	replica base.ReplicaID
	store   base.StoreID
}

const (
	confContextVersion = 1
	confContextFixed   = 1 + 1 + 8 + 8
	confOpSize         = 1 + 8 + 8
	maxConfOps         = 64 // a descriptor lists no more replicas
)

// errConfLayout marks a context of a layout that this binary does not know: the replica is faulted, nothing is skipped.
var errConfLayout = errors.New("unknown layout")

func (c *confContext) append(buf []byte) []byte {
	buf = append(buf, confContextVersion, byte(len(c.ops)))
	buf = binary.BigEndian.AppendUint64(buf, c.confVer)
	buf = binary.BigEndian.AppendUint64(buf, c.id)
	for _, o := range c.ops {
		buf = append(buf, byte(o.op))
		buf = binary.BigEndian.AppendUint64(buf, uint64(o.replica))
		buf = binary.BigEndian.AppendUint64(buf, uint64(o.store))
	}
	return buf
}

// decodeConfContext reads the whole of b. It wraps errConfLayout for a later layout and base.ErrCorrupt for bytes that
// no version has written.
func decodeConfContext(b []byte) (confContext, error) {
	if len(b) == 0 {
		return confContext{}, fmt.Errorf("conf change without a context: %w", base.ErrCorrupt)
	}
	if b[0] != confContextVersion {
		return confContext{}, fmt.Errorf("context of a conf change, layout %d, this binary knows %d: %w",
			b[0], confContextVersion, errConfLayout)
	}
	if len(b) < confContextFixed || len(b) != confContextFixed+int(b[1])*confOpSize || b[1] > maxConfOps {
		return confContext{}, fmt.Errorf("context of a conf change: %d bytes: %w", len(b), base.ErrCorrupt)
	}
	c := confContext{confVer: binary.BigEndian.Uint64(b[2:]), id: binary.BigEndian.Uint64(b[10:])}
	for i := range int(b[1]) {
		at := b[confContextFixed+i*confOpSize:]
		o := confOp{
			op: ReplicaOp(at[0]), replica: base.ReplicaID(binary.BigEndian.Uint64(at[1:])),
			store: base.StoreID(binary.BigEndian.Uint64(at[9:])),
		}
		switch {
		case o.op < AddLearner || o.op > Remove:
			return confContext{}, fmt.Errorf("conf change with operation %d: %w", at[0], errConfLayout)
		case o.replica == 0 || o.store == 0:
			return confContext{}, fmt.Errorf("conf change of replica %d on store %d: %w", o.replica, o.store, base.ErrCorrupt)
		}
		c.ops = append(c.ops, o)
	}
	if err := c.checkShape(); err != nil {
		return confContext{}, fmt.Errorf("%w: %w", err, base.ErrCorrupt)
	}
	return c, nil
}

// checkShape checks what can be told without a descriptor.
func (c *confContext) checkShape() error {
	if len(c.ops) > maxConfOps {
		return fmt.Errorf("%d operations in one change, at most %d", len(c.ops), maxConfOps)
	}
	for i, o := range c.ops {
		if (o.op == AddLearner || o.op == Remove) && len(c.ops) > 1 {
			return fmt.Errorf("%s must be a change of its own", o.op)
		}
		for _, p := range c.ops[:i] {
			if p.replica == o.replica || p.store == o.store {
				return fmt.Errorf("replica %s on %s is changed twice", o.replica, o.store)
			}
		}
	}
	return nil
}

// change returns raft's form of the change, with the context in it: learners come and go in a simple change, voters in
// an explicitly joint one (R6).
func (c *confContext) change() raftpb.ConfChangeV2 {
	cc := raftpb.ConfChangeV2{Context: c.append(make([]byte, 0, confContextFixed+len(c.ops)*confOpSize))}
	for _, o := range c.ops {
		typ := raftpb.ConfChangeAddLearnerNode
		switch o.op {
		case Promote:
			typ = raftpb.ConfChangeAddNode
		case Remove:
			typ = raftpb.ConfChangeRemoveNode
		}
		if o.op == Promote || o.op == Demote {
			cc.Transition = raftpb.ConfChangeTransitionJointExplicit
		}
		cc.Changes = append(cc.Changes, raftpb.ConfChangeSingle{Type: typ, NodeID: uint64(o.replica)})
	}
	return cc
}

// next returns the descriptor that the change makes of d, or why it is refused. It is a pure function.
func (c *confContext) next(d *base.Descriptor) (*base.Descriptor, error) {
	if c.confVer != d.Epoch.ConfVer {
		return nil, fmt.Errorf("made for ConfVer %d, the shard is at %d", c.confVer, d.Epoch.ConfVer)
	}
	n := d.Clone()
	n.Epoch.ConfVer++
	if len(c.ops) == 0 {
		return leaveJoint(n)
	}
	if isJoint(d) {
		return nil, errors.New("the shard is in a joint configuration")
	}
	for _, o := range c.ops {
		if err := o.apply(n); err != nil {
			return nil, err
		}
	}
	return n, n.Validate()
}

// leaveJoint gives the replicas of n the roles that they take when the joint configuration ends.
func leaveJoint(n *base.Descriptor) (*base.Descriptor, error) {
	if !isJoint(n) {
		return nil, errors.New("the shard is not in a joint configuration")
	}
	for i := range n.Replicas {
		switch r := &n.Replicas[i]; r.Role {
		case base.RoleIncoming:
			r.Role = base.RoleVoter
		case base.RoleOutgoing:
			r.Role = base.RoleLearner
		}
	}
	return n, nil
}

// apply changes one replica of n.
func (o *confOp) apply(n *base.Descriptor) error {
	if o.op == AddLearner {
		if old, ok := n.ReplicaOn(o.store); ok {
			return fmt.Errorf("%s holds replica %s already", o.store, old.Replica)
		}
		if o.replica != n.NextReplicaID {
			return fmt.Errorf("the next replica id is %s, not %s", n.NextReplicaID, o.replica)
		}
		n.NextReplicaID++
		n.Replicas = append(n.Replicas, base.ReplicaDesc{Replica: o.replica, Store: o.store, Role: base.RoleLearner})
		return nil
	}
	for i := range n.Replicas {
		r := &n.Replicas[i]
		if r.Replica != o.replica || r.Store != o.store {
			continue
		}
		switch {
		case o.op == Promote && r.Role == base.RoleLearner:
			r.Role = base.RoleIncoming
		case o.op == Demote && r.Role == base.RoleVoter:
			r.Role = base.RoleOutgoing
		case o.op == Remove && r.Role == base.RoleLearner:
			n.Replicas = append(n.Replicas[:i:i], n.Replicas[i+1:]...)
		case o.op == Remove && r.Role == base.RoleVoter:
			return fmt.Errorf("replica %s on %s is a voter: demote it first", o.replica, o.store)
		default:
			return fmt.Errorf("%s of replica %s on %s, which is a %s", o.op, o.replica, o.store, r.Role)
		}
		return nil
	}
	return fmt.Errorf("the shard has no replica %s on %s", o.replica, o.store)
}

// isJoint reports whether d describes a joint configuration.
func isJoint(d *base.Descriptor) bool {
	for i := range d.Replicas {
		if r := d.Replicas[i].Role; r == base.RoleIncoming || r == base.RoleOutgoing {
			return true
		}
	}
	return false
}
