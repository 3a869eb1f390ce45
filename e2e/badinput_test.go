package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/shardd/shardd/client"
	"github.com/shardd/shardd/e2e/harness"
)

func TestBadOperationsAreRefusedByNameAndHarmNothing(t *testing.T) {
	c := newCluster(t)
	db := c.DB()
	all, ctx := db.All(), t.Context()
	if _, err := all.Put(ctx, []byte("05/k"), []byte("v")); err != nil {
		t.Fatal(err)
	}
	big := func(n int) []byte { return bytes.Repeat([]byte("x"), n) }
	put := func(k, v []byte) func() error {
		return func() error { _, err := all.Put(ctx, k, v); return err }
	}
	batch := func(b *client.Batch) func() error {
		return func() error { _, err := all.Batch(ctx, b); return err }
	}
	full := client.NewBatch()
	for i := range 6 {
		full.Put(fmt.Appendf(nil, "05/%d", i), big(1<<20-100))
	}
	ranged := func(lo, hi string) func() error {
		return func() error { _, err := db.Range([]byte(lo), []byte(hi)); return err }
	}
	for _, tc := range []struct {
		name string
		call func() error
		want error
	}{
		{"empty key", put(nil, []byte("v")), client.ErrInvalid},
		{"oversized key", put(big(4097), []byte("v")), client.ErrInvalid},
		{"oversized value", put([]byte("05/k"), big(1<<20+1)), client.ErrInvalid},
		{"oversized batch", batch(full), client.ErrInvalid},
		{"batch over two shards", batch(client.NewBatch().Put([]byte("05/a"), nil).Put([]byte("50/a"), nil)),
			client.ErrCrossShard},
		{"empty range", ranged("b", "b"), client.ErrInvalid},
		{"inverted range", ranged("b", "a"), client.ErrInvalid},
		{"key outside the range", func() error {
			_, err := db.Prefix([]byte("05/")).Get(ctx, []byte("06/k"))
			return err
		}, client.ErrOutOfRange},
		{"largest key", put(big(4096), []byte("v")), nil},
		{"largest value", put([]byte("05/l"), big(1<<20)), nil},
	} {
		if err := tc.call(); !errors.Is(err, tc.want) || (tc.want == nil && err != nil) {
			t.Errorf("%s: got %v, want %v", tc.name, err, tc.want)
		}
	}
	if v, err := all.Get(ctx, []byte("05/k")); err != nil || string(v.Bytes) != "v" {
		t.Errorf("the value is now %q, %v", v.Bytes, err)
	}
	c.WaitHealthy()
}

