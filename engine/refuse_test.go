package engine

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/shardd/shardd/internal/base"
	"go.etcd.io/etcd/raft/v3/raftpb"
)

// wantRefusal opens, or boots, and checks the code and that the message names the directory.
func wantRefusal(t *testing.T, o Options, code int) {
	t.Helper()
	e, err := Open(o)
	if err == nil {
		_, err = e.LoadReplicas()
		if cerr := e.Close(); cerr != nil {
			t.Error(cerr)
		}
	}
	var oe *OpenError
	if ExitCode(err) != code || !errors.As(err, &oe) || oe.Dir != o.Dir || !strings.Contains(err.Error(), o.Dir) {
		t.Fatalf("refused with code %d, want %d: %v", ExitCode(err), code, err)
	}
}

// filled makes a store with some of everything, part of it in tables and part in the log, and closes it.
func filled(t *testing.T, fs *FS) {
	t.Helper()
	e := mustOpen(t, testOptions(t, fs))
	if err := e.WriteIdent(testIdent()); err != nil {
		t.Fatal(err)
	}
	newReplica(t, e, 7)
	for i := range 100 {
		commit(t, e, i%10 == 0, func(b *Batch) { b.Put(userKey(i), ValueHeader{Version: 1}, userValue(i)) })
		if i%20 == 19 {
			if err := e.db.Flush(); err != nil {
				t.Fatal(err)
			}
		}
	}
	for i := range 20 {
		commit(t, e, true, func(b *Batch) { b.Put(userKey(100+i), ValueHeader{Version: 1}, userValue(100+i)) })
	}
	mustClose(t, e)
}

const helperDir = "SHARDD_ENGINE_TEST_DIR"

// TestHelperOpensADirectory is the second process of the next test.
func TestHelperOpensADirectory(t *testing.T) {
	dir := os.Getenv(helperDir)
	if dir == "" {
		t.Skip("not called as a helper")
	}
	_, err := Open(Options{Dir: dir})
	fmt.Println(err)
	os.Exit(ExitCode(err))
}

func TestADirectoryInUseIsRefused(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	o := Options{Dir: dir, MemTableBytes: 1 << 20, CacheBytes: 1 << 20, Fatal: func(err error) { t.Error(err) }}
	e := mustOpen(t, o)
	commit(t, e, true, func(b *Batch) { b.Put(userKey(1), ValueHeader{Version: 1}, []byte("x")) })
	t.Run("same process", func(t *testing.T) { wantRefusal(t, o, ExitInUse) })
	t.Run("other process", func(t *testing.T) {
		cmd := exec.Command(os.Args[0], "-test.run=^TestHelperOpensADirectory$")
		cmd.Env = append(os.Environ(), helperDir+"="+dir)
		out, err := cmd.CombinedOutput()
		var ee *exec.ExitError
		if !errors.As(err, &ee) || ee.ExitCode() != ExitInUse {
			t.Fatalf("%v\n%s", err, out)
		}
	})
	commit(t, e, true, func(b *Batch) { b.Put(userKey(2), ValueHeader{Version: 1}, []byte("x")) }) // unharmed
	if free, used := e.DiskStats(); free == 0 || used == 0 {
		t.Fatal(free, used)
	}
	mustClose(t, e)
	e = mustOpen(t, o)
	for i := 1; i <= 2; i++ {
		if _, _, ok, err := e.Get(userKey(i), nil); !ok || err != nil {
			t.Fatal(i, ok, err)
		}
	}
	mustClose(t, e)

	mem := testOptions(t, NewMemFS())
	e = mustOpen(t, mem)
	wantRefusal(t, mem, ExitInUse)
	mustClose(t, e)
}

func TestAForeignDirectoryIsRefusedUntouched(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "thesis.tex"), []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	wantRefusal(t, Options{Dir: dir}, ExitCorrupt)
	names, err := os.ReadDir(dir)
	if err != nil || len(names) != 1 {
		t.Fatalf("the directory was changed: %v, %v", names, err)
	}
	if err := os.Remove(filepath.Join(dir, "thesis.tex")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "lost+found"), 0o755); err != nil { // a fresh disk
		t.Fatal(err)
	}
	e := mustOpen(t, Options{Dir: dir, MemTableBytes: 1 << 20})
	mustClose(t, e)
	file := filepath.Join(dir, "STORE")
	if _, err := Open(Options{Dir: file}); err == nil {
		t.Fatal("a file was opened as a directory")
	}
}

