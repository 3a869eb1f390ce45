package shard

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"strings"
	"sync"
	"testing"

	"go.etcd.io/etcd/raft/v3/raftpb"

	"github.com/shardd/shardd/engine"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
)

// verifier checks views as they come and keeps their sums.
type verifier struct {
	t  *testing.T
	mu sync.Mutex
	by map[uint64]map[base.ReplicaID]uint32 // by id of the verification
	at map[uint64]map[uint64]int            // indexes, by id
	no []error
}

func newVerifier(t *testing.T) *verifier {
	return &verifier{t: t, by: map[uint64]map[base.ReplicaID]uint32{}, at: map[uint64]map[uint64]int{}}
}

func (v *verifier) run(r VerifyRun) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if r.Err != nil {
		v.no = append(v.no, r.Err)
		return
	}
	sum, err := sumOf(r.View)
	if cerr := r.View.Close(); err != nil || cerr != nil {
		v.t.Error(err, cerr)
	}
	if v.by[r.ID] == nil {
		v.by[r.ID], v.at[r.ID] = map[base.ReplicaID]uint32{}, map[uint64]int{}
	}
	v.by[r.ID][r.Replica] = sum
	v.at[r.ID][r.Index]++
	if r.BytesPerSecond != 1<<20 {
		v.t.Errorf("rate %d", r.BytesPerSecond)
	}
}

func sumOf(v *engine.View) (uint32, error) {
	d := v.Desc()
	it, err := v.NewIter(d.Start, d.End)
	if err != nil {
		return 0, err
	}
	sum := crc32.NewIEEE()
	for ; it.Valid(); it.Next() {
		fmt.Fprintf(sum, "%x %d %x\n", it.Key(), it.Header().Version, it.Value())
	}
	return sum.Sum32(), errors.Join(it.Err(), it.Close())
}

// verify asks the leader for a verification.
func (c *cluster) verify(shard base.ShardID) (id, index uint64, err error) {
	c.t.Helper()
	n := c.leader(shard)
	done := false
	n.store.call(n.store.lookup(shard), func(r *replica) {
		n.store.workerOf(shard).proposeVerify(r, 1<<20, func(i, at uint64, e error) { id, index, err, done = i, at, e, true })
	})
	c.until("the verification", func() bool { return done })
	return id, index, err
}

func TestAVerificationSeesEveryReplicaAtOneIndex(t *testing.T) {
	v := newVerifier(t)
	c := newCluster(t, 3, func(cfg *Config) { cfg.OnVerify = v.run })
	c.create(desc(7, "", "", 1, 2, 3))
	var last uint64
	sums := map[uint32]bool{}
	for i := range 3 {
		a := newAnswers(t)
		for k := range 20 { // writes around it, in the same Readys
			c.write(c.leader(7), op(wire.OpPut, 7, fmt.Sprintf("%d/%d", i, k), "v"), a, 0)
		}
		id, index, err := c.verify(7)
		if err != nil || index <= last {
			t.Fatalf("at %d after %d: %v", index, last, err)
		}
		last = index
		c.until("all replicas", func() bool { return a.missing() == 0 && len(v.by[id]) == 3 })
		if len(v.at[id]) != 1 || v.at[id][index] != 3 {
			t.Errorf("verification %d is at %v, want %d", id, v.at[id], index)
		}
		for r, sum := range v.by[id] {
			if sum != v.by[id][1] {
				t.Errorf("replica %d has sum %x, replica 1 %x", r, sum, v.by[id][1])
			}
		}
		if sums[v.by[id][1]] {
			t.Error("the sum does not follow the writes")
		}
		sums[v.by[id][1]] = true
	}
	// A row that one replica has lost, or has in another state, shows.
	b := c.nodes[2].eng.NewBatch()
	b.Delete(base.UserKey([]byte("1/7")))
	if err := c.nodes[2].eng.Commit(b, false); err != nil {
		t.Fatal(err)
	}
	b.Close()
	id, _, err := c.verify(7)
	if err != nil {
		t.Fatal(err)
	}
	c.until("all replicas", func() bool { return len(v.by[id]) == 3 })
	if v.by[id][1] != v.by[id][3] || v.by[id][1] == v.by[id][2] {
		t.Errorf("sums %v, want replica 2 to differ", v.by[id])
	}
	if len(v.no) > 0 {
		t.Error(v.no)
	}
}

func TestAVerificationThatCannotBeDoneSaysSo(t *testing.T) {
	v := newVerifier(t)
	c := newCluster(t, 3, func(cfg *Config) { cfg.OnVerify = v.run })
	c.create(desc(7, "", "", 1, 2, 3))
	c.put(7, "a", "1")
	lead := c.leader(7)
	follower := c.nodes[lead.id%3+1]
	var not *NotLeaderError
	var err error
	follower.store.call(follower.store.lookup(7), func(r *replica) {
		follower.store.workerOf(7).proposeVerify(r, 0, func(_, _ uint64, e error) { err = e })
	})
	c.settle()
	if !errors.As(err, &not) || not.Leader != lead.id {
		t.Errorf("at a follower: %v", err)
	}
	if _, _, err := lead.store.Verify(context.Background(), 9, 0); !errors.As(err, new(*NotFoundError)) {
		t.Errorf("unknown shard: %v", err)
	}

	// The leader loses its leadership before the entry is committed.
	c.net.Isolate(lead.id)
	err = nil
	done := false
	lead.store.call(lead.store.lookup(7), func(r *replica) {
		lead.store.workerOf(7).proposeVerify(r, 1<<20, func(_, _ uint64, e error) { err, done = e, true })
	})
	c.until("the outcome", func() bool { return done })
	if !errors.Is(err, ErrAmbiguousChange) {
		t.Errorf("cut off: %v, want ambiguous", err)
	}
	c.net.HealAll()

	// No view: the receiver is told, and the replica goes on.
	c.until("a leader", func() bool { return c.leader(7) != nil })
	r := c.leader(7).store.lookup(7)
	e := entryOf(wire.Verify{ID: 5})
	e.Index = r.applied.Load() + 7
	c.leader(7).store.openVerify(r, &e)
	if len(v.no) != 1 || !strings.Contains(v.no[0].Error(), "view of s7") {
		t.Fatalf("told %v", v.no)
	}
	c.put(7, "b", "2")
}

func entryOf(v wire.Verify) raftpb.Entry {
	h := wire.EntryHeader{Kind: wire.EntryVerify, Proposal: 1}
	return raftpb.Entry{Data: v.Append(h.Append(nil))}
}
