package engine

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/shardd/shardd/internal/base"
)

var keepPercents = []int{0, 50, 100}

// crashes opens the directory and returns what a crash at every step of that could leave.
func crashes(t *testing.T, fs *FS, seed int64) (clones []*FS) {
	t.Helper()
	setHook(fs, func() {
		for _, keep := range keepPercents {
			clones = append(clones, fs.CrashClone(keep, seed+int64(len(clones))))
		}
	})
	e, err := Open(testOptions(t, fs))
	setHook(fs, nil)
	if err != nil {
		t.Fatal(err)
	}
	mustClose(t, e)
	return clones
}

func TestACrashAtAnyMomentOfTheFirstOpenLeavesADirectoryThatOpens(t *testing.T) {
	_, seed := seeded(t)
	clones := crashes(t, NewMemFS(), seed)
	if len(clones) < 60 {
		t.Fatalf("only %d moments seen", len(clones))
	}
	for i, c := range clones {
		e, err := Open(testOptions(t, c))
		if err != nil {
			t.Fatalf("moment %d, %d%% kept: %v", i/3, keepPercents[i%3], err)
		}
		commit(t, e, true, func(b *Batch) { b.Put(userKey(1), ValueHeader{Version: 1}, []byte("x")) })
		if err := e.WriteIdent(testIdent()); err != nil {
			t.Fatal(err)
		}
		mustClose(t, e)
	}
}

func TestCrashesDuringOpenAnyNumberOfTimesLoseNothing(t *testing.T) {
	rng, seed := seeded(t)
	for _, fresh := range []bool{true, false} {
		fs := NewMemFS()
		if !fresh {
			filled(t, fs)
		}
		for round := range 30 {
			clones := crashes(t, fs, seed+int64(round)*1000)
			fs = clones[rng.IntN(len(clones))]
		}
		e := mustOpen(t, testOptions(t, fs))
		if id, ok := e.Ident(); ok == fresh || (ok && id.Store != 4) {
			t.Fatalf("ident %+v, %t", id, ok)
		}
		for i := range 120 {
			_, v, ok, err := e.Get(userKey(i), nil)
			if err != nil || ok == fresh || (ok && !bytes.Equal(v, userValue(i))) {
				t.Fatalf("key %d: %t, %v", i, ok, err)
			}
		}
		mustClose(t, e)
	}
}

// TestACrashKeepsWhatIsSyncedAndAPrefixOfTheRest commits numbered batches, each of which replaces the number under its
// shard's key and adds a log entry, and crashes at every synced boundary and between.
func TestACrashKeepsWhatIsSyncedAndAPrefixOfTheRest(t *testing.T) {
	rng, seed := seeded(t)
	fs := NewMemFS()
	o := testOptions(t, fs)
	o.MemTableBytes = 64 << 10 // flushes, rotations and recycled logs on the way
	e := mustOpen(t, o)
	st := newReplica(t, e, 7)
	l := mustLog(t, e, st)
	synced := 0
	type crash struct {
		fs            *FS
		synced, wrote int
		name          string
	}
	var all []crash
	const n = 150
	for i := 1; i <= n; i++ {
		sync := rng.IntN(3) == 0
		commit(t, e, sync, func(b *Batch) {
			b.Put(userKey(i), ValueHeader{Version: uint64(i)}, userValue(i))
			l.Append(b, entries(6, InitialIndex+uint64(i), fmt.Sprint(i)))
			b.SetApplied(7, &AppliedState{Index: InitialIndex + uint64(i), Term: 6})
		})
		if sync {
			synced = i
		}
		if sync || i%10 == 0 {
			keep := keepPercents[rng.IntN(3)]
			name := fmt.Sprintf("after %d, %d%% kept", i, keep)
			all = append(all, crash{fs.CrashClone(keep, seed+int64(i)), synced, i, name})
		}
	}
	mustClose(t, e)
	for _, c := range all {
		o.FS = c.fs
		e, err := Open(o)
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		st := loadReplica(t, e, 7)
		got := int(st.Applied.Index) - InitialIndex
		if got < c.synced || got > c.wrote {
			t.Fatalf("%s: %d batches are left, %d were synced", c.name, got, c.synced)
		}
		for i := 1; i <= n; i++ {
			_, v, ok, err := e.Get(userKey(i), nil)
			if err != nil || ok != (i <= got) || (ok && !bytes.Equal(v, userValue(i))) {
				t.Fatalf("%s: key %d of %d: %t, %v", c.name, i, got, ok, err)
			}
		}
		if _, last := mustLog(t, e, st).Bounds(); last != st.Applied.Index {
			t.Fatalf("%s: the log ends at %d, applied is %d", c.name, last, st.Applied.Index)
		}
		mustClose(t, e)
	}
}

