package shard

import (
	"slices"
	"time"

	"go.etcd.io/etcd/raft/v3/raftpb"

	"github.com/shardd/shardd/internal/wire"
)

// Commit notices. When an acknowledgement commits something, raft tells the followers at once, by an append without
// entries to each. After a lone write that is two messages more, two answers, a pass at each follower and two at the
// leader, for what the next append says anyway. So such a notice is held for Config.CommitNotice, and left out if an append
// or heartbeat with its commit index, or a later one, leaves for that follower in the meantime. The time is longer than
// from heartbeat to heartbeat: among a thousand shards each is written too seldom for a next append to come soon, and the
// heartbeats tell it then. To raft it is a message that was on its way for longer.
//
// What is not held: the notice of anything but plain operations, since splits, merges, changes of members and the first
// entry of a term have others waiting for them; and all notices of a group once another store has asked for its read index.

// notice is a held message.
type notice struct {
	raftpb.Message
	said bool // by a heartbeat: it is not sent when it is due
}

// heldNotices is a group with notices that somebody is to look at.
type heldNotices struct {
	r   *replica
	due time.Duration
}

// holdNotices takes the messages that can wait out of a Ready that needs no sync. It works in place.
func (w *worker) holdNotices(r *replica, msgs []raftpb.Message, committed []raftpb.Entry) []raftpb.Message {
	rw := &r.worker
	if w.store.cfg.CommitNotice <= 0 || !rw.leads || !plain(committed) {
		return msgs
	}
	_, last := rw.log.Bounds()
	seen := committed[len(committed)-1].Index // raft cuts what it hands out: behind it there may be others than plain ones
	kept := msgs[:0]
	for i := range msgs {
		m := &msgs[i]
		if m.Type == raftpb.MsgApp && len(m.Entries) == 0 && m.Index == last && m.Term == rw.term && m.Commit <= seen {
			w.holdNotice(r, m)
			continue
		}
		kept = append(kept, *m)
	}
	clear(msgs[len(kept):])
	return kept
}

// plain reports whether committed entries are there, and hold operations of clients only.
func plain(ents []raftpb.Entry) bool {
	for i := range ents {
		if e := &ents[i]; e.Type != raftpb.EntryNormal || wire.KindOf(e.Data) != wire.EntryData {
			return false
		}
	}
	return len(ents) > 0
}

func (w *worker) holdNotice(r *replica, m *raftpb.Message) {
	rw := &r.worker
	at := slices.IndexFunc(rw.notices, func(o notice) bool { return o.To == m.To })
	if at < 0 {
		rw.notices = append(rw.notices, notice{Message: *m})
	} else {
		rw.notices[at] = notice{Message: *m}
	}
	r.noticing.Store(true)
	rw.noticeDue = w.now + w.store.cfg.CommitNotice
	if !rw.noticeQueued {
		rw.noticeQueued = true
		w.noticed = append(w.noticed, heldNotices{r, rw.noticeDue})
		w.armNotices()
	}
}

// dropNotice forgets the notice that an append makes superfluous, and marks the one that a heartbeat does.
func (r *replica) dropNotice(m *raftpb.Message) {
	rw := &r.worker
	for i := range rw.notices {
		o := &rw.notices[i]
		if o.To != m.To {
			continue
		}
		switch {
		case m.Term <= o.Term && m.Commit < o.Commit:
		case m.Type == raftpb.MsgHeartbeat:
			o.said = true
		default:
			rw.notices = slices.Delete(rw.notices, i, i+1)
			r.noticing.Store(len(rw.notices) > 0)
		}
		return
	}
}

// sendNotices lets a group's notices go now, since somebody asks.
func (w *worker) sendNotices(r *replica) { w.endNotices(r, true) }

// endNotices lets a group's notices go, those that a heartbeat has said only if asked for.
func (w *worker) endNotices(r *replica, asked bool) {
	rw := &r.worker
	if len(rw.notices) == 0 {
		return
	}
	held := rw.notices
	rw.notices = nil
	r.noticing.Store(false)
	if !rw.disposed && rw.leads {
		for i := range held {
			if n := &held[i]; n.Term == rw.term && (asked || !n.said) {
				w.send(r, &n.Message)
			}
		}
	}
	clear(held)
	rw.notices = held[:0]
}

// sendDueNotices lets those go that have waited long enough. It runs at the end of each pass, when the appends of the pass are
// known.
func (w *worker) sendDueNotices() {
	n := 0
	for ; n < len(w.noticed) && w.noticed[n].due <= w.now; n++ {
		r := w.noticed[n].r
		rw := &r.worker
		if len(rw.notices) > 0 && w.now < rw.noticeDue { // newer ones, in the place of those that it was queued for
			w.noticed = append(w.noticed, heldNotices{r, rw.noticeDue})
			continue
		}
		rw.noticeQueued = false
		w.endNotices(r, false)
	}
	w.noticed = slices.Delete(w.noticed, 0, n)
	w.armNotices()
}

// armNotices has the worker woken when the next notices are due, unless it will be. If their turn has not come then, since
// the store's clock is behind the timer's or a pass has come by meanwhile, it is armed again.
func (w *worker) armNotices() {
	if len(w.noticed) == 0 || w.noticeArmed.Swap(true) {
		return
	}
	d := max(w.noticed[0].due-w.now, time.Millisecond)
	if w.noticeTimer == nil {
		w.noticeTimer = time.AfterFunc(d, func() {
			w.noticeArmed.Store(false)
			w.store.pool.Enqueue(w.control)
		})
	} else {
		w.noticeTimer.Reset(d)
	}
}
