package simnet

import (
	"container/heap"
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"go.etcd.io/etcd/raft/v3/raftpb"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
	"github.com/shardd/shardd/transport"
)

// Faults are drawn per message, independently on every directed link.
type Faults struct {
	Drop      float64 // probability in [0, 1] that a message is lost
	Duplicate float64 // probability that it arrives twice; the second copy draws its own delay
	// Reorder is the probability that a message ignores the order of its link. Without it a link delivers what it
	// carries in the order of Send, separately for bulk (appends and their answers) and control.
	Reorder float64
	// MinDelay and MaxDelay bound the time a message takes; both 0 delivers at the same instant.
	MinDelay, MaxDelay time.Duration
}

// Event is one line of the trace.
type Event struct {
	At       time.Duration // since New, virtual or real
	Kind     string        // "deliver", "drop", "duplicate", "cut", "down" or "unreachable"
	From, To base.StoreID
	Msg      wire.RaftMessage // for "unreachable" only Shard, From and To are set, for liveness nothing
	Liveness []byte           // the body, if that is what travels
}

// String prints the event on one line.
func (e Event) String() string {
	if e.Liveness != nil {
		return fmt.Sprintf("%v %s %s->%s liveness bytes=%d", e.At, e.Kind, e.From, e.To, len(e.Liveness))
	}
	m := e.Msg
	return fmt.Sprintf("%v %s %s->%s %s %s->%d %s term=%d index=%d commit=%d entries=%d", e.At, e.Kind, e.From, e.To,
		m.Shard, base.ReplicaName(m.Shard, m.From), m.To, m.Msg.Type, m.Msg.Term, m.Msg.Index, m.Msg.Commit,
		len(m.Msg.Entries))
}

// Net is the network. All methods may be called at any time from any goroutine; handlers are called without a lock
// held, one at a time, and may Send.
type Net struct {
	seed uint64
	wake chan struct{} // Run: something earlier than its timer was queued

	mu struct {
		sync.Mutex
		now    time.Duration
		start  time.Time // set while Run runs: now follows the time package
		real   bool
		seq    uint64
		queue  eventHeap
		links  map[link]*linkState
		nodes  map[base.StoreID]*Node
		faults Faults
		trace  func(Event)
	}
}

type link struct{ from, to base.StoreID }

type linkState struct {
	rng    *rand.Rand
	faults *Faults // nil: those of the net
	cut    bool
	last   [classes]time.Duration // per class: when the latest ordered message arrives
	lost   map[group]bool         // appends that were reported lost and not accepted since
}

type group struct {
	shard    base.ShardID
	from, to base.ReplicaID
}

// New returns a network without faults; seed decides every later draw.
func New(seed int64) *Net {
	n := &Net{seed: uint64(seed), wake: make(chan struct{}, 1)}
	n.mu.links = make(map[link]*linkState)
	n.mu.nodes = make(map[base.StoreID]*Node)
	return n
}

// Node is one store's end of the network: a shard.Sender.
type Node struct {
	net         *Net
	store       base.StoreID
	handler     transport.Handler
	incarnation uint64 // guarded by net.mu
}

// SetIncarnation says what receivers of liveness bodies are told of the store's incarnation; without it they are told 0,
// which stands for not known.
func (d *Node) SetIncarnation(n uint64) {
	d.net.mu.Lock()
	defer d.net.mu.Unlock()
	d.incarnation = n
}

// Node attaches a store. If the store was attached before, this is its restart: the old Node is dead, what was on its
// way to it is lost.
func (n *Net) Node(store base.StoreID, h transport.Handler) *Node {
	n.Crash(store)
	node := &Node{net: n, store: store, handler: h}
	n.mu.Lock()
	n.mu.nodes[store] = node
	n.mu.Unlock()
	return node
}

// Crash detaches a store: what is on its way to or from it is lost, and its Node sends no more.
func (n *Net) Crash(store base.StoreID) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.mu.nodes[store] == nil {
		return
	}
	delete(n.mu.nodes, store)
	n.purgeLocked(func(l link) bool { return l.from == store || l.to == store })
}

// SetFaults replaces the faults of all links that have none of their own.
func (n *Net) SetFaults(f Faults) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.mu.faults = f
}

// SetLinkFaults gives one direction its own faults.
func (n *Net) SetLinkFaults(from, to base.StoreID, f Faults) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.linkLocked(link{from, to}).faults = &f
}

// Cut stops one direction; what is on its way is lost. The other direction goes on: call it twice for a clean cut.
func (n *Net) Cut(from, to base.StoreID) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.linkLocked(link{from, to}).cut = true
	n.purgeLocked(func(l link) bool { return l == link{from, to} })
}

