package plan

import (
	"container/heap"
	"fmt"
	"time"

	"github.com/shardd/shardd/internal/base"
)

// world carries operators out on a view of its own, after the time that each would take. It stands in for the stores, so
// it may change the view as reports would.
type world struct {
	v    *View
	cfg  Config
	p    *Planner
	rate float64 // bytes per second of one snapshot
	now  time.Duration

	running flights
	next    uint64 // operator id
	ids     base.ShardID
	dead    map[base.StoreID]bool
	done    func(*Operator)
}

// flight is an operator on its way.
type flight struct {
	*Operator
	ends time.Duration
}

// flights is a heap by end, then id.
type flights []flight

func (f flights) Len() int { return len(f) }
func (f flights) Less(i, j int) bool {
	return f[i].ends < f[j].ends || f[i].ends == f[j].ends && f[i].ID < f[j].ID
}
func (f flights) Swap(i, j int) { f[i], f[j] = f[j], f[i] }
func (f *flights) Push(x any)   { *f = append(*f, x.(flight)) }
func (f *flights) Pop() any {
	x := (*f)[len(*f)-1]
	*f = (*f)[:len(*f)-1]
	return x
}

// newWorld takes a view over.
func newWorld(v *View, cfg Config, rate float64) *world {
	w := &world{v: v, cfg: cfg.WithDefaults(), p: NewPlanner(v.now), rate: rate, now: v.now, dead: make(map[base.StoreID]bool)}
	w.p.waiting = false
	for id := range v.shards {
		w.ids = max(w.ids, id)
	}
	return w
}

// Costs of work that copies nothing, as measured on a small cluster with some air.
const (
	transferTakes = 200 * time.Millisecond
	changeTakes   = 2 * time.Second // the conf changes of a replica that comes or goes
	boundaryTakes = time.Second
)

func (w *world) takes(op *Operator) time.Duration {
	switch op.Kind {
	case OpTransfer:
		return transferTakes
	case OpSplit, OpMerge:
		return boundaryTakes
	}
	return changeTakes + time.Duration(float64(op.Bytes)/w.rate*float64(time.Second))
}

// start has an operator end in time.
func (w *world) start(op Operator) {
	w.next++
	op.ID = w.next
	w.p.Started(&op)
	heap.Push(&w.running, flight{&op, w.now + w.takes(&op)})
}

// ops returns what runs.
func (w *world) ops() []*Operator {
	out := make([]*Operator, 0, len(w.running))
	for _, f := range w.running {
		out = append(out, f.Operator)
	}
	return out
}

// round plans once and starts what comes of it.
func (w *world) round() *Round {
	for _, s := range w.v.order {
		if !w.dead[s.ID] && s.Known {
			s.Seen = w.now
		}
	}
	r := w.p.Round(w.v, w.cfg, w.now, w.ops())
	for _, op := range r.Ops {
		w.start(op)
	}
	return r
}

// to brings the time forward and ends what ends by then.
func (w *world) to(t time.Duration) {
	for len(w.running) > 0 && w.running[0].ends <= t {
		f := heap.Pop(&w.running).(flight)
		w.now = max(w.now, f.ends)
		w.v.advance(w.now)
		failed := w.apply(f.Operator)
		w.p.Ended(f.Operator, failed, w.now, w.cfg)
		if failed == "" && w.done != nil {
			w.done(f.Operator)
		}
	}
	w.now = max(w.now, t)
	w.v.advance(w.now)
}

// elect gives shards without a live leader one of their live voters.
func (w *world) elect() {
	for sh := range w.v.Shards("") {
		if sh.Leader == 0 || w.dead[sh.Leader] {
			w.electOne(sh)
		}
	}
}

func (w *world) electOne(sh *Shard) {
	h := w.v.health(sh)
	var live []base.StoreID
	for _, p := range sh.Listed() {
		if p.Role == base.RoleVoter && !w.dead[p.Store] && p.Flags&PeerFaulted == 0 {
			live = append(live, p.Store)
		}
	}
	to := base.StoreID(0)
	if len(live) >= h.quorum {
		to = live[mix(uint64(sh.ID))%uint64(len(live))]
	}
	w.v.setLeader(sh, to, sh.Term+1)
}

