package client_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/shardd/shardd/client"
	"github.com/shardd/shardd/internal/base"
)

func openFake(t testing.TB, n *fakeNode, opts ...client.Option) *client.DB {
	t.Helper()
	db, err := client.Open(context.Background(), []string{n.addr}, opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return db
}

func TestOperationsOverRealConnections(t *testing.T) {
	t.Cleanup(func() { goleak.VerifyNone(t) })
	n := startFake(t, "m")
	db := openFake(t, n)
	ctx := context.Background()
	all := db.All()

	if _, err := all.Get(ctx, []byte("a")); !errors.Is(err, client.ErrNotFound) {
		t.Errorf("absent key: %v", err)
	}
	v1, err := all.Put(ctx, []byte("a"), []byte("1"))
	if err != nil {
		t.Fatal(err)
	}
	got, err := all.Get(ctx, []byte("a"))
	if err != nil || string(got.Bytes) != "1" || got.Version != v1 {
		t.Errorf("got %q %d, %v; want 1 %d", got.Bytes, got.Version, err, v1)
	}
	v2, err := all.CompareAndSwap(ctx, []byte("a"), v1, []byte("2"))
	if err != nil || v2 <= v1 {
		t.Errorf("swap: %d, %v", v2, err)
	}
	_, err = all.CompareAndSwap(ctx, []byte("a"), v1, []byte("3"))
	var c *client.ConflictError
	if !errors.Is(err, client.ErrConflict) || !errors.As(err, &c) || c.Version != v2 {
		t.Errorf("stale swap: %v", err)
	}
	var oe *client.OpError
	if !errors.As(err, &oe) || oe.Op != "compare-and-swap" || string(oe.Key) != "a" || oe.Shard == 0 || oe.Node != 1 ||
		oe.Attempts != 1 || oe.Elapsed <= 0 {
		t.Errorf("stale swap: %#v lacks where it was decided", oe)
	}
	if err := all.CompareAndDelete(ctx, []byte("a"), v1); !errors.Is(err, client.ErrConflict) {
		t.Errorf("stale delete: %v", err)
	}
	if _, err := all.CompareAndSwap(ctx, []byte("new"), 0, nil); err != nil {
		t.Errorf("swap of an absent key: %v", err)
	}
	if v, err := all.Get(ctx, []byte("new")); err != nil || !v.Exists() || len(v.Bytes) != 0 {
		t.Errorf("empty value: %+v, %v", v, err)
	}
	values, err := all.MultiGet(ctx, [][]byte{[]byte("new"), []byte("none"), []byte("a")})
	if err != nil || !values[0].Exists() || values[1].Exists() || string(values[2].Bytes) != "2" {
		t.Errorf("multi-get: %+v, %v", values, err)
	}
	if err := all.CompareAndDelete(ctx, []byte("a"), v2); err != nil {
		t.Error(err)
	}
	if err := all.Delete(ctx, []byte("a")); err != nil {
		t.Errorf("deleting an absent key: %v", err)
	}

	b := client.NewBatch().IfAbsent([]byte("b")).Put([]byte("b"), []byte("x")).Put([]byte("c"), []byte("y"))
	if _, err := all.Batch(ctx, b); err != nil {
		t.Error(err)
	}
	_, err = all.Batch(ctx, client.NewBatch().IfPresent([]byte("c")).IfValue([]byte("b"), []byte("z")).Delete([]byte("c")))
	if !errors.As(err, &c) || c.Step != 1 {
		t.Errorf("failed condition: %v", err)
	}
	sent := n.ops.Load()
	_, err = all.Batch(ctx, client.NewBatch().Put([]byte("b"), nil).Put([]byte("z"), nil))
	if !errors.Is(err, client.ErrCrossShard) || n.ops.Load() != sent {
		t.Errorf("batch over two shards: %v, %d sent", err, n.ops.Load()-sent)
	}

	shards, err := all.Shards(ctx)
	if err != nil || len(shards) != 2 || string(shards[0].End) != "m" || shards[1].End != nil || shards[1].Leader != 1 {
		t.Errorf("shards %+v, %v", shards, err)
	}
	if err := db.Prefix([]byte("b")).DeleteAll(ctx); err != nil {
		t.Error(err)
	}
	values, err = all.MultiGet(ctx, [][]byte{[]byte("b"), []byte("c")})
	if err != nil || values[0].Exists() || !values[1].Exists() {
		t.Errorf("after deleting the prefix: %+v, %v", values, err)
	}
}

func TestScanOfARange(t *testing.T) {
	n := startFake(t, "k030", "k060")
	db := openFake(t, n)
	ctx := context.Background()
	value := bytes.Repeat([]byte("v"), 20<<10) // so that a page holds about a dozen rows
	for i := range 100 {
		if _, err := db.All().Put(ctx, fmt.Appendf(nil, "k%03d", i), value); err != nil {
			t.Fatal(err)
		}
	}
	r, err := db.Range([]byte("k010"), []byte("k090"))
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name        string
		opts        []client.ScanOption
		first, last string
		rows        int
	}{
		{"forward", nil, "k010", "k089", 80},
		{"reverse", []client.ScanOption{client.Reverse()}, "k089", "k010", 80},
		{"prefetch", []client.ScanOption{client.Prefetch()}, "k010", "k089", 80},
		{"side by side", []client.ScanOption{client.Parallel(3), client.Budget(300 << 10)}, "k010", "k089", 80},
		{"side by side in reverse, to a limit", []client.ScanOption{client.Parallel(2), client.Reverse(), client.Limit(61)},
			"k089", "k029", 61},
		{"limit", []client.ScanOption{client.Limit(37)}, "k010", "k046", 37},
		{"all", []client.ScanOption{client.Limit(37), client.Reverse(), client.KeysOnly(), client.Prefetch()},
			"k089", "k053", 37},
	} {
		var keys []string
		for row, err := range r.Scan(ctx, tc.opts...) {
			if err != nil {
				t.Fatal(err)
			}
			if want := !strings.Contains(tc.name, "all"); want != bytes.Equal(row.Value, value) || row.Version == 0 {
				t.Fatalf("%s: row %s has %d bytes, version %d", tc.name, row.Key, len(row.Value), row.Version)
			}
			keys = append(keys, string(row.Key))
		}
		if len(keys) != tc.rows || keys[0] != tc.first || keys[len(keys)-1] != tc.last {
			t.Errorf("%s: %d rows from %s to %s", tc.name, len(keys), keys[0], keys[len(keys)-1])
		}
	}
}