func TestBadFlagsAndSettingsAreRefusedByName(t *testing.T) {
	bin := binaries(t)
	dir := t.TempDir()
	settings := filepath.Join(dir, "s.yaml")
	if err := os.WriteFile(settings, []byte("data-dir: "+dir+"\nlissten: 127.0.0.1:1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct{ name, args, want string }{
		{"unknown flag", "start --data-dir " + dir + " --lissten x", "unknown flag: --lissten"},
		{"unknown key", "start --config " + settings, `unknown setting "lissten"; did you mean "listen"?`},
		{"no directory", "start", "data-dir is not set"},
		{"bad address", "start --data-dir " + dir + " --listen nowhere", `"nowhere" is not host:port`},
		{"unknown command", "stat", `unknown command "stat"`},
	} {
		_, stderr, code := harness.Run(t, "", bin.Shardd, strings.Fields(tc.args)...)
		if code != 2 || !strings.Contains(stderr, tc.want) {
			t.Errorf("%s: exit code %d, want 2 and %q:\n%s", tc.name, code, tc.want, stderr)
		}
	}
}

func TestASecondProcessOnOneDirectoryIsRefused(t *testing.T) {
	bin := binaries(t)
	c := harness.New(t, bin, 1)
	c.StartAll()
	_, stderr, code := harness.Run(t, "", bin.Shardd, "start", "--data-dir", c.Nodes[0].Dir, "--listen", "127.0.0.1:0")
	if code != 10 || !strings.Contains(stderr, c.Nodes[0].Dir) {
		t.Errorf("exit code %d, want 10 and the directory's name:\n%s", code, stderr)
	}
	c.Init(nil)
	if _, err := c.DB().All().Put(t.Context(), []byte("k"), []byte("v")); err != nil {
		t.Errorf("the first process suffered: %v", err)
	}
}

func TestANodeToldToJoinAnotherClusterThanItsOwnRefuses(t *testing.T) {
	bin := binaries(t)
	ours, theirs := harness.New(t, bin, 1), harness.New(t, bin, 1)
	for _, c := range []*harness.Cluster{ours, theirs} {
		c.StartAll()
		c.Init(nil)
		if _, err := c.DB().All().Put(t.Context(), []byte("k"), []byte(c.Dir)); err != nil {
			t.Fatal(err)
		}
	}
	n := theirs.Nodes[0]
	if code, err := n.Proc.Stop(harness.Patience); code != 0 || err != nil {
		t.Fatalf("stop: exit code %d, %v", code, err)
	}
	p, err := harness.StartProc("stranger", n.LogPath, bin.Shardd, "start", "--data-dir", n.Dir, "--listen", n.Addr,
		"--join", ours.Nodes[0].Addr)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Kill()
	if code, err := p.Wait(harness.Patience); code != 11 || err != nil {
		t.Errorf("exit code %d, want 11 (%v):\n%s", code, err, harness.Tail(n.LogPath, 10))
	}
	p.Kill()
	// Neither has lost anything: started the right way, the other cluster is whole.
	theirs.StartAll()
	for _, c := range []*harness.Cluster{ours, theirs} {
		c.WaitHealthy()
		if v, err := c.DB().All().Get(t.Context(), []byte("k")); err != nil || string(v.Bytes) != c.Dir {
			t.Errorf("read %q, %v", v.Bytes, err)
		}
	}
}

func TestAStrangerAtAMembersAddressLeavesTheClusterUntouched(t *testing.T) {
	bin := binaries(t)
	ours, theirs := harness.New(t, bin, 3), harness.New(t, bin, 3)
	for _, c := range []*harness.Cluster{ours, theirs} {
		c.StartAll()
		c.Init(nil)
	}
	db := ours.DB()
	// Someone mixes the directories up: a node of theirs comes up where a node of ours was.
	ours.Kill(2)
	theirs.Kill(2)
	p, err := harness.StartProc("stranger", theirs.Nodes[2].LogPath, bin.Shardd, "start",
		"--data-dir", theirs.Nodes[2].Dir, "--listen", ours.Nodes[2].Addr)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Kill()
	ours.Until("one of our other nodes sees the stranger", func(context.Context) error {
		for _, n := range ours.Nodes[:2] { // who leads nothing there has nothing to say to it
			if b, err := os.ReadFile(n.LogPath); err == nil && strings.Contains(string(b), "another cluster") {
				return nil
			}
		}
		return errors.New("no word of it in their logs")
	})
	ours.Until("our cluster takes writes", func(ctx context.Context) error {
		_, err := db.All().Put(ctx, []byte("k"), []byte("v"))
		return err
	})
	for i, n := range ours.Nodes[:2] {
		if !n.Proc.Running() {
			t.Errorf("our node %d ended because of the stranger:\n%s", i, harness.Tail(n.LogPath, 5))
		}
	}
	p.Kill()
	// Each in its place again, both clusters are whole.
	for _, c := range []*harness.Cluster{ours, theirs} {
		c.StartAll()
		c.WaitHealthy()
	}
}

// filled starts a cluster with acknowledged writes that every node holds.
func filled(t *testing.T) (*harness.Cluster, *load) {
	t.Helper()
	c := newCluster(t)
	l := newLoad(t, c.DB(client.WithTimeout(20*time.Second)))
	stop := l.run(1)
	l.waitWrites("to fill the cluster")
	stop()
	// Three copies of everything, so that damage to one of them must not lose anything.
	c.Until("all replicas caught up", func(ctx context.Context) error {
		for s, err := range c.Admin.ListShards(ctx) {
			if err != nil {
				return err
			}
			d, err := c.Admin.DescribeShard(ctx, s.GetShardId())
			if err != nil {
				return err
			}
			for _, r := range d.GetReplicas() {
				if r.GetError() != "" || r.GetApplied() != d.GetReplicas()[0].GetApplied() {
					return fmt.Errorf("shard s%d: applied %d on n%d, %d on n%d %s", s.GetShardId(), r.GetApplied(), r.GetNodeId(),
						d.GetReplicas()[0].GetApplied(), d.GetReplicas()[0].GetNodeId(), r.GetError())
				}
			}
		}
		return nil
	})
	return c, l
}

// newest returns the newest file with a suffix in a node's directory, in whatever folder.
func newest(t *testing.T, dir, suffix string) string {
	t.Helper()
	best, at := "", time.Time{}
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, suffix) {
			return err
		}
		st, err := d.Info()
		if err == nil && st.Size() > 4096 && st.ModTime().After(at) {
			best, at = path, st.ModTime()
		}
		return err
	})
	if err != nil || best == "" {
		t.Fatalf("no %s file with content in %s: %v", suffix, dir, err)
	}
	return best
}

