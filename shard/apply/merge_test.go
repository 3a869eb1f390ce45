package apply

import (
	"fmt"
	"reflect"
	"testing"

	"go.etcd.io/etcd/raft/v3/raftpb"

	"github.com/shardd/shardd/engine"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
)

// Of the tests here: s7 [b, g) at 3.4 is L, s8 [g, m) at 5.9 is R; both have voters on n1, n2 and n3.
func mergeDescs() (left, right *base.Descriptor) {
	voters := func(first base.ReplicaID) (out []base.ReplicaDesc) {
		for s := base.StoreID(1); s <= 3; s++ {
			out = append(out, base.ReplicaDesc{Replica: first, Store: s, Role: base.RoleVoter})
			first++
		}
		return out
	}
	left = &base.Descriptor{
		Shard: 7, Start: []byte("\x02b"), End: []byte("\x02g"), Epoch: base.Epoch{ConfVer: 3, Version: 4},
		Replicas: voters(1), NextReplicaID: 9,
	}
	right = &base.Descriptor{
		Shard: 8, Start: []byte("\x02g"), End: []byte("\x02m"), Epoch: base.Epoch{ConfVer: 5, Version: 9},
		Replicas: voters(4), NextReplicaID: 7,
	}
	return left, right
}

func TestFreezeAndThawAreDecidedByTheStateAlone(t *testing.T) {
	frozen := &engine.Freeze{ID: 1, Into: 7, IntoEpoch: base.Epoch{ConfVer: 3, Version: 4}, Index: 50}
	for _, c := range []struct {
		name   string
		change func(d *base.Descriptor, st *engine.AppliedState, f *wire.Freeze)
		ok     bool
	}{
		{"good", func(*base.Descriptor, *engine.AppliedState, *wire.Freeze) {}, true},
		{"id 0", func(_ *base.Descriptor, _ *engine.AppliedState, f *wire.Freeze) { f.ID = 0 }, false},
		{"into nothing", func(_ *base.Descriptor, _ *engine.AppliedState, f *wire.Freeze) { f.Into = 0 }, false},
		{"into itself", func(_ *base.Descriptor, _ *engine.AppliedState, f *wire.Freeze) { f.Into = 8 }, false},
		{"into meta", func(_ *base.Descriptor, _ *engine.AppliedState, f *wire.Freeze) { f.Into = base.MetaShard }, false},
		{"meta", func(d *base.Descriptor, _ *engine.AppliedState, _ *wire.Freeze) { d.Shard = base.MetaShard }, false},
		{"frozen", func(_ *base.Descriptor, st *engine.AppliedState, _ *wire.Freeze) { st.Freeze = frozen }, false},
		{"other conf", func(_ *base.Descriptor, _ *engine.AppliedState, f *wire.Freeze) { f.Epoch.ConfVer++ }, false},
		{"other version", func(_ *base.Descriptor, _ *engine.AppliedState, f *wire.Freeze) { f.Epoch.Version-- }, false},
		{"a learner", func(d *base.Descriptor, _ *engine.AppliedState, _ *wire.Freeze) {
			d.Replicas[1].Role = base.RoleLearner
		}, false},
		{"joint", func(d *base.Descriptor, _ *engine.AppliedState, _ *wire.Freeze) {
			d.Replicas[2].Role = base.RoleOutgoing
		}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, d := mergeDescs()
			st := engine.AppliedState{Index: 49, Term: 6, Stamp: 77}
			f := wire.Freeze{ID: 1, Into: 7, IntoEpoch: frozen.IntoEpoch, Epoch: d.Epoch}
			c.change(d, &st, &f)
			before := st
			next, err := DecideFreeze(d, &st, &f, 50)
			if (err == nil) != c.ok {
				t.Fatalf("refused: %v", err)
			}
			if !reflect.DeepEqual(st, before) {
				t.Fatalf("the state itself was changed: %+v", st)
			}
			if c.ok && (!reflect.DeepEqual(next.Freeze, frozen) || next.Stamp != 77) {
				t.Fatalf("frozen as %+v", next)
			}
		})
	}
	st := engine.AppliedState{Index: 60, Stamp: 77, Freeze: frozen}
	if _, err := DecideThaw(&st, &wire.Thaw{ID: 2}); err == nil {
		t.Fatal("thawed for another merge")
	}
	next, err := DecideThaw(&st, &wire.Thaw{ID: 1})
	if err != nil || next.Freeze != nil || next.Stamp != 77 || st.Freeze != frozen {
		t.Fatalf("%+v, %v", next, err)
	}
	if _, err := DecideThaw(&next, &wire.Thaw{ID: 1}); err == nil {
		t.Fatal("thawed twice")
	}
}

