package placement

import (
	"errors"
	"strings"
	"testing"

	"github.com/shardd/shardd/internal/base"
)

func TestARemadeMetaShardServesAsTheFirstOneDid(t *testing.T) {
	f := sampleFounding(t)
	meta, shards := f.Descriptors()
	all := append([]*base.Descriptor{meta}, shards...)
	pairs, err := Remade(f.Cluster, f.Nodes, all, 1000, 50, 70)
	if err != nil {
		t.Fatal(err)
	}
	d := NewDirectory(newMemKV(pairs...))
	ctx := t.Context()
	if c, err := d.Cluster(ctx); err != nil || c.ID != f.Cluster.ID {
		t.Fatal(c, err)
	}
	if got, err := d.Founding(ctx); got != nil || err != nil {
		t.Fatal("it has to be founded again:", got, err)
	}
	nodes, err := d.Nodes(ctx)
	if err != nil || len(nodes) != len(f.Nodes) {
		t.Fatal(nodes, err)
	}
	epochs, err := d.Epochs(ctx)
	if err != nil || len(epochs) != len(all) {
		t.Fatal(epochs, err)
	}
	if open, err := d.Creating(ctx, 10); err != nil || len(open) > 0 {
		t.Fatal(open, err)
	}
	for kind, want := range map[IDKind]uint64{ShardIDs: 1000, NodeIDs: 50, JobIDs: 70} {
		if got, err := d.AllocIDs(ctx, kind, 1); err != nil || got != want {
			t.Errorf("%s from %d, want %d: %v", kind, got, want, err)
		}
	}
	for what, err := range map[string]error{
		"a shard id to come": second(Remade(f.Cluster, f.Nodes, all, 2, 50, 70)),
		"a node id to come":  second(Remade(f.Cluster, f.Nodes, all, 1000, 2, 70)),
		"a bad node":         second(Remade(f.Cluster, []Node{{ID: 1}}, all, 1000, 50, 70)),
		"a bad shard":        second(Remade(f.Cluster, f.Nodes, []*base.Descriptor{{Shard: 3}}, 1000, 50, 70)),
	} {
		if !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func second(_ []Pair, err error) error { return err }

func TestSkippedIDsAreNeverGivenOut(t *testing.T) {
	d := NewDirectory(newMemKV(sampleFounding(t).Contents()...))
	ctx := t.Context()
	if _, err := d.AllocIDs(ctx, ShardIDs, 1); err != nil { // reserves some
		t.Fatal(err)
	}
	for _, c := range []struct {
		kind               IDKind
		seen, margin, want uint64
	}{{ShardIDs, 500, 100, 601}, {JobIDs, 0, 10, 11}, {NodeIDs, 77, 10, 88}} {
		if err := d.SkipIDs(ctx, c.kind, c.seen, c.margin); err != nil {
			t.Fatal(err)
		}
		if got, err := d.AllocIDs(ctx, c.kind, 1); err != nil || got != c.want {
			t.Errorf("%s: %d, want %d: %v", c.kind, got, c.want, err)
		}
	}
	if err := d.SkipIDs(ctx, ShardIDs, 3, 0); err != nil {
		t.Fatal(err)
	}
	if got, err := d.AllocIDs(ctx, ShardIDs, 1); err != nil || got <= 601 {
		t.Errorf("the counter has fallen: %d %v", got, err)
	}
	broken := NewDirectory(newMemKV(Pair{Key: counterKey(ShardIDs), Value: []byte{9}}))
	if err := broken.SkipIDs(ctx, ShardIDs, 1, 1); err == nil || !strings.Contains(err.Error(), "counter") {
		t.Errorf("a broken counter: %v", err)
	}
}
