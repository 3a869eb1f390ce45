package e2e

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/shardd/shardd/bench/ycsb"
	"github.com/shardd/shardd/client"
	"github.com/shardd/shardd/e2e/harness"
	"github.com/shardd/shardd/e2e/history"
)

const (
	shards     = 64 // of newCluster
	roamers    = 16 // clients besides the one that each shard has
	registers  = 16 // registers of a shard that one round uses
	checkLimit = 2 * time.Minute
)

// shardSplits divides the keys into 64 shards by two leading digits.
func shardSplits() [][]byte { return splitsOf(shards) }

// splitsOf divides the keys into up to 100 shards by two leading digits.
func splitsOf(n int) [][]byte {
	var out [][]byte
	for i := 1; i < n; i++ {
		out = append(out, fmt.Appendf(nil, "%02d", i))
	}
	return out
}

// load is a set of clients that write and read all shards until stopped: one client for each shard, so that a shard's
// pause shows in that shard alone, and some that roam. Each key's history goes to rec, writes of keys that are written
// once to ledger.
type load struct {
	t       *testing.T
	dbs     []*client.DB // a client keeps to one
	shards  int
	roamers int
	timeout time.Duration // of an operation
	rec     history.Recorder
	ledger  *history.Ledger
	start   time.Time
	seed    uint64

	mu struct {
		sync.Mutex
		shard   []shardStat
		classes map[string]int // failed operations by class
		acked   int
		seq     int // makes every value and every ledger key unique
	}
}

// shardStat is what is known of the writes of one shard. Times are since load.start.
type shardStat struct {
	lastAck  time.Duration // when the last acknowledged write returned
	lastCall time.Duration // the latest call among acknowledged writes
	gap      time.Duration // longest time between two acknowledgements since resetGaps
}

func newLoad(t *testing.T, db *client.DB) *load { return newLoadOf(t, db, shards, roamers) }

// newLoadOf is a load of shards + roamers clients over so many shards, as splitsOf makes them.
func newLoadOf(t *testing.T, db *client.DB, shards, roamers int) *load {
	l := &load{t: t, dbs: []*client.DB{db}, shards: shards, roamers: roamers, timeout: 20 * time.Second,
		ledger: history.NewLedger(), start: time.Now(), seed: rand.Uint64()}
	l.mu.shard = make([]shardStat, shards)
	l.mu.classes = map[string]int{}
	t.Logf("load with seed %d", l.seed)
	return l
}

func (l *load) now() time.Duration { return time.Since(l.start) }

// run starts the clients of one round; the returned func stops and joins them.
func (l *load) run(round int) (stop func()) {
	ctx, cancel := context.WithCancel(l.t.Context())
	var wg sync.WaitGroup
	for i := range l.shards + l.roamers {
		wg.Go(func() {
			c := &loadClient{load: l, id: i, round: round, rnd: rand.New(rand.NewPCG(l.seed, uint64(round*1000+i)))}
			for n := 0; ctx.Err() == nil; n++ {
				shard := i
				if i >= l.shards {
					shard = c.rnd.IntN(l.shards)
				}
				c.step(shard, n)
			}
		})
	}
	return func() {
		cancel()
		wg.Wait()
	}
}

type loadClient struct {
	*load
	id    int
	round int
	rnd   *rand.Rand
}

func (c *loadClient) db() *client.DB { return c.dbs[c.id%len(c.dbs)] }

// step runs one operation, or a read and the swap that follows from it.
func (c *loadClient) step(shard, n int) {
	// Not the round's context: an operation under way at the end of a round is seen to its end.
	ctx, cancel := context.WithTimeout(context.Background(), c.timeout)
	defer cancel()
	if c.id < c.shards && n%8 == 0 {
		c.insert(ctx, shard)
		return
	}
	key := fmt.Sprintf("%02d/reg/%d/%d", shard, c.round, c.rnd.IntN(registers))
	switch p := c.rnd.IntN(100); {
	case p < 50:
		c.put(ctx, shard, key)
	case p < 55:
		c.del(ctx, shard, key)
	case p < 75:
		c.swap(ctx, shard, key)
	default:
		c.get(ctx, key)
	}
}

func (c *loadClient) unique() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mu.seq++
	return fmt.Sprintf("%d-%d", c.id, c.mu.seq)
}

// insert writes a key of the ledger.
func (c *loadClient) insert(ctx context.Context, shard int) {
	v := c.unique()
	key := fmt.Sprintf("%02d/led/%s", shard, v)
	call := c.now()
	_, err := c.db().All().Put(ctx, []byte(key), []byte(v))
	switch c.outcome(shard, call, err) {
	case acked:
		c.ledger.Acked(key, v)
	case unknown:
		c.ledger.Maybe(key, v)
	}
}

func (c *loadClient) put(ctx context.Context, shard int, key string) {
	op := history.Op{Client: c.id, Key: key, Kind: history.Put, New: c.unique(), Call: c.now()}
	_, err := c.db().All().Put(ctx, []byte(key), []byte(op.New))
	c.record(op, c.outcome(shard, op.Call, err))
}

func (c *loadClient) del(ctx context.Context, shard int, key string) {
	op := history.Op{Client: c.id, Key: key, Kind: history.Delete, Call: c.now()}
	err := c.db().All().Delete(ctx, []byte(key))
	c.record(op, c.outcome(shard, op.Call, err))
}

