package leasemodel

import (
	"bytes"
	"time"

	"go.etcd.io/etcd/raft/v3/raftpb"

	"github.com/shardd/shardd/internal/base"
)

// oracle knows everything at once. It sees each entry at the moment at which the first replica knows that it is
// committed, so it can say exactly what a read must at least return, and who may serve.
type oracle struct {
	groups map[base.ShardID]*history
	// written holds the committed values of each key in their order, across splits; place is where a value stands in
	// it, from 1.
	written [keys][]uint64
	place   map[uint64]int
	// strict also refuses that a later term's leader stands beside a lease, before anything can go wrong with it.
	strict bool
}

// history is one group's committed log.
type history struct {
	m   machine
	log []raftpb.Entry
}

func newOracle(strict bool) *oracle {
	return &oracle{groups: map[base.ShardID]*history{}, place: map[uint64]int{}, strict: strict}
}

// committed is told what a replica knows to be committed, as soon as it could tell anybody.
func (o *oracle) committed(w *world, r *replica, ents []raftpb.Entry) {
	g := o.groups[r.shard]
	for i := range ents {
		e := &ents[i]
		next := birthIndex + 1 + uint64(len(g.log))
		switch {
		case e.Index > next:
			w.breaks("%s/%d commits %d, nobody has committed %d", r.shard, r.id, e.Index, next)
		case e.Index < next:
			old := &g.log[e.Index-birthIndex-1]
			if old.Term != e.Term || old.Type != e.Type || !bytes.Equal(old.Data, e.Data) {
				w.breaks("%s/%d commits at %d an entry of term %d, another has committed one of term %d",
					r.shard, r.id, e.Index, e.Term, old.Term)
			}
		default:
			g.log = append(g.log, *e)
			o.apply(g, e)
		}
	}
}

func (o *oracle) apply(g *history, e *raftpb.Entry) {
	if e.Type != raftpb.EntryNormal {
		var cc raftpb.ConfChangeV2
		if err := cc.Unmarshal(e.Data); err != nil {
			panic(err)
		}
		// Of the configuration a split needs to know only whether it is joint.
		g.m.conf.VotersOutgoing = nil
		if _, joint := cc.EnterJoint(); joint {
			g.m.conf.VotersOutgoing = []uint64{1}
		}
		return
	}
	c, ok := decode(e.Data)
	if !ok {
		return
	}
	if !c.split && g.m.owns(c.key) {
		o.written[c.key] = append(o.written[c.key], c.id)
		o.place[c.id] = len(o.written[c.key])
	}
	if right := g.m.run(c); right != nil {
		o.groups[base.ShardID(c.id)] = &history{m: *right}
	}
}

// look checks after every event that no two stores could serve one key now.
func (o *oracle) look(w *world) {
	var by [keys]*replica
	for _, st := range w.stores {
		if !st.up {
			continue
		}
		for _, r := range st.replicas {
			if r.lease == nil || !r.lease.holds(st.live) {
				continue
			}
			if o.strict {
				o.alone(w, r)
			}
			if r.m.applied < r.lease.first && !w.without(V3) || r.m.applied < r.commit && !w.without(V5) {
				continue // a read would have to wait
			}
			for k := r.m.lo; k < r.m.hi; k++ {
				if by[k] != nil {
					w.breaks("key %d is served by %s/%d in term %d and by %s/%d in term %d", k,
						by[k].shard, by[k].id, by[k].lease.term, r.shard, r.id, r.lease.term)
				}
				by[k] = r
			}
		}
	}
}

// alone checks that no other replica of the group leads in a later term.
func (o *oracle) alone(w *world, r *replica) {
	for _, st := range w.stores {
		if other := st.replica(r.shard); st.up && other != nil && other != r && other.leads > r.lease.term {
			w.breaks("%s/%d leads in term %d beside the lease of %s/%d in term %d",
				r.shard, other.id, other.leads, r.shard, r.id, r.lease.term)
		}
	}
}

// read is one read at one replica. It takes V5 and V6 in turn: the commit index, the applied index, the view, the
// lease.
type read struct {
	r     *replica
	key   int
	want  uint64
	floor int // how many values of the key were committed when it came
}

// read begins a read at a store that may have a leader for the key.
func (st *store) read(key int) {
	w := st.w
	for _, r := range st.replicas {
		if r.m.owns(key) && r.leads != 0 {
			q := &read{r: r, key: key, want: r.commit, floor: len(w.oracle.written[key])}
			if w.without(V5) {
				q.want = 0
			}
			w.stats.reads++
			q.view()
			return
		}
	}
}

func (r *replica) wakeReads() {
	waiting := r.waiting
	r.waiting = nil
	for _, q := range waiting {
		q.view()
	}
}

// view opens the view once enough is applied. The store may be paused between that and the look at the lease.
func (q *read) view() {
	r := q.r
	w := r.st.w
	if r.m.applied < q.want {
		r.waiting = append(r.waiting, q)
		return
	}
	v := r.m
	if w.chance(0.5) {
		q.answer(&v)
	} else {
		w.in(w.between(10*time.Microsecond, 20*time.Millisecond), r.st, func() { q.answer(&v) })
	}
}

func (q *read) answer(v *machine) {
	r := q.r
	w := r.st.w
	l := r.lease
	if !l.holds(r.st.live) || v.applied < l.first && !w.without(V3) && !w.without(V6) || !v.owns(q.key) {
		return // ReadIndex, or another shard
	}
	w.stats.answered++
	val := v.vals[q.key]
	if at := w.oracle.place[val]; at < q.floor {
		w.breaks("%s/%d answers a read of key %d in term %d with value number %d, and %d were committed when it came",
			r.shard, r.id, q.key, l.term, at, q.floor)
	}
}
