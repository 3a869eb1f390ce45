package shardtest

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/shardd/shardd/engine"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/shard/apply"
)

// replayer applies logs from the start on an engine of its own: what a store holds must be what its log says, at
// exactly the applied index.
type replayer struct {
	t   testing.TB
	eng *engine.Engine
}

func newReplayer(t testing.TB) *replayer {
	t.Helper()
	eng, err := engine.Open(engine.Options{Dir: "replay", FS: engine.NewMemFS(), ProbeInterval: -1})
	if err != nil {
		t.Fatal(err)
	}
	return &replayer{t: t, eng: eng}
}

func (r *replayer) close() {
	if err := r.eng.Close(); err != nil {
		r.t.Error(err)
	}
}

// rows prints a shard's rows, one a line.
func rows(t testing.TB, e *engine.Engine, d *base.Descriptor) []byte {
	t.Helper()
	it, err := e.NewIter(d.Start, d.End, false)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	for ; it.Valid(); it.Next() {
		fmt.Fprintf(&b, "%q %d %q\n", it.Key(), it.Header().Version, it.Value())
	}
	if err := it.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// check replays the logs of a store's replicas up to what is applied and compares rows and applied states.
func (r *replayer) check(what string, e *engine.Engine) {
	r.t.Helper()
	logs, err := readLogs(e)
	if err != nil {
		r.t.Fatalf("%s: %v", what, err)
	}
	for _, id := range shardsOf(logs) {
		d := logs[id]
		desc, have := d.st.Desc, d.st.Applied
		ents, err := d.entries(d.st.Truncated.Index+1, have.Index+1)
		if err != nil {
			r.t.Fatalf("%s: %v", what, err)
		}
		b := r.eng.NewBatch()
		b.DeleteRange(desc.Start, desc.End)
		m := apply.New(r.eng, desc, engine.AppliedState{
			Index: engine.InitialIndex, Term: engine.InitialTerm, Conf: engine.ConfStateOf(desc), Stamp: 1,
		})
		if err := r.eng.Commit(b, false); err != nil {
			r.t.Fatal(err)
		}
		b.Reset()
		if len(ents) > 0 {
			if err := m.Apply(b, ents, nil); err != nil {
				r.t.Fatalf("%s: replay %s: %v", what, id, err)
			}
			if err := r.eng.Commit(b, false); err != nil {
				r.t.Fatal(err)
			}
		}
		b.Close()
		got, want := rows(r.t, e, desc), rows(r.t, r.eng, desc)
		if !bytes.Equal(got, want) {
			r.t.Errorf("%s: %s applied up to %d holds\n%swhere its log says\n%s", what, id, have.Index, got, want)
		}
		if a := m.Applied(); a.Index != have.Index || a.Term != have.Term || a.Stamp != have.Stamp || a.Stats != have.Stats {
			r.t.Errorf("%s: %s has the applied state %+v where its log says %+v", what, id, have, a)
		}
	}
}
