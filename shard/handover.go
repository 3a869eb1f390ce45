package shard

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/shardd/shardd/internal/base"
)

// Handing everything over before the store goes. Each leadership is transferred to the most advanced voter on a store
// that is fit for it; only if there is none, to whichever voter there is, since that one stays and this one does not. A
// group takes no writes from the start of its transfer to the first entry of the new leader, and the election costs all
// its members a sync, so that only a number of them are on their way at the same time: the others serve meanwhile. What
// fails is tried again, since a follower that lags may have caught up, and so is what comes back meanwhile.

const (
	// handOverAtOnce is how many leaderships are on their way at the same time.
	handOverAtOnce = 64
	// handOverTries is how often one is given away before it stays.
	handOverTries = 3
)

// handOver is a HandOver under way.
type handOver struct {
	s     *Store
	todo  []base.ShardID
	tries map[base.ShardID]int
	stuck map[base.ShardID]error // the last reason why one did not move
	any   map[base.ShardID]bool  // no fit store has a voter
	alone map[base.ShardID]bool  // no other store has one
	ch    chan handedOver
	open  int
	moved int
}

type handedOver struct {
	shard base.ShardID
	err   error
}

// HandOver moves every leadership of this store to another one and returns how many have left. Shards without another
// voter stay, silently. The error joins the reasons of those that should have moved, up to eight, and ctx's error.
func (s *Store) HandOver(ctx context.Context) (moved int, err error) {
	h := &handOver{
		s: s, tries: make(map[base.ShardID]int), stuck: make(map[base.ShardID]error),
		any: make(map[base.ShardID]bool), alone: make(map[base.ShardID]bool), ch: make(chan handedOver, handOverAtOnce),
	}
	for h.fill() {
		for len(h.todo) > 0 || h.open > 0 {
			for len(h.todo) > 0 && h.open < handOverAtOnce {
				h.start(h.todo[0])
				h.todo = h.todo[1:]
			}
			if h.open == 0 {
				continue
			}
			select {
			case out := <-h.ch:
				h.take(out)
			case <-ctx.Done():
				return h.moved, errors.Join(append(h.reasons(), fmt.Errorf("hand over leaderships: %w", ctx.Err()))...)
			}
		}
	}
	return h.moved, errors.Join(h.reasons()...)
}

// fill lists what is led here and should not be; false if nothing is, or nothing can be done about it.
func (h *handOver) fill() bool {
	h.s.mu.RLock()
	defer h.s.mu.RUnlock()
	for id, r := range h.s.mu.replicas {
		if r.lead.Load().leads && !h.alone[id] && h.tries[id] < handOverTries {
			h.todo = append(h.todo, id)
		}
	}
	slices.Sort(h.todo)
	return len(h.todo) > 0
}

func (h *handOver) start(id base.ShardID) {
	h.tries[id]++
	req := transferRequest{done: func(_ uint64, err error) { h.ch <- handedOver{id, err} }}
	if !h.any[id] {
		req.fit = h.s.cfg.MayLead
	}
	// A replica that takes no more requests, or is gone, does not lead any more either.
	if h.s.queueTransfer(id, req) == nil {
		h.open++
	}
}

// take looks at one outcome.
func (h *handOver) take(out handedOver) {
	h.open--
	var not *NotLeaderError
	var t *TransferError
	switch {
	case out.err == nil || errors.As(out.err, &not):
		h.moved++ // not the leader any more: gone as well
		delete(h.stuck, out.shard)
	case !errors.As(out.err, &t) || t.To != 0 || t.Reason != reasonAlone:
		h.stuck[out.shard] = out.err
	case h.s.cfg.MayLead == nil || h.any[out.shard]:
		h.alone[out.shard] = true
		delete(h.stuck, out.shard)
	default:
		h.any[out.shard] = true // to a store that is not fit, rather than to none
		h.tries[out.shard]--
	}
}

// reasons lists why leaderships stay, up to eight.
func (h *handOver) reasons() (errs []error) {
	ids := make([]base.ShardID, 0, len(h.stuck))
	for id := range h.stuck {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	for _, id := range ids[:min(len(ids), 8)] {
		errs = append(errs, h.stuck[id])
	}
	return errs
}