func TestOtherClustersAndStoresAreRefused(t *testing.T) {
	e := newEngine(t)
	if err := e.CheckIdent(base.ClusterID{9}, 9); err != nil {
		t.Fatal("a store without an ident belongs to nobody yet", err)
	}
	id := testIdent()
	if err := e.WriteIdent(id); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		cluster base.ClusterID
		store   base.StoreID
		code    int
	}{
		{id.Cluster, id.Store, 0}, {base.ClusterID{}, 0, 0}, {base.ClusterID{9}, id.Store, ExitOtherCluster},
		{id.Cluster, 9, ExitOtherStore}, {base.ClusterID{9}, 9, ExitOtherCluster},
		{base.ClusterID{}, 9, ExitOtherStore},
	} {
		if err := e.CheckIdent(c.cluster, c.store); ExitCode(err) != c.code || (err == nil) != (c.code == 0) {
			t.Errorf("cluster %s, store %s: %v, want code %d", c.cluster, c.store, err, c.code)
		}
	}
}

// edit opens the database below the engine's rules.
func edit(t *testing.T, fs *FS, fill func(b *Batch)) {
	t.Helper()
	e := mustOpen(t, testOptions(t, fs))
	commit(t, e, true, fill)
	mustClose(t, e)
}

func TestStatesThatContradictThemselvesAreRefused(t *testing.T) {
	put := func(b *Batch, key, value []byte) { setRecord(b, key, value) }
	for name, damage := range map[string]func(b *Batch){
		"overlap": func(b *Batch) {
			b.CreateReplica(testDesc(8, "00000007x", "00000008"), 1, 1, nil)
		},
		"no mark":             func(b *Batch) { b.deleteLocal(shardKey(spanMark, 7)) },
		"removed by its mark": func(b *Batch) { b.SetMark(7, ReplicaMark{NextReplicaID: 9}) },
		"no descriptor":       func(b *Batch) { b.deleteLocal(shardKey(spanDesc, 7)) },
		"no applied state":    func(b *Batch) { b.deleteLocal(shardKey(spanApplied, 7)) },
		"no hard state":       func(b *Batch) { b.deleteLocal(stateKey(7, raftHard)) },
		"no truncated state":  func(b *Batch) { b.deleteLocal(stateKey(7, raftTruncated)) },
		"truncated above applied": func(b *Batch) {
			b.SetTruncated(7, TruncatedState{Index: InitialIndex + 1, Term: InitialTerm})
		},
		"impossible mark": func(b *Batch) {
			m := ReplicaMark{ReplicaID: 5, NextReplicaID: 5}
			put(b, shardKey(spanMark, 7), enc(markLen, func(d []byte) { putMark(d, m) }))
		},
		"descriptor of another shard": func(b *Batch) {
			put(b, shardKey(spanDesc, 7), testDesc(9, "00000007", "00000008").Append(nil))
		},
		"garbage after a descriptor": func(b *Batch) {
			put(b, shardKey(spanDesc, 7), append(testDesc(7, "00000007", "00000008").Append(nil), 0))
		},
		"garbage for a hard state": func(b *Batch) { put(b, stateKey(7, raftHard), []byte{1, 2}) },
		"short key":                func(b *Batch) { put(b, []byte{spaceLocal, spanApplied, 1}, nil) },
		"ident checksum": func(b *Batch) {
			id := testIdent()
			v := appendIdent(nil, &id)
			v[20]++
			put(b, identKey(), v)
		},
		"no ident":           func(b *Batch) { b.deleteLocal(identKey()) },
		"unknown ident key":  func(b *Batch) { put(b, []byte{spaceLocal, spanStore, 'x'}, nil) },
		"meta checksum":      func(b *Batch) { put(b, metaKey(), []byte{1, 2, 3, 4, 5, 6}) },
		"empty applied":      func(b *Batch) { put(b, shardKey(spanApplied, 7), nil) },
		"mark of no replica": func(b *Batch) { put(b, shardKey(spanApplied, 70), nil) },
	} {
		t.Run(name, func(t *testing.T) {
			fs := NewMemFS()
			e := mustOpen(t, testOptions(t, fs))
			if err := e.WriteIdent(testIdent()); err != nil {
				t.Fatal(err)
			}
			newReplica(t, e, 7)
			mustClose(t, e)
			edit(t, fs, damage)
			wantRefusal(t, testOptions(t, fs), ExitCorrupt)
		})
	}
}

