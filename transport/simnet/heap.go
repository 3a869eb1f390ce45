package simnet

import (
	"container/heap"
	"time"

	"github.com/shardd/shardd/internal/wire"
)

// event is one delivery under way: of a message (frame), of a liveness body (live), or of a report of unreachability.
type event struct {
	at    time.Duration
	seq   uint64 // order of Send among those due at the same instant
	link  link
	frame []byte
	live  []byte           // not nil for liveness, though it may be empty
	life  uint64           // with live: the sender's incarnation
	msg   wire.RaftMessage // as it was sent: for the trace only
}

// report says that the event goes back to the sender of what was lost.
func (e *event) report() bool { return e.frame == nil && e.live == nil }

// eventHeap orders by time, then by seq.
type eventHeap []*event

func (h eventHeap) Len() int { return len(h) }
func (h eventHeap) Less(i, j int) bool {
	if h[i].at != h[j].at {
		return h[i].at < h[j].at
	}
	return h[i].seq < h[j].seq
}
func (h eventHeap) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h *eventHeap) Push(x any)   { *h = append(*h, x.(*event)) }
func (h *eventHeap) Pop() any {
	old := *h
	e := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	return e
}

func (n *Net) pushLocked(e *event) {
	n.mu.seq++
	e.seq = n.mu.seq
	heap.Push(&n.mu.queue, e)
}
