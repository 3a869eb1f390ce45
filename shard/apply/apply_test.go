package apply

import (
	"encoding/binary"
	"errors"
	"math"
	"strings"
	"testing"

	"go.etcd.io/etcd/raft/v3/raftpb"

	"github.com/shardd/shardd/engine"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
)

// The table starts from keys c = "old" at version 101 and d = "dee" at version 102; e is absent. The operations run
// with stamps 201, 202, ...
func TestOperationsAndConditions(t *testing.T) {
	type want struct {
		code wire.Code
		arg  uint64
		step uint32 // of ConditionFailed
	}
	ok := func(stamp uint64) want { return want{code: wire.OK, arg: stamp} }
	failed := func(version uint64, step uint32) want { return want{wire.ConditionFailed, version, step} }
	invalid := want{code: wire.Invalid}
	put := func(k, v string) wire.Sub { return step(wire.OpPut, k, v) }
	del := func(k string) wire.Sub { return step(wire.OpDelete, k, "") }
	delRange := func(lo, hi string) wire.Sub { return step(wire.OpDeleteRange, lo, hi) }
	absent := func(k string) wire.Sub { return step(wire.OpCheckAbsent, k, "") }
	present := func(k string) wire.Sub { return step(wire.OpCheckPresent, k, "") }
	value := func(k, v string) wire.Sub { return step(wire.OpCheckValue, k, v) }
	wrong := func(o wire.Op, mend func(*wire.Op)) wire.Op { mend(&o); return o }
	const (
		c    = "c=old@101"
		d    = "d=dee@102"
		both = c + " " + d
	)

	for _, tc := range []struct {
		name string
		ops  []wire.Op
		want []want
		data string // what is stored afterwards
	}{
		{"put", []wire.Op{op(wire.OpPut, "e", "new")}, []want{ok(201)}, both + " e=new@201"},
		{"put over", []wire.Op{op(wire.OpPut, "c", "new")}, []want{ok(201)}, "c=new@201 " + d},
		{"put of nothing", []wire.Op{op(wire.OpPut, "e", "")}, []want{ok(201)}, both + " e=@201"},
		{"delete", []wire.Op{op(wire.OpDelete, "c", "")}, []want{ok(201)}, d},
		{"delete of an absent key", []wire.Op{op(wire.OpDelete, "e", "")}, []want{ok(201)}, both},
		{"delete range", []wire.Op{op(wire.OpDeleteRange, "b", "d")}, []want{ok(201)}, d},
		{"delete the whole shard", []wire.Op{op(wire.OpDeleteRange, "b", "g")}, []want{ok(201)}, ""},

		{"put if version", []wire.Op{ifVersion(op(wire.OpPut, "c", "new"), 101)}, []want{ok(201)}, "c=new@201 " + d},
		{"put if other version", []wire.Op{ifVersion(op(wire.OpPut, "c", "new"), 100)}, []want{failed(101, 0)}, both},
		{"put if absent", []wire.Op{ifVersion(op(wire.OpPut, "e", "new"), 0)}, []want{ok(201)}, both + " e=new@201"},
		{"put if absent but present", []wire.Op{ifVersion(op(wire.OpPut, "c", "new"), 0)}, []want{failed(101, 0)}, both},
		{"put if version but absent", []wire.Op{ifVersion(op(wire.OpPut, "e", "new"), 9)}, []want{failed(0, 0)}, both},
		{"delete if version", []wire.Op{ifVersion(op(wire.OpDelete, "c", ""), 101)}, []want{ok(201)}, d},
		{"delete if other version", []wire.Op{ifVersion(op(wire.OpDelete, "c", ""), 102)}, []want{failed(101, 0)}, both},

		{"conditions see earlier puts", []wire.Op{
			op(wire.OpPut, "e", "1"), ifVersion(op(wire.OpPut, "e", "2"), 201), ifVersion(op(wire.OpPut, "e", "3"), 201),
		}, []want{ok(201), ok(202), failed(202, 0)}, both + " e=2@202"},
		{"conditions see earlier deletes", []wire.Op{
			op(wire.OpDelete, "c", ""), ifVersion(op(wire.OpPut, "c", "2"), 101), ifVersion(op(wire.OpPut, "c", "3"), 0),
		}, []want{ok(201), failed(0, 0), ok(203)}, "c=3@203 " + d},
		{"conditions see earlier range deletions", []wire.Op{
			op(wire.OpDeleteRange, "c", "d"), ifVersion(op(wire.OpPut, "c", "2"), 101), ifVersion(op(wire.OpPut, "d", "3"), 102),
		}, []want{ok(201), failed(0, 0), ok(203)}, "d=3@203"},
		{"a put after a range deletion stays", []wire.Op{
			op(wire.OpDeleteRange, "b", "g"), op(wire.OpPut, "c", "2"), ifVersion(op(wire.OpPut, "d", "3"), 0),
			ifVersion(op(wire.OpPut, "c", "4"), 202),
		}, []want{ok(201), ok(202), ok(203), ok(204)}, "c=4@204 d=3@203"},
		{"a range deletion hides an earlier put", []wire.Op{
			op(wire.OpPut, "e", "1"), op(wire.OpDeleteRange, "b", "g"), ifVersion(op(wire.OpPut, "e", "2"), 201),
		}, []want{ok(201), ok(202), failed(0, 0)}, ""},
		{"conditions see conditional writes", []wire.Op{
			ifVersion(op(wire.OpPut, "c", "2"), 101), ifVersion(op(wire.OpPut, "c", "3"), 201),
		}, []want{ok(201), ok(202)}, "c=3@202 " + d},

		{"batch of writes", []wire.Op{batchOp(put("e", "1"), del("c"), put("c", "2"), put("e", "3"))},
			[]want{ok(201)}, "c=2@201 " + d + " e=3@201"},
		{"batch with conditions", []wire.Op{batchOp(
			absent("e"), present("c"), checkVersion("c", 101), value("d", "dee"), checkVersion("f", 0), put("e", "1"),
		)}, []want{ok(201)}, both + " e=1@201"},
		{"batch: absent fails", []wire.Op{batchOp(put("e", "1"), absent("c"))}, []want{failed(101, 1)}, both},
		{"batch: present fails", []wire.Op{batchOp(put("f", "1"), present("e"))}, []want{failed(0, 1)}, both},
		{"batch: version fails", []wire.Op{batchOp(checkVersion("c", 102), del("c"))}, []want{failed(101, 0)}, both},
		{"batch: value fails", []wire.Op{batchOp(del("c"), del("d"), value("e", ""))}, []want{failed(0, 2)}, both},
		{"batch: value of another length fails", []wire.Op{batchOp(value("c", "olds"))}, []want{failed(101, 0)}, both},
		{"batch: an empty value is not an absent one", []wire.Op{op(wire.OpPut, "e", ""), batchOp(value("e", ""))},
			[]want{ok(201), ok(202)}, both + " e=@201"},
		{"batch sees its own writes", []wire.Op{batchOp(
			put("e", "1"), value("e", "1"), checkVersion("e", 201), del("c"), absent("c"), delRange("d", "f"), absent("e"),
			absent("d"), put("d", "2"), present("d"),
		)}, []want{ok(201)}, "d=2@201"},
		{"batch fails after its own writes", []wire.Op{
			op(wire.OpPut, "e", "1"),
			batchOp(put("e", "2"), delRange("b", "g"), put("c", "3"), present("c"), present("d")),
			batchOp(value("e", "1"), checkVersion("c", 101), put("f", "4")),
		}, []want{ok(201), failed(0, 4), ok(203)}, both + " e=1@201 f=4@203"},
		{"a failed batch leaves no trace for later conditions", []wire.Op{
			batchOp(put("c", "2"), value("c", "2"), absent("d")), ifVersion(op(wire.OpPut, "c", "3"), 101),
			batchOp(value("c", "3"), put("d", "4"), value("d", "4")),
		}, []want{failed(102, 2), ok(202), ok(203)}, "c=3@202 d=4@203"},
		{"batch of conditions only", []wire.Op{batchOp(present("c"), absent("e"))}, []want{ok(201)}, both},

		{"put below the range", []wire.Op{op(wire.OpPut, "azz", "1")}, []want{invalid}, both},
		{"put at the end", []wire.Op{op(wire.OpPut, "g", "1")}, []want{invalid}, both},
		{"put in another space", []wire.Op{wrong(op(wire.OpPut, "c", "1"), func(o *wire.Op) { o.Key = []byte("\x03c") })},
			[]want{invalid}, both},
		{"delete outside", []wire.Op{op(wire.OpDelete, "a", "")}, []want{invalid}, both},
		{"range from below", []wire.Op{op(wire.OpDeleteRange, "a", "g")}, []want{invalid}, both},
		{"range past the end", []wire.Op{op(wire.OpDeleteRange, "b", "g\x00")}, []want{invalid}, both},
		{"inverted range", []wire.Op{op(wire.OpDeleteRange, "f", "c")}, []want{invalid}, both},
		{"empty range", []wire.Op{op(wire.OpDeleteRange, "c", "c")}, []want{invalid}, both},
		{"batch over two shards", []wire.Op{batchOp(put("c", "1"), put("x", "2"))}, []want{invalid}, both},
		{"batch checking another shard", []wire.Op{batchOp(put("c", "1"), absent("x"))}, []want{invalid}, both},
		{"batch deleting past the end", []wire.Op{batchOp(put("c", "1"), delRange("c", "h"))}, []want{invalid}, both},
		{"batch out of range says so before its conditions", []wire.Op{batchOp(present("e"), put("x", "2"))},
			[]want{invalid}, both},
		{"batch routed to another shard", []wire.Op{
			wrong(batchOp(put("c", "1")), func(o *wire.Op) { o.Key = []byte("\x02x") }),
		}, []want{invalid}, both},
		{"empty batch", []wire.Op{wrong(batchOp(), func(o *wire.Op) { o.Key = []byte("\x02c") })}, []want{invalid}, both},
		{"truncated batch", []wire.Op{wrong(batchOp(put("c", "1")), func(o *wire.Op) { o.Value = o.Value[:17] })},
			[]want{invalid}, both},
		{"oversized value", []wire.Op{op(wire.OpPut, "c", strings.Repeat("x", base.MaxValueSize+1))},
			[]want{invalid}, both},
		{"oversized key", []wire.Op{op(wire.OpPut, "c"+strings.Repeat("x", base.MaxKeySize), "")}, []want{invalid}, both},
		{"another shard", []wire.Op{wrong(op(wire.OpPut, "c", "1"), func(o *wire.Op) { o.Shard++ })}, []want{invalid}, both},
		{"get in the log", []wire.Op{op(wire.OpGet, "c", "")}, []want{invalid}, both},
		{"a rejected operation takes its stamp", []wire.Op{op(wire.OpPut, "x", ""), op(wire.OpPut, "e", "1")},
			[]want{invalid, ok(202)}, both + " e=1@202"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := newStore(t)
			s.apply([]raftpb.Entry{s.next(101, op(wire.OpPut, "c", "old"), op(wire.OpPut, "d", "dee"))}, false)
			got := s.apply([]raftpb.Entry{s.next(201, tc.ops...)}, false)[0]
			if len(got) != len(tc.want) {
				t.Fatalf("%d answers, want %d", len(got), len(tc.want))
			}
			for i, w := range tc.want {
				a := got[i]
				if a.Code != w.code || a.Arg != w.arg || a.Version != 4 {
					t.Errorf("operation %d: %s, arg %d, epoch %d, want %s, %d, 4 (%s)",
						i, a.Code, a.Arg, a.Version, w.code, w.arg, a.Payload)
				}
				switch a.Code {
				case wire.ConditionFailed:
					if len(a.Payload) != 4 || binary.BigEndian.Uint32(a.Payload) != w.step {
						t.Errorf("operation %d: failed step %x, want %d", i, a.Payload, w.step)
					}
				case wire.Invalid:
					if len(a.Payload) == 0 {
						t.Errorf("operation %d: no reason", i)
					}
				}
			}
			if data := s.brief(); data != tc.data {
				t.Errorf("stored %q, want %q", data, tc.data)
			}
		})
	}
}

