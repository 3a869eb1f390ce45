package placement

import (
	"bytes"
	"errors"
	"fmt"
	"testing"

	"github.com/shardd/shardd/internal/base"
)

func TestFirstShardsCoverTheUserSpaceAndSpreadTheirLeaders(t *testing.T) {
	for nodes := 1; nodes <= 6; nodes++ {
		var ns []Node
		for i := range nodes {
			ns = append(ns, Node{Address: fmt.Sprintf("h%d:1", i)})
		}
		var splits [][]byte
		for i := range 59 {
			splits = append(splits, fmt.Appendf(nil, "k%02d", 58-i))
		}
		f, err := NewFounding(sampleCluster(), ns, splits)
		if err != nil {
			t.Fatal(err)
		}
		meta, shards := f.Descriptors()
		if err := meta.Validate(); err != nil || meta.Shard != base.MetaShard || meta.Replicas[0].Store != 1 {
			t.Errorf("%d nodes: meta %s: %v", nodes, meta, err)
		}
		at, firsts := base.UserStart(), map[base.StoreID]int{}
		for i, d := range shards {
			if err := d.Validate(); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(d.Start, at) || d.Shard != base.ShardID(i+2) || len(d.Replicas) != min(nodes, 3) {
				t.Fatalf("%d nodes: shard %d is %s, want it to start at %x", nodes, i, d, at)
			}
			at = d.End
			firsts[d.Replicas[0].Store]++
		}
		if !bytes.Equal(at, base.UserEnd()) || len(shards) != 60 {
			t.Errorf("%d nodes: %d shards end at %x", nodes, len(shards), at)
		}
		for s := range nodes {
			if n := firsts[base.StoreID(s+1)]; n != 60/nodes {
				t.Errorf("%d nodes: n%d campaigns for %d of 60 shards", nodes, s+1, n)
			}
		}
		for i, p := range f.Contents() {
			if i > 0 && bytes.Compare(f.Contents()[i-1].Key, p.Key) >= 0 {
				t.Fatal("contents are not sorted")
			}
			if len(p.Key) == 0 || p.Key[0] != base.SpaceSystem {
				t.Fatalf("key %x is outside the meta shard", p.Key)
			}
		}
	}
}

func TestFoundingRefusesWhatItCannotStore(t *testing.T) {
	one := []Node{{Address: "h:1"}}
	for name, c := range map[string]struct {
		nodes  []Node
		splits [][]byte
	}{
		"no nodes":      {nil, nil},
		"no address":    {[]Node{{}}, nil},
		"empty split":   {one, [][]byte{{}}},
		"long split":    {one, [][]byte{make([]byte, MaxSplitKey+1)}},
		"too much data": {one, manySplits(400)},
	} {
		if _, err := NewFounding(sampleCluster(), c.nodes, c.splits); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := NewFounding(sampleCluster(), one, [][]byte{make([]byte, MaxSplitKey)}); err != nil {
		t.Errorf("longest split key: %v", err)
	}
}

func manySplits(n int) [][]byte {
	var out [][]byte
	for i := range n {
		out = append(out, append(bytes.Repeat([]byte{'x'}, MaxSplitKey-2), byte(i>>8), byte(i)))
	}
	return out
}
