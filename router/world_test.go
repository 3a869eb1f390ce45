package router

import (
	"bytes"
	"context"
	"fmt"
	"sort"
	"sync"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
)

// world is a small cluster in memory: sorted rows, descriptors, leaders. It is Directory and Sender at once and checks
// epochs as nodes do.
type world struct {
	mu      sync.Mutex
	rows    map[string]string
	shards  []*base.Descriptor // in key order
	leader  map[base.ShardID]base.StoreID
	stale   []*base.Descriptor // what the directory tells, if set
	lookups int
	sent    int
	perSend func(op *wire.Op) // called with mu held before an operation is served
	maxRows int               // rows a page holds at most, 0: any
	served  []base.StoreID    // who was asked, in order
	// atReplica answers reads that any replica may serve; without it, or if it returns nil, they are served.
	atReplica func(to base.StoreID, op *wire.Op) *wire.Answer
}

func newWorld(keys int, splits ...int) *world {
	w := &world{rows: map[string]string{}, leader: map[base.ShardID]base.StoreID{}}
	lo := base.UserStart()
	for i, s := range append(splits, -1) {
		hi := base.UserEnd()
		if s >= 0 {
			hi = key(s)
		}
		d := desc(base.ShardID(i+2), lo, hi, 1)
		w.shards = append(w.shards, d)
		w.leader[d.Shard] = base.StoreID(i%3 + 1)
		lo = hi
	}
	for i := range keys {
		w.rows[string(key(i))] = fmt.Sprint("v", i)
	}
	return w
}

// splitLocked divides the shard that holds k at k.
func (w *world) splitLocked(k []byte) {
	for i, d := range w.shards {
		if d.Contains(k) && !bytes.Equal(d.Start, k) {
			id := base.ShardID(len(w.leader) + 2)
			left, right := d.Clone(), desc(id, k, d.End, d.Epoch.Version+1)
			left.End, left.Epoch.Version = k, d.Epoch.Version+1
			w.leader[id] = w.leader[d.Shard]%3 + 1
			w.shards = append(w.shards[:i:i], append([]*base.Descriptor{left, right}, w.shards[i+1:]...)...)
			return
		}
	}
}

// mergeLocked joins the shard that holds k with its right neighbour.
func (w *world) mergeLocked(k []byte) {
	for i, d := range w.shards[:len(w.shards)-1] {
		if d.Contains(k) {
			m := d.Clone()
			m.End = w.shards[i+1].End
			m.Epoch.Version = max(d.Epoch.Version, w.shards[i+1].Epoch.Version) + 1
			w.shards = append(w.shards[:i:i], append([]*base.Descriptor{m}, w.shards[i+2:]...)...)
			return
		}
	}
}

func (w *world) Lookup(_ context.Context, k []byte, reverse bool) ([]Route, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.lookups++
	shards := w.shards
	if w.stale != nil {
		shards = w.stale
	}
	for i, d := range shards {
		if reverse && bytes.Compare(d.Start, k) < 0 && bytes.Compare(k, d.End) <= 0 || !reverse && d.Contains(k) {
			return []Route{{Desc: d, Leader: w.leader[d.Shard]}, {Desc: shards[(i+1)%len(shards)]}}, nil
		}
	}
	return nil, fmt.Errorf("no shard for %q", k)
}

func (w *world) Send(_ context.Context, to base.StoreID, op *wire.Op, done func(wire.Answer, error)) {
	w.mu.Lock()
	if w.perSend != nil {
		w.perSend(op)
	}
	w.sent++
	w.served = append(w.served, to)
	a := w.serveLocked(to, op)
	w.mu.Unlock()
	done(a, nil)
}

func (w *world) serveLocked(to base.StoreID, op *wire.Op) wire.Answer {
	var d *base.Descriptor
	for _, s := range w.shards {
		if s.Shard == op.Shard {
			d = s
		}
	}
	if d == nil {
		return wire.Answer{Code: wire.ShardNotFound}
	}
	if op.AnyReplica() {
		if w.atReplica != nil {
			if a := w.atReplica(to, op); a != nil {
				return *a
			}
		}
	} else if w.leader[d.Shard] != to {
		return wire.Answer{Code: wire.NotLeader, Arg: uint64(w.leader[d.Shard])}
	}
	if d.Epoch.Version != op.Version || !d.Contains(op.Key) || !fits(op, d) {
		return wire.Answer{Code: wire.EpochMismatch, Payload: wire.AppendDescriptors(nil, w.shards...)}
	}
	ok := wire.Answer{Code: wire.OK, Version: d.Epoch.Version, Arg: 7}
	switch op.Code {
	case wire.OpGet:
		v, found := w.rows[string(op.Key)]
		if !found {
			return wire.Answer{Code: wire.NotFound, Version: d.Epoch.Version}
		}
		ok.Payload = []byte(v)
	case wire.OpPut:
		w.rows[string(op.Key)] = string(op.Value)
	case wire.OpDelete:
		delete(w.rows, string(op.Key))
	case wire.OpDeleteRange:
		for k := range w.rows {
			if k >= string(op.Key) && k < string(op.Value) {
				delete(w.rows, k)
			}
		}
	case wire.OpBatch:
	case wire.OpScan:
		w.scanLocked(op, &ok)
	}
	return ok
}

func (w *world) scanLocked(op *wire.Op, a *wire.Answer) {
	rows := w.modelLocked(op.Key, op.Value, op.Flags&wire.FlagReverse != 0)
	maxRows, maxBytes := wire.SplitScanArg(op.Arg)
	if w.maxRows > 0 && (maxRows == 0 || int(maxRows) > w.maxRows) {
		maxRows = uint32(w.maxRows)
	}
	for i, k := range rows {
		row := wire.Row{Key: []byte(k), Version: 7}
		if op.Flags&wire.FlagKeysOnly == 0 {
			row.Value = []byte(w.rows[k])
		}
		a.Payload = row.Append(a.Payload)
		if (maxRows > 0 && i+1 >= int(maxRows) || len(a.Payload) >= int(maxBytes)) && i+1 < len(rows) {
			a.Flags |= wire.FlagMore
			return
		}
	}
}

// modelLocked returns the keys of [lo, hi) in the order of a scan.
func (w *world) modelLocked(lo, hi []byte, reverse bool) (out []string) {
	for k := range w.rows {
		if k >= string(lo) && k < string(hi) {
			out = append(out, k)
		}
	}
	sort.Strings(out)
	if reverse {
		for i, j := 0, len(out)-1; i < j; i, j = i+1, j-1 {
			out[i], out[j] = out[j], out[i]
		}
	}
	return out
}
