package node

import (
	"context"
	"sync"
	"time"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/placement"
)

// Keeping the descriptor index. A descriptor in a report has been applied by a replica, so it is true; where it is newer
// than what the index holds, the meta leader records it. What cannot be recorded now stays in line: a report tells a
// change only once.

// index is the meta leader's knowledge of the index in the meta shard.
type index struct {
	wake    chan struct{} // capacity 1
	changed func()        // told when there is something to record; may be nil

	mu struct {
		sync.Mutex
		term   uint64                      // of the meta leadership
		known  map[base.ShardID]base.Epoch // what the index holds at least; nil: not read in this term
		behind map[base.ShardID]*base.Descriptor
	}
}

func newIndex() *index { return &index{wake: make(chan struct{}, 1)} }

// note takes descriptors of a report in.
func (x *index) note(term uint64, states []placement.ReplicaState) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if term < x.mu.term {
		return
	}
	if x.mu.term != term {
		x.mu.term, x.mu.known, x.mu.behind = term, nil, nil
	}
	for _, st := range states {
		d := st.Desc
		if x.mu.known != nil {
			if have, ok := x.mu.known[d.Shard]; ok && !d.Epoch.Newer(have) {
				continue
			}
		}
		if old, ok := x.mu.behind[d.Shard]; ok && !d.Epoch.Newer(old.Epoch) {
			continue
		}
		if x.mu.behind == nil {
			x.mu.behind = make(map[base.ShardID]*base.Descriptor)
		}
		x.mu.behind[d.Shard] = d
	}
	if len(x.mu.behind) > 0 {
		poke(x.wake)
		if x.changed != nil {
			x.changed()
		}
	}
}

// take returns what is to be recorded, given what the index holds if it had to be read.
func (x *index) take(term uint64, read map[base.ShardID]base.Epoch) []*base.Descriptor {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.mu.term != term {
		return nil
	}
	if x.mu.known == nil {
		x.mu.known = read
	}
	out := make([]*base.Descriptor, 0, len(x.mu.behind))
	for id, d := range x.mu.behind {
		if have, ok := x.mu.known[id]; ok && !d.Epoch.Newer(have) {
			delete(x.mu.behind, id)
			continue
		}
		out = append(out, d)
	}
	return out
}

// recorded takes a descriptor out of the line.
func (x *index) recorded(term uint64, d *base.Descriptor) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.mu.term != term {
		return
	}
	if have, ok := x.mu.known[d.Shard]; !ok || d.Epoch.Newer(have) {
		x.mu.known[d.Shard] = d.Epoch
	}
	if x.mu.behind[d.Shard] == d {
		delete(x.mu.behind, d.Shard)
	}
}

// state returns the term and whether the index must be read first.
func (x *index) state() (term uint64, unread bool, behind int) {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.mu.term, x.mu.known == nil, len(x.mu.behind)
}

const (
	indexRetry   = time.Second
	indexTimeout = 10 * time.Second
)

// indexLoop records, where this node leads the meta shard, what the reports say and the index does not.
func (m *member) indexLoop(ctx context.Context) {
	var last string
	for {
		select {
		case <-m.index.wake:
		case <-ctx.Done():
			return
		}
		for ctx.Err() == nil {
			err := m.updateIndex(ctx)
			if err == nil {
				last = ""
				break
			}
			if text := err.Error(); text != last && ctx.Err() == nil {
				last = text
				m.log.Warn("record descriptors: will be repeated", "err", err)
			}
			pause(ctx, indexRetry)
		}
	}
}

// updateIndex records what is in line once.
func (m *member) updateIndex(ctx context.Context) error {
	term, unread, behind := m.index.state()
	if now, leads := m.leadsMeta(); !leads || now != term || behind == 0 {
		return nil // the leader hears it all again
	}
	ctx, cancel := context.WithTimeout(ctx, indexTimeout)
	defer cancel()
	var read map[base.ShardID]base.Epoch
	if unread {
		var err error
		if read, err = m.dir.Epochs(ctx); err != nil {
			return err
		}
	}
	return m.dir.PutDescriptors(ctx, m.index.take(term, read), func(d *base.Descriptor) {
		m.index.recorded(term, d)
		m.n.metrics.indexed.Inc()
	})
}

// pause waits, or returns early with ctx.
func pause(ctx context.Context, d time.Duration) { pauseUnless(ctx, d, nil) }

// pauseUnless is pause, until news come.
func pauseUnless(ctx context.Context, d time.Duration, news <-chan struct{}) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-news:
	case <-ctx.Done():
	}
}

// poke leaves word in a channel of capacity 1. It never blocks.
func poke(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
