package transport

import (
	"errors"
	"fmt"
	"sync"

	"github.com/shardd/shardd/internal/base"
)

// registry knows which process speaks for each store. Incarnations are raised and synced before a transport starts, so
// two processes never share one honestly: equal incarnations of different processes mean a copied data directory, and
// the one that was seen first keeps its place, connected or not.
type registry struct {
	mu struct {
		sync.Mutex
		stores map[base.StoreID]*identity
		fenced map[base.StoreID]bool // nothing of them is listened to
	}
}

type identity struct {
	incarnation uint64
	process     uint64
	streams     [numLanes]*inbound // live inbound streams
}

// inbound is one accepted stream.
type inbound struct {
	lane    laneKind
	peer    hello
	evicted chan struct{} // closed when a later stream or incarnation takes its place
	step    sync.Mutex    // held while a frame goes to the handler
}

// checkLocked refuses a Hello that an earlier one contradicts.
func (r *registry) checkLocked(h *hello) *refusal {
	id := r.mu.stores[h.store]
	switch {
	case r.mu.fenced[h.store]:
		return &refusal{reason: RefusedRemoved, text: ErrRemoved.Error()}
	case id == nil || h.incarnation > id.incarnation:
		return nil
	case h.incarnation < id.incarnation:
		return &refusal{reason: RefusedStale, text: fmt.Sprintf(
			"%s came back with incarnation %d, %d has been seen: this process runs on an old copy of its data",
			h.store, h.incarnation, id.incarnation)}
	case h.process != id.process:
		return &refusal{reason: RefusedTwice, text: fmt.Sprintf(
			"another process is %s with incarnation %d: the data directory was copied", h.store, h.incarnation)}
	}
	return nil
}

// check refuses what admit would refuse, without recording anything.
func (r *registry) check(h *hello) *refusal {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.checkLocked(h)
}

// admit records a store's identity, evicts the streams of its lower incarnations and, if in is given, the stream that
// in replaces. newer reports that the incarnation rose while this process ran. Once admit has returned, nothing of a lower
// incarnation goes to the handler any more (V13): it waits for a frame that is on its way there.
func (r *registry) admit(h *hello, in *inbound) (newer bool, refused *refusal) {
	newer, old, refused := r.replace(h, in)
	for _, o := range old {
		o.step.Lock()
		//lint:ignore SA2001 a barrier: whoever steps next sees that it is evicted
		o.step.Unlock()
	}
	return newer, refused
}

func (r *registry) replace(h *hello, in *inbound) (newer bool, old []*inbound, refused *refusal) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if ref := r.checkLocked(h); ref != nil {
		return false, nil, ref
	}
	id := r.mu.stores[h.store]
	if id == nil {
		id = &identity{incarnation: h.incarnation, process: h.process}
		r.mu.stores[h.store] = id
	} else if h.incarnation > id.incarnation {
		newer = true
		id.incarnation, id.process = h.incarnation, h.process
		for lane, o := range id.streams {
			if o != nil {
				old = append(old, o)
				id.evictLocked(laneKind(lane))
			}
		}
	}
	if in != nil {
		id.evictLocked(in.lane)
		id.streams[in.lane] = in
	}
	return newer, old, nil
}

func (id *identity) evictLocked(lane laneKind) {
	if old := id.streams[lane]; old != nil {
		close(old.evicted)
		id.streams[lane] = nil
	}
}

// fence refuses a store from now on, and ends its inbound streams: nothing of it is stepped once this has returned, but
// for the frame that is being stepped. Without yes, it may come back.
func (r *registry) fence(s base.StoreID, yes bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !yes {
		delete(r.mu.fenced, s)
		return
	}
	r.mu.fenced[s] = true
	if id := r.mu.stores[s]; id != nil {
		for lane := range id.streams {
			id.evictLocked(laneKind(lane))
		}
	}
}

// leave forgets a stream that has ended.
func (r *registry) leave(in *inbound) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if id := r.mu.stores[in.peer.store]; id != nil && id.streams[in.lane] == in {
		id.streams[in.lane] = nil
	}
}

// vet checks a Hello against our own identity and the address book. It holds no lock while the book writes.
func (t *Transport) vet(h *hello) *refusal {
	if ref := t.vetIdentity(h); ref != nil {
		return ref
	}
	if ref := t.registry.check(h); ref != nil {
		return ref
	}
	err := t.cfg.Peers.Hello(h.store, h.addr, h.incarnation)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, ErrStale):
		return &refusal{reason: RefusedStale, text: err.Error()}
	case errors.Is(err, ErrRemoved):
		return &refusal{reason: RefusedRemoved, text: err.Error()}
	}
	return &refusal{reason: RefusedNotReady, text: err.Error()}
}

func (t *Transport) vetIdentity(h *hello) *refusal {
	switch {
	case h.protoMin > protoMax || h.protoMax < protoMin:
		return &refusal{reason: RefusedProtocol, text: fmt.Sprintf(
			"no common protocol version: peer speaks %d to %d, this binary %d to %d",
			h.protoMin, h.protoMax, protoMin, protoMax)}
	case h.cluster != t.cfg.Cluster:
		return &refusal{reason: RefusedCluster, text: fmt.Sprintf(
			"this node belongs to cluster %s, not to %s", t.cfg.Cluster, h.cluster)}
	case h.dest != t.cfg.Store:
		return &refusal{reason: RefusedWrongID, text: fmt.Sprintf("this node is %s, not %s", t.cfg.Store, h.dest)}
	case h.store == 0:
		return &refusal{reason: RefusedProtocol, text: "hello without a store id"}
	case h.store == t.cfg.Store:
		return &refusal{reason: RefusedTwice, text: fmt.Sprintf("this node is %s itself", t.cfg.Store)}
	}
	return nil
}