func TestRemovedAndUninitialisedReplicasLoad(t *testing.T) {
	e := newEngine(t)
	newReplica(t, e, 7)
	commit(t, e, true, func(b *Batch) {
		b.SetMark(8, ReplicaMark{NextReplicaID: 9})
		b.SetMark(9, ReplicaMark{ReplicaID: 4, NextReplicaID: 5})
		b.SetHardState(9, raftpb.HardState{Term: 3, Vote: 4})
	})
	states, err := e.LoadReplicas()
	if err != nil || len(states) != 2 {
		t.Fatal(states, err)
	}
	if states[0].Shard != 7 || states[0].Desc == nil || states[0].Applied.Stamp != 100 ||
		states[0].Hard != (raftpb.HardState{Term: InitialTerm, Commit: InitialIndex}) ||
		fmt.Sprint(states[0].Applied.Conf.Voters, states[0].Applied.Conf.Learners) != "[1 2] [3]" {
		t.Fatalf("%+v", states[0])
	}
	if states[1].Shard != 9 || states[1].Desc != nil || states[1].Hard.Term != 3 {
		t.Fatalf("%+v", states[1])
	}
	if f, l := mustLog(t, e, states[1]).Bounds(); f != 1 || l != 0 {
		t.Fatal(f, l)
	}
}

func TestDamagedDirectoriesAreRefusedAndNotEmptied(t *testing.T) {
	for name, damage := range map[string]func(t *testing.T, fs *FS){
		"marker garbage": func(t *testing.T, fs *FS) { writeFile(t, fs, markerName, []byte("hello")) },
		"marker checksum": func(t *testing.T, fs *FS) {
			b := readFile(t, fs, markerName)
			b[len(b)-1]++
			writeFile(t, fs, markerName, b)
		},
		"marker gone": func(t *testing.T, fs *FS) { remove(t, fs, markerName) },
		"table gone":  func(t *testing.T, fs *FS) { remove(t, fs, filesWith(t, fs, ".sst")[0]) },
		"table short": func(t *testing.T, fs *FS) {
			name := filesWith(t, fs, ".sst")[0]
			b := readFile(t, fs, name)
			writeFile(t, fs, name, b[:len(b)-1])
		},
		"manifest gone":  func(t *testing.T, fs *FS) { remove(t, fs, currentManifest(t, fs)) },
		"manifest empty": func(t *testing.T, fs *FS) { writeFile(t, fs, currentManifest(t, fs), nil) },
		"manifest zero": func(t *testing.T, fs *FS) {
			writeFile(t, fs, currentManifest(t, fs), make([]byte, 500))
		},
		"database gone": func(t *testing.T, fs *FS) {
			for _, n := range filesWith(t, fs, "") {
				if n != markerName {
					remove(t, fs, n)
				}
			}
		},
		"database marker gone": func(t *testing.T, fs *FS) { remove(t, fs, filesWith(t, fs, "marker.manifest")[0]) },
		"options garbage": func(t *testing.T, fs *FS) {
			for _, n := range filesWith(t, fs, "OPTIONS") {
				writeFile(t, fs, n, []byte("[Options]\n  comparer=something else\n"))
			}
		},
		"format garbage": func(t *testing.T, fs *FS) {
			for _, n := range filesWith(t, fs, "marker.format-version") {
				remove(t, fs, n)
			}
			writeFile(t, fs, "marker.format-version.000009.x", nil)
		},
	} {
		t.Run(name, func(t *testing.T) {
			fs := NewMemFS()
			filled(t, fs)
			damage(t, fs)
			tables := fmt.Sprint(filesWith(t, fs, ".sst"), filesWith(t, fs, ".blob"))
			wantRefusal(t, testOptions(t, fs), ExitCorrupt)
			wantRefusal(t, testOptions(t, fs), ExitCorrupt) // and the lock is free again
			if after := fmt.Sprint(filesWith(t, fs, ".sst"), filesWith(t, fs, ".blob")); after != tables {
				t.Fatalf("the refusal changed the tables from %s to %s", tables, after)
			}
		})
	}
}

func remove(t *testing.T, fs *FS, name string) {
	t.Helper()
	if err := fs.inner.Remove(testDir + "/" + name); err != nil {
		t.Fatal(err)
	}
}

func TestEveryFlippedBitOfTheManifestIsFound(t *testing.T) {
	rng, _ := seeded(t)
	fs := NewMemFS()
	filled(t, fs)
	name := currentManifest(t, fs)
	whole := readFile(t, fs, name)
	if err := checkRecords(whole); err != nil {
		t.Fatal(err)
	}
	for at := range whole {
		b := append([]byte(nil), whole...)
		b[at] ^= 1 << rng.IntN(8)
		if checkRecords(b) == nil {
			t.Errorf("byte %d of %d damaged: not found", at, len(whole))
		}
	}
	for range 3 {
		b := append([]byte(nil), whole...)
		b[rng.IntN(len(b))] ^= 1 << rng.IntN(8)
		writeFile(t, fs, name, b)
		wantRefusal(t, testOptions(t, fs), ExitCorrupt)
	}
}