func TestMistakesAreRefusedBeforeAnyIO(t *testing.T) {
	n := startFake(t)
	db := openFake(t, n)
	ctx := context.Background()
	users := db.Prefix([]byte("users/"))
	ops, lookups := n.ops.Load(), n.lookups.Load()
	big, huge := make([]byte, base.MaxKeySize+1), make([]byte, base.MaxValueSize+1)
	copy(big, "users/")
	fourMiB := client.NewBatch()
	for range 5 {
		fourMiB.Put([]byte("users/a"), huge[:base.MaxValueSize])
	}
	in, out := []byte("users/a"), []byte("zebra")
	second := func(_ any, err error) error { return err }
	for _, tc := range []struct {
		name string
		err  error
		want error
		text string
	}{
		{"get outside", second(users.Get(ctx, out)), client.ErrOutOfRange, "users0"},
		{"get below", second(users.Get(ctx, []byte("users"))), client.ErrOutOfRange, "users/"},
		{"multi-get outside", second(users.MultiGet(ctx, [][]byte{in, out})), client.ErrOutOfRange, "zebra"},
		{"put outside", second(users.Put(ctx, out, nil)), client.ErrOutOfRange, ""},
		{"delete outside", users.Delete(ctx, out), client.ErrOutOfRange, ""},
		{"swap outside", second(users.CompareAndSwap(ctx, out, 1, nil)), client.ErrOutOfRange, ""},
		{"batch outside", second(users.Batch(ctx, client.NewBatch().Put(in, nil).Delete(out))),
			client.ErrOutOfRange, "step 1"},
		{"condition outside", second(users.Batch(ctx, client.NewBatch().IfAbsent(out).Delete(in))),
			client.ErrOutOfRange, "step 0"},
		{"range delete outside", second(users.Batch(ctx, client.NewBatch().DeleteRange(in, out))), client.ErrOutOfRange, ""},
		{"empty key", second(users.Get(ctx, nil)), client.ErrInvalid, "empty key"},
		{"empty key in batch", second(users.Batch(ctx, client.NewBatch().Put(nil, nil))), client.ErrInvalid, "empty key"},
		{"oversized key", second(users.Put(ctx, big, nil)), client.ErrInvalid, "4096"},
		{"oversized value", second(users.Put(ctx, in, huge)), client.ErrInvalid, "1048576"},
		{"oversized key in batch", second(users.Batch(ctx, client.NewBatch().Delete(big))), client.ErrInvalid, "4096"},
		{"oversized value in batch", second(users.Batch(ctx, client.NewBatch().Put(in, huge))), client.ErrInvalid, "1048576"},
		{"oversized batch", second(users.Batch(ctx, fourMiB)), client.ErrInvalid, "4194304"},
		{"empty batch", second(users.Batch(ctx, client.NewBatch())), client.ErrInvalid, "no steps"},
		{"empty range delete", second(users.Batch(ctx, client.NewBatch().DeleteRange(in, in))), client.ErrInvalid, ""},
		{"empty range", second(db.Range(in, in)), client.ErrInvalid, "empty"},
		{"empty end", second(db.Range(nil, []byte{})), client.ErrInvalid, "empty"},
		{"inverted range", second(db.Range(out, in)), client.ErrInvalid, "inverted"},
		{"oversized bound", second(db.Range(big, nil)), client.ErrInvalid, "4096"},
		{"oversized prefix", db.Prefix(append(big, 'x')).DeleteAll(ctx), client.ErrInvalid, "4096"},
	} {
		var oe *client.OpError
		if !errors.Is(tc.err, tc.want) || !errors.As(tc.err, &oe) || oe.Attempts != 0 ||
			!strings.Contains(tc.err.Error(), tc.text) {
			t.Errorf("%s: %v, want %v with %q", tc.name, tc.err, tc.want, tc.text)
		}
	}
	for _, err := range users.Scan(ctx, client.Limit(-1)) {
		if !errors.Is(err, client.ErrInvalid) {
			t.Errorf("negative limit: %v", err)
		}
	}
	if n.ops.Load() != ops || n.lookups.Load() != lookups {
		t.Errorf("%d operations and %d look-ups were sent", n.ops.Load()-ops, n.lookups.Load()-lookups)
	}
	if _, err := users.Put(ctx, in, huge[:base.MaxValueSize]); err != nil {
		t.Errorf("largest value: %v", err)
	}
	if _, err := users.Put(ctx, big[:base.MaxKeySize], nil); err != nil {
		t.Errorf("largest key: %v", err)
	}
}