func TestATruncatedWALTailLosesNothing(t *testing.T) {
	c, l := filled(t)
	c.Kill(2)
	wal := newest(t, c.Nodes[2].Dir, ".log")
	b, err := os.ReadFile(wal)
	if err != nil {
		t.Fatal(err)
	}
	used := len(bytes.TrimRight(b, "\x00")) // a recycled or preallocated file ends in zeroes
	if err := os.Truncate(wal, int64(used-100)); err != nil {
		t.Fatal(err)
	}
	c.Start(2)
	// The cut may have taken entries that this node had acknowledged: no crash does that. Such a replica stops, with the
	// reason, as soon as its leader speaks to it; the node, its other replicas and all shards go on.
	c.WaitServing()
	stop := l.run(2)
	l.waitWrites("after the cut")
	stop()
	l.judge(2)
}

func TestAFlippedBitInATableLosesNothing(t *testing.T) {
	c, l := filled(t)
	// A start replays the log into tables.
	const victim = 2
	c.Kill(victim)
	c.Start(victim)
	c.WaitHealthy()
	c.Kill(victim)
	table := newest(t, c.Nodes[victim].Dir, ".sst")
	f, err := os.OpenFile(table, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	var one [1]byte
	at := st.Size() / 3 // well inside the data blocks
	if _, err := f.ReadAt(one[:], at); err != nil {
		t.Fatal(err)
	}
	one[0] ^= 0x10
	if _, err := f.WriteAt(one[:], at); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	// It may find the damage at once and refuse, or run until it reads there; what it must not do is answer wrongly.
	n := c.Nodes[victim]
	n.Proc, err = harness.StartProc("damaged", n.LogPath, binaries(t).Shardd, "start", "--data-dir", n.Dir,
		"--listen", n.Addr, "--http", n.HTTP)
	if err != nil {
		t.Fatal(err)
	}
	stop := l.run(2)
	l.waitWrites("with a damaged table on one node")
	stop()
	l.judge(2)
	if !n.Proc.Running() {
		if code, _ := n.Proc.Wait(0); code != 13 && code != 1 {
			t.Errorf("the damaged node ended with %d, want 13 (or 1 if it was found later):\n%s", code,
				harness.Tail(n.LogPath, 10))
		}
		t.Logf("the damaged node ended:\n%s", harness.Tail(n.LogPath, 5))
	}
}

func TestGarbageOnEveryPortHarmsNothing(t *testing.T) {
	c := newCluster(t)
	db := c.DB()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	random := make([]byte, 64<<10)
	for i := range random {
		random[i] = byte(rnd.Uint32())
	}
	const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
	pieces := map[string][]byte{
		"nothing":                  nil,
		"zeroes":                   make([]byte, 64<<10),
		"random bytes":             random,
		"HTTP/1":                   []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
		"endless header":           []byte("GET /metrics HTTP/1.1\r\nX: " + strings.Repeat("a", 1<<20)),
		"preface and random":       append([]byte(preface), random...),
		"preface and a huge frame": append([]byte(preface), 0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1, 'x'),
		"preface and broken HPACK": append([]byte(preface), 0, 0, 4, 1, 4, 0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff),
		"preface, settings, resets": append([]byte(preface),
			bytes.Repeat([]byte{0, 0, 4, 3, 0, 0, 0, 0, 1, 0, 0, 0, 8}, 500)...),
		"TLS hello": {0x16, 0x03, 0x01, 0x02, 0x00, 0x01, 0x00, 0x01, 0xfc, 0x03, 0x03},
	}
	for name, bytes := range pieces {
		for _, n := range c.Nodes {
			for _, addr := range []string{n.Addr, n.HTTP} {
				if err := throw(addr, bytes); err != nil {
					t.Errorf("%s at %s: %v", name, addr, err)
				}
			}
		}
	}
	for i, n := range c.Nodes {
		if !n.Proc.Running() {
			t.Errorf("node %d is gone:\n%s", i, harness.Tail(n.LogPath, 20))
		}
	}
	c.WaitHealthy()
	for i := range shards {
		if _, err := db.All().Put(t.Context(), fmt.Appendf(nil, "%02d/k", i), []byte("v")); err != nil {
			t.Fatal(err)
		}
	}
}

// throw sends bytes and reads what comes back until the other side closes or a moment has passed; only a refused
// connection is an error.
func throw(addr string, b []byte) error {
	conn, err := net.DialTimeout("tcp", addr, 10*time.Second)
	if err != nil {
		return err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(300 * time.Millisecond))
	_, _ = conn.Write(b)
	_, _ = io.Copy(io.Discard, conn)
	return nil
}
