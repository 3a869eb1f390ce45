package shard

import (
	"encoding/binary"
	"fmt"

	"go.etcd.io/etcd/raft/v3/raftpb"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
)

// tracked is an entry of the leader's own that is not a client write: a conf change, a boundary command or a verify. Like a write it is
// found again by its term and index, since raft replaces a conf change that it refuses with an empty entry and says
// nothing. There are very few, so they stay out of the way of the writes.
type tracked struct {
	id          uint64
	index, term uint64 // 0 until bound
	conf        bool
	decided     bool // not done once committed: apply decides it
	committed   bool // and waits for that
	done        func(*base.Descriptor, uint64, error)
}

// track remembers an entry that has just been given to raft, so that the Ready of this step shows it.
func (r *replica) track(t *tracked) { r.worker.tracked = append(r.worker.tracked, t) }

// trackedID returns the id under which an entry was proposed, 0 for client writes and for raft's own entries.
func trackedID(e *raftpb.Entry) uint64 {
	switch {
	case e.Type == raftpb.EntryConfChangeV2:
		var cc raftpb.ConfChangeV2
		if cc.Unmarshal(e.Data) != nil {
			return 0
		}
		c, err := decodeConfContext(cc.Context)
		if err != nil {
			return 0
		}
		return c.id
	case isVerify(e), isBoundary(e):
		return binary.BigEndian.Uint64(e.Data[8:])
	}
	return 0
}

// isVerify reports whether an entry asks for a verification.
func isVerify(e *raftpb.Entry) bool {
	return e.Type == raftpb.EntryNormal && len(e.Data) >= wire.EntryHeaderSize &&
		wire.EntryKind(e.Data[1]) == wire.EntryVerify
}

// bindTracked gives the tracked entries of this step the term and index under which they stand in the Ready. Nothing
// was stepped in between, so one that is not there was replaced by raft.
func (w *worker) bindTracked(r *replica, ents []raftpb.Entry) {
	rw := &r.worker
	for i := range ents {
		id := trackedID(&ents[i])
		if id == 0 {
			continue
		}
		for _, t := range rw.tracked {
			if t.index == 0 && t.id == id {
				t.index, t.term = ents[i].Index, ents[i].Term
				if t.conf {
					rw.confIndex = t.index
				}
			}
		}
	}
	r.endTracked(func(t *tracked) error {
		if t.index != 0 {
			return nil
		}
		return &ChangeError{Shard: r.shard, Reason: "raft has another change of replicas under way", Retry: true}
	})
}

// resolveTracked takes a committed entry: it decides the tracked ones at its index and those of a lower term behind it.
func (w *worker) resolveTracked(r *replica, e *raftpb.Entry) {
	for i, t := range r.worker.tracked {
		if t.index == e.Index && t.term == e.Term {
			t.committed = true
			if !t.decided {
				r.worker.tracked = append(r.worker.tracked[:i:i], r.worker.tracked[i+1:]...)
				t.done(nil, t.index, nil)
			}
			break
		}
	}
	r.endTracked(func(t *tracked) error {
		if t.committed || t.index == 0 || (t.index > e.Index && t.term >= e.Term) {
			return nil
		}
		return &ChangeError{Shard: r.shard, Reason: "another leader's entry took its place", Retry: true}
	})
}

// settleTracked takes apply's decision on the entry at an index.
func (w *worker) settleTracked(r *replica, index, term uint64, d *base.Descriptor, refused error) {
	for i, t := range r.worker.tracked {
		if !t.decided || t.index != index || t.term != term {
			continue
		}
		r.worker.tracked = append(r.worker.tracked[:i:i], r.worker.tracked[i+1:]...)
		if refused != nil {
			t.done(nil, index, &ChangeError{Shard: r.shard, Reason: refused.Error(), Retry: true})
		} else {
			t.done(d, index, nil)
		}
		return
	}
}

// loseTracked ends what a lost leadership leaves open: the next leader may well commit it. What is committed already
// is only waiting for apply.
func (r *replica) loseTracked() {
	r.endTracked(func(t *tracked) error {
		if t.committed {
			return nil
		}
		return fmt.Errorf("%s: the leadership was lost: %w", r, ErrAmbiguousChange)
	})
}

// endTracked ends those for which why gives an error.
func (r *replica) endTracked(why func(*tracked) error) {
	keep := r.worker.tracked[:0]
	var ended []*tracked
	var errs []error
	for _, t := range r.worker.tracked {
		if err := why(t); err != nil {
			ended, errs = append(ended, t), append(errs, err)
		} else {
			keep = append(keep, t)
		}
	}
	clear(r.worker.tracked[len(keep):])
	r.worker.tracked = keep
	for i, t := range ended {
		t.done(nil, t.index, errs[i])
	}
}

// endMembership ends whatever waits for a change or a verification at a replica that stops. What was proposed may still
// happen elsewhere.
func (r *replica) endMembership(err error) {
	if req := r.worker.change; req != nil {
		r.worker.change = nil
		req.done(nil, err)
	}
	r.endTracked(func(*tracked) error { return fmt.Errorf("%s: %w: %w", r, ErrAmbiguousChange, err) })
}