func TestAReplicaIsCreatedAsAWholeOrNotAtAll(t *testing.T) {
	_, seed := seeded(t)
	fs := NewMemFS()
	e := mustOpen(t, testOptions(t, fs))
	var clones []*FS
	setHook(fs, func() {
		for _, keep := range keepPercents {
			clones = append(clones, fs.CrashClone(keep, seed+int64(len(clones))))
		}
	})
	d := testDesc(9, "a", "b")
	var data []KV
	for i := range 150 { // several blocks of the log
		data = append(data, KV{Key: fmt.Appendf(nil, "\x02a%05d", i), Value: userValue(i)})
	}
	commit(t, e, true, func(b *Batch) { b.CreateReplica(d, 2, 77, data) })
	clones = append(clones, fs.CrashClone(0, seed))
	setHook(fs, nil)
	mustClose(t, e)
	for i, c := range clones {
		e := mustOpen(t, testOptions(t, c))
		states, err := e.LoadReplicas()
		if err != nil {
			t.Fatal(i, err)
		}
		it, err := e.NewIter(base.UserStart(), base.UserEnd(), false)
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for ; it.Valid(); it.Next() {
			n++
		}
		if err := it.Close(); err != nil {
			t.Fatal(err)
		}
		if n != len(data)*len(states) || (i == len(clones)-1 && len(states) != 1) {
			t.Fatalf("moment %d: %d replicas, %d rows", i, len(states), n)
		}
		mustClose(t, e)
	}
}

// lastLog returns the write-ahead log with the highest number.
func lastLog(t *testing.T, fs *FS) string {
	logs := filesWith(t, fs, ".log")
	return logs[len(logs)-1]
}

func TestATruncatedLogTailLosesOnlyTheEnd(t *testing.T) {
	rng, _ := seeded(t)
	fs := NewMemFS()
	e := mustOpen(t, testOptions(t, fs))
	const n = 60
	for i := range n {
		commit(t, e, true, func(b *Batch) { b.Put(userKey(i), ValueHeader{Version: 1}, userValue(i)) })
	}
	crashed := fs.CrashClone(100, 1)
	mustClose(t, e)
	name := lastLog(t, crashed)
	whole := readFile(t, crashed, name)
	for range 40 {
		c := crashed.CrashClone(100, 1)
		writeFile(t, c, name, whole[:rng.IntN(len(whole)+1)])
		e := mustOpen(t, testOptions(t, c))
		ended := false
		for i := range n {
			_, v, ok, err := e.Get(userKey(i), nil)
			if err != nil || (ok && (ended || !bytes.Equal(v, userValue(i)))) {
				t.Fatalf("key %d behind the end, or wrong: %v", i, err)
			}
			ended = ended || !ok
		}
		mustClose(t, e)
	}
}

func TestADamagedLogIsRefusedAndNeverGivesAWrongValue(t *testing.T) {
	rng, _ := seeded(t)
	fs := NewMemFS()
	e := mustOpen(t, testOptions(t, fs))
	const n = 60
	for i := range n {
		commit(t, e, true, func(b *Batch) { b.Put(userKey(i), ValueHeader{Version: 1}, userValue(i)) })
	}
	crashed := fs.CrashClone(0, 1)
	mustClose(t, e)
	name := lastLog(t, crashed)
	whole := readFile(t, crashed, name)
	end := len(bytes.TrimRight(whole, "\x00"))
	refused := 0
	for range 60 {
		c := crashed.CrashClone(100, 1)
		b := bytes.Clone(whole)
		at := rng.IntN(end)
		b[at] ^= 1 << rng.IntN(8)
		writeFile(t, c, name, b)
		e, err := Open(testOptions(t, c))
		if err != nil {
			if ExitCode(err) != ExitCorrupt {
				t.Fatalf("byte %d: %v", at, err)
			}
			refused++
			continue
		}
		// Only the end of a log can pass for a write that a crash tore.
		if at < end-16<<10 {
			t.Errorf("byte %d of %d damaged: opened all the same", at, end)
		}
		ended := false
		for i := range n {
			_, v, ok, err := e.Get(userKey(i), nil)
			if err != nil || (ok && (ended || !bytes.Equal(v, userValue(i)))) {
				t.Fatalf("byte %d, key %d: wrong, or behind a hole: %v", at, i, err)
			}
			ended = ended || !ok
		}
		mustClose(t, e)
	}
	if refused == 0 {
		t.Error("no damage was refused")
	}
}