// Isolate cuts a store off from all others, present and attached, in both directions.
func (n *Net) Isolate(store base.StoreID) {
	n.mu.Lock()
	var others []base.StoreID
	for id := range n.mu.nodes {
		if id != store {
			others = append(others, id)
		}
	}
	n.mu.Unlock()
	for _, id := range others {
		n.Cut(store, id)
		n.Cut(id, store)
	}
}

// Heal ends the cut of one direction.
func (n *Net) Heal(from, to base.StoreID) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.linkLocked(link{from, to}).cut = false
}

// HealAll ends every cut.
func (n *Net) HealAll() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, l := range n.mu.links {
		l.cut = false
	}
}

// SetTrace calls f, with the net's lock held, for every event: it must not call back. nil ends it.
func (n *Net) SetTrace(f func(Event)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.mu.trace = f
}

// Pending returns how many deliveries are under way.
func (n *Net) Pending() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.mu.queue)
}

// Now returns the time of the network.
func (n *Net) Now() time.Duration {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.nowLocked()
}

func (n *Net) nowLocked() time.Duration {
	if n.mu.real {
		return n.mu.now + time.Since(n.mu.start)
	}
	return n.mu.now
}

// linkLocked returns the state of a directed link. Each link draws from its own source, so that concurrent senders do
// not disturb each other's faults.
func (n *Net) linkLocked(l link) *linkState {
	s := n.mu.links[l]
	if s == nil {
		s = &linkState{
			rng:  rand.New(rand.NewPCG(n.seed, uint64(l.from)<<32|uint64(l.to)&0xffffffff)),
			lost: make(map[group]bool),
		}
		n.mu.links[l] = s
	}
	return s
}

func (n *Net) purgeLocked(match func(link) bool) {
	kept := n.mu.queue[:0]
	for _, e := range n.mu.queue {
		if !match(e.link) {
			kept = append(kept, e)
		} else if !e.report() {
			n.traceLocked("drop", e)
		}
	}
	clear(n.mu.queue[len(kept):])
	n.mu.queue = kept
	heap.Init(&n.mu.queue)
}

func (n *Net) traceLocked(kind string, e *event) {
	if n.mu.trace != nil {
		n.mu.trace(Event{At: n.nowLocked(), Kind: kind, From: e.link.from, To: e.link.to, Msg: e.msg,
			Liveness: e.live})
	}
}

// Step delivers what is due next, moving virtual time to it: one message, with those that follow it on the same link at
// the same instant. It reports whether there was anything.
func (n *Net) Step() bool { return n.deliver(-1) }

// Advance delivers everything that is due within the next d, in order, including what handlers send meanwhile, and
// moves virtual time on by d. It returns the number of deliveries.
func (n *Net) Advance(d time.Duration) int {
	end := n.Now() + d
	count := 0
	for n.deliver(end) {
		count++
	}
	n.mu.Lock()
	n.mu.now = max(n.mu.now, end)
	n.mu.Unlock()
	return count
}

// Run delivers in the time of the time package until ctx ends.
func (n *Net) Run(ctx context.Context) error {
	n.mu.Lock()
	n.mu.real, n.mu.start = true, time.Now()
	n.mu.Unlock()
	defer func() {
		n.mu.Lock()
		n.mu.now, n.mu.real = n.nowLocked(), false
		n.mu.Unlock()
	}()
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for ctx.Err() == nil {
		if n.deliver(n.Now()) {
			continue
		}
		wait := time.Hour
		n.mu.Lock()
		if len(n.mu.queue) > 0 {
			wait = max(n.mu.queue[0].at-n.nowLocked(), 0)
		}
		n.mu.Unlock()
		timer.Reset(wait)
		select {
		case <-ctx.Done():
		case <-timer.C:
		case <-n.wake:
		}
	}
	return ctx.Err()
}

// deliver hands over the next batch that is due by limit (negative: whenever).
func (n *Net) deliver(limit time.Duration) bool {
	n.mu.Lock()
	q := &n.mu.queue
	if len(*q) == 0 || limit >= 0 && (*q)[0].at > limit {
		n.mu.Unlock()
		return false
	}
	first := heap.Pop(q).(*event)
	if !n.mu.real {
		n.mu.now = max(n.mu.now, first.at)
	}
	batch := []*event{first}
	for first.frame != nil && len(*q) > 0 {
		next := (*q)[0]
		if next.link != first.link || next.at != first.at || next.frame == nil {
			break
		}
		batch = append(batch, heap.Pop(q).(*event))
	}
	to := first.link.to
	if first.report() {
		to = first.link.from
	}
	node := n.mu.nodes[to]
	var msgs []wire.RaftMessage
	for _, e := range batch {
		switch {
		case node == nil:
			n.traceLocked("down", e)
		case e.report():
			n.traceLocked("unreachable", e)
		case e.live != nil:
			n.traceLocked("deliver", e)
		default:
			n.traceLocked("deliver", e)
			var err error
			if msgs, _, err = transport.DecodeFrame(e.frame, e.link.from, e.link.to, msgs); err != nil {
				panic(fmt.Sprintf("simnet: own frame of %v: %v", e.msg.Msg.Type, err)) // a bug in the codec
			}
		}
	}
	n.mu.Unlock()
	switch {
	case node == nil:
	case first.live != nil:
		node.handler.Liveness(first.link.from, first.life, first.live)
	case first.report():
		node.handler.Unreachable(first.msg.Shard, first.msg.From, first.msg.To)
	default:
		node.handler.Step(msgs)
	}
	return true
}

