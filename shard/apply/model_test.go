package apply

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"sort"
	"strings"

	"go.etcd.io/etcd/raft/v3/raftpb"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
)

// model is the reference: a map, one operation at a time, a copy of everything before a Batch. It shares no code with
// the machine but the decoders.
type model struct {
	desc                        *base.Descriptor
	index, term, stamp          uint64
	putBytes, putOps, deleteOps uint64
	data                        map[string]modelValue
}

type modelValue struct {
	version uint64
	value   string
}

func newModel(d *base.Descriptor, index, term, stamp uint64) *model {
	return &model{desc: d, index: index, term: term, stamp: stamp, data: map[string]modelValue{}}
}

// reply is an answer without its reason: texts are for people, the rest is the contract.
type reply struct {
	code    wire.Code
	req     uint64
	arg     uint64
	version uint64
	payload string // "" for Invalid
}

func replyOf(a wire.Answer) reply {
	r := reply{code: a.Code, req: a.Req, arg: a.Arg, version: a.Version, payload: string(a.Payload)}
	if a.Code == wire.Invalid {
		r.payload = ""
	}
	return r
}

// apply applies one entry that is known to be well-formed.
func (m *model) apply(e raftpb.Entry) []reply {
	m.index, m.term = e.Index, e.Term
	if len(e.Data) == 0 {
		return nil
	}
	h, b, err := wire.DecodeEntry(e.Data)
	if err != nil {
		panic(err)
	}
	var out []reply
	for len(b) > 0 {
		var op wire.Op
		if _, b, err = wire.DecodeOp(b, &op); err != nil {
			panic(err)
		}
		m.stamp++
		if h.Stamp > m.stamp {
			m.stamp = h.Stamp
		}
		r := m.one(&op)
		r.req, r.version = op.Req, m.desc.Epoch.Version
		out = append(out, r)
	}
	return out
}

func (m *model) one(op *wire.Op) reply {
	invalid := reply{code: wire.Invalid}
	switch {
	case op.Validate() != nil, op.Shard != m.desc.Shard, !op.Code.IsWrite() && op.Version == m.desc.Epoch.Version:
		return invalid
	case op.Version != m.desc.Epoch.Version:
		return reply{code: wire.EpochMismatch, payload: string(m.desc.Append(nil))}
	}
	steps := []wire.Sub{{Code: op.Code, Key: op.Key, Value: op.Value}}
	if op.Code == wire.OpBatch {
		steps = decodeSteps(op.Value)
		if !m.inside(op.Key) {
			return invalid
		}
	} else if op.Flags == wire.FlagIfVersion {
		steps = append([]wire.Sub{{Code: wire.OpCheckVersion, Key: op.Key, Arg: op.Arg}}, steps...)
	}
	for _, s := range steps {
		if s.Code == wire.OpDeleteRange {
			if string(s.Key) < string(m.desc.Start) || string(s.Value) > string(m.desc.End) {
				return invalid
			}
		} else if !m.inside(s.Key) {
			return invalid
		}
	}
	before := *m
	before.data = map[string]modelValue{}
	for k, v := range m.data {
		before.data[k] = v
	}
	for i, s := range steps {
		v, present := m.data[string(s.Key)]
		ok := true
		switch s.Code {
		case wire.OpCheckAbsent:
			ok = !present
		case wire.OpCheckPresent:
			ok = present
		case wire.OpCheckVersion:
			ok = v.version == s.Arg
		case wire.OpCheckValue:
			ok = present && v.value == string(s.Value)
		case wire.OpPut:
			m.data[string(s.Key)] = modelValue{m.stamp, string(s.Value)}
			m.putOps++
			m.putBytes += uint64(len(s.Key) + len(s.Value))
		case wire.OpDelete:
			delete(m.data, string(s.Key))
			m.deleteOps++
		case wire.OpDeleteRange:
			for k := range m.data {
				if k >= string(s.Key) && k < string(s.Value) {
					delete(m.data, k)
				}
			}
			m.deleteOps++
		}
		if !ok {
			*m = before
			failed := string(binary.BigEndian.AppendUint32(nil, uint32(i)))
			return reply{code: wire.ConditionFailed, arg: v.version, payload: failed}
		}
	}
	return reply{code: wire.OK, arg: m.stamp}
}

func (m *model) inside(key []byte) bool {
	return bytes.Compare(key, m.desc.Start) >= 0 && bytes.Compare(key, m.desc.End) < 0
}

func decodeSteps(b []byte) []wire.Sub {
	var out []wire.Sub
	for len(b) > 0 {
		var s wire.Sub
		var err error
		if b, err = wire.DecodeSub(b, &s); err != nil {
			panic(err)
		}
		out = append(out, s)
	}
	return out
}

// dump renders everything that replicas must agree on; see store.dump.
func (m *model) dump() string {
	var b strings.Builder
	fmt.Fprintf(&b, "applied %d term %d stamp %d put %d/%d deletes %d\ndescriptor %s next %d\n",
		m.index, m.term, m.stamp, m.putOps, m.putBytes, m.deleteOps, m.desc, m.desc.NextReplicaID)
	keys := make([]string, 0, len(m.data))
	for k := range m.data {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	for _, k := range keys {
		fmt.Fprintf(&b, "%q @%d flags 0 expiry 0 = %q\n", k, m.data[k].version, m.data[k].value)
	}
	return b.String()
}
