package engine

import (
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"go.etcd.io/etcd/raft/v3/raftpb"
)

// inspected fills a store with one replica in each state of life and closes it.
func inspected(t *testing.T, o Options) {
	t.Helper()
	e := mustOpen(t, o)
	if err := e.WriteIdent(testIdent()); err != nil {
		t.Fatal(err)
	}
	l := mustLog(t, e, newReplica(t, e, 7))
	newReplica(t, e, 8)
	commit(t, e, false, func(b *Batch) {
		l.Append(b, entries(6, 11, "a", "bb", "ccc", "dddd"))
		b.SetApplied(7, &AppliedState{Index: 13, Term: 6, Conf: goldenConf})
		b.SetHardState(7, raftpb.HardState{Term: 6, Vote: 2, Commit: 14})
		b.Put(append(testDesc(7, "00000007", "").Start, 'k'), ValueHeader{Version: 1}, []byte("v"))
	})
	commit(t, e, true, func(b *Batch) {
		l.Truncate(b, 12, 6, goldenConf)
		b.SetMark(3, ReplicaMark{NextReplicaID: 5})
		b.SetMark(9, ReplicaMark{ReplicaID: 4, NextReplicaID: 5})
		b.SetHardState(9, raftpb.HardState{Term: 3, Vote: 4})
		setRecord(b, append(shardKey(spanSession, 7), 1), []byte{1})
	})
	if err := e.db.Flush(); err != nil { // some in tables, and some in the log only
		t.Fatal(err)
	}
	commit(t, e, true, func(b *Batch) { l.Append(b, entries(6, 15, "e")) })
	mustClose(t, e)
}

// hashDir returns a hash of every file's name and bytes.
func hashDir(t *testing.T, fs *FS) map[string][32]byte {
	t.Helper()
	out := make(map[string][32]byte)
	for _, n := range filesWith(t, fs, "") {
		out[n] = sha256.Sum256(readFile(t, fs, n))
	}
	return out
}

func TestAnInspectionListsEveryReplicaAndChangesNothing(t *testing.T) {
	fs := NewMemFS()
	o := testOptions(t, fs)
	inspected(t, o)
	before := hashDir(t, fs)
	var in *Inspection
	for range 2 {
		var err error
		if in, err = Inspect(o); err != nil {
			t.Fatal(err)
		}
	}
	if after := hashDir(t, fs); !reflect.DeepEqual(before, after) {
		t.Fatalf("the inspection changed the directory: %v\n%v", before, after)
	}
	if len(in.Problems) != 0 {
		t.Fatalf("problems %+v", in.Problems)
	}
	if in.Ident == nil || in.Ident.Store != 4 || len(in.Ident.Peers) != 2 || in.UsedBytes == 0 {
		t.Fatalf("%+v", in)
	}
	var lives []string
	for _, r := range in.Replicas {
		lives = append(lives, fmt.Sprint(r.Shard, r.Mark, r.Life))
	}
	if got, want := strings.Join(lives, "; "), "s3{0 5}removed; s7{1 4}initialised; s8{1 4}initialised; "+
		"s9{4 5}uninitialised"; strings.ReplaceAll(got, " ", "") != strings.ReplaceAll(want, " ", "") {
		t.Fatalf("%s, want %s", got, want)
	}
	r := in.Replicas[1]
	if r.Desc == nil || r.Applied.Index != 13 || r.Hard.Commit != 14 || r.Truncated.Index != 12 ||
		!reflect.DeepEqual(r.Truncated.Conf, goldenConf) || r.LogFirst != 13 || r.LogLast != 15 || r.Entries != 3 ||
		r.LogBytes != 3*entryHeaderLen+3+4+1 || r.Sessions != 1 || r.DataBytes == 0 {
		t.Fatalf("%+v", r)
	}
	if r := in.Replicas[3]; r.Hard == nil || r.Hard.Term != 3 || r.Applied != nil || r.Desc != nil {
		t.Fatalf("%+v", r)
	}
	e := mustOpen(t, o) // and it is still a store
	mustClose(t, e)
}

