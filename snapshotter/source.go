package snapshotter

import (
	"context"
	"errors"
	"fmt"

	"github.com/shardd/shardd/engine"
)

// prepareSmall fills t with the whole state if it is small enough to be sent without waiting. Sizes on disk do not show
// what is still in the memtable, so the first chunk is built to find out.
func (s *Service) prepareSmall(j *job, t *transfer) (err error) {
	limit := uint64(s.cfg.SmallBytes)
	view, err := s.openView(j)
	if errors.Is(err, engine.ErrViewLost) {
		return nil // the large way tries again
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, view.Close()) }()
	if view.ApproxBytes() > 2*limit {
		return nil
	}
	release, err := s.sendMemory.take(j.ctx, 2*int64(limit))
	if err != nil {
		return err
	}
	defer release() // while it is built; what is small is not worth counting afterwards
	began := s.cfg.Clock.Boot()
	defer func() { j.checked += s.cfg.Clock.Boot() - began }()
	var chunks []*engine.Chunk
	var raw, size uint64
	for from := []byte(nil); ; {
		c, next, err := view.Chunk(uint32(len(chunks)), from, int(limit))
		if err != nil {
			return err
		}
		if c != nil {
			chunks = append(chunks, c)
			raw += c.RawBytes
			size += uint64(len(c.SST))
		}
		if next == nil {
			break
		}
		if raw >= limit {
			return nil
		}
		from = next
	}
	if chunks == nil {
		chunks = []*engine.Chunk{} // an empty shard is small
	}
	t.small, t.total = chunks, size
	t.meta = s.metaOf(j, view, size).Append(nil)
	return nil
}

// firstMeta describes the state as it is before a view is pinned; the receiver decides by it whether to let us wait.
func (s *Service) firstMeta(j *job) (m *engine.SnapshotMeta, err error) {
	v, err := s.openView(j)
	if err != nil {
		return nil, err
	}
	return s.metaOf(j, v, v.ApproxBytes()), v.Close()
}

func (s *Service) metaOf(j *job, v *engine.View, size uint64) *engine.SnapshotMeta {
	return &engine.SnapshotMeta{
		Shard: j.req.Shard, From: j.req.From, To: j.req.To, FromStore: s.cfg.Store, ToStore: j.req.ToStore,
		RaftTerm: j.req.Term, Desc: v.Desc(), Applied: v.Applied(), ApproxBytes: size,
	}
}

// openView pins the replica's state and checks that it is what was asked for.
func (s *Service) openView(j *job) (*engine.View, error) {
	v, err := s.cfg.Engine.OpenView(j.req.Shard)
	if err != nil {
		return nil, err
	}
	r, ok := v.Desc().Replica(j.req.To)
	switch applied := v.Applied().Index; {
	case !ok || r.Store != j.req.ToStore:
		err = fmt.Errorf("%s does not list replica %d on %s: %w", v.Desc(), j.req.To, j.req.ToStore, ErrStale)
	case applied < j.req.Index:
		err = fmt.Errorf("%s is applied to %d, the snapshot must be at %d: %w", j.req.Shard, applied, j.req.Index,
			ErrStale)
	}
	if err != nil {
		return nil, errors.Join(err, v.Close())
	}
	return v, nil
}

// built is a chunk on its way from the view to the stream.
type built struct {
	chunk   *engine.Chunk // nil: there are no more
	release func()        // its share of the memory
	err     error
}

// chunkBytes is the size of the next chunk: what the limit lets through in a short while, since building, checking and
// syncing a chunk are bursts that whoever else needs the processor and the disk waits for.
func (s *Service) chunkBytes() int {
	limit := s.send.limit.Load() / chunksPerSecond
	return int(min(max(limit, minChunkBytes), uint64(s.cfg.ChunkBytes)))
}

// build makes chunks from a position on, one ahead of the stream, until there are no more or ctx ends. It closes out.
func (s *Service) build(ctx context.Context, j *job, v *engine.View, seq uint32, from []byte, out chan<- built) {
	defer close(out)
	for more := true; more; seq++ {
		var b built
		size := s.chunkBytes()
		b.release, b.err = s.sendMemory.take(ctx, int64(size))
		if b.err != nil {
			return // only ctx ends it
		}
		began := s.cfg.Clock.Boot()
		b.chunk, from, b.err = v.Chunk(seq, from, size)
		j.checked += s.cfg.Clock.Boot() - began
		more = b.err == nil && from != nil
		select {
		case out <- b:
		case <-ctx.Done():
			b.release()
			return
		}
	}
}
