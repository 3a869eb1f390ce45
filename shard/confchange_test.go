package shard

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"go.etcd.io/etcd/raft/v3/raftpb"

	"github.com/shardd/shardd/engine"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/golden"
)

// contexts is one of each kind.
func contexts() map[string]confContext {
	return map[string]confContext{
		"leave joint": {confVer: 0x0102, id: 0x1112131415161718},
		"add learner": {confVer: 3, id: 7, ops: []confOp{{AddLearner, 4, 9}}},
		"remove":      {confVer: 3, id: 7, ops: []confOp{{Remove, 4, 9}}},
		"swap":        {confVer: 3, id: 7, ops: []confOp{{Promote, 4, 9}, {Demote, 1, 2}}},
	}
}

func TestConfContextsAreGolden(t *testing.T) {
	var f golden.File
	for _, name := range []string{"leave joint", "add learner", "remove", "swap"} {
		c := contexts()[name]
		f.Add(name, c.append(nil))
	}
	f.Check(t, "confcontext.golden")
	for i, want := range []string{"add learner", "promote", "demote", "remove"} {
		if op := ReplicaOp(i + 1); op.String() != want {
			t.Errorf("operation %d is %s, must stay %s", op, op, want)
		}
	}
}

func FuzzDecodeConfContext(f *testing.F) {
	for _, c := range contexts() {
		b := c.append(nil)
		f.Add(b)
		f.Add(b[:len(b)-1])
		f.Add(append(b, 0))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := decodeConfContext(b)
		if err != nil {
			if !errors.Is(err, errConfLayout) && !errors.Is(err, base.ErrCorrupt) {
				t.Fatalf("%v wraps neither sentinel", err)
			}
			return
		}
		if !bytes.Equal(c.append(nil), b) {
			t.Fatalf("encodes differently: %x", c.append(nil))
		}
		cc := c.change()
		if data, err := cc.Marshal(); err != nil || len(data) == 0 {
			t.Fatalf("marshal: %v", err)
		}
		// Whatever it asks for, the decision is an error or a descriptor, and never a panic.
		d := desc(7, "a", "b", 1, 2, 9)
		d.Epoch.ConfVer = c.confVer
		next, conf, refused, unknown := decideChange(d, engine.ConfStateOf(d), 20, cc)
		if unknown != nil {
			t.Fatalf("faults: %v", unknown)
		}
		if refused == nil && conf.Equivalent(engine.ConfStateOf(next)) != nil {
			t.Fatalf("%s with configuration %v", next, conf)
		}
	})
}

// shape writes a descriptor as its epoch and roles: "4 next 5: 1v 2v 3l".
func shape(d *base.Descriptor) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d next %d:", d.Epoch.ConfVer, d.NextReplicaID)
	for _, r := range d.Replicas {
		fmt.Fprintf(&b, " %d%c", r.Replica, r.Role.String()[0])
	}
	return b.String()
}

