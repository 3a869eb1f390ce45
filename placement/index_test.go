package placement

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/shardd/shardd/internal/base"
)

func TestIndexTakesWhatIsNewerAndNothingElse(t *testing.T) {
	f := sampleFounding(t)
	meta, shards := f.Descriptors()
	d := NewDirectory(newMemKV(f.Contents()...))
	before, err := d.Epochs(t.Context())
	if err != nil || len(before) != len(shards)+1 {
		t.Fatalf("epochs: %v %v", before, err)
	}
	newer := func(old *base.Descriptor, by uint64) *base.Descriptor {
		n := old.Clone()
		n.Epoch.ConfVer += by
		n.NextReplicaID++
		n.Replicas = append(n.Replicas, base.ReplicaDesc{Replica: old.NextReplicaID, Store: 99, Role: base.RoleLearner})
		return n
	}
	if err := d.PutDescriptor(t.Context(), newer(shards[0], 3)); err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	done := map[base.ShardID]uint64{}
	descs := []*base.Descriptor{newer(meta, 1), newer(shards[0], 1), shards[1]}
	err = d.PutDescriptors(t.Context(), descs, func(x *base.Descriptor) {
		mu.Lock()
		defer mu.Unlock()
		done[x.Shard] = x.Epoch.ConfVer
	})
	if err != nil || len(done) != len(descs) {
		t.Fatalf("put: %v, done %v", err, done)
	}
	after, err := d.Epochs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for id, want := range map[base.ShardID]uint64{meta.Shard: 2, shards[0].Shard: 4, shards[1].Shard: 1} {
		if after[id].ConfVer != want {
			t.Errorf("the index has %s at %s, want ConfVer %d", id, after[id], want)
		}
	}
}

func TestIndexSaysWhatItCouldNotTake(t *testing.T) {
	f := sampleFounding(t)
	_, shards := f.Descriptors()
	d := NewDirectory(newMemKV(f.Contents()...))
	bad := shards[1].Clone()
	bad.Epoch.ConfVer++
	bad.End = append([]byte{base.SpaceUser}, make([]byte, MaxSplitKey+1)...) // too long for a key of the index
	bad.Start = base.UserStart()
	good := shards[0].Clone()
	good.Epoch.ConfVer++
	var done []base.ShardID
	err := d.PutDescriptors(t.Context(), []*base.Descriptor{bad, good}, func(x *base.Descriptor) { done = append(done, x.Shard) })
	if !errors.Is(err, ErrInvalid) || len(done) != 1 || done[0] != good.Shard {
		t.Errorf("put: %v, done %v", err, done)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := d.PutDescriptors(ctx, nil, nil); err != nil {
		t.Errorf("nothing to put: %v", err)
	}
}

func TestViewForgetsReplicasThatHaveGone(t *testing.T) {
	clk := &manualClock{now: time.Hour}
	v := NewView(clk)
	_, shards := sampleFounding(t).Descriptors()
	old := shards[0]
	now := old.Clone()
	now.Epoch.ConfVer++
	add := func(r *Report) {
		t.Helper()
		r.Node.Incarnation, r.Node.Address = 1, "x:1"
		if want, err := v.Add(r); want || err != nil {
			t.Fatalf("want full %v, %v", want, err)
		}
	}
	add(&Report{Node: Node{ID: 1}, Full: true, States: []ReplicaState{{Desc: old}, {Desc: shards[1]}}})
	add(&Report{Node: Node{ID: 2}, Full: true, States: []ReplicaState{{Desc: now}}, FreeBytes: 7, Level: "low",
		Unhealthy: "engine: slow"})
	if d, ok := v.Descriptor(old.Shard); !ok || d != now {
		t.Errorf("newest descriptor is %v %v", d, ok)
	}
	if st := v.Shard(old); st.Live != 2 {
		t.Errorf("live %d, want 2", st.Live)
	}
	add(&Report{Node: Node{ID: 1}, Removed: []base.ShardID{old.Shard}})
	if st := v.Shard(old); st.Live != 1 {
		t.Errorf("live %d after one has gone, want 1", st.Live)
	}
	if _, ok := v.Descriptor(shards[1].Shard); !ok {
		t.Error("another replica of the store has gone too")
	}
	if st := v.Stores()[2]; st.FreeBytes != 7 || st.Level != "low" || st.Unhealthy != "engine: slow" {
		t.Errorf("store is %+v", st)
	}
	if _, ok := v.Descriptor(9999); ok {
		t.Error("a shard that nobody has reported")
	}
}