func TestBrokenStreamIsAmbiguousForWritesAndRepeatedForReads(t *testing.T) {
	n := startFake(t)
	db := openFake(t, n)
	ctx := context.Background()
	if _, err := db.All().Put(ctx, []byte("k"), []byte("v")); err != nil {
		t.Fatal(err)
	}
	n.mute.Store(true)
	at := n.ops.Load() + 1
	var wg sync.WaitGroup
	wg.Go(func() {
		<-n.muted // it has arrived and will not be answered
		n.breakStreams()
	})
	_, err := db.All().Put(ctx, []byte("k"), []byte("w"))
	wg.Wait()
	var oe *client.OpError
	if !errors.Is(err, client.ErrAmbiguous) || !errors.As(err, &oe) || oe.Attempts != 1 || oe.Node != 1 || oe.Shard != 2 {
		t.Errorf("write: %v", err)
	}
	if n.ops.Load() != at {
		t.Errorf("the write was sent %d times", n.ops.Load()-at+1)
	}
	wg.Go(func() {
		<-n.muted
		n.mute.Store(false)
		n.breakStreams()
	})
	v, err := db.All().Get(ctx, []byte("k"))
	wg.Wait()
	if err != nil || string(v.Bytes) != "v" {
		t.Errorf("read: %q, %v", v.Bytes, err)
	}
}