func TestCommitAndAbortAreDecidedByTheLeftLogAlone(t *testing.T) {
	type left struct {
		d *base.Descriptor
		s engine.AppliedState
	}
	for _, c := range []struct {
		name          string
		change        func(l *left, c *wire.CommitMerge)
		commit, abort bool
	}{
		{"good", func(*left, *wire.CommitMerge) {}, true, true},
		{"id 0", func(_ *left, c *wire.CommitMerge) { c.ID = 0 }, false, false},
		{"other conf", func(_ *left, c *wire.CommitMerge) { c.Epoch.ConfVer-- }, false, false},
		{"other version", func(_ *left, c *wire.CommitMerge) { c.Epoch.Version++ }, false, false},
		{"frozen itself", func(l *left, _ *wire.CommitMerge) { l.s.Freeze = &engine.Freeze{ID: 5} }, false, false},
		{"not the neighbour", func(_ *left, c *wire.CommitMerge) { c.Right.Start = []byte("\x02h") }, false, true},
		{"the left neighbour", func(_ *left, c *wire.CommitMerge) {
			c.Right.Start, c.Right.End = []byte("\x02a"), []byte("\x02b")
		}, false, true},
		{"another key space", func(l *left, c *wire.CommitMerge) {
			l.d.End, c.Right.Start, c.Right.End = base.UserEnd(), base.SystemStart(), base.SystemEnd()
		}, false, true},
		{"meta", func(_ *left, c *wire.CommitMerge) { c.Right.Shard = base.MetaShard }, false, true},
		{"itself", func(_ *left, c *wire.CommitMerge) { c.Right.Shard = 7 }, false, true},
		{"a learner on the left", func(l *left, _ *wire.CommitMerge) { l.d.Replicas[0].Role = base.RoleLearner }, false, true},
		{"a learner on the right", func(_ *left, c *wire.CommitMerge) {
			c.Right.Replicas[0].Role = base.RoleLearner
		}, false, true},
		{"other stores", func(_ *left, c *wire.CommitMerge) { c.Right.Replicas[0].Store = 4 }, false, true},
		{"fewer stores", func(_ *left, c *wire.CommitMerge) { c.Right.Replicas = c.Right.Replicas[1:] }, false, true},
		{"more stores", func(l *left, _ *wire.CommitMerge) { l.d.Replicas = l.d.Replicas[1:] }, false, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			d, right := mergeDescs()
			l := left{d: d, s: engine.AppliedState{Index: 90, Term: 6, Stamp: 100, Stats: engine.Stats{PutBytes: 5, PutOps: 3}}}
			cmd := wire.CommitMerge{ID: 1, Epoch: d.Epoch, Frozen: 50, Right: right}
			c.change(&l, &cmd)
			state := l.s
			next, err := DecideCommitMerge(l.d, &l.s, &cmd)
			if (err == nil) != c.commit {
				t.Fatalf("commit refused: %v", err)
			}
			abort := wire.AbortMerge{ID: cmd.ID, Right: cmd.Right.Shard, Epoch: cmd.Epoch}
			aborted, st, err := DecideAbortMerge(l.d, &l.s, &abort)
			if (err == nil) != c.abort {
				t.Fatalf("abort refused: %v", err)
			}
			if !reflect.DeepEqual(l.s, state) {
				t.Fatalf("the state itself was changed: %+v", l.s)
			}
			if !c.commit {
				return
			}
			if next.Epoch != (base.Epoch{ConfVer: 3, Version: 10}) || string(next.Start) != "\x02b" ||
				string(next.End) != "\x02m" || next.Shard != 7 || string(l.d.End) != "\x02g" {
				t.Fatalf("merged to %s", next)
			}
			if aborted.Epoch != (base.Epoch{ConfVer: 3, Version: 5}) || string(aborted.End) != "\x02g" ||
				!reflect.DeepEqual(st.Merges, []engine.MergeRecord{{ID: 1, Shard: 8, Version: 4}}) {
				t.Fatalf("aborted to %s, %+v", aborted, st)
			}
			rst := engine.AppliedState{
				Index: 55, Stamp: 200, Stats: engine.Stats{PutBytes: 7, PutOps: 2, DeleteOps: 1},
				Merges: []engine.MergeRecord{{ID: 9, Shard: 12, Version: 6, Committed: true}}, MergesForgotten: 2,
			}
			merged := MergeStates(l.d, &l.s, &rst, &cmd)
			want := l.s
			want.Stamp, want.Stats = 200, engine.Stats{PutBytes: 12, PutOps: 5, DeleteOps: 1}
			want.Merges = append(rst.Merges, engine.MergeRecord{ID: 1, Shard: 8, Version: 4, Committed: true})
			want.MergesForgotten = 2
			if !reflect.DeepEqual(merged, want) {
				t.Fatalf("%+v, want %+v", merged, want)
			}
		})
	}
}

