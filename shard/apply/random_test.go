package apply

import (
	"fmt"
	"math/rand/v2"

	"go.etcd.io/etcd/raft/v3/raftpb"

	"github.com/shardd/shardd/engine"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
)

// generator draws a log. It runs the model along, so that guesses of versions and values are often right.
type generator struct {
	rng   *rand.Rand
	model *model
	req   uint64
}

func newGenerator(seed uint64) *generator {
	return &generator{
		rng:   rand.New(rand.NewPCG(seed, 1)),
		model: newModel(testDescriptor(), engine.InitialIndex, engine.InitialTerm, 0),
	}
}

// item is one entry of the log and what the model made of it. A conf change has a descriptor instead of data.
type item struct {
	entry   raftpb.Entry
	desc    *base.Descriptor
	replies []reply
}

func (g *generator) next() item {
	m := g.model
	e := raftpb.Entry{Index: m.index + 1, Term: m.term}
	if g.rng.IntN(40) == 0 {
		e.Term++
	}
	switch n := g.rng.IntN(30); {
	case n == 0:
		return item{entry: e, replies: m.apply(e)}
	case n == 1:
		e.Type = raftpb.EntryConfChangeV2
		d := m.desc.Clone()
		d.Epoch.ConfVer++
		m.desc, m.index, m.term = d, e.Index, e.Term
		return item{entry: e, desc: d}
	}
	stamp := m.stamp + uint64(g.rng.IntN(20)) - min(m.stamp, 10) // behind or ahead
	ops := make([]wire.Op, 1+g.rng.IntN(6))
	// Guesses about later operations come from the state before the entry, or from stamps to come.
	for i := range ops {
		ops[i] = g.op(max(m.stamp+1, stamp) + uint64(i))
	}
	e.Data = entry(e.Index, e.Term, stamp, ops...).Data
	return item{entry: e, replies: m.apply(e)}
}

// key draws from few keys, mostly inside the shard's [b, g).
func (g *generator) key() string {
	k := string(rune('b' + g.rng.IntN(5)))
	if g.rng.IntN(40) == 0 {
		k = string(rune('a' + 6*g.rng.IntN(2))) // a or g: outside
	}
	if g.rng.IntN(3) == 0 {
		k += string(rune('x' + g.rng.IntN(2)))
	}
	return k
}

func (g *generator) value() string { return fmt.Sprintf("v%d", g.rng.IntN(4)) }

func (g *generator) version(key string, soon uint64) uint64 {
	switch g.rng.IntN(4) {
	case 0:
		return 0
	case 1:
		return soon - uint64(g.rng.IntN(3))
	}
	return g.model.data["\x02"+key].version
}

func (g *generator) rangeKeys() (lo, hi string) {
	lo, hi = g.key(), g.key()
	if lo > hi && g.rng.IntN(10) > 0 {
		lo, hi = hi, lo
	}
	return lo, hi
}

func (g *generator) op(soon uint64) wire.Op {
	var o wire.Op
	switch n := g.rng.IntN(20); {
	case n < 8:
		o = op(wire.OpPut, g.key(), g.value())
	case n < 10:
		o = op(wire.OpDelete, g.key(), "")
	case n < 12:
		lo, hi := g.rangeKeys()
		o = op(wire.OpDeleteRange, lo, hi)
	default:
		steps := make([]wire.Sub, 1+g.rng.IntN(6))
		for i := range steps {
			steps[i] = g.step(soon)
		}
		o = batchOp(steps...)
	}
	if (o.Code == wire.OpPut || o.Code == wire.OpDelete) && g.rng.IntN(3) == 0 {
		o = ifVersion(o, g.version(string(o.Key[1:]), soon))
	}
	switch g.rng.IntN(60) {
	case 0:
		o.Version += uint64(g.rng.IntN(3)) - 1
	case 1:
		o.Shard++
	}
	g.req++
	o.Req = g.req
	return o
}

func (g *generator) step(soon uint64) wire.Sub {
	k := g.key()
	switch g.rng.IntN(12) {
	case 0:
		return step(wire.OpCheckAbsent, k, "")
	case 1, 2:
		return step(wire.OpCheckPresent, k, "")
	case 3:
		return checkVersion(k, g.version(k, soon))
	case 4:
		v := g.value()
		if cur, ok := g.model.data["\x02"+k]; ok && g.rng.IntN(4) > 0 {
			v = cur.value
		}
		return step(wire.OpCheckValue, k, v)
	case 5:
		return step(wire.OpDelete, k, "")
	case 6:
		lo, hi := g.rangeKeys()
		return step(wire.OpDeleteRange, lo, hi)
	}
	return step(wire.OpPut, k, g.value())
}