func TestAnInspectionListsAllProblemsAndNotOnlyTheFirst(t *testing.T) {
	fs := NewMemFS()
	o := testOptions(t, fs)
	inspected(t, o)
	e := mustOpen(t, o)
	wide := testDesc(7, "00000007", "00000009") // over shard 8
	wide.Replicas[0].Replica, wide.NextReplicaID = 9, 10
	commit(t, e, true, func(b *Batch) {
		b.SetDescriptor(wide)
		b.deleteLocal(logKey(7, 14))
		b.deleteLocal(shardKey(spanApplied, 8))
		b.SetHardState(3, raftpb.HardState{Term: 1})
		setRecord(b, logKey(9, 4), []byte{layoutV1, 0, 0, 0, 0, 0, 0, 0, 0, 1})
		setRecord(b, logKey(20, 4), []byte{layoutV1, 0, 0, 0, 0, 0, 0, 0, 0, 1})
		setRecord(b, shardKey(spanMark, 30), []byte{77})
		setRecord(b, []byte{spaceLocal, spanRaft, 1}, nil)
		b.Put(userKey(1), ValueHeader{}, nil)
	})
	mustClose(t, e)
	before := hashDir(t, fs)
	in, err := Inspect(o)
	if err != nil {
		t.Fatal(err)
	}
	if after := hashDir(t, fs); !reflect.DeepEqual(before, after) {
		t.Fatal("the inspection changed the directory")
	}
	var all []string
	for _, p := range in.Problems {
		all = append(all, fmt.Sprintf("%s: %s", p.Shard, p.Text))
	}
	text := strings.Join(all, "\n")
	for _, want := range []string{
		"s7: overlaps s8", "s7: log: entries 14 to 14 are missing", "s7: replica 1 is not listed in its descriptor",
		"s8: half a state: descriptor, but applied false", "s3: removed, but there is more of it",
		"s9: half a state: no descriptor", "s20: unmarked, but there is more of it",
		"s30: mark: replica mark: layout version 77", "s0: raft state: key 017201 is not one of ours",
		fmt.Sprintf("s0: data at key %x, which no replica here owns", userKey(1)),
	} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not among\n%s", want, text)
		}
	}
	if len(in.Replicas) != 6 {
		t.Fatalf("%d shards", len(in.Replicas))
	}
}

func TestAnInspectionReadsOnPastADamagedTable(t *testing.T) {
	fs := NewMemFS()
	o := testOptions(t, fs)
	inspected(t, o)
	e := mustOpen(t, o)
	levels, err := e.db.SSTables()
	if err != nil {
		t.Fatal(err)
	}
	name := ""
	for _, table := range levels[0] {
		if table.Smallest.UserKey[0] < dataStart && table.Largest.UserKey[1] == spanStore {
			name = fmt.Sprintf("%s.sst", table.BackingSSTNum)
		}
	}
	mustClose(t, e)
	damageTable(t, fs, name, 20)
	in, err := Inspect(o)
	if err != nil {
		t.Fatal(err)
	}
	if len(in.Problems) < 3 || !strings.Contains(fmt.Sprint(in.Problems), "damaged file data/"+name) {
		t.Fatalf("%+v", in.Problems)
	}
}

func TestInspectRefusesWhatOpenRefuses(t *testing.T) {
	code := func(o Options) int {
		t.Helper()
		_, err := Inspect(o)
		return ExitCode(err)
	}
	fs := NewMemFS()
	o := testOptions(t, fs)
	inspected(t, o)
	e := mustOpen(t, o)
	if c := code(o); c != ExitInUse {
		t.Errorf("in use: code %d", c)
	}
	mustClose(t, e)
	if c := code(o); c != 0 {
		t.Errorf("code %d", c)
	}
	e = mustOpen(t, o) // the lock is free again
	mustClose(t, e)

	writeFile(t, fs, markerName, appendMarker(nil, FormatVersion+1, markerReady))
	if c := code(o); c != ExitNewerFormat {
		t.Errorf("newer format: code %d", c)
	}
	writeFile(t, fs, markerName, []byte("hello"))
	if c := code(o); c != ExitCorrupt {
		t.Errorf("not ours: code %d", c)
	}
	writeFile(t, fs, markerName, appendMarker(nil, FormatVersion, markerReady))
	damageTable(t, fs, currentManifest(t, fs), 20)
	if c := code(o); c != ExitCorrupt {
		t.Errorf("damaged manifest: code %d", c)
	}
	if c := code(Options{Dir: "absent", FS: NewMemFS()}); c != ExitCorrupt {
		t.Errorf("nothing there: code %d", c)
	}
	if _, err := Inspect(Options{}); err == nil {
		t.Error("without a directory")
	}
}

func TestACopyWithoutItsLockFileIsInspectedOnDiskWithoutAByteChanged(t *testing.T) {
	o := Options{Dir: t.TempDir(), ProbeInterval: -1, MemTableBytes: 1 << 20, CacheBytes: 1 << 20, ReserveBytes: -1}
	inspected(t, o)
	if err := os.Remove(filepath.Join(o.Dir, "LOCK")); err != nil {
		t.Fatal(err)
	}
	hash := func() map[string]string {
		out := make(map[string]string)
		err := filepath.Walk(o.Dir, func(path string, info os.FileInfo, err error) error {
			if err != nil || info.IsDir() {
				return err
			}
			f, err := os.Open(path)
			if err != nil {
				return err
			}
			defer f.Close()
			h := sha256.New()
			_, err = io.Copy(h, f)
			out[path] = fmt.Sprintf("%x %s %s", h.Sum(nil), info.ModTime(), info.Mode())
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	before := hash()
	in, err := Inspect(o)
	if err != nil || len(in.Problems) != 0 || len(in.Replicas) != 4 {
		t.Fatalf("%+v, %v", in, err)
	}
	if after := hash(); !reflect.DeepEqual(before, after) {
		t.Fatalf("%v\n%v", before, after)
	}
}