func TestConfChangesAreDecidedFromTheirContext(t *testing.T) {
	joint := func() *base.Descriptor { // 1 goes, 3 comes
		d := desc(7, "a", "b", 1, 2, 3)
		d.Replicas[0].Role, d.Replicas[2].Role = base.RoleOutgoing, base.RoleIncoming
		return d
	}
	learner := func() *base.Descriptor {
		d := desc(7, "a", "b", 1, 2, 3)
		d.Replicas[2].Role = base.RoleLearner
		return d
	}
	for _, tc := range []struct {
		name string
		d    *base.Descriptor
		c    confContext
		want string // a shape, or part of the reason after "!"
	}{
		{"add a learner", learner(), confContext{confVer: 1, ops: []confOp{{AddLearner, 4, 9}}}, "2 next 5: 1v 2v 3l 4l"},
		{"promote", learner(), confContext{confVer: 1, ops: []confOp{{Promote, 3, 3}}}, "2 next 4: 1v 2v 3i"},
		{"demote", learner(), confContext{confVer: 1, ops: []confOp{{Demote, 1, 1}}}, "2 next 4: 1o 2v 3l"},
		{"swap", learner(), confContext{confVer: 1, ops: []confOp{{Demote, 1, 1}, {Promote, 3, 3}}}, "2 next 4: 1o 2v 3i"},
		{"remove a learner", learner(), confContext{confVer: 1, ops: []confOp{{Remove, 3, 3}}}, "2 next 4: 1v 2v"},
		{"leave", joint(), confContext{confVer: 1}, "2 next 4: 1l 2v 3v"},

		{"stale", learner(), confContext{confVer: 2, ops: []confOp{{AddLearner, 4, 9}}}, "!ConfVer 2"},
		{"leave when not joint", learner(), confContext{confVer: 1}, "!not in a joint"},
		{"change when joint", joint(), confContext{confVer: 1, ops: []confOp{{AddLearner, 4, 9}}}, "!in a joint"},
		{"remove when joint", joint(), confContext{confVer: 1, ops: []confOp{{Remove, 3, 3}}}, "!in a joint"},
		{"an old id", learner(), confContext{confVer: 1, ops: []confOp{{AddLearner, 3, 9}}}, "!next replica id"},
		{"an id from the future", learner(), confContext{confVer: 1, ops: []confOp{{AddLearner, 5, 9}}}, "!next replica id"},
		{"two on a store", learner(), confContext{confVer: 1, ops: []confOp{{AddLearner, 4, 2}}}, "!holds replica 2"},
		{"remove a voter", learner(), confContext{confVer: 1, ops: []confOp{{Remove, 1, 1}}}, "!demote it first"},
		{"promote a voter", learner(), confContext{confVer: 1, ops: []confOp{{Promote, 1, 1}}}, "!is a voter"},
		{"demote a learner", learner(), confContext{confVer: 1, ops: []confOp{{Demote, 3, 3}}}, "!is a learner"},
		{"unknown replica", learner(), confContext{confVer: 1, ops: []confOp{{Promote, 8, 8}}}, "!no replica 8"},
		{"replica on another store", learner(), confContext{confVer: 1, ops: []confOp{{Promote, 3, 2}}}, "!no replica 3"},
		{"no voter left", learner(), confContext{confVer: 1, ops: []confOp{{Demote, 1, 1}, {Demote, 2, 2}}}, "!all voters"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			before := tc.d.String()
			next, conf, refused, unknown := decideChange(tc.d, engine.ConfStateOf(tc.d), 20, tc.c.change())
			if unknown != nil || tc.d.String() != before {
				t.Fatalf("unknown %v; the old descriptor is %s", unknown, tc.d)
			}
			if why, ok := strings.CutPrefix(tc.want, "!"); ok {
				if refused == nil || !strings.Contains(refused.Error(), why) {
					t.Fatalf("refused with %v, want %q", refused, why)
				}
				return
			}
			if refused != nil || shape(next) != tc.want {
				t.Fatalf("%v, %v, want %s", next, refused, tc.want)
			}
			if err := conf.Equivalent(engine.ConfStateOf(next)); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func TestAConfChangeWhoseContextIsMissingOrLiesIsRefusedAndALaterLayoutFaults(t *testing.T) {
	d := desc(7, "a", "b", 1, 2, 3)
	decide := func(cc raftpb.ConfChangeV2) (refused, unknown error) {
		_, _, refused, unknown = decideChange(d, engine.ConfStateOf(d), 20, cc)
		return refused, unknown
	}
	add := confContext{confVer: 1, ops: []confOp{{AddLearner, 4, 9}}}
	for name, mend := range map[string]func(*raftpb.ConfChangeV2){
		"none":              func(cc *raftpb.ConfChangeV2) { cc.Context = nil },
		"cut":               func(cc *raftpb.ConfChangeV2) { cc.Context = cc.Context[:9] },
		"of another change": func(cc *raftpb.ConfChangeV2) { cc.Changes[0].NodeID = 5 },
		"of another way":    func(cc *raftpb.ConfChangeV2) { cc.Transition = raftpb.ConfChangeTransitionJointImplicit },
		"of more":           func(cc *raftpb.ConfChangeV2) { cc.Changes = nil },
	} {
		cc := add.change()
		mend(&cc)
		if refused, unknown := decide(cc); refused == nil || unknown != nil {
			t.Errorf("context %s: refused %v, unknown %v", name, refused, unknown)
		}
	}
	cc := add.change()
	cc.Context[0]++
	if _, unknown := decide(cc); !errors.Is(unknown, errConfLayout) {
		t.Errorf("a later layout: %v", unknown)
	}
}

// Random changes, most of them nonsense: what is accepted keeps the descriptor and raft's configuration in step and
// never gives an id out twice.
func TestRandomConfChangesKeepDescriptorAndConfigurationInStep(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	accepted := 0
	for range 300 {
		d := desc(7, "a", "b", 1, 2, 3)
		conf := engine.ConfStateOf(d)
		given := map[base.ReplicaID]base.StoreID{1: 1, 2: 2, 3: 3}
		for index := uint64(11); index < 60; index++ {
			c := confContext{confVer: d.Epoch.ConfVer}
			if rng.IntN(10) == 0 {
				c.confVer--
			}
			for range rng.IntN(4) {
				o := confOp{ReplicaOp(1 + rng.IntN(4)), d.NextReplicaID, base.StoreID(1 + rng.IntN(6))}
				if old, ok := d.ReplicaOn(o.store); ok && rng.IntN(8) > 0 {
					o.replica = old.Replica
				}
				c.ops = append(c.ops, o)
			}
			if c.checkShape() != nil {
				continue
			}
			next, nextConf, refused, unknown := decideChange(d, conf, index, c.change())
			if unknown != nil {
				t.Fatal(unknown)
			}
			if refused != nil {
				continue
			}
			accepted++
			if next.Epoch.ConfVer != d.Epoch.ConfVer+1 || next.Epoch.Version != d.Epoch.Version ||
				next.NextReplicaID < d.NextReplicaID || nextConf.Equivalent(engine.ConfStateOf(next)) != nil {
				t.Fatalf("%s became %s with %v", d, next, nextConf)
			}
			for _, r := range next.Replicas {
				if s, ok := given[r.Replica]; ok && s != r.Store {
					t.Fatalf("id %d of %s was that of a replica on %s", r.Replica, next, s)
				}
				given[r.Replica] = r.Store
				if old, ok := d.Replica(r.Replica); !ok && r.Replica != d.NextReplicaID {
					t.Fatalf("%s: new replica %d after %s (%v)", next, r.Replica, d, old)
				}
			}
			d, conf = next, nextConf
		}
	}
	if accepted < 500 {
		t.Errorf("only %d changes were accepted", accepted)
	}
}
