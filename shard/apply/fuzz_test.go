package apply

import (
	"reflect"
	"testing"

	"go.etcd.io/etcd/raft/v3/raftpb"

	"github.com/shardd/shardd/engine"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
)

// FuzzApply feeds arbitrary entry bytes. Either both of two calls fail with nothing stored, or the answers and the
// stored bytes are the model's, in one call of two entries as in two calls of one.
func FuzzApply(f *testing.F) {
	for _, c := range commands() {
		f.Add(c.data)
	}
	g := newGenerator(1)
	for range 50 {
		f.Add(g.next().entry.Data)
	}
	s := newStore(f)
	runs := 0
	f.Fuzz(func(t *testing.T, data []byte) {
		s.tb = t
		if runs++; runs%256 == 0 { // thousands of range tombstones in one memtable make every read slow
			s.close()
			s.create()
		}
		start := s.reset()
		ents := []raftpb.Entry{
			{Index: start.index + 1, Term: start.term, Data: data}, {Index: start.index + 2, Term: start.term, Data: data},
		}
		one, oneErr := s.try(ents)
		oneDump := s.dump()

		s.reset()
		first, twoErr := s.try(ents[:1])
		second, err := s.try(ents[1:])
		if (oneErr == nil) != (twoErr == nil && err == nil) {
			t.Fatalf("in one call: %v; in two: %v, %v", oneErr, twoErr, err)
		}
		if oneErr != nil {
			return
		}
		want := append(start.apply(ents[0]), start.apply(ents[1])...)
		if !reflect.DeepEqual(one, want) || !reflect.DeepEqual(append(first, second...), want) {
			t.Fatalf("answers %+v and %+v, %+v, want %+v", one, first, second, want)
		}
		if two := s.dump(); oneDump != start.dump() || two != oneDump {
			t.Fatalf("stored %s\nand %s\nwant %s", oneDump, two, start.dump())
		}
	})
}

// reset brings the shard back to its first state with two keys, and returns the model of it.
func (s *store) reset() *model {
	d := testDescriptor()
	st := engine.AppliedState{
		Index: engine.InitialIndex, Term: engine.InitialTerm, Stamp: 1000, Conf: engine.ConfStateOf(d),
	}
	m := newModel(d, st.Index, st.Term, st.Stamp)
	b := s.engine.NewBatch()
	b.DeleteRange(base.UserStart(), base.UserEnd())
	b.SetDescriptor(d)
	b.SetApplied(d.Shard, &st)
	for i, k := range []string{"\x02c", "\x02d"} {
		v := modelValue{version: 999 + uint64(i), value: "value of " + k}
		b.Put([]byte(k), engine.ValueHeader{Version: v.version}, []byte(v.value))
		m.data[k] = v
	}
	s.commit(b, false)
	s.m = New(s.engine, d, st)
	return m
}

// try is apply for entries that may fault; then nothing is committed.
func (s *store) try(ents []raftpb.Entry) ([]reply, error) {
	var out []reply
	b := s.engine.NewBatch()
	err := s.m.Apply(b, ents, func(_, _ int, _ uint64, a wire.Answer) { out = append(out, replyOf(a)) })
	if err != nil {
		b.Close()
		return nil, err
	}
	s.commit(b, false)
	return out, nil
}
