package apply

import (
	"fmt"
	"strings"
	"testing"

	"go.etcd.io/etcd/raft/v3/raftpb"

	"github.com/shardd/shardd/engine"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
)

const testShard base.ShardID = 7

// testDescriptor owns [b, g) of the user space.
func testDescriptor() *base.Descriptor {
	return &base.Descriptor{
		Shard: testShard, Start: []byte("\x02b"), End: []byte("\x02g"),
		Epoch: base.Epoch{ConfVer: 1, Version: 4}, NextReplicaID: 2,
		Replicas: []base.ReplicaDesc{{Replica: 1, Store: 1, Role: base.RoleVoter}},
	}
}

// store is an engine in memory with one shard and its machine.
type store struct {
	tb       testing.TB
	fs       *engine.FS
	engine   *engine.Engine
	m        *Machine
	memTable int64 // 0: default
}

// newStore returns a store with a new shard.
func newStore(tb testing.TB) *store {
	tb.Helper()
	s := &store{tb: tb}
	s.create()
	tb.Cleanup(func() { s.close() })
	return s
}

// create makes the shard on an empty file system.
func (s *store) create() {
	s.tb.Helper()
	s.fs = engine.NewMemFS()
	s.open()
	b := s.engine.NewBatch()
	b.CreateReplica(testDescriptor(), 1, 0, nil)
	s.commit(b, true)
	s.load()
}

func (s *store) open() {
	s.tb.Helper()
	e, err := engine.Open(engine.Options{
		Dir: "db", FS: s.fs, MemTableBytes: s.memTable, Fatal: func(err error) { s.tb.Errorf("engine: %v", err) },
	})
	if err != nil {
		s.tb.Fatal(err)
	}
	s.engine = e
}

// load makes the machine from what the engine holds.
func (s *store) load() {
	s.tb.Helper()
	rs, err := s.engine.LoadReplicas()
	if err != nil || len(rs) != 1 {
		s.tb.Fatalf("%d replicas, %v", len(rs), err)
	}
	s.m = New(s.engine, rs[0].Desc, rs[0].Applied)
}

func (s *store) close() {
	if err := s.engine.Close(); err != nil {
		s.tb.Error(err)
	}
}

// crash loses power: what was not synced survives with the given chance. The machine is loaded anew.
func (s *store) crash(keepPercent int, seed int64) {
	s.tb.Helper()
	fs := s.fs.CrashClone(keepPercent, seed)
	s.close()
	s.fs = fs
	s.open()
	s.load()
}

func (s *store) commit(b *engine.Batch, sync bool) {
	s.tb.Helper()
	if err := s.engine.Commit(b, sync); err != nil {
		s.tb.Fatal(err)
	}
	b.Close()
}

// apply applies the entries in one call, commits, and returns the answers by entry.
func (s *store) apply(ents []raftpb.Entry, sync bool) [][]wire.Answer {
	s.tb.Helper()
	out := make([][]wire.Answer, len(ents))
	b := s.engine.NewBatch()
	err := s.m.Apply(b, ents, func(ent, op int, req uint64, a wire.Answer) {
		if op != len(out[ent]) || req != a.Req {
			s.tb.Errorf("answer %d of entry %d comes as number %d (request %d, %d)", op, ent, len(out[ent]), req, a.Req)
		}
		out[ent] = append(out[ent], a)
	})
	if err != nil {
		s.tb.Fatal(err)
	}
	s.commit(b, sync)
	return out
}

// dump renders what the engine holds: every key with its header and value, the descriptor and the applied state.
func (s *store) dump() string {
	s.tb.Helper()
	rs, err := s.engine.LoadReplicas()
	if err != nil || len(rs) != 1 {
		s.tb.Fatalf("%d replicas, %v", len(rs), err)
	}
	a, d := rs[0].Applied, rs[0].Desc
	var b strings.Builder
	fmt.Fprintf(&b, "applied %d term %d stamp %d put %d/%d deletes %d\ndescriptor %s next %d\n",
		a.Index, a.Term, a.Stamp, a.Stats.PutOps, a.Stats.PutBytes, a.Stats.DeleteOps, d, d.NextReplicaID)
	it, err := s.engine.NewIter(base.UserStart(), base.SystemEnd(), false)
	if err != nil {
		s.tb.Fatal(err)
	}
	defer it.Close()
	for ; it.Valid(); it.Next() {
		h := it.Header()
		fmt.Fprintf(&b, "%q @%d flags %d expiry %d = %q\n", it.Key(), h.Version, h.Flags, h.Expiry, it.Value())
	}
	if err := it.Err(); err != nil {
		s.tb.Fatal(err)
	}
	return b.String()
}

// next returns the entry after the applied one with these operations.
func (s *store) next(stamp uint64, ops ...wire.Op) raftpb.Entry {
	at := s.m.Applied()
	return entry(at.Index+1, max(at.Term, engine.InitialTerm), stamp, ops...)
}

func entry(index, term, stamp uint64, ops ...wire.Op) raftpb.Entry {
	h := wire.EntryHeader{Kind: wire.EntryData, Count: uint32(len(ops)), Proposal: index, Stamp: stamp}
	data := h.Append(nil)
	for i := range ops {
		data = ops[i].Append(data)
	}
	return raftpb.Entry{Index: index, Term: term, Data: data}
}

// op returns an operation for the test shard; keys are user keys.
func op(code wire.OpCode, key, value string) wire.Op {
	o := wire.Op{Code: code, Req: 1, Shard: testShard, Version: testDescriptor().Epoch.Version}
	o.Key = base.UserKey([]byte(key))
	switch {
	case code == wire.OpDeleteRange:
		o.Value = base.UserKey([]byte(value))
	case value != "":
		o.Value = []byte(value)
	}
	return o
}

func ifVersion(o wire.Op, version uint64) wire.Op {
	o.Flags, o.Arg = wire.FlagIfVersion, version
	return o
}

func batchOp(steps ...wire.Sub) wire.Op {
	o := wire.Op{Code: wire.OpBatch, Req: 1, Shard: testShard, Version: testDescriptor().Epoch.Version}
	for i := range steps {
		o.Value = steps[i].Append(o.Value)
	}
	if len(steps) > 0 {
		o.Key = steps[0].Key
	}
	return o
}

func step(code wire.OpCode, key, value string) wire.Sub {
	o := op(code, key, value)
	return wire.Sub{Code: code, Key: o.Key, Value: o.Value}
}

func checkVersion(key string, version uint64) wire.Sub {
	s := step(wire.OpCheckVersion, key, "")
	s.Arg = version
	return s
}