// brief renders the data as the table above has it.
func (s *store) brief() string {
	var out []string
	for _, line := range strings.Split(strings.TrimSpace(s.dump()), "\n")[2:] {
		line = strings.NewReplacer(`"\x02`, "", `"`, "", " flags 0 expiry 0 = ", " ").Replace(line)
		f := strings.SplitN(line, " ", 3)
		out = append(out, f[0]+"="+f[2]+f[1])
	}
	return strings.Join(out, " ")
}

func TestOtherEpochIsAnsweredWithTheDescriptor(t *testing.T) {
	s := newStore(t)
	stale, ahead := op(wire.OpPut, "c", "1"), batchOp(step(wire.OpPut, "x", "out of range, but the route is older"))
	stale.Version, ahead.Version = 3, 5
	stale.Req, ahead.Req = 11, 12
	for i, a := range s.apply([]raftpb.Entry{s.next(1, stale, ahead)}, false)[0] {
		ds, err := wire.DecodeDescriptors(a.Payload)
		if a.Code != wire.EpochMismatch || a.Version != 4 || a.Req != uint64(11+i) || err != nil {
			t.Fatalf("answer %+v, %v", a, err)
		}
		if len(ds) != 1 || ds[0].String() != testDescriptor().String() {
			t.Fatalf("descriptors %v", ds)
		}
	}
	if data := s.brief(); data != "" {
		t.Fatalf("stored %q", data)
	}
}