func TestConcurrentOperationsShareFrames(t *testing.T) {
	n := startFake(t, "b", "c")
	db := openFake(t, n)
	ctx := context.Background()
	keys := make([][]byte, 1000)
	for i := range keys {
		keys[i] = fmt.Appendf(nil, "%c%d", 'a'+i%4, i)
	}
	frames := n.frames.Load()
	if _, err := db.All().MultiGet(ctx, keys); err != nil {
		t.Fatal(err)
	}
	if got := n.frames.Load() - frames; got != 1 {
		t.Errorf("1000 gets at one node took %d frames", got)
	}
	var wg sync.WaitGroup
	for g := range 16 {
		wg.Go(func() {
			for i := range 50 {
				k, v := fmt.Appendf(nil, "%c-%d-%d", 'a'+i%4, g, i), fmt.Appendf(nil, "%d.%d", g, i)
				if _, err := db.All().Put(ctx, k, v); err != nil {
					t.Error(err)
				}
				if got, err := db.All().Get(ctx, k); err != nil || !bytes.Equal(got.Bytes, v) {
					t.Errorf("%s: %q, %v", k, got.Bytes, err)
				}
			}
		})
	}
	wg.Wait()
}

func TestOpenAsksTheNextEndpointAndGivesUpAtTheDeadline(t *testing.T) {
	t.Cleanup(func() { goleak.VerifyNone(t) })
	n := startFake(t)
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	dead := lis.Addr().String()
	lis.Close()
	db, err := client.Open(context.Background(), []string{dead, n.addr})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := db.All().Put(context.Background(), []byte("k"), nil); err != nil {
		t.Error(err)
	}
	db.Close()

	ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
	defer cancel()
	_, err = client.Open(ctx, []string{dead})
	if !errors.Is(err, client.ErrUnavailable) || !strings.Contains(err.Error(), dead) {
		t.Errorf("dead endpoint: %v", err)
	}
	n.refuse.Store(true)
	ctx, cancel = context.WithTimeout(context.Background(), 200*time.Millisecond)
	defer cancel()
	if _, err := client.Open(ctx, []string{n.addr}); !errors.Is(err, client.ErrUnavailable) ||
		!strings.Contains(err.Error(), "meta shard has no leader") {
		t.Errorf("endpoint without a meta shard: %v", err)
	}
	if _, err := client.Open(ctx, nil); !errors.Is(err, client.ErrInvalid) {
		t.Errorf("no endpoint: %v", err)
	}
}

func TestClosedClientRefusesEverything(t *testing.T) {
	t.Cleanup(func() { goleak.VerifyNone(t) })
	n := startFake(t)
	db := openFake(t, n)
	ctx := context.Background()
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	all := db.All()
	_, err1 := all.Get(ctx, []byte("k"))
	_, err2 := all.MultiGet(ctx, [][]byte{[]byte("k")})
	_, err3 := all.Put(ctx, []byte("k"), nil)
	_, err4 := all.Shards(ctx)
	errs := []error{err1, err2, err3, err4, all.DeleteAll(ctx)}
	for _, err := range all.Scan(ctx) {
		errs = append(errs, err)
	}
	for i, err := range errs {
		if !errors.Is(err, client.ErrClosed) {
			t.Errorf("call %d: %v", i, err)
		}
	}
	if len(errs) != 6 {
		t.Errorf("%d results", len(errs))
	}
}
