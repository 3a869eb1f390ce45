package apply

import (
	"bytes"
	"fmt"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
)

// Batch. Check: every step's range, so that a step out of range refuses the whole. Run: conditions are evaluated and
// writes collected in order. Cut: a failed condition takes the collected writes and their statistics back. There is
// nothing to undo in the engine batch, which is filled at the end of the call.

// batch applies a validated OpBatch.
func (r *run) batch(op *wire.Op) error {
	if !r.m.desc.Contains(op.Key) {
		r.outside(op, op.Key)
		return nil
	}
	var s wire.Sub
	for b := op.Value; len(b) > 0; {
		rest, err := wire.DecodeSub(b, &s)
		if err != nil {
			return fmt.Errorf("validated batch: %w: %w", err, base.ErrCorrupt)
		}
		if !r.inRange(&s) {
			r.outside(op, s.Key)
			return nil
		}
		b = rest
	}
	mark, stats := len(r.writes), r.m.state.Stats
	var step uint32
	for b := op.Value; len(b) > 0; step++ {
		b, _ = wire.DecodeSub(b, &s) // decoded above
		if !s.IsCheck() {
			r.write(&s)
			continue
		}
		cur, err := r.lookup(s.Key, mark)
		if err != nil {
			return err
		}
		if !holds(&s, cur) {
			clear(r.writes[mark:])
			r.writes = r.writes[:mark]
			r.m.state.Stats = stats
			r.own.reset(maxKeptSteps)
			r.conditionFailed(op, step, cur.version)
			return nil
		}
	}
	r.own.reset(maxKeptSteps)
	r.ok(op)
	return nil
}

func (r *run) inRange(s *wire.Sub) bool {
	if s.Code == wire.OpDeleteRange {
		return contains(r.m.desc, s.Key, s.Value)
	}
	return r.m.desc.Contains(s.Key)
}

func (r *run) write(s *wire.Sub) {
	switch s.Code {
	case wire.OpPut:
		r.put(s.Key, s.Value)
	case wire.OpDelete:
		r.delete(s.Key)
	case wire.OpDeleteRange:
		r.deleteRange(s.Key, s.Value)
	}
}

// holds evaluates a condition. Versions are never 0, so version 0 stands for absent, in CheckVersion too.
func holds(s *wire.Sub, cur current) bool {
	switch s.Code {
	case wire.OpCheckAbsent:
		return cur.version == 0
	case wire.OpCheckPresent:
		return cur.version != 0
	case wire.OpCheckVersion:
		return cur.version == s.Arg
	case wire.OpCheckValue:
		return cur.version != 0 && bytes.Equal(cur.value, s.Value)
	}
	return false
}