// Whatever order the commands of many attempts come in, and however often, the log decides each merge once at most, and
// no answer about it ever changes from one end to the other.
func TestExactlyOneOfCommitAndAbortAppliesInAnyOrder(t *testing.T) {
	d, right := mergeDescs()
	freeze := &engine.Freeze{ID: 1, Into: 7, IntoEpoch: d.Epoch, Index: 50}
	commands := []string{"commit", "abort", "conf", "split"}
	var walk func(d *base.Descriptor, st engine.AppliedState, path []string, was MergeOutcome)
	walk = func(d *base.Descriptor, st engine.AppliedState, path []string, was MergeOutcome) {
		now := Outcome(d, &st, freeze)
		switch {
		case was != MergePending && now != was:
			t.Fatalf("after %v: %s, was %s", path, now, was)
		case now == MergeUnknown:
			t.Fatalf("after %v: unknown", path)
		}
		if len(path) == 5 {
			return
		}
		for _, c := range commands {
			next, nst, took := d, st, false
			switch c {
			case "commit":
				cmd := &wire.CommitMerge{ID: 1, Epoch: freeze.IntoEpoch, Frozen: 50, Right: right}
				if nd, err := DecideCommitMerge(d, &st, cmd); err == nil {
					next, nst, took = nd, MergeStates(d, &st, &engine.AppliedState{}, cmd), true
				}
			case "abort":
				cmd := &wire.AbortMerge{ID: 1, Right: 8, Epoch: freeze.IntoEpoch}
				if nd, ns, err := DecideAbortMerge(d, &st, cmd); err == nil {
					next, nst, took = nd, ns, true
				}
			case "conf":
				next = d.Clone()
				next.Epoch.ConfVer++
			case "split":
				next = d.Clone()
				next.Epoch.Version++
			}
			if took && now != MergePending {
				t.Fatalf("after %v, %s: %s is accepted", path, now, c)
			}
			walk(next, nst, append(path[:len(path):len(path)], c), now)
		}
	}
	walk(d, engine.AppliedState{}, nil, MergePending)
}

