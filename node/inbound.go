package node

import (
	"encoding/binary"
	"fmt"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
	"github.com/shardd/shardd/shard"
	"github.com/shardd/shardd/transport"
)

// inbound is one frame of operations, decoded and checked. It is reused from frame to frame.
type inbound struct {
	ops    []parsed
	writes []shard.WriteRequest
	reads  []shard.ReadRequest
}

// parsed is one operation of a frame; key, value and raw point into it.
type parsed struct {
	op      wire.Op
	raw     []byte
	refused string // why it is answered Invalid, "" if it is fine
	done    bool   // answered already
}

// maxRetained bounds the operations whose slots an idle inbound keeps.
const maxRetained = 4096

// parse decodes a frame into in.ops. An operation that is wrong in itself is marked refused and the next one is read;
// an error means that the rest of the frame cannot be made out, and so the stream is over.
func (in *inbound) parse(frame []byte, class transport.Class) error {
	in.ops = in.ops[:0]
	for len(frame) > 0 {
		var p parsed
		raw, rest, err := wire.DecodeOp(frame, &p.op)
		if err != nil {
			id, ok := requestID(frame)
			if ok {
				p.op.Req, p.refused = id, err.Error()
				in.ops = append(in.ops, p)
			}
			total := uint64(0)
			if len(frame) >= wire.HeaderSize {
				total = uint64(binary.BigEndian.Uint32(frame))
			}
			if total < wire.HeaderSize || total > uint64(len(frame)) {
				return err
			}
			frame = frame[total:]
			continue
		}
		frame, p.raw = rest, raw
		if err := check(&p.op, class); err != nil {
			p.refused = err.Error()
		}
		in.ops = append(in.ops, p)
	}
	return nil
}

// release drops the references into the frame.
func (in *inbound) release() {
	clear(in.ops)
	clear(in.writes)
	clear(in.reads)
	if cap(in.ops) > maxRetained {
		*in = inbound{}
	}
}

// check applies the limits of every operation and the spaces that a class of streams may touch.
func check(op *wire.Op, class transport.Class) error {
	if err := op.Validate(); err != nil {
		return err
	}
	if op.Code == wire.OpReadIndex {
		if class != transport.ClassNode {
			return fmt.Errorf("%s is between nodes: %w", op.Code, wire.ErrInvalid)
		}
		return nil
	}
	if op.Code.IsWrite() == op.Code.IsRead() {
		return fmt.Errorf("%s is no operation of its own: %w", op.Code, wire.ErrInvalid)
	}
	if err := checkSpace(op.Code, op.Key, op.Value, class); err != nil {
		return err
	}
	if op.Code != wire.OpBatch {
		return nil
	}
	var s wire.Sub
	for b := op.Value; len(b) > 0; {
		rest, err := wire.DecodeSub(b, &s)
		if err != nil {
			return err
		}
		if err := checkSpace(s.Code, s.Key, s.Value, class); err != nil {
			return err
		}
		b = rest
	}
	return nil
}

// checkSpace says whether a stream of a class may touch a key or range. A point key needs a byte after its space.
func checkSpace(code wire.OpCode, key, end []byte, class transport.Class) error {
	ranged := code == wire.OpScan || code == wire.OpDeleteRange
	space := key[0]
	switch {
	case space != base.SpaceUser && space != base.SpaceSystem:
		return fmt.Errorf("%s: key in unknown space %#02x: %w", code, space, wire.ErrInvalid)
	case class != transport.ClassNode && space != base.SpaceUser:
		return fmt.Errorf("%s: clients may not touch the system space: %w", code, wire.ErrInvalid)
	case ranged && string(end) > string([]byte{space + 1}):
		return fmt.Errorf("%s: range leaves its key space: %w", code, wire.ErrInvalid)
	case !ranged && code != wire.OpBatch && len(key) < 2:
		return fmt.Errorf("%s: empty key: %w", code, wire.ErrInvalid)
	}
	return nil
}