func (c *loadClient) get(ctx context.Context, key string) (version uint64, value string, ok bool) {
	op := history.Op{Client: c.id, Key: key, Kind: history.Get, Call: c.now()}
	var opts []client.ReadOption
	if c.rnd != nil && c.rnd.IntN(3) == 0 { // the judge has none
		opts = append(opts, client.AtFollower()) // as fresh as at the leader
	}
	v, err := c.db().All().Get(ctx, []byte(key), opts...)
	if err != nil && !errors.Is(err, client.ErrNotFound) {
		c.failed(err)
		return 0, "", false
	}
	op.Saw, op.Return = string(v.Bytes), c.now()
	c.rec.Add(op)
	return v.Version, op.Saw, true
}

func (c *loadClient) swap(ctx context.Context, shard int, key string) {
	version, value, ok := c.get(ctx, key)
	if !ok {
		return
	}
	op := history.Op{Client: c.id, Key: key, Kind: history.Swap, Old: value, New: c.unique(), Call: c.now()}
	_, err := c.db().All().CompareAndSwap(ctx, []byte(key), version, []byte(op.New))
	if errors.Is(err, client.ErrConflict) {
		op.Conflict, op.Return = true, c.now()
		c.rec.Add(op)
		return
	}
	c.record(op, c.outcome(shard, op.Call, err))
}

type outcome int

const (
	acked outcome = iota
	unknown
	nothing // certainly did not happen and will not
)

// outcome sorts the result of a write and counts it.
func (c *loadClient) outcome(shard int, call time.Duration, err error) outcome {
	if err == nil {
		now := c.now()
		c.mu.Lock()
		defer c.mu.Unlock()
		s := &c.mu.shard[shard]
		s.gap = max(s.gap, now-s.lastAck)
		s.lastAck, s.lastCall = now, max(s.lastCall, call)
		c.mu.acked++
		return acked
	}
	c.failed(err)
	if errors.Is(err, client.ErrAmbiguous) {
		return unknown
	}
	return nothing
}

func (c *loadClient) failed(err error) {
	class := ycsb.ErrorClass(err)
	c.mu.Lock()
	c.mu.classes[class]++
	first := c.mu.classes[class] == 1
	c.mu.Unlock()
	switch {
	case class == "invalid" || class == "closed" || class == "other":
		c.t.Errorf("client %d: %v", c.id, err) // no fault of ours explains these
	case first:
		c.t.Logf("first %s error: %v", class, err)
	}
}

func (c *loadClient) record(op history.Op, o outcome) {
	op.Return, op.Unknown = c.now(), o == unknown
	if o != nothing {
		c.rec.Add(op)
	}
}

// resetGaps forgets the gaps so far; a gap that is open goes on.
func (l *load) resetGaps() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range l.mu.shard {
		l.mu.shard[i].gap = 0
	}
}

// gaps is the longest time without an acknowledged write, shard by shard, since resetGaps.
func (l *load) gaps() []time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := make([]time.Duration, l.shards)
	for i := range l.mu.shard {
		out[i] = l.mu.shard[i].gap
	}
	return out
}

// waitWrites waits until each shard has acknowledged a write that was called from now on.
func (l *load) waitWrites(why string) {
	l.t.Helper()
	from := l.now()
	err := harness.Until(l.t.Context(), harness.Patience, func(context.Context) error {
		l.mu.Lock()
		defer l.mu.Unlock()
		var idle []int
		for i := range l.mu.shard {
			if l.mu.shard[i].lastCall <= from {
				idle = append(idle, i)
			}
		}
		if len(idle) > 0 {
			return fmt.Errorf("%d of %d shards take no writes: %v; errors so far: %v", len(idle), l.shards, idle, l.mu.classes)
		}
		return nil
	})
	if err != nil {
		l.t.Fatalf("writes %s: %v", why, err)
	}
}

// judge reads every register and the whole ledger back and checks both. Call it with no clients running.
func (l *load) judge(round int) (operations int) {
	l.t.Helper()
	c := &loadClient{load: l, id: l.shards + l.roamers}
	for shard := range l.shards {
		for r := range registers {
			key := fmt.Sprintf("%02d/reg/%d/%d", shard, round, r)
			var version uint64
			err := harness.Until(l.t.Context(), harness.Patience, func(ctx context.Context) error {
				var ok bool
				if version, _, ok = c.get(ctx, key); !ok {
					return fmt.Errorf("key %s cannot be read", key)
				}
				return nil
			})
			if err != nil {
				l.t.Fatalf("last read, version %d: %v", version, err)
			}
		}
	}
	ops := l.rec.Take()
	if err := history.Check(ops, checkLimit); err != nil {
		l.t.Errorf("round %d, %d operations: %v", round, len(ops), err)
	}
	l.compareLedger()
	return len(ops)
}

func (l *load) compareLedger() {
	l.t.Helper()
	found := map[string]string{}
	for shard := range l.shards {
		prefix := fmt.Appendf(nil, "%02d/led/", shard)
		err := harness.Until(l.t.Context(), harness.Patience, func(ctx context.Context) error {
			for row, err := range l.dbs[0].Prefix(prefix).Scan(ctx) {
				if err != nil {
					return err
				}
				found[string(row.Key)] = string(row.Value)
			}
			return nil
		})
		if err != nil {
			l.t.Fatalf("scan %s: %v", prefix, err)
		}
	}
	if err := l.ledger.Compare(found); err != nil {
		l.t.Error(err)
	}
}

// quantile of a list that is sorted in place.
func quantile(d []time.Duration, q float64) time.Duration {
	slices.Sort(d)
	return d[min(len(d)-1, int(q*float64(len(d))))]
}