func TestAFlippedBitInATableIsAnErrorAndNeverAWrongValue(t *testing.T) {
	rng, _ := seeded(t)
	fs := NewMemFS()
	filled(t, fs)
	files := append(filesWith(t, fs, ".sst"), filesWith(t, fs, ".blob")...)
	if !strings.Contains(fmt.Sprint(files), "blob") {
		t.Fatal("no values were separated")
	}
	errs := 0
	for _, name := range files {
		whole := readFile(t, fs, name)
		for round := range 20 {
			c := fs.CrashClone(100, 1)
			b := bytes.Clone(whole)
			at := rng.IntN(len(b))
			if round%2 == 0 {
				at = len(b) - 1 - rng.IntN(min(len(b), 150)) // footers and index blocks
			}
			b[at] ^= 1 << rng.IntN(8)
			writeFile(t, c, name, b)
			errs += readAll(t, c, rng, fmt.Sprintf("%s, byte %d", name, at))
		}
		if strings.HasSuffix(name, ".blob") { // an open looks for tables, but not for these
			c := fs.CrashClone(100, 1)
			remove(t, c, name)
			errs += readAll(t, c, rng, name+" gone")
			writeFile(t, c, name, whole[:len(whole)/2])
			errs += readAll(t, c, rng, name+" cut")
		}
	}
	if errs == 0 {
		t.Error("no damage was found")
	}
}

// readAll reads every key of filled by Get and by iterators. A value is right or an error that wraps ErrCorrupt.
func readAll(t *testing.T, fs *FS, rng *rand.Rand, what string) (errs int) {
	t.Helper()
	o := testOptions(t, fs)
	e, err := Open(o)
	if err != nil {
		if ExitCode(err) != ExitCorrupt {
			t.Fatalf("%s: %v", what, err)
		}
		return 1
	}
	for _, i := range rng.Perm(120) {
		_, v, ok, err := e.Get(userKey(i), nil)
		switch {
		case errors.Is(err, ErrCorrupt):
			errs++
		case err != nil:
			t.Fatalf("%s: key %d: %v", what, i, err)
		case !ok || !bytes.Equal(v, userValue(i)):
			t.Fatalf("%s: key %d is there: %t, with a wrong value", what, i, ok)
		}
	}
	for _, reverse := range []bool{false, true} {
		it, err := e.NewIter(userKey(0), userKey(120), reverse)
		n := 0
		if err == nil {
			for ; it.Valid(); it.Next() {
				i := n
				if reverse {
					i = 119 - n
				}
				v := it.Value()
				if it.Err() == nil && (!bytes.Equal(it.Key(), userKey(i)) || !bytes.Equal(v, userValue(i))) {
					t.Fatalf("%s: row %d of the scan is wrong", what, i)
				}
				n++
			}
			err = it.Close()
		}
		switch {
		case errors.Is(err, ErrCorrupt):
			errs++
		case err != nil:
			t.Fatalf("%s: scan: %v", what, err)
		case n != 120:
			t.Fatalf("%s: the scan ended after %d rows without an error", what, n)
		}
	}
	if _, err := e.LoadReplicas(); err != nil && ExitCode(err) != ExitCorrupt {
		t.Fatalf("%s: %v", what, err)
	}
	mustClose(t, e)
	return errs
}

func TestAFailureLeavesTheDirectoryAsAPowerLossWould(t *testing.T) {
	rng, seed := seeded(t)
	for round := range 25 {
		fs := NewMemFS()
		fatal := make(chan error, 10)
		o := testOptions(t, fs)
		o.MemTableBytes = 64 << 10
		o.ProbeInterval = time.Millisecond
		o.Fatal = func(err error) { // and from now on the disk seems well again
			fs.FailSyncs(nil)
			fs.FailWrites(nil)
			fatal <- err
		}
		e := mustOpen(t, o)
		// The disk fails from some step on, for writes or for syncs.
		boom := errors.New("the disk is gone")
		steps := 20 + rng.IntN(400)
		onSync := rng.IntN(2) == 0
		setHook(fs, func() {
			fs.mu.Lock()
			defer fs.mu.Unlock()
			if steps--; steps != 0 {
				return
			}
			if onSync {
				fs.mu.failSyncs = boom
			} else {
				fs.mu.failWrites = boom
			}
		})
		acked := 0
		for i := 1; ; i++ {
			b := e.NewBatch()
			b.Put(userKey(i), ValueHeader{Version: 1}, userValue(i))
			if err := e.Commit(b, true); err != nil {
				if !errors.Is(err, boom) {
					t.Fatal(err)
				}
				break
			}
			acked = i
			b.Close()
		}
		if err := <-fatal; !errors.Is(err, boom) || len(fatal) != 0 {
			t.Fatal(err)
		}
		if err := e.Close(); !errors.Is(err, boom) {
			t.Fatal(err)
		}
		setHook(fs, nil)
		for _, keep := range keepPercents {
			e, err := Open(testOptions(t, fs.CrashClone(keep, seed)))
			if err != nil {
				t.Fatalf("round %d, sync %t, %d%% kept: %v", round, onSync, keep, err)
			}
			for i := 1; i <= acked; i++ {
				if _, v, ok, err := e.Get(userKey(i), nil); err != nil || !ok || !bytes.Equal(v, userValue(i)) {
					t.Fatalf("round %d, sync %t, %d%% kept: key %d of %d: %t, %v",
						round, onSync, keep, i, acked, ok, err)
				}
			}
			mustClose(t, e)
		}
	}
}
