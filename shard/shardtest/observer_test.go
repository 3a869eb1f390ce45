package shardtest

import (
	"fmt"
	"hash/crc32"
	"maps"
	"sync"
	"testing"

	"go.etcd.io/etcd/raft/v3/raftpb"

	"github.com/shardd/shardd/engine"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
)

// observer checks the published properties of raft (Ongaro and Ousterhout 2014, figure 3 and section 5.4) on every
// message that leaves a store, on every leader that is announced, and on the logs as they stand on the stores' disks.
// What a message promises must hold for ever, whatever crashes: the observer outlives the stores.
type observer struct {
	t testing.TB

	mu struct {
		sync.Mutex
		groups map[base.ShardID]*group
		errs   int
	}
}

type group struct {
	leaders   map[uint64]base.StoreID // by term: election safety
	votes     map[ballot]base.ReplicaID
	asked     map[ballot]logEnd // where a candidate's log ended when it asked for votes
	entries   map[entryID]entry // every entry ever seen: log matching
	committed map[uint64]decided
	last      uint64 // highest index in committed
	members   map[base.StoreID]*member
	contexts  map[string]ballot // of read indexes: the term and the leader that asked
}

// ballot is one replica's part in one term: as a voter, or as a candidate.
type ballot struct {
	term    uint64
	replica base.ReplicaID
}

type logEnd struct{ term, index uint64 }

// behind reports whether a log that ends here is less up to date than o (section 5.4.1).
func (l logEnd) behind(o logEnd) bool {
	return l.term < o.term || l.term == o.term && l.index < o.index
}

type entryID struct{ index, term uint64 }

type entry struct {
	prev uint64 // term of the entry before; 0 if not known yet
	sum  uint32
}

// decided is an entry that some store has applied. seen is the term of that store then: the entry was committed in that
// term or an earlier one, so that every leader of a later term must have it.
type decided struct {
	term, seen uint64
	sum        uint32
}

// member is what a store has promised about one group, and how far its log has been checked in this life.
type member struct {
	term     uint64                  // highest that any of its messages stood for
	sent     map[base.StoreID]uint64 // term of the last message to each store
	acked    uint64                  // highest index that it acknowledged in that term
	verified uint64
	leads    uint64 // term in which the last look found it leading
	end      logEnd // of its log then
}

func newObserver(t testing.TB) *observer {
	o := &observer{t: t}
	o.mu.groups = map[base.ShardID]*group{}
	return o
}

// fork returns a copy for a world that goes its own way from here.
func (o *observer) fork() *observer {
	o.mu.Lock()
	defer o.mu.Unlock()
	out := newObserver(o.t)
	for id, g := range o.mu.groups {
		f := &group{
			leaders: maps.Clone(g.leaders), votes: maps.Clone(g.votes), asked: maps.Clone(g.asked),
			entries: maps.Clone(g.entries), committed: maps.Clone(g.committed), last: g.last,
			members: map[base.StoreID]*member{}, contexts: maps.Clone(g.contexts),
		}
		for s, m := range g.members {
			c := *m
			c.sent = maps.Clone(m.sent)
			f.members[s] = &c
		}
		out.mu.groups[id] = f
	}
	return out
}

func (o *observer) failLocked(format string, args ...any) {
	o.t.Helper()
	if o.mu.errs++; o.mu.errs <= 10 { // the first is the one that counts
		o.t.Errorf(format, args...)
	}
}

func (o *observer) groupLocked(id base.ShardID) *group {
	g := o.mu.groups[id]
	if g == nil {
		g = &group{
			leaders: map[uint64]base.StoreID{}, votes: map[ballot]base.ReplicaID{}, asked: map[ballot]logEnd{},
			entries: map[entryID]entry{}, committed: map[uint64]decided{}, members: map[base.StoreID]*member{},
			contexts: map[string]ballot{},
		}
		o.mu.groups[id] = g
	}
	return g
}

func (g *group) member(s base.StoreID) *member {
	m := g.members[s]
	if m == nil {
		m = &member{sent: map[base.StoreID]uint64{}}
		g.members[s] = m
	}
	return m
}

// leads takes the announcement that a store leads a shard in a term.
func (o *observer) leads(shard base.ShardID, s base.StoreID, term uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.leadsLocked(o.groupLocked(shard), shard, s, term)
}

func (o *observer) leadsLocked(g *group, shard base.ShardID, s base.StoreID, term uint64) {
	if s == 0 {
		return // a leader whose address is not known yet
	}
	if was, ok := g.leaders[term]; ok && was != s {
		o.failLocked("election safety: %s has the leaders %s and %s in term %d", shard, was, s, term)
	}
	g.leaders[term] = s
}

