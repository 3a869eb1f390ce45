package leasemodel

import (
	"encoding/binary"
	"fmt"
	"slices"

	"go.etcd.io/etcd/raft/v3/raftpb"

	"github.com/shardd/shardd/internal/base"
)

// keys is how many registers there are; a group owns a range of them.
const keys = 4

// machine is a group's replicated state. It is copied whole: the slices in conf never change.
type machine struct {
	lo, hi  int // owns the keys [lo, hi)
	vals    [keys]uint64
	applied uint64
	conf    raftpb.ConfState
	newest  uint64 // the highest replica id that was ever in conf: ids up to it that are not in conf never come back
}

func (m *machine) owns(key int) bool { return m.lo <= key && key < m.hi }

// command is what a normal entry says.
type command struct {
	split bool
	key   int    // written, or the first of the right-hand side
	id    uint64 // the value, or the right-hand shard
}

func (c command) encode() []byte {
	b := []byte{'w', byte(c.key)}
	if c.split {
		b[0] = 's'
	}
	return binary.BigEndian.AppendUint64(b, c.id)
}

// decode returns false for the empty entry of a new leader.
func decode(data []byte) (command, bool) {
	if len(data) == 0 {
		return command{}, false
	}
	return command{split: data[0] == 's', key: int(data[1]), id: binary.BigEndian.Uint64(data[2:])}, true
}

// run applies a command; for a split it returns the state that the right-hand group is born with. What does not fit the
// range is rejected, by all alike.
func (m *machine) run(c command) (right *machine) {
	switch {
	case !c.split && m.owns(c.key):
		m.vals[c.key] = c.id
	case c.split && m.lo < c.key && c.key < m.hi && len(m.conf.VotersOutgoing) == 0:
		r := *m
		r.lo, r.applied, m.hi = c.key, birthIndex, c.key
		return &r
	}
	return nil
}

// applyEntry applies one committed entry, on this replica and to its disk where that is a boundary.
func (r *replica) applyEntry(e *raftpb.Entry) {
	w := r.st.w
	if e.Index != r.m.applied+1 {
		panic(fmt.Sprintf("seed %d: %s/%d applies %d after %d", w.seed, r.shard, r.id, e.Index, r.m.applied))
	}
	r.m.applied = e.Index
	if e.Type == raftpb.EntryConfChangeV2 {
		r.applyConf(e)
		return
	}
	c, ok := decode(e.Data)
	if !ok {
		return
	}
	right := r.m.run(c)
	if right == nil {
		return
	}
	// Split: both sides in one synced step.
	shard := base.ShardID(c.id)
	if _, ok := w.births[shard]; !ok {
		w.births[shard] = *right
		w.stats.splits++
	}
	r.disk.saved = r.m
	w.logf("%s/%d applies its split: %s starts at key %d", r.shard, r.id, shard, c.key)
	if !memberOf(&right.conf, r.id) || r.st.gone[shard] >= r.id {
		return
	}
	if rr := r.st.add(shard, r.id, *right, birthTerm); r.leads != 0 {
		w.in(0, r.st, rr.campaignAlone)
	}
}

func (r *replica) applyConf(e *raftpb.Entry) {
	w := r.st.w
	var cc raftpb.ConfChangeV2
	if err := cc.Unmarshal(e.Data); err != nil {
		panic(err)
	}
	was := memberOf(&r.m.conf, r.id)
	r.m.conf = *r.rn.ApplyConfChange(cc)
	r.m.count()
	if r.leads != 0 {
		w.stats.changes++
		w.logf("%s/%d applies at %d: %s", r.shard, r.id, e.Index, r.m.conf.String())
	}
	if was && !memberOf(&r.m.conf, r.id) {
		r.destroy()
	}
}

// count takes note of the members' ids.
func (m *machine) count() {
	for _, ids := range [][]uint64{m.conf.Voters, m.conf.Learners, m.conf.LearnersNext} {
		for _, id := range ids {
			m.newest = max(m.newest, id)
		}
	}
}

// removed reports whether the state shows that a replica was a member and is none any more: the proof of I5.
func (m *machine) removed(id uint64) bool {
	return id/storesMax <= m.newest/storesMax && !memberOf(&m.conf, id)
}

func memberOf(c *raftpb.ConfState, id uint64) bool {
	return voterOf(c, id) || slices.Contains(c.Learners, id) || slices.Contains(c.LearnersNext, id)
}
