package shard

import (
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"

	"github.com/shardd/shardd/engine"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
)

// renewed is the descriptor that a recovery gives a shard on a store.
func renewed(d *base.Descriptor, on base.StoreID) *base.Descriptor {
	n := d.Clone()
	r, _ := d.ReplicaOn(on)
	n.Replicas = []base.ReplicaDesc{{Replica: r.Replica, Store: on, Role: base.RoleVoter}}
	n.Epoch.ConfVer += 100
	n.Epoch.Version += 100
	n.NextReplicaID += 100
	return n
}

// recover drives a recovery to its end.
func (c *cluster) recover(n *testNode, d *base.Descriptor, term uint64) error {
	c.t.Helper()
	return c.recoverTo(n, &renewal{
		shard: d.Shard, id: d.Replicas[0].Replica, desc: d, version: d.Epoch.Version - 100, term: term,
	})
}

func (c *cluster) recoverTo(n *testNode, want *renewal) error {
	c.t.Helper()
	for range 100 {
		var again, done bool
		var out error
		busy, err := n.store.recoverStep(want, func(a bool, e error) { again, out, done = a, e, true })
		if err != nil {
			return err
		}
		c.settle()
		if busy == nil && done && !again {
			return out
		}
		c.tick()
	}
	c.t.Fatal("the recovery comes to no end")
	return nil
}

// putAt writes at a version of the shard and waits for the answer, which must be OK.
func (c *cluster) putAt(n *testNode, shard base.ShardID, version uint64, key, value string) {
	c.t.Helper()
	a := newAnswers(c.t)
	o := op(wire.OpPut, shard, key, value)
	o.Version = version
	req := c.write(n, o, a, 0)
	c.until("put "+key, func() bool { _, ok := a.of(req); return ok })
	if ans, _ := a.of(req); ans.Code != wire.OK {
		c.t.Fatalf("put %s: %s %s", key, ans.Code, ans.Payload)
	}
}

// holds checks what a store has on its disk.
func (c *cluster) holds(e *engine.Engine, key, want string) {
	c.t.Helper()
	_, v, ok, err := e.Get(base.UserKey([]byte(key)), nil)
	if err != nil || string(v) != want || ok != (want != "") {
		c.t.Fatalf("%s is %q %t, want %q: %v", key, v, ok, want, err)
	}
}

// lose ends stores for good.
func (c *cluster) lose(ids ...base.StoreID) {
	for _, id := range ids {
		c.stop(c.nodes[id])
	}
}

// unconfirmed has a write acknowledged that store 3 has in its log and does not know to be committed.
func (c *cluster) unconfirmed(shard base.ShardID, key, value string) {
	c.t.Helper()
	c.tellNothingCommitted(shard)
	c.put(shard, key, value)
	c.until("store 3 has it in its log", func() bool {
		st, _ := c.nodes[3].store.Status(shard)
		return st.LastIndex > st.Commit
	})
}

// tellNothingCommitted keeps what a shard's leader commits from now on from store 3, which has all that is older.
func (c *cluster) tellNothingCommitted(shard base.ShardID) {
	c.t.Helper()
	c.leads(shard, 1)
	before, _ := c.nodes[3].store.Status(shard)
	c.leader(shard).filter(func(m *wire.RaftMessage) bool {
		if m.ToStore == 3 && m.Shard == shard {
			m.Msg.Commit = min(m.Msg.Commit, before.Commit)
		}
		return true
	})
}