func TestMembershipChangesDoNotDisturbDataOperations(t *testing.T) {
	s := newStore(t)
	d := testDescriptor()
	d.Epoch.ConfVer, d.NextReplicaID = 2, 3
	d.Replicas = append(d.Replicas, base.ReplicaDesc{Replica: 2, Store: 2, Role: base.RoleVoter})
	conf := engine.ConfStateOf(d)
	b := s.engine.NewBatch()
	if err := s.m.ApplyConfState(b, engine.InitialIndex+1, 6, &conf, d); err != nil {
		t.Fatal(err)
	}
	s.commit(b, true)
	// A refused change only advances.
	b = s.engine.NewBatch()
	if err := s.m.ApplyConfState(b, engine.InitialIndex+2, 6, nil, nil); err != nil {
		t.Fatal(err)
	}
	s.commit(b, true)
	if a := s.apply([]raftpb.Entry{s.next(9, op(wire.OpPut, "c", "1"))}, true)[0][0]; a.Code != wire.OK || a.Arg != 9 {
		t.Fatalf("answer %+v", a)
	}
	s.crash(0, 1)
	st := s.m.Applied()
	if st.Index != engine.InitialIndex+3 || st.Term != 6 || len(st.Conf.Voters) != 2 {
		t.Fatalf("applied %+v", st)
	}
	if got := s.m.Descriptor().String(); got != d.String() {
		t.Fatalf("descriptor %s, want %s", got, d)
	}
}

