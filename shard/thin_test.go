package shard

import (
	"fmt"
	"testing"

	"go.etcd.io/etcd/raft/v3/raftpb"
)

func TestOnlyMessagesThatALaterOneCoversAreLeftOut(t *testing.T) {
	app := func(to, index, commit uint64, entries int) raftpb.Message {
		return raftpb.Message{Type: raftpb.MsgApp, To: to, Term: 3, Index: index, LogTerm: 3, Commit: commit,
			Entries: make([]raftpb.Entry, entries)}
	}
	ack := func(index uint64) raftpb.Message {
		return raftpb.Message{Type: raftpb.MsgAppResp, To: 1, Term: 3, Index: index}
	}
	reject, oldTerm := ack(9), ack(4)
	reject.Reject, oldTerm.Term = true, 2
	beat := raftpb.Message{Type: raftpb.MsgHeartbeat, To: 2, Term: 3}
	for name, c := range map[string]struct {
		msgs []raftpb.Message
		keep []int
	}{
		"commit before entries":               {[]raftpb.Message{app(2, 10, 8, 0), app(3, 10, 8, 0), app(2, 10, 8, 1), app(3, 10, 8, 1)}, []int{2, 3}},
		"commits":                             {[]raftpb.Message{app(2, 10, 8, 0), beat, app(2, 10, 9, 0)}, []int{1, 2}},
		"entries are never left out":          {[]raftpb.Message{app(2, 10, 8, 1), app(2, 11, 9, 0), app(2, 11, 9, 1)}, []int{0, 2}},
		"entries before a commit":             {[]raftpb.Message{app(2, 10, 8, 1), app(2, 10, 9, 0)}, []int{0, 1}},
		"a lower commit":                      {[]raftpb.Message{app(2, 10, 9, 0), app(2, 10, 8, 1)}, []int{0, 1}},
		"another place":                       {[]raftpb.Message{app(2, 10, 8, 0), app(2, 7, 8, 1)}, []int{0, 1}},
		"acknowledgements":                    {[]raftpb.Message{ack(4), ack(5), ack(6)}, []int{2}},
		"a refusal":                           {[]raftpb.Message{ack(4), reject, ack(3)}, []int{0, 1, 2}},
		"terms":                               {[]raftpb.Message{oldTerm, ack(5)}, []int{0, 1}},
		"alone":                               {[]raftpb.Message{app(2, 10, 8, 0)}, []int{0}},
		"a refusal covers no acknowledgement": {[]raftpb.Message{ack(4), reject}, []int{0, 1}},
	} {
		var want []string
		for _, i := range c.keep {
			want = append(want, fmt.Sprint(c.msgs[i]))
		}
		var got []string
		for _, m := range thin(c.msgs) {
			got = append(got, fmt.Sprint(m))
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%s: kept %v, want %v", name, got, want)
		}
	}
}
