package shardtest

import (
	"fmt"
	"strings"
	"time"

	"go.etcd.io/etcd/raft/v3/raftpb"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
	"github.com/shardd/shardd/shard"
)

// request is one read or write of a sim and what became of it.
type request struct {
	node       *node
	store      *shard.Store
	id         base.ShardID
	read       bool
	key, value string
	done       bool
	confirmed  bool // of a read: ReadIndex said OK, the row has not been read yet
	answer     wire.Answer
	name       string
}

func (r *request) String() string {
	out := fmt.Sprintf("%s: %s", r.name, r.answer.Code)
	switch {
	case r.answer.Code == wire.OK && r.read:
		out += " " + string(r.answer.Payload)
	case r.answer.Code == wire.NotLeader && r.answer.Arg > 0:
		out += fmt.Sprintf(" (n%d leads)", r.answer.Arg)
	case r.answer.Code == wire.Busy:
		out += fmt.Sprintf(" (%s)", r.answer.Payload)
	}
	return out
}

// Complete implements shard.Waiter.
func (r *request) Complete(_ uint64, a wire.Answer) {
	if r.done || r.confirmed {
		r.node.s.t.Errorf("%s is answered twice: %s", r.name, a.Code)
	}
	r.answer = a
	if r.read && a.Code == wire.OK {
		r.confirmed = true
		return
	}
	r.done = true
	r.node.s.logf("%s", r)
}

// reap reads the rows of confirmed reads.
func (s *sim) reap() {
	keep := s.reqs[:0]
	for _, r := range s.reqs {
		if r.confirmed && r.node.store == r.store {
			r.confirmed, r.done = false, true
			r.answer = s.local(r.node, r.id, r.key)
			s.logf("%s", r)
		}
		if !r.done {
			keep = append(keep, r)
		}
	}
	s.reqs = keep
}

// local reads what a store has applied.
func (s *sim) local(n *node, id base.ShardID, key string) wire.Answer {
	s.t.Helper()
	o := wire.Op{Code: wire.OpGet, Shard: id, Version: 1, Key: base.UserKey([]byte(key))}
	var a wire.Answer
	if _, err := wire.DecodeAnswer(n.store.Read(&o, nil), &a); err != nil {
		s.t.Fatal(err)
	}
	return a
}

// put writes at a store without waiting. A time-out of 0 is the store's own.
func (s *sim) put(n *node, id base.ShardID, key, value string, timeout time.Duration) *request {
	o := wire.Op{Code: wire.OpPut, Shard: id, Version: 1, Key: base.UserKey([]byte(key)), Value: []byte(value)}
	r := &request{node: n, store: n.store, id: id, key: key, value: value, name: "put " + key + "=" + value}
	s.reqs = append(s.reqs, r)
	n.store.Write([]shard.WriteRequest{{
		Shard: id, Version: 1, Req: 1, Raw: o.Append(nil), Deadline: s.deadline(timeout), Waiter: r,
	}})
	return r
}

// get reads linearizably at a store without waiting.
func (s *sim) get(n *node, id base.ShardID, key string, timeout time.Duration) *request {
	r := &request{node: n, store: n.store, id: id, key: key, read: true, name: "get " + key}
	s.reqs = append(s.reqs, r)
	n.store.ReadIndex([]shard.ReadRequest{{Shard: id, Version: 1, Req: 1, Deadline: s.deadline(timeout), Waiter: r}})
	return r
}

func (s *sim) deadline(timeout time.Duration) time.Duration {
	if timeout == 0 {
		return 0
	}
	return s.clock.Boot() + timeout
}

// mustPut writes at the leader, whoever that is by then, until it is acknowledged.
func (s *sim) mustPut(id base.ShardID, key, value string) {
	s.t.Helper()
	var r *request
	s.until("put "+key, func() bool {
		if r != nil && r.done && r.answer.Code == wire.OK {
			return true
		}
		if n := s.leader(id); n != nil && (r == nil || r.done) {
			r = s.put(n, id, key, value, 0)
		}
		return false
	})
}

// mustGet reads at the leader, whoever that is by then.
func (s *sim) mustGet(id base.ShardID, key string) (value string, ok bool) {
	s.t.Helper()
	var r *request
	s.until("get "+key, func() bool {
		if r != nil && r.done && (r.answer.Code == wire.OK || r.answer.Code == wire.NotFound) {
			return true
		}
		if n := s.leader(id); n != nil && (r == nil || r.done) {
			r = s.get(n, id, key, 0)
		}
		return false
	})
	return string(r.answer.Payload), r.answer.Code == wire.OK
}

// describe prints a raft message on one line: who, what, and what it stands for.
func describe(m *wire.RaftMessage) string {
	msg := &m.Msg
	var b strings.Builder
	fmt.Fprintf(&b, "%s>%s %s %s t%d", m.FromStore, m.ToStore, m.Shard, msg.Type, msg.Term)
	switch msg.Type {
	case raftpb.MsgApp:
		fmt.Fprintf(&b, " after %d/%d commit %d", msg.LogTerm, msg.Index, msg.Commit)
		for i := range msg.Entries {
			fmt.Fprintf(&b, " %s", describeEntry(&msg.Entries[i]))
		}
	case raftpb.MsgAppResp:
		fmt.Fprintf(&b, " up to %d", msg.Index)
		if msg.Reject {
			fmt.Fprintf(&b, " reject, try %d/%d", msg.LogTerm, msg.RejectHint)
		}
	case raftpb.MsgVote, raftpb.MsgPreVote:
		fmt.Fprintf(&b, " log %d/%d", msg.LogTerm, msg.Index)
	case raftpb.MsgVoteResp, raftpb.MsgPreVoteResp:
		if msg.Reject {
			b.WriteString(" no")
		} else {
			b.WriteString(" yes")
		}
	case raftpb.MsgHeartbeat:
		fmt.Fprintf(&b, " commit %d", msg.Commit)
	}
	if len(msg.Context) > 0 && (msg.Type == raftpb.MsgHeartbeat || msg.Type == raftpb.MsgHeartbeatResp) {
		b.WriteString(" read")
	}
	return b.String()
}

// describeEntry prints term, index and content.
func describeEntry(e *raftpb.Entry) string {
	at := fmt.Sprintf("%d/%d", e.Term, e.Index)
	if e.Type != raftpb.EntryNormal {
		return "[" + at + " " + e.Type.String() + "]"
	}
	if len(e.Data) == 0 {
		return "[" + at + "]"
	}
	_, rest, err := wire.DecodeEntry(e.Data)
	for err == nil && len(rest) > 0 {
		var o wire.Op
		if _, rest, err = wire.DecodeOp(rest, &o); err == nil {
			at += fmt.Sprintf(" %s=%s", o.Key[1:], o.Value)
		}
	}
	if err != nil {
		at += " " + err.Error()
	}
	return "[" + at + "]"
}