func TestConfChangeMayNotTouchTheRange(t *testing.T) {
	for name, mend := range map[string]func(*base.Descriptor){
		"shard":   func(d *base.Descriptor) { d.Shard++ },
		"version": func(d *base.Descriptor) { d.Epoch.Version++ },
		"start":   func(d *base.Descriptor) { d.Start = []byte("\x02a") },
		"end":     func(d *base.Descriptor) { d.End = []byte("\x02h") },
		"older":   func(d *base.Descriptor) { d.Epoch.ConfVer = 0 },
		"next id": func(d *base.Descriptor) { d.NextReplicaID = 1; d.Replicas = nil },
		"invalid": func(d *base.Descriptor) { d.Replicas[0].Store = 0 },
	} {
		t.Run(name, func(t *testing.T) {
			s := newStore(t)
			d := testDescriptor()
			mend(d)
			b := s.engine.NewBatch()
			defer b.Close()
			if err := s.m.ApplyConfState(b, engine.InitialIndex+1, 6, nil, d); err == nil {
				t.Fatal("accepted")
			}
		})
	}
}

func TestStampsRiseWhateverTheLeadersClockDoes(t *testing.T) {
	s := newStore(t)
	p := op(wire.OpPut, "c", "1")
	var got []uint64
	for _, stamp := range []uint64{100, 50, 0, 103, 104, 1000} {
		for _, a := range s.apply([]raftpb.Entry{s.next(stamp, p, p)}, false)[0] {
			got = append(got, a.Arg)
		}
	}
	want := []uint64{100, 101, 102, 103, 104, 105, 106, 107, 108, 109, 1000, 1001}
	for i := range want {
		if got[i] != want[i] {
			t.Fatalf("stamps %v, want %v", got, want)
		}
	}
}

func TestEmptyEntriesAdvance(t *testing.T) {
	s := newStore(t)
	at := s.m.Applied().Index
	s.apply([]raftpb.Entry{{Index: at + 1, Term: 6}, {Index: at + 2, Term: 7}}, true)
	s.crash(0, 1)
	if st := s.m.Applied(); st.Index != at+2 || st.Term != 7 || st.Stamp != 0 {
		t.Fatalf("applied %+v", st)
	}
	b := s.engine.NewBatch()
	defer b.Close()
	if err := s.m.Apply(b, nil, nil); err != nil || !b.Empty() {
		t.Fatalf("no entries: %v, batch of %d bytes", err, b.Len())
	}
}