// sent takes a message that leaves a store. end reads where the sender's log ends; it is asked for votes only.
func (o *observer) sent(m *wire.RaftMessage, end func() (logEnd, error)) {
	o.mu.Lock()
	defer o.mu.Unlock()
	g, msg := o.groupLocked(m.Shard), &m.Msg
	switch msg.Type {
	case raftpb.MsgPreVote, raftpb.MsgPreVoteResp:
		return // they promise nothing: their term is one that may never be
	}
	p := g.member(m.FromStore)
	// Only per peer: a store's pass sends what it has for one peer after the other.
	if was := p.sent[m.ToStore]; msg.Term < was {
		o.failLocked("%s of %s sends %s of term %d after a message of term %d", m.Shard, m.FromStore, msg.Type, msg.Term, was)
	}
	p.sent[m.ToStore] = msg.Term
	if msg.Term > p.term {
		p.term, p.acked = msg.Term, 0
	}
	switch msg.Type {
	case raftpb.MsgApp:
		o.leadsLocked(g, m.Shard, m.FromStore, msg.Term)
		prev := msg.LogTerm
		for i := range msg.Entries {
			o.entryLocked(g, m.Shard, &msg.Entries[i], prev)
			prev = msg.Entries[i].Term
		}
	case raftpb.MsgHeartbeat:
		o.leadsLocked(g, m.Shard, m.FromStore, msg.Term)
		if len(msg.Context) > 0 {
			o.contextLocked(g, m)
		}
	case raftpb.MsgAppResp:
		if !msg.Reject && msg.Term == p.term {
			p.acked = max(p.acked, msg.Index)
		}
	case raftpb.MsgVote:
		g.asked[ballot{msg.Term, m.From}] = logEnd{msg.LogTerm, msg.Index}
		o.voteLocked(g, m.Shard, ballot{msg.Term, m.From}, m.From)
	case raftpb.MsgVoteResp:
		if !msg.Reject {
			o.voteLocked(g, m.Shard, ballot{msg.Term, m.From}, m.To)
			o.restrictedLocked(g, m, end)
		}
	}
}

// contextLocked checks that no read index context is used again, by another leader or in another term (etcd#20418).
func (o *observer) contextLocked(g *group, m *wire.RaftMessage) {
	by := ballot{m.Msg.Term, m.From}
	if was, ok := g.contexts[string(m.Msg.Context)]; ok && was != by {
		o.failLocked("read index context %x of %s in term %d comes back from %d in term %d",
			m.Msg.Context, base.ReplicaName(m.Shard, was.replica), was.term, m.From, m.Msg.Term)
	}
	g.contexts[string(m.Msg.Context)] = by
}

// voteLocked checks that a replica votes once in a term, whatever happens to it between.
func (o *observer) voteLocked(g *group, shard base.ShardID, b ballot, to base.ReplicaID) {
	if was, ok := g.votes[b]; ok && was != to {
		o.failLocked("%s votes for %d and for %d in term %d", base.ReplicaName(shard, b.replica), was, to, b.term)
	}
	g.votes[b] = to
}

// restrictedLocked checks the election restriction: nobody votes for a candidate whose log is behind its own. A voter
// that has heard of the winner since then has entries of the vote's term and proves nothing.
func (o *observer) restrictedLocked(g *group, m *wire.RaftMessage, end func() (logEnd, error)) {
	asked, ok := g.asked[ballot{m.Msg.Term, m.To}]
	if !ok {
		o.failLocked("%s votes for %d in term %d, which did not ask", base.ReplicaName(m.Shard, m.From), m.To, m.Msg.Term)
		return
	}
	own, err := end()
	if err != nil {
		o.failLocked("log of %s: %v", base.ReplicaName(m.Shard, m.From), err)
		return
	}
	if own.term < m.Msg.Term && asked.behind(own) {
		o.failLocked("election restriction: %s with a log up to %d/%d votes for %d with one up to %d/%d in term %d",
			base.ReplicaName(m.Shard, m.From), own.term, own.index, m.To, asked.term, asked.index, m.Msg.Term)
	}
}

// entryLocked checks log matching: index and term name one entry and one predecessor.
func (o *observer) entryLocked(g *group, shard base.ShardID, e *raftpb.Entry, prev uint64) uint32 {
	id := entryID{e.Index, e.Term}
	sum := crc32.ChecksumIEEE(append([]byte{byte(e.Type)}, e.Data...))
	was, ok := g.entries[id]
	switch {
	case ok && was.sum != sum:
		o.failLocked("log matching: %s has two entries %d of term %d", shard, e.Index, e.Term)
	case ok && was.prev != 0 && prev != 0 && was.prev != prev:
		o.failLocked("log matching: entry %d of term %d of %s follows terms %d and %d",
			e.Index, e.Term, shard, was.prev, prev)
	case prev > e.Term:
		o.failLocked("terms of %s fall from %d to %d at entry %d", shard, prev, e.Term, e.Index)
	}
	if prev == 0 {
		prev = was.prev
	}
	g.entries[id] = entry{prev: prev, sum: sum}
	return sum
}

