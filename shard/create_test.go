package shard

import (
	"errors"
	"sync"
	"testing"

	"go.etcd.io/etcd/raft/v3/raftpb"

	"github.com/shardd/shardd/engine"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
)

func TestCreateIsIdempotentAndSynced(t *testing.T) {
	c := newCluster(t, 1, nil)
	n := c.nodes[1]
	d := desc(7, "a", "c", 1)
	rows := []engine.KV{{Key: base.UserKey([]byte("a")), Value: []byte("first")}}
	for range 2 {
		if err := n.store.Create(d, rows, true); err != nil {
			t.Fatal(err)
		}
	}
	c.until("leader", func() bool { return c.leader(7) != nil })
	c.put(7, "a", "second")
	if err := n.store.Create(d, rows, true); err != nil {
		t.Fatal(err)
	}
	c.mustGet(7, "a", "second")

	rows = []engine.KV{{Key: base.UserKey([]byte("d")), Value: []byte("x")}}
	if err := n.store.Create(desc(8, "c", "e", 1), rows, false); err != nil {
		t.Fatal(err)
	}
	c.crash(n, 0)
	c.start(n)
	if v, ok := c.local(n, 8, "d"); !ok || v != "x" {
		t.Fatalf("first rows after a power loss: %q %t", v, ok)
	}
}

func TestCreateRefusesOverlapsOtherIdsAndForeignDescriptors(t *testing.T) {
	c := newCluster(t, 1, nil)
	s := c.nodes[1].store
	if err := s.Create(desc(7, "b", "d", 1), nil, false); err != nil {
		t.Fatal(err)
	}
	var overlap *OverlapError
	for _, d := range []*base.Descriptor{
		desc(8, "a", "c", 1), desc(8, "c", "e", 1), desc(8, "a", "z", 1), desc(8, "b", "d", 1),
	} {
		if err := s.Create(d, nil, false); !errors.As(err, &overlap) || overlap.Old.Shard != 7 {
			t.Errorf("%s: %v", d, err)
		}
	}
	for _, d := range []*base.Descriptor{desc(8, "a", "b", 1), desc(9, "d", "e", 1)} {
		if err := s.Create(d, nil, false); err != nil {
			t.Errorf("%s: %v", d, err)
		}
	}
	later := desc(7, "b", "d", 2, 1)
	var mark *MarkError
	if err := s.Create(later, nil, false); !errors.As(err, &mark) || mark.Have != 1 {
		t.Errorf("another id: %v", err)
	}
	if err := s.Create(desc(10, "x", "y", 2), nil, false); err == nil {
		t.Error("a descriptor without this store was accepted")
	}
	out := []engine.KV{{Key: base.UserKey([]byte("q")), Value: nil}}
	if err := s.Create(desc(10, "x", "y", 1), out, false); err == nil {
		t.Error("rows outside the range were accepted")
	}
}

func TestConcurrentCreatesOfOneShardAgree(t *testing.T) {
	c := newCluster(t, 1, nil)
	s := c.nodes[1].store
	var wg sync.WaitGroup
	errs := make([]error, 8)
	for i := range errs {
		wg.Go(func() { errs[i] = s.Create(desc(7, "a", "b", 1), nil, true) })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	c.until("leader", func() bool { return c.leader(7) != nil })
	if n := len(s.Summaries()); n != 1 {
		t.Fatalf("%d replicas", n)
	}
}

func TestMessagesForOtherReplicasOrFromStrangersAreDropped(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.create(desc(7, "", "", 1, 2, 3))
	c.put(7, "a", "1")
	follower := c.nodes[c.leader(7).id%3+1]
	r := follower.store.lookup(7)
	lead := c.leader(7).id
	good := wire.RaftMessage{
		Shard: 7, From: base.ReplicaID(lead), To: r.id, FromStore: lead, ToStore: follower.id,
	}
	good.Msg.From, good.Msg.To, good.Msg.Type = uint64(good.From), uint64(good.To), 8 // heartbeat
	good.Msg.Term = 6
	if why := r.refuse(&good); why != "" {
		t.Fatalf("a good message is refused: %s", why)
	}
	newer := good
	newer.From, newer.Msg.From, newer.FromStore = 17, 17, 9
	if why := r.refuse(&newer); why != "" {
		t.Fatalf("a replica newer than our descriptor is refused: %s", why)
	}
	for what, change := range map[string]func(m *wire.RaftMessage){
		"older replica here":   func(m *wire.RaftMessage) { m.To, m.Msg.To = m.To+1, m.Msg.To+1 },
		"other store":          func(m *wire.RaftMessage) { m.ToStore++ },
		"inner address":        func(m *wire.RaftMessage) { m.Msg.To++ },
		"from another store":   func(m *wire.RaftMessage) { m.FromStore = 9 },
		"from nobody":          func(m *wire.RaftMessage) { m.From, m.Msg.From = 0, 0 },
		"from ourselves":       func(m *wire.RaftMessage) { m.From, m.Msg.From, m.FromStore = m.To, m.Msg.To, m.ToStore },
		"snapshot":             func(m *wire.RaftMessage) { m.Msg.Type = 7 },
		"proposal":             func(m *wire.RaftMessage) { m.Msg.Type = 2 },
		"campaign":             func(m *wire.RaftMessage) { m.Msg.Type = 0 },
		"forwarded read index": func(m *wire.RaftMessage) { m.Msg.Type = 15 },
		"no term":              func(m *wire.RaftMessage) { m.Msg.Term = 0 },
		"entries with a gap": func(m *wire.RaftMessage) {
			m.Msg.Type, m.Msg.Index = 3, 11
			m.Msg.Entries = []raftpb.Entry{{Term: 6, Index: 12}, {Term: 6, Index: 14}}
		},
		"an entry of a later term": func(m *wire.RaftMessage) {
			m.Msg.Type, m.Msg.Index = 3, 11
			m.Msg.Entries = []raftpb.Entry{{Term: 7, Index: 12}}
		},
	} {
		m := good
		change(&m)
		if r.refuse(&m) == "" {
			t.Errorf("%s: accepted", what)
		}
	}
	d := desc(7, "", "", 1, 2, 3)
	d.Replicas, d.NextReplicaID, d.Epoch.ConfVer = d.Replicas[:2], 4, 2
	r.desc.Store(d)
	gone := good
	gone.From, gone.Msg.From, gone.FromStore = 3, 3, 3
	if r.refuse(&gone) != "stale-replica" {
		t.Error("a removed replica is heard")
	}
}