func TestTheLastReplicaBecomesTheOnlyVoter(t *testing.T) {
	c := newCluster(t, 4, nil)
	d := desc(7, "", "", 1, 2, 3)
	c.create(d)
	c.put(7, "a", "1")
	c.everywhere(7, "a", "1")
	c.unconfirmed(7, "b", "2") // acknowledged; only the two that go know that it is committed
	c.lose(1, 2)
	n := c.nodes[3]
	for range 30 {
		c.tick()
	}
	before, _ := n.store.Status(7)
	want := renewed(d, 3)
	if err := c.recover(n, want, 500); err != nil {
		t.Fatal(err)
	}
	c.until("it leads", func() bool { return c.leader(7) == n })
	st, _ := n.store.Status(7)
	if !sameDescriptor(st.Desc, want) || st.Term <= 500 || st.Stats.PutOps != 2 || st.Stamp < before.Stamp ||
		fmt.Sprint(st.Conf.Voters) != "[3]" {
		t.Fatalf("recovered: %+v", st)
	}
	c.holds(n.eng, "a", "1")
	c.holds(n.eng, "b", "2")
	if err := c.recover(n, want, 500); err != nil { // again: nothing to do
		t.Fatal(err)
	}
	if again, _ := n.store.Status(7); again.Term != st.Term || !again.Leads {
		t.Fatalf("a repeated recovery has changed something: %+v", again)
	}
	c.putAt(n, 7, want.Epoch.Version, "c", "3")
	c.crash(n, 0)
	c.start(n)
	c.until("it leads again", func() bool { return c.leader(7) == n })
	c.holds(n.eng, "c", "3")

	// It grows again, under ids that nobody has had.
	r := c.learner(7, 4)
	if r.id < want.NextReplicaID {
		t.Fatalf("the new replica is %s", r)
	}
	c.until("the learner has everything", func() bool {
		_, v, ok, _ := c.nodes[4].eng.Get(base.UserKey([]byte("c")), nil)
		return ok && string(v) == "3"
	})
	if len(n.faults)+len(c.nodes[4].faults) > 0 {
		t.Fatal(n.faults, c.nodes[4].faults)
	}
}

// TestACrashDuringARecoveryIsRepeated restarts from every sync, finds the old replica, the settled one or the new one, and
// in each case the repeated call ends the same.
func TestACrashDuringARecoveryIsRepeated(t *testing.T) {
	c := newCluster(t, 3, nil)
	d := desc(7, "", "", 1, 2, 3)
	c.create(d)
	c.put(7, "a", "1")
	c.everywhere(7, "a", "1")
	c.unconfirmed(7, "b", "2")
	c.lose(1, 2)
	n := c.nodes[3]
	want := renewed(d, 3)
	var clones []*engine.FS
	eachSync(n, func() {
		if err := c.recover(n, want, 0); err != nil {
			t.Error(err)
		}
		c.until("it leads", func() bool { return c.leader(7) == n })
	}, func() {
		for _, keep := range []int{0, 50, 100} {
			clones = append(clones, n.fs.CrashClone(keep, int64(len(clones))))
		}
	})
	old, settled, done := 0, 0, 0
	for i, fs := range clones {
		c.stop(n)
		n.fs = fs
		c.start(n)
		st, ok := n.store.Status(7)
		switch {
		case !ok:
			t.Fatalf("clone %d: no replica", i)
		case sameDescriptor(st.Desc, want):
			done++
		case !sameDescriptor(st.Desc, d):
			t.Fatalf("clone %d: %s", i, st.Desc)
		case st.Commit == st.LastIndex:
			settled++
		default:
			old++
		}
		if err := c.recover(n, want, 0); err != nil {
			t.Fatalf("clone %d: %v", i, err)
		}
		c.until("it leads", func() bool { return c.leader(7) == n })
		c.holds(n.eng, "a", "1")
		c.holds(n.eng, "b", "2")
		c.putAt(n, 7, want.Epoch.Version, "c", "3")
	}
	if old == 0 || settled == 0 || done == 0 {
		t.Fatalf("%d clones before, %d settled, %d after", old, settled, done)
	}
}

