package placement

import (
	"context"
	"fmt"
	"math"

	"github.com/shardd/shardd/internal/wire"
)

// IDKind names a sequence of ids. The numbers are part of the key format.
type IDKind byte

// Sequences.
const (
	ShardIDs IDKind = 1
	NodeIDs  IDKind = 2
	JobIDs   IDKind = 3
)

// String returns the word used in errors.
func (k IDKind) String() string {
	switch k {
	case ShardIDs:
		return "shard ids"
	case NodeIDs:
		return "node ids"
	case JobIDs:
		return "job ids"
	}
	return fmt.Sprintf("ids(%d)", byte(k))
}

// reserve is how many ids of a kind one write takes in advance. Ids of nodes and jobs are read by people: no gaps.
func (k IDKind) reserve() uint64 {
	if k == ShardIDs {
		return 64
	}
	return 1
}

type idRange struct{ next, end uint64 }

// AllocIDs gives out n consecutive ids and returns the first. An id is given out once in the life of a cluster: the
// counter is raised, conditionally on its version, before any id below it is used, so a crash, a change of the meta
// leader or a write whose outcome is unknown can only leave ids unused.
func (d *Directory) AllocIDs(ctx context.Context, kind IDKind, n int) (first uint64, err error) {
	if n < 1 || n > 1<<20 {
		return 0, fmt.Errorf("allocate %d %s: want 1 to %d: %w", n, kind, 1<<20, ErrInvalid)
	}
	want := uint64(n)
	if first, ok := d.takeIDs(kind, want); ok {
		return first, nil
	}
	key, got := counterKey(kind), idRange{}
	err = d.retry(ctx, "allocate "+kind.String(), func() ([]wire.Sub, error) {
		v, ver, err := d.kv.Get(ctx, key)
		if err != nil {
			return nil, err
		}
		next := uint64(1)
		switch {
		case ver != 0:
			if next, err = decodeNumber("counter", v); err != nil {
				return nil, err
			}
		case kind != JobIDs: // the first contents of the meta shard have no counter of jobs
			return nil, fmt.Errorf("counter: %w", ErrNotFound)
		}
		take := max(want, kind.reserve())
		if next > math.MaxUint64-take {
			return nil, fmt.Errorf("counter at %d is exhausted", next)
		}
		got = idRange{next, next + take}
		return []wire.Sub{
			checkVersion(key, ver), {Code: wire.OpPut, Key: key, Value: appendNumber(nil, got.end)},
		}, nil
	})
	if err != nil {
		return 0, err
	}
	first, got.next = got.next, got.next+want
	d.keepIDs(kind, got)
	return first, nil
}

func (d *Directory) takeIDs(kind IDKind, n uint64) (uint64, bool) {
	d.ids.Lock()
	defer d.ids.Unlock()
	r := d.ids.free[kind]
	if r.end-r.next < n {
		return 0, false
	}
	d.ids.free[kind] = idRange{r.next + n, r.end}
	return r.next, true
}

// keepIDs keeps the rest of a reservation. Of two, the larger stays and the other's ids are never used.
func (d *Directory) keepIDs(kind IDKind, r idRange) {
	d.ids.Lock()
	defer d.ids.Unlock()
	if old := d.ids.free[kind]; r.end-r.next > old.end-old.next {
		d.ids.free[kind] = r
	}
}
