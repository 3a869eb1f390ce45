package shardtest

import (
	"errors"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/clock"
	"github.com/shardd/shardd/internal/wire"
	"github.com/shardd/shardd/shard"
)

// In every live cluster a part of the reads goes to any replica: linearizable ones, which are checked with all others,
// and stale ones, which must keep their bound. The stores' clocks agree on nothing, and their rates differ.

// skewed is a clock that began elsewhere and runs fast or slow.
type skewed struct {
	clock.Clock
	rate   float64
	offset time.Duration
}

// Boot implements clock.Clock.
func (c skewed) Boot() time.Duration { return c.offset + time.Duration(c.rate*float64(c.Clock.Boot())) }

// liveAsks carries questions for read indexes between the stores of a live cluster, on paths of their own: they may get
// through where raft's messages do not. Some get lost, some take long.
type liveAsks struct {
	mu    sync.Mutex
	rng   *rand.Rand
	asked int
	lost  int
}

// fate draws what becomes of a question.
func (a *liveAsks) fate(seed int64) (there, back time.Duration, lost bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.rng == nil {
		a.rng = rand.New(rand.NewPCG(uint64(seed), 5))
	}
	a.asked++
	if a.rng.IntN(10) == 0 {
		a.lost++
		return 0, 0, true
	}
	most := 10
	if a.rng.IntN(10) == 0 {
		most = 2000 // longer than anybody waits
	}
	ms := func() time.Duration { return time.Duration(a.rng.IntN(most)) * time.Millisecond }
	return ms(), ms(), false
}

// AskIndex implements shard.IndexAsker.
func (n *liveNode) AskIndex(
	to base.StoreID, id base.ShardID, start []byte, timeout time.Duration, done func(wire.Answer, error),
) {
	there, back, lost := n.c.asks.fate(n.c.seed)
	if lost {
		return
	}
	n.c.wg.Go(func() {
		time.Sleep(there)
		a, err := n.c.nodes[to-1].index(id, start, timeout)
		time.Sleep(back)
		done(a, err)
	})
}

// index asks a store for a read index.
func (n *liveNode) index(id base.ShardID, start []byte, timeout time.Duration) (wire.Answer, error) {
	n.mu.RLock()
	store := n.mu.store
	if n.mu.dead || store == nil {
		n.mu.RUnlock()
		return wire.Answer{}, errors.New("the store is down")
	}
	n.using.Add(1)
	n.mu.RUnlock()
	defer n.using.Done()
	w := make(wait, 1)
	store.ReadIndex([]shard.ReadRequest{{
		Shard: id, Key: start, Req: 1, Deadline: n.clock().Boot() + timeout, Waiter: w, IndexOnly: true,
	}})
	return <-w, nil
}

// chooseReplica makes some reads such as any replica may serve.
func chooseReplica(rng *rand.Rand, op *wire.Op, o *operation) bool {
	if !o.read {
		return false
	}
	switch rng.IntN(4) {
	case 0:
		op.Flags |= wire.FlagFollower
	case 1:
		o.stale = []time.Duration{20, 100, 400, 2000, 20_000}[rng.IntN(5)] * time.Millisecond
		op.Flags |= wire.FlagStale
		op.MaxAge = uint32(o.stale / time.Millisecond)
	default:
		return false
	}
	return true
}

// check fails the test if followers had next to nothing to do.
func (a *liveAsks) check(t *testing.T, h *history) {
	t.Helper()
	stale, behind := 0, 0
	newest := map[string]uint64{}
	for _, o := range h.mu.ops {
		if o.stale == 0 && !o.open {
			newest[o.key] = max(newest[o.key], o.version) // in the order of their ends, about
			continue
		}
		if o.stale > 0 {
			stale++
			if o.version < newest[o.key] {
				behind++
			}
		}
	}
	t.Logf("%d stale reads, %d of them of an old state, %d questions, %d lost", stale, behind, a.asked, a.lost)
	if stale < 20 || a.asked < 20 {
		t.Errorf("too few reads at followers to prove anything")
	}
}

func TestTheStalenessCheckFindsReadsThatAreTooOld(t *testing.T) {
	put := func(v uint64, call, back time.Duration) operation {
		return operation{key: "k", value: "x", version: v, call: call, back: back}
	}
	read := func(v uint64, call, stale time.Duration) operation {
		return operation{key: "k", read: true, value: "x", version: v, call: call, back: call + 1, stale: stale}
	}
	for _, c := range []struct {
		name string
		ops  []operation
		bad  int
	}{
		{"as old as it may be", []operation{put(1, 1, 2), put(2, 10, 20), read(1, 29, 10)}, 0},
		{"too old", []operation{put(1, 1, 2), put(2, 10, 20), read(1, 30, 10)}, 1},
		{"absent, too old", []operation{put(2, 10, 20), read(0, 40, 10)}, 1},
		{"newer than it needs to be", []operation{put(1, 1, 2), put(2, 10, 20), read(2, 12, 10)}, 0},
		{"older than what a linearizable read saw", []operation{put(1, 1, 2), read(7, 3, 0), read(1, 20, 10)}, 1},
	} {
		if got := tooOld(c.ops); len(got) != c.bad {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}