func TestOutcomeOfAMergeIsNeverGuessed(t *testing.T) {
	f := &engine.Freeze{ID: 1, Into: 7, IntoEpoch: base.Epoch{ConfVer: 3, Version: 4}, Index: 50}
	epoch := func(conf, version uint64) base.Epoch { return base.Epoch{ConfVer: conf, Version: version} }
	committed := []engine.MergeRecord{{ID: 1, Shard: 8, Version: 4, Committed: true}}
	aborted := []engine.MergeRecord{{ID: 1, Shard: 8, Version: 4}}
	into := []engine.MergeRecord{{ID: 3, Shard: 7, Version: 2, Committed: true}}
	for _, c := range []struct {
		name      string
		shard     base.ShardID
		epoch     base.Epoch
		merges    []engine.MergeRecord
		forgotten uint64
		want      MergeOutcome
	}{
		{"at the epoch", 7, epoch(3, 4), nil, 0, MergePending},
		{"an old replica", 7, epoch(3, 3), nil, 0, MergeUnknown},
		{"an old replica by conf", 7, epoch(2, 4), nil, 0, MergeUnknown},
		{"split since", 7, epoch(3, 5), nil, 0, MergeAborted},
		{"changed since", 7, epoch(4, 4), nil, 0, MergeAborted},
		{"committed", 7, epoch(3, 10), committed, 0, MergeCommitted},
		{"aborted", 7, epoch(3, 5), aborted, 0, MergeAborted},
		{"long ago", 7, epoch(3, 50), nil, 4, MergeUnknown},
		{"after those forgotten", 7, epoch(3, 50), nil, 3, MergeAborted},
		{"committed, then merged on", 6, epoch(1, 20), append(into, committed...), 0, MergeCommitted},
		{"merged on without it", 6, epoch(1, 20), into, 0, MergeAborted},
		{"merged on long ago", 6, epoch(1, 20), into, 9, MergeUnknown},
		{"somebody else", 6, epoch(9, 9), nil, 0, MergeUnknown},
	} {
		d := &base.Descriptor{Shard: c.shard, Epoch: c.epoch}
		st := &engine.AppliedState{Merges: c.merges, MergesForgotten: c.forgotten}
		if got := Outcome(d, st, f); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}

// A committed merge never turns into an aborted one by being forgotten.
func TestForgottenMergesAreUnknown(t *testing.T) {
	d, right := mergeDescs()
	f := &engine.Freeze{ID: 1, Into: 7, IntoEpoch: d.Epoch}
	var st engine.AppliedState
	for id := uint64(1); id < 30; id++ {
		right = right.Clone()
		right.Shard, right.Start, right.End = base.ShardID(7+id), d.End, append(d.End, 'x')
		cmd := &wire.CommitMerge{ID: id, Epoch: d.Epoch, Frozen: 50, Right: right}
		next, err := DecideCommitMerge(d, &st, cmd)
		if err != nil {
			t.Fatal(err)
		}
		st = MergeStates(d, &st, &engine.AppliedState{}, cmd)
		d = next
		want := MergeCommitted
		if id > engine.MaxMerges {
			want = MergeUnknown
		}
		if got := Outcome(d, &st, f); got != want || len(st.Merges) > engine.MaxMerges {
			t.Fatalf("after %d merges: %s, want %s, %d kept", id, got, want, len(st.Merges))
		}
	}
}

// Frozen at whatever index, a shard is what it was at the Freeze: that is what a merge takes over.
func TestAFrozenShardRefusesOperationsAndUsesUpNothing(t *testing.T) {
	s := newStore(t)
	s.apply([]raftpb.Entry{s.next(100, op(wire.OpPut, "c", "old"))}, false)
	st := s.m.Applied()
	d := s.m.Descriptor()
	next, err := DecideFreeze(d, &st, &wire.Freeze{ID: 1, Into: 6, Epoch: d.Epoch}, st.Index+1)
	if err != nil {
		t.Fatal(err)
	}
	next.Index++
	s.m = New(s.engine, d, next)
	before := s.m.Applied()
	for _, o := range []wire.Op{
		op(wire.OpPut, "c", "new"), op(wire.OpDelete, "c", ""), op(wire.OpDeleteRange, "b", "d"),
		batchOp(step(wire.OpPut, "d", "x")), op(wire.OpPut, "zzz", "outside"), ifVersion(op(wire.OpPut, "c", "n"), 5),
	} {
		e := s.next(1<<40, o, o)
		for _, a := range s.apply([]raftpb.Entry{e}, false)[0] {
			if a.Code != wire.Busy || a.Arg == 0 {
				t.Fatalf("%s: %s", o.Code, a.Code)
			}
		}
	}
	after := s.m.Applied()
	if after.Index != before.Index+6 {
		t.Fatalf("at %d, from %d", after.Index, before.Index)
	}
	after.Index = before.Index
	if got, want := fmt.Sprintf("%+v", after), fmt.Sprintf("%+v", before); got != want {
		t.Fatalf("the state has moved: %s, was %s", got, want)
	}
	unknown := op(wire.OpPut, "c", "x")
	unknown.Flags = 0x80
	if err := s.m.Apply(s.engine.NewBatch(), []raftpb.Entry{s.next(1, unknown)}, nil); err == nil {
		t.Fatal("an operation that nobody knows was passed over")
	}
}
