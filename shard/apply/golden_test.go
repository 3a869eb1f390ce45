package apply

import (
	"fmt"
	"strings"
	"testing"

	"go.etcd.io/etcd/raft/v3/raftpb"

	"github.com/shardd/shardd/engine"
	"github.com/shardd/shardd/internal/golden"
	"github.com/shardd/shardd/internal/wire"
)

// commands is a log with every operation and every step, with each outcome.
func commands() []struct {
	name string
	data []byte
} {
	put := func(k, v string) wire.Sub { return step(wire.OpPut, k, v) }
	stale := op(wire.OpPut, "c", "stale route")
	stale.Version--
	logs := []struct {
		name  string
		stamp uint64
		ops   []wire.Op
	}{
		{"put", 1000, []wire.Op{op(wire.OpPut, "c", "one"), op(wire.OpPut, "d", "two"), op(wire.OpPut, "e", "three")}},
		{"put if version", 1100, []wire.Op{
			ifVersion(op(wire.OpPut, "c", "four"), 1000), ifVersion(op(wire.OpPut, "c", "five"), 1000),
		}},
		{"delete", 1050, []wire.Op{op(wire.OpDelete, "d", "")}}, // a clock that went back
		{"delete if version", 1200, []wire.Op{
			ifVersion(op(wire.OpDelete, "e", ""), 1001), ifVersion(op(wire.OpDelete, "e", ""), 1002),
		}},
		{"delete range", 1300, []wire.Op{op(wire.OpPut, "cc", "gone"), op(wire.OpDeleteRange, "ca", "cd")}},
		{"batch", 1400, []wire.Op{batchOp(
			step(wire.OpCheckAbsent, "d", ""), step(wire.OpCheckPresent, "c", ""), checkVersion("c", 1100),
			step(wire.OpCheckValue, "c", "four"), put("d", "six"), put("f", "seven"), put("fa", "eight"),
			step(wire.OpDelete, "f", ""), step(wire.OpDeleteRange, "f", "fz"), put("fb", "nine"),
		)}},
		{"batch, failing", 1500, []wire.Op{batchOp(put("c", "no"), step(wire.OpCheckAbsent, "d", ""))}},
		{"refused", 1600, []wire.Op{stale, op(wire.OpPut, "zzz", "out of range"), op(wire.OpDeleteRange, "f", "c")}},
	}
	var out []struct {
		name string
		data []byte
	}
	for i, l := range logs {
		out = append(out, struct {
			name string
			data []byte
		}{l.name, entry(engine.InitialIndex+1+uint64(i), 6, l.stamp, l.ops...).Data})
	}
	return append(out, struct {
		name string
		data []byte
	}{"empty entry", nil})
}

// TestCommandsAreGolden pins the bytes of the log and what they mean: answers and state.
func TestCommandsAreGolden(t *testing.T) {
	var bytes, meaning golden.File
	s := newStore(t)
	for i, c := range commands() {
		bytes.Add(c.name, c.data)
		e := raftpb.Entry{Index: engine.InitialIndex + 1 + uint64(i), Term: 6, Data: c.data}
		var text strings.Builder
		for _, a := range s.apply([]raftpb.Entry{e}, false)[0] {
			fmt.Fprintf(&text, "%s req %d arg %d epoch %d", a.Code, a.Req, a.Arg, a.Version)
			if a.Code != wire.Invalid && len(a.Payload) > 0 { // a reason is for people and may be reworded
				fmt.Fprintf(&text, " %x", a.Payload)
			}
			text.WriteByte('\n')
		}
		meaning.Text(c.name, text.String())
	}
	meaning.Text("state", s.dump())
	bytes.Check(t, "commands.golden")
	meaning.Check(t, "outcomes.golden")
}