func TestStatisticsCountAppliedCommandsOnly(t *testing.T) {
	s := newStore(t)
	s.apply([]raftpb.Entry{s.next(1,
		op(wire.OpPut, "c", "four"), // 2+4 bytes
		op(wire.OpPut, "x", "out of range"),
		ifVersion(op(wire.OpPut, "c", "no such version"), 99),
		op(wire.OpDelete, "nothing there", ""), // out of range
		op(wire.OpDelete, "d", ""),
		op(wire.OpDeleteRange, "e", "f"),
		batchOp(step(wire.OpPut, "d", "1"), step(wire.OpDelete, "d", "")), // 2+1 bytes
		batchOp(step(wire.OpPut, "d", "1"), step(wire.OpDelete, "d", ""), step(wire.OpCheckPresent, "d", "")),
	)}, false)
	if got, want := s.m.Applied().Stats, (engine.Stats{PutBytes: 9, PutOps: 2, DeleteOps: 3}); got != want {
		t.Fatalf("got %+v, want %+v", got, want)
	}
}

// What this binary does not know stops the replica, and nothing of the call is stored.
func TestUnknownCommandsFault(t *testing.T) {
	good := op(wire.OpPut, "c", "1")
	mendOp := func(mend func(*wire.Op)) func(*raftpb.Entry) {
		return func(e *raftpb.Entry) {
			o := good
			mend(&o)
			e.Data = entry(e.Index, e.Term, 1, good, o).Data
		}
	}
	for name, mend := range map[string]func(*raftpb.Entry){
		"layout":          func(e *raftpb.Entry) { e.Data[0] = 2 },
		"kind":            func(e *raftpb.Entry) { e.Data[1] = 9 },
		"reserved byte":   func(e *raftpb.Entry) { e.Data[3] = 1 },
		"short header":    func(e *raftpb.Entry) { e.Data = e.Data[:10] },
		"cut operation":   func(e *raftpb.Entry) { e.Data = e.Data[:len(e.Data)-1] },
		"bytes at end":    func(e *raftpb.Entry) { e.Data = append(e.Data, 0) },
		"too few":         func(e *raftpb.Entry) { binary.BigEndian.PutUint32(e.Data[4:], 2) },
		"too many":        func(e *raftpb.Entry) { binary.BigEndian.PutUint32(e.Data[4:], 0) },
		"conf change":     func(e *raftpb.Entry) { e.Type = raftpb.EntryConfChangeV2 },
		"gap":             func(e *raftpb.Entry) { e.Index++ },
		"again":           func(e *raftpb.Entry) { e.Index-- },
		"older term":      func(e *raftpb.Entry) { e.Term = engine.InitialTerm - 1 },
		"operation":       mendOp(func(o *wire.Op) { o.Code = 8 }),
		"flag":            mendOp(func(o *wire.Op) { o.Flags = 0x40 }),
		"flag elsewhere":  mendOp(func(o *wire.Op) { o.Flags = wire.FlagReverse }),
		"step":            mendOp(func(o *wire.Op) { *o = batchOp(step(200, "c", "")) }),
		"step flag":       mendOp(func(o *wire.Op) { *o = batchOp(step(wire.OpPut, "c", "")); o.Value[1] = 1 }),
		"in other epochs": mendOp(func(o *wire.Op) { o.Code, o.Version = 8, 1 }),
	} {
		t.Run(name, func(t *testing.T) {
			s := newStore(t)
			before := s.dump()
			e := s.next(1, good)
			mend(&e)
			b := s.engine.NewBatch()
			err := s.m.Apply(b, []raftpb.Entry{e}, nil)
			b.Close()
			if err == nil || !strings.Contains(err.Error(), "s7") {
				t.Fatalf("got %v, want an error that names the shard", err)
			}
			if s.dump() != before {
				t.Fatal("something was stored")
			}
			b = s.engine.NewBatch()
			defer b.Close()
			again := s.m.Apply(b, []raftpb.Entry{s.next(1, good)}, nil)
			if !errors.Is(again, err) || !b.Empty() {
				t.Fatalf("a faulted machine went on: %v, batch of %d bytes", again, b.Len())
			}
		})
	}
}

func TestUsedUpStampsFault(t *testing.T) {
	s := newStore(t)
	s.apply([]raftpb.Entry{s.next(math.MaxUint64, op(wire.OpPut, "c", "1"))}, false)
	b := s.engine.NewBatch()
	defer b.Close()
	if err := s.m.Apply(b, []raftpb.Entry{s.next(1, op(wire.OpPut, "c", "2"))}, nil); err == nil {
		t.Fatal("a version came twice")
	}
}