// look checks one replica's log on disk against everything seen so far. term and leads are what the replica says of
// itself; 0 and false if it does not run.
func (o *observer) look(s base.StoreID, d *diskLog, term uint64, leads bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	g := o.groupLocked(d.st.Shard)
	m := g.member(s)
	from := max(m.verified, d.st.Truncated.Index) + 1
	ents, err := d.entries(from, d.last+1)
	if err != nil {
		o.failLocked("log of %s on %s: %v", d.st.Shard, s, err)
		return
	}
	prev := uint64(0)
	if from == d.st.Truncated.Index+1 {
		prev = d.st.Truncated.Term
	} else if c, ok := g.committed[from-1]; ok {
		prev = c.term
	}
	applied := d.st.Applied.Index
	for i := range ents {
		e := &ents[i]
		sum := o.entryLocked(g, d.st.Shard, e, prev)
		prev = e.Term
		if e.Index <= applied {
			o.decideLocked(g, s, d, e, sum, max(term, d.st.Hard.Term))
		}
	}
	if leads {
		o.completeLocked(g, s, d, m, term, ents)
	}
	m.verified = max(m.verified, applied)
	m.leads, m.end = 0, logEnd{}
	if leads {
		m.leads, m.end = term, logEnd{prev, d.last}
	}
}

// decideLocked checks state machine safety: no two stores apply different entries at one index.
func (o *observer) decideLocked(g *group, s base.StoreID, d *diskLog, e *raftpb.Entry, sum uint32, seen uint64) {
	was, ok := g.committed[e.Index]
	if !ok {
		g.committed[e.Index] = decided{e.Term, seen, sum}
		g.last = max(g.last, e.Index)
		return
	}
	if was.term != e.Term || was.sum != sum {
		o.failLocked("state machine safety: %s on %s applied entry %d of term %d, another store that of term %d",
			d.st.Shard, s, e.Index, e.Term, was.term)
	}
	if seen < was.seen {
		was.seen = seen
		g.committed[e.Index] = was
	}
}

// completeLocked checks leader completeness, and that a leader only appends to its log in its term.
func (o *observer) completeLocked(g *group, s base.StoreID, d *diskLog, m *member, term uint64, ents []raftpb.Entry) {
	o.leadsLocked(g, d.st.Shard, s, term)
	at := func(index uint64) uint64 {
		if len(ents) == 0 || index < ents[0].Index || index > ents[len(ents)-1].Index {
			return 0
		}
		return ents[index-ents[0].Index].Term
	}
	for i := m.verified + 1; i <= g.last; i++ {
		c, ok := g.committed[i]
		if ok && c.seen < term && at(i) != c.term {
			o.failLocked("leader completeness: %s leads %s in term %d without entry %d of term %d, committed by term %d",
				s, d.st.Shard, term, i, c.term, c.seen)
			return
		}
	}
	if m.leads == term && m.end.index > m.verified && at(m.end.index) != m.end.term {
		o.failLocked("leader append-only: %s led %s in term %d with a log up to %d/%d; entry %d is of term %d now",
			s, d.st.Shard, term, m.end.term, m.end.index, m.end.index, at(m.end.index))
	}
}

// forget drops what a store has promised about shards that it was removed from.
func (o *observer) forget(s base.StoreID, removed func(base.ShardID) bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for shard, g := range o.mu.groups {
		if g.members[s] != nil && removed(shard) {
			delete(g.members, s)
		}
	}
}

// boots checks what a crash has left of a store's promises: terms and votes never go back, and what was acknowledged is
// there.
func (o *observer) boots(s base.StoreID, logs map[base.ShardID]*diskLog) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for shard, g := range o.mu.groups {
		m := g.members[s]
		if m == nil {
			continue
		}
		m.verified, m.leads = 0, 0
		d := logs[shard]
		if d == nil {
			o.failLocked("%s restarts without %s", s, shard)
			continue
		}
		hard := d.st.Hard
		if hard.Term < m.term {
			o.failLocked("%s restarts in term %d of %s after messages of term %d", s, hard.Term, shard, m.term)
		}
		vote, voted := g.votes[ballot{hard.Term, d.st.Mark.ReplicaID}]
		if voted && base.ReplicaID(hard.Vote) != vote {
			o.failLocked("%s restarts in term %d of %s with a vote for %d after one for %d",
				s, hard.Term, shard, hard.Vote, vote)
		}
		if hard.Term == m.term && d.last < m.acked {
			o.failLocked("%s restarts with a log of %s up to %d after acknowledging %d in term %d",
				s, shard, d.last, m.acked, m.term)
		}
	}
}

// diskLog is one replica as it stands in an engine.
type diskLog struct {
	st   engine.ReplicaState
	log  *engine.Log
	last uint64
}

func (d *diskLog) entries(lo, hi uint64) ([]raftpb.Entry, error) {
	if lo >= hi {
		return nil, nil
	}
	return d.log.Entries(lo, hi, 1<<40)
}

func (d *diskLog) end() (logEnd, error) {
	term, err := d.log.Term(d.last)
	return logEnd{term, d.last}, err
}

// readLogs opens a second view on all replicas of an engine.
func readLogs(e *engine.Engine) (map[base.ShardID]*diskLog, error) {
	states, err := e.LoadReplicas()
	if err != nil {
		return nil, err
	}
	out := map[base.ShardID]*diskLog{}
	for _, st := range states {
		l, err := e.OpenLog(st)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", st.Shard, err)
		}
		_, last := l.Bounds()
		out[st.Shard] = &diskLog{st: st, log: l, last: last}
	}
	return out, nil
}
