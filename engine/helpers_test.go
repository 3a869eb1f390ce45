package engine

import (
	"bytes"
	"encoding/binary"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/shardd/shardd/internal/base"
	"go.etcd.io/etcd/raft/v3/raftpb"
)

var update = flag.Bool("update", false, "write the golden files in testdata instead of comparing with them")

const testDir = "data"

// seeded returns a random source and logs its seed, which TEST_SEED sets.
func seeded(t testing.TB) (*rand.Rand, int64) {
	t.Helper()
	seed := time.Now().UnixNano()
	if s := os.Getenv("TEST_SEED"); s != "" {
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil {
			t.Fatalf("TEST_SEED: %v", err)
		}
		seed = n
	}
	t.Logf("seed %d: run again with TEST_SEED=%d", seed, seed)
	return rand.New(rand.NewPCG(uint64(seed), 1)), seed
}

// testOptions fail the test on a fatal error.
func testOptions(t testing.TB, fs *FS) Options {
	return Options{Dir: testDir, FS: fs, ProbeInterval: -1, Fatal: func(err error) { t.Errorf("fatal: %v", err) }}
}

func mustOpen(t testing.TB, o Options) *Engine {
	t.Helper()
	e, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func mustClose(t testing.TB, e *Engine) {
	t.Helper()
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
}

// newEngine opens an engine in memory that the test closes.
func newEngine(t testing.TB) *Engine {
	e := mustOpen(t, testOptions(t, NewMemFS()))
	t.Cleanup(func() { mustClose(t, e) })
	return e
}

func commit(t testing.TB, e *Engine, sync bool, fill func(b *Batch)) {
	t.Helper()
	b := e.NewBatch()
	fill(b)
	if err := e.Commit(b, sync); err != nil {
		t.Fatal(err)
	}
	b.Close()
}

// waitFor waits for a condition that another goroutine brings about.
func waitFor(t testing.TB, what string, cond func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	limit := time.NewTimer(time.Minute)
	defer limit.Stop()
	for !cond() {
		select {
		case <-tick.C:
		case <-limit.C:
			t.Fatalf("%s: did not happen in a minute", what)
		}
	}
}

func userKey(i int) []byte { return fmt.Appendf([]byte{base.SpaceUser}, "key%06d", i) }

// userValue is of a size that is kept inline for some keys and separated for others.
func userValue(i int) []byte {
	v := bytes.Repeat(binary.BigEndian.AppendUint32(nil, uint32(i)*2654435761), 1+(i*37)%300)
	return append(v, byte(i))
}

func testDesc(shard base.ShardID, lo, hi string) *base.Descriptor {
	return &base.Descriptor{
		Shard: shard, Start: append([]byte{base.SpaceUser}, lo...), End: append([]byte{base.SpaceUser}, hi...),
		Epoch: base.Epoch{ConfVer: 1, Version: 1}, NextReplicaID: 4,
		Replicas: []base.ReplicaDesc{
			{Replica: 1, Store: 1, Role: base.RoleVoter},
			{Replica: 2, Store: 2, Role: base.RoleVoter},
			{Replica: 3, Store: 3, Role: base.RoleLearner},
		},
	}
}

func testIdent() Ident {
	return Ident{
		Cluster: base.ClusterID{1, 2, 3}, Store: 4, Incarnation: 5, LongestPromise: 800 * time.Millisecond,
		Peers: []PeerRecord{{Store: 2, Addr: "b:1", Incarnation: 9}, {Store: 3, Addr: "c:1"}},
		Meta:  testDesc(1, "a", "b"),
	}
}

func entries(term, from uint64, datas ...string) []raftpb.Entry {
	var out []raftpb.Entry
	for i, d := range datas {
		out = append(out, raftpb.Entry{Term: term, Index: from + uint64(i), Data: []byte(d)})
	}
	return out
}

// setHook has f called at every step of the file system, one call at a time; nil ends that.
func setHook(fs *FS, f func()) {
	if f == nil {
		fs.hook.Store(nil)
		return
	}
	var mu sync.Mutex
	locked := func() {
		mu.Lock()
		defer mu.Unlock()
		f()
	}
	fs.hook.Store(&locked)
}

// readFile, writeFile and filesWith look past the engine at what is stored.
func readFile(t testing.TB, fs *FS, name string) []byte {
	t.Helper()
	f, err := fs.inner.Open(testDir + "/" + name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b, err := io.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func writeFile(t testing.TB, fs *FS, name string, b []byte) {
	t.Helper()
	f, err := fs.inner.Create(testDir+"/"+name, vfs.WriteCategoryUnspecified)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write(bytes.Clone(b)); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

func filesWith(t testing.TB, fs *FS, part string) []string {
	t.Helper()
	names, err := fs.inner.List(testDir)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, n := range names {
		if strings.Contains(n, part) {
			out = append(out, n)
		}
	}
	slices.Sort(out)
	return out
}

// currentManifest returns the name of the manifest in use.
func currentManifest(t testing.TB, fs *FS) string {
	t.Helper()
	best, iter := "", -1
	for _, n := range filesWith(t, fs, "marker.manifest.") {
		parts := strings.Split(n, ".")
		if i, err := strconv.Atoi(parts[2]); err == nil && i > iter {
			best, iter = parts[3], i
		}
	}
	return best
}
