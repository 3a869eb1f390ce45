package router

import (
	"context"
	"slices"
	"testing"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
)

// many is a world that takes operations in lots.
type many struct {
	*world
	lots []int // how many each had
	most int   // bytes of answers that were under way at once
}

func (m *many) SendMany(ctx context.Context, to base.StoreID, ops []*wire.Op, dones []func(wire.Answer, error)) {
	bytes := 0
	for i, op := range ops {
		m.Send(ctx, to, op, func(a wire.Answer, err error) {
			bytes += len(a.Payload)
			dones[i](a, err)
		})
	}
	m.lots, m.most = append(m.lots, len(ops)), max(m.most, bytes)
}

func gets(n int) (out []wire.Op) {
	for i := range n {
		out = append(out, wire.Op{Code: wire.OpGet, Key: key(i)})
	}
	return out
}

func TestOperationsForOneNodeLeaveTogetherWhateverTheirShard(t *testing.T) {
	m := &many{world: newWorld(600, 100, 200, 300, 400, 500)}
	r := New(Config{Directory: m, Sender: m})
	r.DoMany(context.Background(), gets(600)) // finds out who leads what
	m.lots = nil
	answers, errs := r.DoMany(context.Background(), gets(600))
	for i := range answers {
		if errs[i] != nil || string(answers[i].Payload) != m.rows[string(key(i))] {
			t.Fatalf("%d: %q, %v", i, answers[i].Payload, errs[i])
		}
	}
	if !slices.Equal(m.lots, []int{200, 200, 200}) {
		t.Errorf("lots of %v for 600 keys at 3 nodes", m.lots)
	}
}

func TestManyOperationsAreBoundedByWhatTheirAnswersTake(t *testing.T) {
	m := &many{world: newWorld(200)}
	for k := range m.rows {
		m.rows[k] = string(make([]byte, 1<<20))
	}
	r := New(Config{Directory: m, Sender: m})
	r.rowBytes.Store(1 << 20) // what an earlier call has left
	if _, errs := r.DoMany(context.Background(), gets(200)); errs[199] != nil {
		t.Fatal(errs[199])
	}
	if m.most > inFlightBytes {
		t.Errorf("%d bytes under way", m.most)
	}
	for k := range m.rows {
		m.rows[k] = "small"
	}
	m.lots = nil
	for range 30 {
		r.DoMany(context.Background(), gets(200))
	}
	if last := m.lots[len(m.lots)-1]; last != 200 {
		t.Errorf("lots of %d after many small answers", last)
	}
}