// TestOtherSurvivorsLearnThatTheyAreNone: the new descriptor proves to them that they were removed, and what they still
// send changes nothing.
func TestOtherSurvivorsLearnThatTheyAreNone(t *testing.T) {
	c := newCluster(t, 5, nil)
	d := desc(7, "", "", 1, 2, 3, 4, 5)
	c.create(d)
	c.put(7, "a", "1")
	c.everywhere(7, "a", "1")
	c.lose(1, 2, 3)
	n, other := c.nodes[4], c.nodes[5]
	want := renewed(d, 4)
	if err := c.recover(n, want, 0); err != nil {
		t.Fatal(err)
	}
	c.until("it leads", func() bool { return c.leader(7) == n })
	term := n.store.lookup(7).lead.Load().term
	for range 50 { // the other one campaigns meanwhile
		c.tick()
	}
	if l := n.store.lookup(7).lead.Load(); !l.leads || l.term != term {
		t.Fatalf("a replica that is none any more has ended the leadership: %+v", l)
	}
	if len(other.store.Orphans()) == 0 {
		t.Fatal("it does not ask whether it still should exist")
	}
	if err := c.removeReplica(other, 7, 5, want); err != nil {
		t.Fatal(err)
	}
	bare(t, other.eng, 7, want.NextReplicaID)
}

func TestARecoveryKeepsTheReplicaThatItsLogRemoves(t *testing.T) {
	c := newCluster(t, 3, nil)
	d := desc(7, "", "", 1, 2, 3)
	d.Replicas[2].Role = base.RoleLearner
	c.create(d)
	c.put(7, "a", "1")
	c.everywhere(7, "a", "1")
	lead, n := c.leader(7), c.nodes[3]
	// The removal reaches the log of the learner, and the word that it is committed does not.
	c.tellNothingCommitted(7)
	before, _ := n.store.Status(7)
	ch := c.change(lead, 7, 0, ReplicaChange{Op: Remove, Store: 3})
	c.until("it is in the log", func() bool { st, _ := n.store.Status(7); return st.LastIndex > before.LastIndex })
	c.stop(lead)
	<-ch
	c.lose(2)
	if inv := n.store.lookup(7); inv == nil {
		t.Fatal("the removal was applied")
	}
	want := renewed(d, 3)
	if err := c.recover(n, want, 0); err != nil {
		t.Fatal(err)
	}
	c.until("it leads", func() bool { return c.leader(7) == n })
	c.putAt(n, 7, want.Epoch.Version, "b", "2")
	if got, _ := n.store.Descriptor(7); !sameDescriptor(got, want) {
		t.Fatalf("the removal was applied after all: %s", got)
	}
	c.holds(n.eng, "a", "1")
}

func TestARecoveryCutsOffWhatANewerShardOwns(t *testing.T) {
	c := newCluster(t, 3, nil)
	d := desc(7, "", "", 1, 2, 3)
	c.create(d)
	for _, k := range []string{"a", "m", "z"} {
		c.put(7, k, "1")
		c.everywhere(7, k, "1")
	}
	c.lose(1, 2)
	n := c.nodes[3]
	want := renewed(d, 3)
	want.End = base.UserKey([]byte("m"))
	if err := c.recover(n, want, 0); err != nil {
		t.Fatal(err)
	}
	c.holds(n.eng, "a", "1")
	c.holds(n.eng, "m", "")
	c.holds(n.eng, "z", "")
	right := desc(8, "m", "", 3)
	right.Epoch.Version = want.Epoch.Version + 1
	if err := n.store.Create(right, nil, true); err != nil {
		t.Fatal(err)
	}
	c.until("both lead", func() bool { return c.leader(7) == n && c.leader(8) == n })
	c.crash(n, 50)
	c.start(n) // boot finds no overlap
	c.holds(n.eng, "a", "1")
}

