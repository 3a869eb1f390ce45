package leasemodel

import (
	"time"

	"github.com/shardd/shardd/internal/base"
)

// Two lanes go from every store to every other: raft's messages and the bodies of store liveness.
const (
	laneRaft = iota
	laneLive
	lanes
)

// link is one lane in one direction.
type link struct {
	from, to base.StoreID
	lane     int
}

// faults is what goes wrong with the network, and how much.
type faults struct {
	cuts     map[link]time.Duration // until when
	loss     float64
	dup      float64
	slow     float64       // share of messages that take long
	tail     time.Duration // how long
	weights  [ops]int
	gap      time.Duration // between two operations
	readGap  time.Duration
	writeGap time.Duration
	lastWord bool // the next leader that commits something is cut off
	over     bool // from now on everything works
}

// carry takes one message across a link: late, twice, or not at all.
func (w *world) carry(l link, deliver func()) {
	f := &w.faults
	if f.cuts[l] > w.now || w.chance(f.loss) {
		return
	}
	copies := 1
	if w.chance(f.dup) {
		copies = 2
	}
	for range copies {
		d := w.between(100*time.Microsecond, 2*time.Millisecond)
		if w.chance(f.slow) {
			d = w.between(2*time.Millisecond, f.tail)
		}
		w.inLife(d, w.store(l.to), 0, deliver)
	}
}

func (st *store) sendRaft(m *message) {
	w := st.w
	if w.tracing() {
		w.logf("    %s>%s %s %s term %d commit %d index %d ents %d rej %v stamp %x", m.from, m.to, m.shard, m.m.Type,
			m.m.Term, m.m.Commit, m.m.Index, len(m.m.Entries), m.m.Reject, m.stamp.epoch)
	}
	to := w.store(m.to)
	w.carry(link{m.from, m.to, laneRaft}, func() {
		c := *m
		c.m.Entries = append(c.m.Entries[:0:0], c.m.Entries...)
		to.receive(&c)
	})
}

func (st *store) sendBody(b body) {
	w := st.w
	to, life := w.store(b.to), st.life
	w.carry(link{st.id, b.to, laneLive}, func() { to.live.receive(st.id, life, b.payload) })
}