// SendLiveness sends a copy of payload with the faults, delays and cuts of the link, in order with control messages. It
// never blocks.
func (d *Node) SendLiveness(to base.StoreID, payload []byte) {
	n := d.net
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.mu.nodes[d.store] != d {
		return // crashed
	}
	e := &event{link: link{d.store, to}, live: append([]byte{}, payload...), life: d.incarnation}
	s, f := n.faultsLocked(e.link)
	if len(payload) > transport.MaxLiveness {
		n.traceLocked("drop", e)
		return
	}
	if s.cut || n.mu.nodes[to] == nil {
		n.traceLocked("cut", e)
		return
	}
	n.launchLocked(s, f, e, control)
	n.pokeLocked()
}

// The two classes of a link, in each of which order is kept.
const (
	control = iota
	bulk
	classes
)

// Send implements shard.Sender: it never blocks. Messages of a type that the transport refuses are dropped. An append
// over a cut link or to a store that is down is reported to the sender's handler, once per group until one gets
// through.
func (d *Node) Send(to base.StoreID, msgs []wire.RaftMessage) {
	n := d.net
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.mu.nodes[d.store] != d {
		return // crashed
	}
	s, f := n.faultsLocked(link{d.store, to})
	for i := range msgs {
		n.sendLocked(d, s, f, to, msgs[i])
	}
	n.pokeLocked()
}

// faultsLocked returns the state of a link and the faults that hold on it.
func (n *Net) faultsLocked(l link) (*linkState, Faults) {
	s := n.linkLocked(l)
	if s.faults != nil {
		return s, *s.faults
	}
	return s, n.mu.faults
}

// pokeLocked has Run look at the queue.
func (n *Net) pokeLocked() {
	select {
	case n.wake <- struct{}{}:
	default:
	}
}

func (n *Net) sendLocked(d *Node, s *linkState, f Faults, to base.StoreID, m wire.RaftMessage) {
	e := &event{link: link{d.store, to}, msg: m}
	e.msg.FromStore, e.msg.ToStore = d.store, to
	frame, err := transport.AppendFrame(nil, []wire.RaftMessage{m})
	if err != nil {
		n.traceLocked("drop", e)
		return
	}
	e.frame = frame
	g := group{m.Shard, m.From, m.To}
	if s.cut || n.mu.nodes[to] == nil {
		n.traceLocked("cut", e)
		if m.Msg.Type == raftpb.MsgApp && !s.lost[g] {
			s.lost[g] = true
			n.pushLocked(&event{at: n.nowLocked(), link: e.link, msg: wire.RaftMessage{
				Shard: m.Shard, From: m.From, To: m.To, FromStore: d.store, ToStore: to}})
		}
		return
	}
	if m.Msg.Type == raftpb.MsgApp {
		delete(s.lost, g)
	}
	class := control
	if m.Msg.Type == raftpb.MsgApp || m.Msg.Type == raftpb.MsgAppResp {
		class = bulk
	}
	n.launchLocked(s, f, e, class)
}

// launchLocked sends an event on its way, or loses it.
func (n *Net) launchLocked(s *linkState, f Faults, e *event, class int) {
	// Every message makes the same draws, so that changing one probability moves no other.
	drop, dup, reorder := s.rng.Float64() < f.Drop, s.rng.Float64() < f.Duplicate, s.rng.Float64() < f.Reorder
	delay, again := s.delay(f), s.delay(f)
	if drop {
		n.traceLocked("drop", e)
		return
	}
	e.at = n.nowLocked() + delay
	if !reorder {
		e.at = max(e.at, s.last[class])
		s.last[class] = e.at
	}
	n.pushLocked(e)
	if dup {
		n.traceLocked("duplicate", e)
		second := *e
		second.at = n.nowLocked() + again
		n.pushLocked(&second)
	}
}

func (s *linkState) delay(f Faults) time.Duration {
	d := f.MinDelay
	r := s.rng.Uint64() // drawn in any case
	if span := f.MaxDelay - f.MinDelay; span > 0 {
		d += time.Duration(r % uint64(span+1))
	}
	return d
}
