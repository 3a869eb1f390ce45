package main

import (
	"bytes"
	"context"
	"errors"
	"sort"
	"sync"

	"github.com/shardd/shardd/bench/ycsb"
	"github.com/shardd/shardd/client"
)

// batches makes one batch of the inserts that wait for the same shard: a load need not take as long as single writes do.
type batches struct {
	ycsb.DB
	db     *client.DB
	splits [][]byte // first keys of all shards but the first, ascending
	lanes  []lane
}

// lane is the inserts of one shard. One batch is under way at a time; what comes meanwhile goes with the next.
type lane struct {
	mu    sync.Mutex
	queue []*insert
	busy  bool
}

type insert struct {
	key, record []byte
	done        chan error // capacity 1
}

// maxBatch is how many records one batch takes at most.
const maxBatch = 128

// maxRepeats is how often a batch is sent again whose outcome is not known.
const maxRepeats = 5

func newBatches(db ycsb.DB, c *client.DB, splits [][]byte) *batches {
	return &batches{DB: db, db: c, splits: splits, lanes: make([]lane, len(splits)+1)}
}

// Insert waits until the record is stored.
func (b *batches) Insert(ctx context.Context, key, record []byte) error {
	i := &insert{key, record, make(chan error, 1)}
	l := &b.lanes[sort.Search(len(b.splits), func(i int) bool { return bytes.Compare(b.splits[i], key) > 0 })]
	l.mu.Lock()
	l.queue = append(l.queue, i)
	start := !l.busy
	l.busy = true
	l.mu.Unlock()
	if start {
		go b.run(ctx, l)
	}
	return <-i.done // the record is the caller's: not before it is not used any more
}

func (b *batches) run(ctx context.Context, l *lane) {
	for {
		l.mu.Lock()
		n := min(len(l.queue), maxBatch)
		some := l.queue[:n:n]
		l.queue = l.queue[n:]
		l.busy = n > 0
		l.mu.Unlock()
		if n == 0 {
			return
		}
		all := client.NewBatch()
		for _, i := range some {
			all.Put(i.key, i.record)
		}
		_, err := b.db.All().Batch(ctx, all)
		// Puts of the same records may happen twice: a load of an hour need not end for an election.
		for n := 0; n < maxRepeats && errors.Is(err, client.ErrAmbiguous); n++ {
			_, err = b.db.All().Batch(ctx, all)
		}
		for _, i := range some {
			one := err
			if errors.Is(err, client.ErrCrossShard) { // the shard has split since
				one = b.DB.Insert(ctx, i.key, i.record)
			}
			i.done <- one
		}
	}
}
