package history

import (
	"errors"
	"strings"
	"testing"
	"time"
)

// check judges one history, of key k, each operation by its own client.
func check(ops ...Op) error {
	for i := range ops {
		ops[i].Key = "k"
		ops[i].Client = i
	}
	return Check(ops, time.Minute)
}

func TestHistoriesAreJudged(t *testing.T) {
	put := func(v string, from, to time.Duration) Op { return Op{Kind: Put, New: v, Call: from, Return: to} }
	get := func(v string, from, to time.Duration) Op { return Op{Kind: Get, Saw: v, Call: from, Return: to} }
	swap := func(old, v string, from, to time.Duration) Op {
		return Op{Kind: Swap, Old: old, New: v, Call: from, Return: to}
	}
	unknown := func(o Op) Op { o.Unknown = true; return o }
	conflict := func(o Op) Op { o.Conflict = true; return o }
	for _, tc := range []struct {
		name string
		good bool
		ops  []Op
	}{
		{"write then read", true, []Op{put("a", 1, 2), get("a", 3, 4)}},
		{"stale read", false, []Op{put("a", 1, 2), put("b", 3, 4), get("a", 5, 6)}},
		{"lost write", false, []Op{put("a", 1, 2), get("", 3, 4)}},
		{"concurrent write may be seen or not", true, []Op{put("a", 1, 2), put("b", 3, 9), get("a", 4, 5), get("b", 6, 7)}},
		{"seen, then unseen", false, []Op{put("a", 1, 2), put("b", 3, 9), get("b", 4, 5), get("a", 6, 7)}},
		{"unknown write that happens late", true, []Op{put("a", 1, 2), unknown(put("b", 3, 4)), get("a", 5, 6),
			get("b", 7, 8)}},
		{"unknown write that comes and goes", false, []Op{put("a", 1, 2), unknown(put("b", 3, 4)), get("b", 5, 6),
			get("a", 7, 8)}},
		{"swap", true, []Op{put("a", 1, 2), swap("a", "b", 3, 4), get("b", 5, 6)}},
		{"two swaps of one value", false, []Op{put("a", 1, 2), swap("a", "b", 3, 5), swap("a", "c", 4, 6)}},
		{"conflict without a reason", false, []Op{put("a", 1, 2), conflict(swap("a", "b", 3, 4))}},
		{"conflict with a reason", true, []Op{put("a", 1, 2), put("c", 3, 6), conflict(swap("a", "b", 4, 5))}},
		{"swap of unknown outcome", true, []Op{put("a", 1, 2), unknown(swap("a", "b", 3, 4)), get("a", 5, 6),
			get("b", 7, 8)}},
		{"delete", true, []Op{put("a", 1, 2), {Kind: Delete, Call: 3, Return: 4}, get("", 5, 6)}},
		{"unknown get says nothing", true, []Op{put("a", 1, 2), unknown(get("zzz", 3, 4))}},
	} {
		err := check(tc.ops...)
		if (err == nil) != tc.good || errors.Is(err, ErrUndecided) {
			t.Errorf("%s: %v", tc.name, err)
		}
	}
}

func TestKeysAreIndependentAndOutOfTimeIsNotAPass(t *testing.T) {
	ops := []Op{{Key: "x", Kind: Put, New: "a", Call: 1, Return: 2}, {Key: "y", Kind: Get, Saw: "", Call: 3, Return: 4}}
	if err := Check(ops, time.Minute); err != nil {
		t.Error(err)
	}
	if err := Check(ops, -1); !errors.Is(err, ErrUndecided) {
		t.Errorf("no time at all: %v", err)
	}
}

func TestTheLedgerFindsLostChangedAndInventedWrites(t *testing.T) {
	l := NewLedger()
	l.Acked("a", "1")
	l.Maybe("b", "2")
	if err := l.Compare(map[string]string{"a": "1"}); err != nil {
		t.Error(err)
	}
	if err := l.Compare(map[string]string{"a": "1", "b": "2"}); err != nil {
		t.Error(err)
	}
	for _, tc := range []struct {
		found map[string]string
		want  string
	}{
		{map[string]string{}, `"a": acknowledged, lost`},
		{map[string]string{"a": "9"}, `"a": acknowledged as "1", found "9"`},
		{map[string]string{"a": "1", "b": "9"}, `"b": found "9", which nobody wrote`},
		{map[string]string{"a": "1", "c": "3"}, `"c": found "3", which nobody wrote`},
	} {
		if err := l.Compare(tc.found); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%v: got %v, want %s", tc.found, err, tc.want)
		}
	}
}
