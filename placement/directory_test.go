package placement

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"reflect"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/shardd/shardd/internal/base"
)

// seed returns SHARDD_SEED or a fresh seed, and prints it if the test fails.
func seed(t *testing.T) uint64 {
	s := uint64(time.Now().UnixNano())
	if v, err := strconv.ParseUint(os.Getenv("SHARDD_SEED"), 10, 64); err == nil {
		s = v
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("repeat with SHARDD_SEED=%d", s)
		}
	})
	return s
}

func TestIDsNeverRepeatUnderRacesLostAnswersAndLeaderChanges(t *testing.T) {
	s := seed(t)
	kv := newMemKV(sampleFounding(t).Contents()...)
	kv.chaos = rand.New(rand.NewPCG(s, 1))
	var mu sync.Mutex
	given := map[IDKind]map[uint64]bool{ShardIDs: {}, NodeIDs: {}}
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(s, uint64(w)+2))
			d := NewDirectory(kv)
			for range 300 {
				if rng.IntN(10) == 0 {
					d = NewDirectory(kv) // a new leader knows nothing of the old one's reservation
				}
				kind, n := IDKind(1+rng.IntN(2)), 1+rng.IntN(100)
				first, err := d.AllocIDs(t.Context(), kind, n)
				if err != nil {
					if !errors.Is(err, errUnknown) && !errors.Is(err, ErrConflict) {
						t.Error(err)
					}
					continue
				}
				mu.Lock()
				for i := range uint64(n) {
					if given[kind][first+i] {
						t.Errorf("%s: %d given twice", kind, first+i)
					}
					given[kind][first+i] = true
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	for id := range uint64(5) {
		if given[ShardIDs][id] || given[NodeIDs][id] {
			t.Errorf("id %d belongs to the first contents", id)
		}
	}
	if len(given[ShardIDs]) == 0 || len(given[NodeIDs]) == 0 {
		t.Error("nothing allocated")
	}
}

func TestRepeatedJoinGetsTheSameID(t *testing.T) {
	kv := newMemKV(sampleFounding(t).Contents()...)
	kv.chaos = rand.New(rand.NewPCG(seed(t), 1))
	ids := map[string]base.StoreID{}
	for range 50 {
		for _, nonce := range []string{"nonce-of-a", "nonce-of-b"} {
			id, err := NewDirectory(kv).Join(t.Context(), []byte(nonce), Node{Address: nonce + ":1"})
			if errors.Is(err, errUnknown) {
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			if old, ok := ids[nonce]; ok && old != id {
				t.Fatalf("%s: first %s, then %s", nonce, old, id)
			}
			ids[nonce] = id
		}
	}
	if ids["nonce-of-a"] == ids["nonce-of-b"] {
		t.Errorf("both joins got %s", ids["nonce-of-a"])
	}
	kv.chaos = nil
	nodes, err := NewDirectory(kv).Nodes(t.Context())
	if err != nil || len(nodes) != 6 {
		t.Errorf("%d nodes, want 6: %v", len(nodes), err)
	}
}

func TestRegistrationOfAnOldIncarnationIsRefused(t *testing.T) {
	kv := newMemKV(sampleFounding(t).Contents()...)
	d := NewDirectory(kv)
	n := Node{ID: 2, Incarnation: 4, Address: "elsewhere:1"}
	if err := d.RegisterNode(t.Context(), n); err != nil {
		t.Fatal(err)
	}
	before := kv.version
	if err := d.RegisterNode(t.Context(), n); err != nil || kv.version != before {
		t.Errorf("the same again: %v, wrote %v", err, kv.version != before)
	}
	n.Incarnation = 3
	if err := d.RegisterNode(t.Context(), n); !errors.Is(err, ErrStale) {
		t.Errorf("older incarnation: %v", err)
	}
	if err := d.RegisterNode(t.Context(), Node{ID: 77, Address: "x:1"}); !errors.Is(err, ErrNotFound) {
		t.Errorf("unknown id: %v", err)
	}
}

func TestLookupFindsTheShardOfEveryKey(t *testing.T) {
	f, err := NewFounding(sampleCluster(), sampleNodes(), [][]byte{
		[]byte("b"), []byte("b\x00"), []byte("bb"),
		bytes.Repeat([]byte{0xff}, MaxSplitKey), bytes.Repeat([]byte{'m'}, MaxSplitKey),
	})
	if err != nil {
		t.Fatal(err)
	}
	d := NewDirectory(newMemKV(f.Contents()...))
	meta, shards := f.Descriptors()
	all := append(shards, meta)
	rng := rand.New(rand.NewPCG(seed(t), 1))
	keys := [][]byte{base.UserStart(), base.SystemStart(), base.UserKey([]byte("b\x00"))}
	for _, s := range all {
		keys = append(keys, s.Start)
	}
	for range 300 {
		k := bytes.Repeat([]byte{"bmz\xff"[rng.IntN(4)]}, rng.IntN(base.MaxKeySize+1))
		if len(k) > 0 {
			k[len(k)-1] += byte(rng.IntN(3)) - 1
		}
		keys = append(keys, base.UserKey(k))
	}
	for _, k := range keys {
		var want, down []*base.Descriptor
		for _, s := range all {
			if bytes.Compare(s.End, k) > 0 {
				want = append(want, s)
			}
			if bytes.Compare(s.Start, k) < 0 {
				down = append([]*base.Descriptor{s}, down...)
			}
		}
		check(t, d, k, want[:min(len(want), 3)], 3, false)
		if len(down) > 0 {
			check(t, d, k, down[:min(len(down), 3)], 3, true)
		}
	}
	// Above everything, downwards: from the last shard.
	check(t, d, base.SystemEnd(), []*base.Descriptor{meta}, 1, true)
}

func check(t *testing.T, d *Directory, key []byte, want []*base.Descriptor, limit int, reverse bool) {
	t.Helper()
	got, err := d.Lookup(t.Context(), key, limit, reverse)
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != len(want) {
		t.Fatalf("key %.20x (%d bytes) reverse %v: %d shards, want %d", key, len(key), reverse, len(got), len(want))
	}
	for i := range got {
		if got[i].Desc.Shard != want[i].Shard {
			t.Fatalf("key %.20x (%d bytes) reverse %v: %s at %d, want %s",
				key, len(key), reverse, got[i].Desc.Shard, i, want[i].Shard)
		}
	}
}

func TestListShardsPagesThroughAllOnceMetaFirst(t *testing.T) {
	f, err := NewFounding(sampleCluster(), sampleNodes(), manySplits(40))
	if err != nil {
		t.Fatal(err)
	}
	d := NewDirectory(newMemKV(f.Contents()...))
	var want []base.ShardID
	for i := range 42 {
		want = append(want, base.ShardID(i+1))
	}
	for _, limit := range []int{1, 2, 7, 41, 42, 43, 1000} {
		var got []base.ShardID
		for after := []byte(nil); ; {
			page, next, err := d.ListShards(t.Context(), after, limit)
			if err != nil {
				t.Fatal(err)
			}
			if len(page) > limit {
				t.Fatalf("page of %d, limit %d", len(page), limit)
			}
			for _, s := range page {
				got = append(got, s.Desc.Shard)
			}
			if after = next; next == nil {
				break
			}
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("limit %d: %v", limit, got)
		}
	}
}

func TestCreatingFlagsAreClearedOnce(t *testing.T) {
	f := sampleFounding(t)
	d := NewDirectory(newMemKV(f.Contents()...))
	open, err := d.Creating(t.Context(), 2)
	if err != nil || len(open) != 2 {
		t.Fatalf("%d creating, want 2: %v", len(open), err)
	}
	_, shards := f.Descriptors()
	for range 2 {
		if err := d.MarkCreated(t.Context(), shards); err != nil {
			t.Fatal(err)
		}
	}
	if open, err = d.Creating(t.Context(), 100); err != nil || len(open) != 0 {
		t.Errorf("%d still creating: %v", len(open), err)
	}
	if got, err := d.Founding(t.Context()); err != nil || !reflect.DeepEqual(got, f) {
		t.Errorf("founding record %+v: %v", got, err)
	}
	if err := d.FinishFounding(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got, err := d.Founding(t.Context()); err != nil || got != nil {
		t.Errorf("founding record after the end: %+v, %v", got, err)
	}
}

func TestNewerDescriptorReplacesWhatItOverlapsAndOlderIsRefused(t *testing.T) {
	f := sampleFounding(t) // splits g, t: s2 s3 s4
	d := NewDirectory(newMemKV(f.Contents()...))
	_, shards := f.Descriptors()
	right := shards[1].Clone()
	right.Epoch.Version, right.Shard, right.Start = 2, 50, base.UserKey([]byte("m"))
	left := shards[1].Clone()
	left.Epoch.Version, left.End = 2, right.Start
	put := func(desc *base.Descriptor, want error) {
		t.Helper()
		if err := d.PutDescriptor(t.Context(), desc); !errors.Is(err, want) {
			t.Fatalf("put %s: %v, want %v", desc, err, want)
		}
	}
	ids := func(key string, want ...base.ShardID) {
		t.Helper()
		got, err := d.Lookup(t.Context(), base.UserKey([]byte(key)), len(want), false)
		if err != nil {
			t.Fatal(err)
		}
		for i := range want {
			if got[i].Desc.Shard != want[i] {
				t.Errorf("%s: %s at %d, want %s", key, got[i].Desc.Shard, i, want[i])
			}
		}
	}
	put(shards[1], nil) // the same again
	put(right, nil)
	put(left, nil)
	put(left, nil)
	ids("a", 2, 3, 50, 4)
	put(shards[1], ErrStale)
	merged := shards[1].Clone()
	merged.Epoch.Version = 3
	put(merged, nil)
	ids("a", 2, 3, 4)
	put(right, ErrStale)
	bad := merged.Clone()
	bad.End = base.UserKey(make([]byte, MaxSplitKey+1))
	bad.Start = base.UserStart()
	put(bad, ErrInvalid)
}