// apply changes the view as the operator would; it returns why it could not.
func (w *world) apply(op *Operator) (failed string) {
	v := w.v
	sh := v.shards[op.Shard]
	if sh == nil {
		return "the shard is gone"
	}
	if h := v.health(sh); h.live < h.quorum {
		return "no quorum lives"
	}
	d := sh.Desc()
	switch op.Kind {
	case OpTransfer:
		if p := sh.ListedOn(op.To); p == nil || w.dead[op.To] {
			return op.To.String() + " cannot lead"
		}
		v.setLeader(sh, op.To, sh.Term+1)
		if sh.Joint() { // every new leader leaves it
			for i := range d.Replicas {
				switch r := &d.Replicas[i]; r.Role {
				case base.RoleIncoming:
					r.Role = base.RoleVoter
				case base.RoleOutgoing:
					r.Role = base.RoleLearner
				}
			}
			d.Epoch.ConfVer++
			v.setDesc(sh, d)
		}
		return ""
	case OpSplit:
		return w.split(sh, op)
	case OpMerge:
		return w.merge(sh, op)
	case OpPromote:
		for i := range d.Replicas {
			if d.Replicas[i].Store == op.To {
				d.Replicas[i].Role = base.RoleVoter
			}
		}
	}
	if op.Kind == OpMove || op.Kind == OpAdd {
		if w.dead[op.To] {
			return op.To.String() + " is down"
		}
		role := base.RoleVoter
		if op.Learner {
			role = base.RoleLearner
		}
		d.Replicas = append(d.Replicas, base.ReplicaDesc{Replica: d.NextReplicaID, Store: op.To, Role: role})
		d.NextReplicaID++
		w.disk(op.To, -int64(sh.Size))
	}
	if op.Kind == OpMove || op.Kind == OpRemove {
		kept := d.Replicas[:0]
		for _, r := range d.Replicas {
			if r.Store != op.From {
				kept = append(kept, r)
			}
		}
		d.Replicas = kept
		w.disk(op.From, int64(sh.Size))
	}
	d.Epoch.ConfVer++
	v.setDesc(sh, d)
	if op.Kind == OpMove || op.Kind == OpAdd {
		v.takeIn(v.stores[op.To], &ReplicaReport{
			Shard: sh.ID, Replica: d.NextReplicaID - 1, Desc: d, Term: sh.Term, Size: sh.Size, Put: sh.Put,
		})
	}
	if s := v.stores[op.From]; s != nil && (op.Kind == OpMove || op.Kind == OpRemove) {
		leads := sh.Leader == op.From
		v.unreport(s, sh)
		if leads {
			if op.Kind == OpMove {
				v.setLeader(sh, op.To, sh.Term+1)
			} else {
				w.electOne(sh)
			}
		}
	}
	return ""
}

func (w *world) disk(on base.StoreID, n int64) {
	if s := w.v.stores[on]; s != nil && s.DiskCapacity > 0 {
		s.DiskFree = uint64(max(0, int64(s.DiskFree)+n))
		if s.DiskFree > s.DiskCapacity {
			s.DiskFree = s.DiskCapacity
		}
	}
}

// split cuts a shard at the keys, else into parts of the same size.
func (w *world) split(sh *Shard, op *Operator) string {
	keys := op.Keys
	if len(keys) == 0 {
		for i := 1; i < op.Parts; i++ {
			keys = append(keys, fmt.Sprintf("%s\x00%04d.%d", sh.Start, i, sh.Epoch.Version))
		}
	}
	parts := uint64(len(keys) + 1)
	leader, size, load := sh.Leader, sh.Size/parts, sh.Load
	for _, n := range []*uint32{&load.Reads, &load.Writes, &load.ReadBytes, &load.WriteBytes, &load.CPUMicros} {
		*n /= uint32(parts)
	}
	left := sh.Desc()
	end := left.End
	left.Epoch.Version++
	for i, k := range keys {
		if k <= sh.Start || k >= string(end) {
			return fmt.Sprintf("key %q is not inside", k)
		}
		w.ids++
		d := left.Clone()
		d.Shard, d.Start, d.End = w.ids, []byte(k), end
		if i+1 < len(keys) {
			d.End = []byte(keys[i+1])
		}
		d.Epoch.ConfVer, d.NextReplicaID = 1, base.ReplicaID(len(d.Replicas)+1)
		for j := range d.Replicas {
			d.Replicas[j].Replica = base.ReplicaID(j + 1)
		}
		for _, r := range d.Replicas {
			w.v.takeIn(w.v.stores[r.Store], &ReplicaReport{
				Shard: d.Shard, Replica: r.Replica, Desc: d, Leads: r.Store == leader, Term: 6, Size: size, Load: load,
			})
		}
	}
	left.End = []byte(keys[0])
	w.v.setDesc(sh, left)
	w.v.setNumbers(sh, size, sh.Put, load)
	return ""
}

// merge widens a shard over its right neighbour.
func (w *world) merge(l *Shard, op *Operator) string {
	r := w.v.shards[op.Other]
	if r == nil || w.v.Right(l) != r || !sameStores(l, r) {
		return "they are no neighbours on the same stores"
	}
	d, size, load := l.Desc(), l.Size+r.Size, l.Load
	load.Reads += r.Load.Reads
	load.Writes += r.Load.Writes
	d.End, d.Epoch.Version = []byte(r.End), max(l.Epoch.Version, r.Epoch.Version)+1
	w.v.setDesc(l, d)
	w.v.setNumbers(l, size, l.Put, load)
	for _, s := range w.v.order {
		w.v.unreport(s, r)
	}
	w.v.dropIfGone(r)
	return ""
}
