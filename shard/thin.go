package shard

import "go.etcd.io/etcd/raft/v3/raftpb"

// thin leaves out messages of one Ready that a later one of it, to the same replica, makes superfluous, and so the answers
// to them. Raft counts on messages that get lost, and nothing in its view of a follower rests on these:
//
//   - an append without entries, which only tells the commit index, before an append that tells it at least as well. A
//     leader that steps acknowledgements and proposals in one pass makes one of each for every follower.
//   - an acknowledgement before one of the same term with an index at least as high.
//
// The order of the others stays. It works in place.
func thin(msgs []raftpb.Message) []raftpb.Message {
	if len(msgs) < 2 {
		return msgs
	}
	kept := msgs[:0]
	for i := range msgs {
		m := &msgs[i]
		if (m.Type == raftpb.MsgApp && len(m.Entries) == 0 || m.Type == raftpb.MsgAppResp && !m.Reject) &&
			superseded(m, msgs[i+1:]) {
			continue
		}
		if len(kept) < i {
			kept = append(kept, *m)
		} else {
			kept = msgs[:i+1]
		}
	}
	clear(msgs[len(kept):])
	return kept
}

// superseded reports whether one of the later messages says all that m does.
func superseded(m *raftpb.Message, later []raftpb.Message) bool {
	for i := range later {
		l := &later[i]
		if l.Type != m.Type || l.To != m.To || l.Term != m.Term || l.Reject {
			continue
		}
		if m.Type == raftpb.MsgApp {
			// Index is where it starts: a probe further down asks for something else.
			if l.Commit >= m.Commit && l.Index == m.Index && l.LogTerm == m.LogTerm {
				return true
			}
		} else if l.Index >= m.Index {
			return true
		}
	}
	return false
}
