package e2e

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"

	"github.com/shardd/shardd/engine"
	"github.com/shardd/shardd/internal/base"
)

// ingestEvenly fills the user shards of a store that is stopped with so many MiB altogether, in place of what they hold:
// each gets a snapshot of rows of its own range, at the position that it has applied, as if another store had sent it.
// The rows are built in a store of their own in scratch.
func ingestEvenly(dir, scratch string, mb int) (err error) {
	var failed error
	fatal := func(err error) { failed = err }
	target, err := engine.Open(engine.Options{Dir: dir, Fatal: fatal})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, target.Close(), failed) }()
	source, err := engine.Open(engine.Options{Dir: scratch, Fatal: fatal})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, source.Close()) }()
	states, err := target.LoadReplicas()
	if err != nil {
		return err
	}
	users := states[:0]
	for _, st := range states {
		if st.Desc != nil && st.Shard != base.MetaShard {
			users = append(users, st)
		}
	}
	rows := mb << 10 / len(users)
	for i := range users {
		if err := buildShard(source, &users[i], rows); err != nil {
			return fmt.Errorf("build %s: %w", users[i].Shard, err)
		}
		if err := installShard(source, target, &users[i]); err != nil {
			return fmt.Errorf("install %s: %w", users[i].Shard, err)
		}
	}
	return nil
}

// buildShard writes rows of 1 KiB that do not compress.
func buildShard(e *engine.Engine, st *engine.ReplicaState, rows int) error {
	b := e.NewBatch()
	defer b.Close()
	b.CreateReplica(st.Desc, st.Mark.ReplicaID, 0, nil)
	rnd := rand.New(rand.NewPCG(uint64(st.Shard), 0))
	value := make([]byte, 1<<10)
	prefix := st.Desc.Start
	if bytes.Equal(prefix, base.UserStart()) {
		prefix = base.UserKey([]byte("000000")) // as restartStore.key
	}
	for i := range rows {
		for at := 0; at < len(value); at += 8 {
			binary.LittleEndian.PutUint64(value[at:], rnd.Uint64())
		}
		b.Put(fmt.Appendf(bytes.Clone(prefix), "/%08d", i), engine.ValueHeader{Version: 1}, value)
		if b.Len() > 4<<20 {
			if err := e.Commit(b, false); err != nil {
				return err
			}
			b.Reset()
		}
	}
	return e.Commit(b, true)
}

func installShard(source, target *engine.Engine, st *engine.ReplicaState) error {
	view, err := source.OpenView(st.Shard)
	if err != nil {
		return err
	}
	defer view.Close()
	self, _ := st.Desc.Replica(st.Mark.ReplicaID)
	staging, err := target.NewStaging(&engine.SnapshotMeta{
		Shard: st.Shard, From: st.Mark.ReplicaID, To: st.Mark.ReplicaID, FromStore: self.Store, ToStore: self.Store,
		RaftTerm: st.Hard.Term, Desc: st.Desc, Applied: st.Applied, ApproxBytes: view.ApproxBytes(),
	}, [16]byte{1})
	if err != nil {
		return err
	}
	var from []byte
	for seq := uint32(0); ; seq++ {
		c, next, err := view.Chunk(seq, from, 16<<20)
		if err == nil && c != nil {
			err = staging.Add(c)
			view.Release(c)
		}
		if err != nil {
			return errors.Join(err, staging.Remove())
		}
		if next == nil {
			break
		}
		from = next
	}
	_, err = target.Install(engine.Install{Staging: staging, Mark: st.Mark, Hard: st.Hard})
	return err
}