func TestARecoveryIsRefusedWithoutAChange(t *testing.T) {
	c := newCluster(t, 3, nil)
	d := desc(7, "c", "m", 1, 2, 3)
	c.create(d)
	n := c.nodes[3]
	for what, tune := range map[string]func(*base.Descriptor){
		"other voters": func(d *base.Descriptor) {
			d.Replicas = append(d.Replicas, base.ReplicaDesc{Replica: 2, Store: 2, Role: 1})
		},
		"a learner":         func(d *base.Descriptor) { d.Replicas[0].Role = base.RoleLearner },
		"another replica":   func(d *base.Descriptor) { d.Replicas[0].Replica = 2 },
		"another store":     func(d *base.Descriptor) { d.Replicas[0].Store = 2 },
		"an old conf":       func(d *base.Descriptor) { d.Epoch.ConfVer = 1 },
		"an old version":    func(d *base.Descriptor) { d.Epoch.Version = 1 },
		"another version":   func(d *base.Descriptor) { d.Epoch.Version++ },
		"ids given out":     func(d *base.Descriptor) { d.NextReplicaID = 3; d.Replicas[0].Replica = 2 },
		"another start":     func(d *base.Descriptor) { d.Start = base.UserKey([]byte("d")) },
		"beyond its end":    func(d *base.Descriptor) { d.End = base.UserKey([]byte("n")) },
		"an inverted range": func(d *base.Descriptor) { d.End = base.UserKey([]byte("a")) },
	} {
		want := renewed(d, 3)
		tune(want)
		var refused *RecoverError
		if err := c.recover(n, want, 0); !errors.As(err, &refused) || !strings.HasPrefix(err.Error(), "recover replica s7/") {
			t.Errorf("%s: %v", what, err)
		}
	}
	none := renewed(desc(9, "x", "", 3), 3)
	var absent *NotFoundError
	if err := c.recover(n, none, 0); !errors.As(err, &absent) {
		t.Errorf("no replica: %v", err)
	}
	n.store.fault(n.store.lookup(7), "bad disk", nil)
	var refused *RecoverError
	if err := c.recover(n, renewed(d, 3), 0); !errors.As(err, &refused) || !strings.Contains(err.Error(), "bad disk") {
		t.Errorf("faulted: %v", err)
	}
	if got, _ := n.store.Descriptor(7); !sameDescriptor(got, d) {
		t.Fatalf("changed to %s", got)
	}
	if c.leader(7) == nil {
		t.Fatal("the shard has lost its leader over it")
	}
	c.put(7, "d", "1")
}

func TestGivingUpAReplicaIsForEver(t *testing.T) {
	c := newCluster(t, 3, nil)
	d := desc(7, "", "", 1, 2, 3)
	c.create(d)
	c.put(7, "a", "1")
	c.everywhere(7, "a", "1")
	c.lose(1, 2)
	n := c.nodes[3]
	ch := make(chan error, 1)
	if _, err := n.store.removeMarked(7, 3, mergedAway, "test", func(err error) { ch <- err }); err != nil {
		t.Fatal(err)
	}
	c.settle()
	if err := <-ch; err != nil {
		t.Fatal(err)
	}
	bare(t, n.eng, 7, mergedAway)
	later := desc(7, "", "", 3)
	later.Replicas[0].Replica, later.NextReplicaID = 77, 78
	var marked *MarkError
	if err := n.store.Create(later, nil, true); !errors.As(err, &marked) {
		t.Fatalf("a shard that was given up came back: %v", err)
	}
}

func TestAnInventoryTellsHowFarEachLogIs(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.create(desc(7, "", "k", 1, 2, 3))
	c.create(desc(9, "k", "", 1, 2, 3))
	c.put(7, "a", "1")
	c.everywhere(7, "a", "1")
	c.unconfirmed(7, "b", "2")
	n := c.nodes[3]
	got := make(chan []Inventory, 1)
	go func() { got <- n.store.Inventory(t.Context(), 0, 10) }()
	var all []Inventory
	for all == nil {
		select {
		case all = <-got:
		default:
			c.settle()
			runtime.Gosched()
		}
	}
	st, _ := n.store.Status(7)
	if len(all) != 2 || all[0].Shard != 7 || all[1].Shard != 9 || all[0].Busy || all[0].LastIndex != st.LastIndex ||
		all[0].LastTerm == 0 || all[0].Commit >= all[0].LastIndex || all[0].Changes || all[0].Replica != 3 {
		t.Fatalf("%+v", all)
	}
	n.store.fault(n.store.lookup(9), "bad disk", nil)
	page := n.store.Inventory(t.Context(), 7, 10)
	if len(page) != 1 || page[0].Shard != 9 || page[0].Faulted == "" {
		t.Fatalf("%+v", page)
	}
}

