package engine

import (
	"bytes"
	"strings"
	"testing"

	"github.com/shardd/shardd/internal/base"
	"go.etcd.io/etcd/raft/v3/raftpb"
	"go.uber.org/goleak"
)

func TestLogsAndDataNeverShareATableAndOnlyDataIsSeparated(t *testing.T) {
	fs := NewMemFS()
	e := mustOpen(t, testOptions(t, fs))
	defer mustClose(t, e)
	l := mustLog(t, e, newReplica(t, e, 7))
	big := bytes.Repeat([]byte("x"), 2000)
	for i := range 50 {
		commit(t, e, false, func(b *Batch) {
			l.Append(b, []raftpb.Entry{{Term: 6, Index: InitialIndex + 1 + uint64(i), Data: big}})
		})
	}
	if err := e.db.Flush(); err != nil {
		t.Fatal(err)
	}
	if n := e.db.Metrics().BlobFiles.LiveCount; n != 0 {
		t.Fatalf("%d files of separated log entries", n)
	}
	for i := range 50 {
		commit(t, e, false, func(b *Batch) { b.Put(userKey(i), ValueHeader{Version: 1}, big) })
	}
	commit(t, e, false, func(b *Batch) { l.Append(b, entries(6, InitialIndex+51, "y")) })
	if err := e.db.Flush(); err != nil {
		t.Fatal(err)
	}
	if n := e.db.Metrics().BlobFiles.LiveCount; n == 0 {
		t.Fatal("no values were separated")
	}
	check := func() {
		t.Helper()
		levels, err := e.db.SSTables()
		if err != nil {
			t.Fatal(err)
		}
		for _, level := range levels {
			for _, table := range level {
				lo, hi := table.Smallest.UserKey, table.Largest.UserKey
				if (lo[0] < dataStart) != (hi[0] < dataStart) {
					t.Errorf("table %s holds logs and data: %x to %x", table.FileNum, lo, hi)
				}
			}
		}
	}
	check()
	if err := e.db.Compact(t.Context(), []byte{0}, []byte{0xff}, false); err != nil {
		t.Fatal(err)
	}
	check()
	if got := e.db.FormatMajorVersion(); got != FormatMajor {
		t.Fatalf("format %d, want %d", got, FormatMajor)
	}
}

func TestCloseLeavesNoGoroutine(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	o := testOptions(t, NewMemFS())
	o.ProbeInterval = 0
	e := mustOpen(t, o)
	commit(t, e, true, func(b *Batch) { b.Put(userKey(1), ValueHeader{}, nil) })
	if err := e.db.Flush(); err != nil {
		t.Fatal(err)
	}
	mustClose(t, e)
	mustClose(t, e) // again
}

func TestConfigurationsFollowTheRoles(t *testing.T) {
	d := testDesc(7, "a", "b")
	if cs := ConfStateOf(d); len(cs.Voters) != 2 || len(cs.Learners) != 1 || len(cs.VotersOutgoing) != 0 {
		t.Fatalf("%+v", cs)
	}
	d.Replicas[1].Role, d.Replicas[2].Role = base.RoleOutgoing, base.RoleIncoming
	want := raftpb.ConfState{Voters: []uint64{1, 3}, VotersOutgoing: []uint64{1, 2}, LearnersNext: []uint64{2}}
	if cs := ConfStateOf(d); cs.String() != want.String() {
		t.Fatalf("%+v", cs)
	}
	e := newEngine(t)
	b := e.NewBatch()
	defer b.Close()
	b.CreateReplica(d, 1, 1, nil)
	if err := e.Commit(b, true); err == nil {
		t.Fatal("a joint shard was created")
	}
}

func TestTheCompressionMayBeChangedBetweenTwoStarts(t *testing.T) {
	fs := NewMemFS()
	o := testOptions(t, fs)
	text := bytes.Repeat([]byte("compress me "), 200)
	for round, c := range []Compression{CompressBalanced, CompressFast, CompressBalanced, ""} {
		o.Compression = c
		e := mustOpen(t, o)
		commit(t, e, true, func(b *Batch) { b.Put(userKey(round), ValueHeader{Version: 1}, text) })
		if err := e.db.Flush(); err != nil {
			t.Fatal(err)
		}
		if err := e.db.Compact(t.Context(), []byte{0}, []byte{0xff}, false); err != nil {
			t.Fatal(err)
		}
		for i := range round + 1 {
			_, v, ok, err := e.Get(userKey(i), nil)
			if err != nil || !ok || !bytes.Equal(v, text) {
				t.Fatalf("round %d, key %d: %t %v", round, i, ok, err)
			}
		}
		mustClose(t, e)
	}
	o.Compression = "best"
	if _, err := Open(o); err == nil || !strings.Contains(err.Error(), `compression "best": want fast or balanced`) {
		t.Fatal(err)
	}
}