func TestATornEndOfTheManifestIsNotDamage(t *testing.T) {
	fs := NewMemFS()
	filled(t, fs)
	whole := readFile(t, fs, currentManifest(t, fs))
	at, last := 0, 0
	for at < len(whole) {
		c, ok := chunkAt(whole, at)
		if !ok {
			t.Fatalf("no chunk at %d", at)
		}
		last, at = at, c.end
	}
	for end := last; end <= len(whole); end++ { // cut in the last record
		if err := checkRecords(whole[:end]); err != nil {
			t.Fatalf("cut at %d: %v", end, err)
		}
	}
	zeros := append(append([]byte(nil), whole...), make([]byte, 5000)...) // grown, but never written
	if err := checkRecords(zeros); err != nil {
		t.Fatal(err)
	}
	if err := checkRecords(append(zeros, whole[:last]...)); err == nil {
		t.Fatal("records behind a hole pass")
	}
}

func TestAFullDiskIsRefusedAndOpensAgainWithSpace(t *testing.T) {
	for _, fresh := range []bool{true, false} {
		t.Run(fmt.Sprintf("fresh=%t", fresh), func(t *testing.T) {
			fs := NewMemFS()
			if !fresh {
				filled(t, fs)
			}
			o := testOptions(t, fs)
			fs.FailWrites(syscall.ENOSPC)
			wantRefusal(t, o, ExitNoSpace)
			fs.FailWrites(nil)
			e := mustOpen(t, o)
			if _, _, ok, err := e.Get(userKey(0), nil); ok == fresh || err != nil {
				t.Fatal(ok, err)
			}
			mustClose(t, e)
		})
	}
}

func TestAFullDiskAtAnyMomentOfOpenIsRefusedAndOpensAgain(t *testing.T) {
	for _, fresh := range []bool{true, false} {
		base := NewMemFS()
		if !fresh {
			filled(t, base)
		}
		// Every step of an open that writes, until one runs through.
		for step, passed := 0, false; !passed; step++ {
			fs := base.CrashClone(100, 1)
			n := 0
			setHook(fs, func() {
				if n++; n > step {
					fs.mu.Lock()
					fs.mu.failWrites = syscall.ENOSPC
					fs.mu.Unlock()
				}
			})
			e, err := Open(testOptions(t, fs))
			setHook(fs, nil)
			fs.FailWrites(nil)
			if err == nil {
				passed = true
				mustClose(t, e)
				continue
			}
			if ExitCode(err) != ExitNoSpace {
				t.Fatalf("step %d: %v", step, err)
			}
			after := fs.CrashClone(100, 1)
			e = mustOpen(t, testOptions(t, after))
			if _, _, ok, err := e.Get(userKey(0), nil); ok == fresh || err != nil {
				t.Fatalf("step %d: %t, %v", step, ok, err)
			}
			mustClose(t, e)
		}
	}
}

func TestNewerFormatsAreRefused(t *testing.T) {
	for name, age := range map[string]func(t *testing.T, fs *FS){
		"marker": func(t *testing.T, fs *FS) {
			writeFile(t, fs, markerName, appendMarker(nil, FormatVersion+1, markerReady))
		},
		"pebble": func(t *testing.T, fs *FS) {
			f, err := fs.inner.Create(fmt.Sprintf("%s/marker.format-version.000099.%03d", testDir, FormatMajor+1),
				vfs.WriteCategoryUnspecified)
			if err != nil {
				t.Fatal(err)
			}
			if err := f.Close(); err != nil {
				t.Fatal(err)
			}
		},
		"ident format": func(t *testing.T, fs *FS) {
			id := testIdent()
			id.Format = FormatVersion + 1
			edit(t, fs, func(b *Batch) { setRecord(b, identKey(), appendIdent(nil, &id)) })
		},
		"ident pebble format": func(t *testing.T, fs *FS) {
			id := testIdent()
			id.Format, id.FormatMajor = FormatVersion, uint32(FormatMajor)+1
			edit(t, fs, func(b *Batch) { setRecord(b, identKey(), appendIdent(nil, &id)) })
		},
		"ident layout": func(t *testing.T, fs *FS) {
			edit(t, fs, func(b *Batch) { setRecord(b, identKey(), sealCRC([]byte{layoutV1 + 1, 1, 2, 3})) })
		},
	} {
		t.Run(name, func(t *testing.T) {
			fs := NewMemFS()
			filled(t, fs)
			age(t, fs)
			wantRefusal(t, testOptions(t, fs), ExitNewerFormat)
		})
	}
}

func TestOptionsThatCannotWorkAreRefused(t *testing.T) {
	for _, o := range []Options{
		{}, {Dir: "x", CacheBytes: -1}, {Dir: "x", MemTableBytes: 1}, {Dir: "x", MemTableBytes: 1 << 40},
		{Dir: "x", EntryCacheBytes: -1},
	} {
		if e, err := Open(o); err == nil || ExitCode(err) != 0 {
			t.Errorf("%+v: %v, %v", o, e, err)
		}
	}
}