// TestARecoveryBringsASplitThatOnlyTheLogHolds: the range of the shard is another one once its log is applied, so the
// caller has to look again, and finds the other half, which has lost its quorum as well.
func TestARecoveryBringsASplitThatOnlyTheLogHolds(t *testing.T) {
	c := newCluster(t, 3, nil)
	d := desc(7, "a", "z", 1, 2, 3)
	c.create(d)
	c.put(7, "b", "1")
	c.put(7, "x", "2")
	c.everywhere(7, "x", "2")
	c.tellNothingCommitted(7)
	before, _ := c.nodes[3].store.Status(7)
	ch := c.split(c.leader(7), 7, side(8, "m"))
	c.until("the split is in the log", func() bool {
		st, _ := c.nodes[3].store.Status(7)
		return st.LastIndex > before.LastIndex
	})
	c.lose(1, 2)
	<-ch
	n := c.nodes[3]
	if got, _ := n.store.Descriptor(7); !sameDescriptor(got, d) {
		t.Fatalf("the split was applied: %s", got)
	}
	var refused *RecoverError
	if err := c.recover(n, renewed(d, 3), 0); !errors.As(err, &refused) || !strings.Contains(err.Error(), "its log has brought it to") {
		t.Fatalf("made for the range before the split: %v", err)
	}
	left, ok := n.store.Descriptor(7)
	right, ok2 := n.store.Descriptor(8)
	if !ok || !ok2 || left.Epoch.Version != 2 || string(left.End) != string(right.Start) {
		t.Fatalf("left %s, right %s", left, right)
	}
	for _, half := range []*base.Descriptor{left, right} {
		if err := c.recover(n, renewed(half, 3), 0); err != nil {
			t.Fatal(err)
		}
	}
	c.until("both lead", func() bool { return c.leader(7) == n && c.leader(8) == n })
	c.holds(n.eng, "b", "1")
	c.holds(n.eng, "x", "2")
	c.putAt(n, 7, left.Epoch.Version+100, "c", "3")
	c.putAt(n, 8, right.Epoch.Version+100, "y", "4")
	c.crash(n, 0)
	c.start(n)
	c.until("both lead again", func() bool { return c.leader(7) == n && c.leader(8) == n })
	c.holds(n.eng, "y", "4")
}

// TestSettlingALogTakesAMergeInThatOnlyTheLogHolds: it finds the frozen replica of the other shard where it was left, and
// what it makes of both is one shard that has lost its quorum.
func TestSettlingALogTakesAMergeInThatOnlyTheLogHolds(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.create(desc(7, "a", "m", 1, 2, 3))
	c.create(desc(8, "m", "z", 1, 2, 3))
	c.put(7, "b", "1")
	c.put(8, "x", "2")
	c.everywhere(8, "x", "2")
	c.leads(7, 1)
	cmd := c.mustFreeze(77, 8, 7)
	c.tellNothingCommitted(7)
	before, _ := c.nodes[3].store.Status(7)
	ch := c.commitMerge(c.leader(7), 7, cmd)
	c.soon("the merge is in the log", func() bool {
		st, _ := c.nodes[3].store.Status(7)
		return st.LastIndex > before.LastIndex
	})
	c.mergeOutcome("commit", ch)
	c.lose(1, 2)
	n := c.nodes[3]
	if d, ok := n.store.Descriptor(8); !ok || d == nil {
		t.Fatal("the merge was applied")
	}
	if err := c.recoverTo(n, &renewal{shard: 7, id: 3}); err != nil {
		t.Fatal(err)
	}
	wide, _ := n.store.Descriptor(7)
	if _, left := n.store.Descriptor(8); left || string(wide.End) != string(base.UserKey([]byte("z"))) {
		t.Fatalf("settled to %s, the other still there: %t", wide, left)
	}
	if err := c.recover(n, renewed(wide, 3), 0); err != nil {
		t.Fatal(err)
	}
	c.until("it leads", func() bool { return c.leader(7) == n })
	c.holds(n.eng, "b", "1")
	c.holds(n.eng, "x", "2")
	c.noFaults()
}
