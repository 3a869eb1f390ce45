package transport

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"runtime"
	"sync"
	"time"

	"go.etcd.io/etcd/raft/v3/raftpb"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
)

// laneKind says which of a peer's two queues and connections a message takes.
type laneKind uint8

const (
	bulkLane laneKind = iota
	controlLane
	numLanes
)

// String returns the word used in logs and metrics.
func (k laneKind) String() string {
	if k == bulkLane {
		return "bulk"
	}
	return "control"
}

func (k laneKind) method() string {
	if k == bulkLane {
		return "Bulk"
	}
	return "Control"
}

// laneOf chooses the lane of a message type.
func laneOf(t raftpb.MessageType) laneKind {
	if t == raftpb.MsgApp || t == raftpb.MsgAppResp {
		return bulkLane
	}
	return controlLane
}

// lane is the way to one peer for one kind of messages: a bounded queue and the goroutine that empties it into a link.
//
//	idle ──message──> connecting ──ok──> up ──link fails──> connecting
//	                      │ fails                (or down, if it lived for less than stableLink)
//	                      v
//	                    down: everything is dropped; after the back-off, connecting if anything was wanted
type lane struct {
	t     *Transport
	peer  base.StoreID
	kind  laneKind
	limit int
	wake  chan struct{} // something to do
	heard chan struct{} // the peer has connected to us: it is alive

	mu struct {
		sync.Mutex
		queue   []*outgoing
		spare   []*outgoing // the sender's last batch, for its array
		beats   *outgoing   // heartbeats of this window; control only
		live    []byte      // the latest liveness body that has not left; control only
		bytes   int         // queued and being sent
		down    bool        // in back-off
		wanted  bool        // something was dropped since the last attempt
		stopped bool
		up      *link
		lost    map[group]struct{} // reported lost, and no append accepted on a live link since
	}
	said string // last state that was logged; owned by run
}

// stableLink is how long a link must live for its end to count as news and not as another failed attempt.
const stableLink = time.Second

func newLane(t *Transport, peer base.StoreID, kind laneKind, limit int) *lane {
	l := &lane{
		t: t, peer: peer, kind: kind, limit: limit,
		wake: make(chan struct{}, 1), heard: make(chan struct{}, 1),
	}
	l.mu.lost = make(map[group]struct{})
	return l
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// send queues those of msgs that belong to this lane. It never blocks.
func (l *lane) send(msgs []wire.RaftMessage) {
	l.mu.Lock()
	before, wake := l.mu.bytes, false
	for i := range msgs {
		m := &msgs[i]
		if !Sendable(m.Msg.Type) || laneOf(m.Msg.Type) != l.kind {
			continue
		}
		wake = l.addLocked(m) || wake
	}
	added := l.mu.bytes - before
	l.mu.Unlock()
	if added > 0 {
		l.metrics().queue.Add(float64(added))
	}
	if wake {
		poke(l.wake)
	}
}

// addLocked queues one message and reports whether the sender should look at once.
func (l *lane) addLocked(m *wire.RaftMessage) bool {
	beat := isBeat(&m.Msg)
	size := recordSize(m) + dataSize(m)
	if beat {
		size = beatLen(m)
	}
	switch {
	case l.mu.stopped:
		l.dropLocked(m, dropStopped)
		return false
	case l.mu.down:
		l.mu.wanted = true
		l.dropLocked(m, dropDown)
		return true
	case l.mu.bytes+size > l.limit:
		l.dropLocked(m, dropFull)
		return true
	}
	if beat {
		if l.mu.beats == nil {
			l.mu.beats = newOutgoing(kindHeartbeats)
			poke(l.t.beats)
		}
		l.mu.beats.add(m)
		l.mu.bytes += size
		return false
	}
	if checkMessage(m) != nil {
		l.dropLocked(m, dropRefused)
		return false
	}
	var f *outgoing
	if n := len(l.mu.queue); n > 0 {
		if last := l.mu.queue[n-1]; last.kind == kindMessages && last.size()+size <= splitBody {
			f = last
		}
	}
	if f == nil {
		f = newOutgoing(kindMessages)
		l.mu.queue = append(l.mu.queue, f)
	}
	f.add(m)
	l.mu.bytes += size
	if len(l.mu.lost) > 0 && l.mu.up != nil && m.Msg.Type == raftpb.MsgApp {
		delete(l.mu.lost, group{m.Shard, m.From, m.To})
	}
	return true
}

// sendLiveness queues a liveness body in place of an earlier one. It counts towards no bound: there is one, and it is
// short.
func (l *lane) sendLiveness(payload []byte) {
	l.mu.Lock()
	reason := ""
	switch {
	case l.mu.stopped:
		reason = dropStopped
	case l.mu.down:
		l.mu.wanted = true
		reason = dropDown
	default:
		if l.mu.live != nil {
			reason = dropReplaced
		}
		l.mu.live = payload
	}
	l.mu.Unlock()
	if reason != "" {
		l.t.metrics.livenessDrops.WithLabelValues(reason).Inc()
	}
	if reason != dropStopped {
		poke(l.wake)
	}
}

// takeLiveness returns the body that waits, or nil.
func (l *lane) takeLiveness() []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	payload := l.mu.live
	l.mu.live = nil
	return payload
}

// dropLiveness drops the body that waits.
func (l *lane) dropLiveness(reason string) {
	if l.takeLiveness() != nil {
		l.t.metrics.livenessDrops.WithLabelValues(reason).Inc()
	}
}

func (l *lane) dropLocked(m *wire.RaftMessage, reason string) {
	l.t.metrics.drops.WithLabelValues(l.kind.String(), reason).Inc()
	if m.Msg.Type == raftpb.MsgApp && reason != dropStopped {
		l.lostLocked(group{m.Shard, m.From, m.To})
	}
}

// lostLocked has an append reported, once per group and loss (L5). The report is delivered by its own goroutine: the
// caller may be a worker that holds who knows what, and the lane's goroutine may be stuck in the network.
func (l *lane) lostLocked(g group) {
	if _, ok := l.mu.lost[g]; ok {
		return
	}
	l.mu.lost[g] = struct{}{}
	l.t.reports.add(g)
}

// flushBeats queues the heartbeats of the window as one frame.
func (l *lane) flushBeats() {
	l.mu.Lock()
	f := l.mu.beats
	l.mu.beats = nil
	if f != nil {
		l.mu.queue = append(l.mu.queue, f)
	}
	l.mu.Unlock()
	if f != nil {
		poke(l.wake)
	}
}

// take empties the queue.
func (l *lane) take() []*outgoing {
	l.mu.Lock()
	defer l.mu.Unlock()
	taken := l.mu.queue
	l.mu.queue = l.mu.spare[:0]
	l.mu.spare = nil
	return taken
}

// sent accounts for frames that left, or were lost in a link.
func (l *lane) sent(bytes int) {
	l.mu.Lock()
	l.mu.bytes -= bytes
	l.mu.Unlock()
	l.metrics().queue.Sub(float64(bytes))
}

// discard drops frames and reports their appends.
func (l *lane) discard(frames []*outgoing, reason string) {
	if len(frames) == 0 {
		return
	}
	n, count := 0, 0
	l.mu.Lock()
	for i, f := range frames {
		n += f.size() - headerSize
		count += int(f.count)
		for _, g := range f.apps {
			l.lostLocked(g)
		}
		f.release()
		frames[i] = nil
	}
	l.mu.wanted = true
	l.mu.Unlock()
	l.sent(n)
	l.t.metrics.drops.WithLabelValues(l.kind.String(), reason).Add(float64(count))
}

// run is the lane's goroutine: it connects when something is to be sent, sends, and starts again when the link fails.
func (l *lane) run(ctx context.Context) {
	defer l.stop()
	failures := 0
	for l.awaitWork(ctx) {
		k, err := l.connect(ctx)
		if err == nil {
			l.setUp(k)
			l.say("connected", slog.String("addr", k.addr), slog.Uint64("incarnation", k.peer.incarnation))
			since := time.Now()
			err = l.serve(ctx, k)
			k.close()
			l.setUp(nil)
			if ctx.Err() != nil {
				return
			}
			l.metrics().disconnects.Inc()
			l.say("lost", slog.Any("error", err))
			if l.kind == bulkLane {
				l.discard(l.take(), dropBroken)
			}
			if time.Since(since) > stableLink {
				failures = 0
				continue
			}
		} else if ctx.Err() != nil {
			return
		} else {
			l.metrics().failures.Inc()
			l.failed(err)
		}
		failures++
		if l.pause(ctx, failures) {
			failures = 0
		}
	}
}

// awaitWork waits until something is queued or was wanted; false at the end of ctx.
func (l *lane) awaitWork(ctx context.Context) bool {
	for {
		l.mu.Lock()
		ready := len(l.mu.queue) > 0 || l.mu.live != nil || l.mu.wanted
		l.mu.wanted = l.mu.wanted && !ready
		l.mu.Unlock()
		if ctx.Err() != nil {
			return false
		}
		if ready {
			return true
		}
		select {
		case <-ctx.Done():
			return false
		case <-l.wake:
		}
	}
}

// failed logs a failed attempt, the first time, and tells the node if a peer has fenced us.
func (l *lane) failed(err error) {
	var ref *RefusedError
	if !errors.As(err, &ref) {
		l.say("unreachable", slog.Any("error", err))
		return
	}
	l.t.metrics.refusals.WithLabelValues("dialler", ref.Reason.String()).Inc()
	news := l.say("refused: "+ref.Reason.String(), slog.Any("error", err))
	if news && l.t.cfg.Fenced != nil && (errors.Is(err, ErrFenced) || errors.Is(err, ErrOtherCluster)) {
		l.t.cfg.Fenced(err)
	}
}

// say logs a state of the lane unless it was the last one logged, and reports whether it was news.
func (l *lane) say(state string, attrs ...any) bool {
	if l.said == state {
		return false
	}
	l.said = state
	level := slog.LevelInfo
	if state != "connected" {
		level = slog.LevelWarn
	}
	l.t.log.Log(context.Background(), level, "peer "+state,
		append([]any{slog.String("peer", l.peer.String()), slog.String("lane", l.kind.String())}, attrs...)...)
	return true
}

func (l *lane) setUp(k *link) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mu.up = k
	if k == nil {
		l.metrics().links.Dec()
		return
	}
	clear(l.mu.lost)
	l.metrics().links.Inc()
	l.metrics().connects.Inc()
}

// pause waits out the back-off, with everything dropped that comes meanwhile. It reports whether the peer was heard of
// and the wait cut short.
func (l *lane) pause(ctx context.Context, failures int) bool {
	l.mu.Lock()
	l.mu.down = true
	frames := l.mu.queue
	l.mu.queue = nil
	if l.mu.beats != nil {
		frames = append(frames, l.mu.beats)
		l.mu.beats = nil
	}
	l.mu.Unlock()
	l.discard(frames, dropDown)
	l.dropLiveness(dropDown)
	timer := time.NewTimer(redialDelay(failures))
	defer timer.Stop()
	heard := false
	select {
	case <-ctx.Done():
	case <-timer.C:
	case <-l.heard:
		heard = true
	}
	l.mu.Lock()
	l.mu.down = false
	l.mu.Unlock()
	return heard
}

// redialDelay is the wait after the n-th failure in a row: from 50 ms to 1 s, with 20 % jitter.
func redialDelay(n int) time.Duration {
	d := float64(baseRedial)
	for ; n > 1 && d < float64(maxRedial); n-- {
		d *= redialFactor
	}
	d = min(d, float64(maxRedial)) * (1 - redialJitter*rand.Float64())
	return time.Duration(d)
}

// serve sends what is queued until the link fails or ctx ends.
func (l *lane) serve(ctx context.Context, k *link) error {
	poke(l.wake) // the one for what is queued already may be spent
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-k.done:
			return k.reason()
		case <-l.wake:
		}
		// Other workers are about to queue for the same peer: one frame for all of them is cheaper than one each.
		runtime.Gosched()
		if k.pingDue.Swap(false) {
			if err := k.ping(); err != nil {
				return k.reason()
			}
		}
		if err := l.drain(k); err != nil {
			return k.reason()
		}
	}
}

// drain sends until the queue is empty.
func (l *lane) drain(k *link) error {
	for {
		frames := l.take()
		if len(frames) == 0 {
			return l.drainLiveness(k)
		}
		for i, f := range frames {
			n := f.size() - headerSize
			err := l.drainLiveness(k) // before each frame: it must never wait for more than one
			if err == nil {
				err = k.send(f)
			}
			if err != nil {
				l.mu.Lock()
				for _, g := range f.apps {
					l.lostLocked(g)
				}
				l.mu.wanted = true
				l.mu.Unlock()
				l.sent(n)
				l.t.metrics.drops.WithLabelValues(l.kind.String(), dropBroken).Add(float64(f.count))
				l.discard(frames[i+1:], dropBroken)
				return err
			}
			frames[i] = nil
			l.sent(n)
		}
		l.mu.Lock()
		l.mu.spare = frames[:0]
		l.mu.Unlock()
	}
}

// drainLiveness sends the liveness body that waits, if there is one.
func (l *lane) drainLiveness(k *link) error {
	payload := l.takeLiveness()
	if payload == nil {
		return nil
	}
	if err := k.send(livenessFrame(payload)); err != nil {
		l.mu.Lock()
		l.mu.wanted = true
		l.mu.Unlock()
		l.t.metrics.livenessDrops.WithLabelValues(dropBroken).Inc()
		return err
	}
	return nil
}

// peerAlive tells the lane that the peer has connected to us: a wait for the next attempt is over, and a link to an
// earlier incarnation is dead whether or not it has noticed.
func (l *lane) peerAlive(incarnation uint64) {
	l.mu.Lock()
	k := l.mu.up
	l.mu.Unlock()
	if k == nil {
		poke(l.heard)
	} else if k.peer.incarnation < incarnation {
		k.fail(errSuperseded)
	}
}

// cut ends the link that is up.
func (l *lane) cut(why error) {
	l.mu.Lock()
	k := l.mu.up
	l.mu.Unlock()
	if k != nil {
		k.fail(why)
	}
}

// stop drops what is left at the end of run.
func (l *lane) stop() {
	l.mu.Lock()
	l.mu.stopped = true
	frames := l.mu.queue
	if l.mu.beats != nil {
		frames = append(frames, l.mu.beats)
	}
	l.mu.queue, l.mu.beats, l.mu.live = nil, nil, nil
	n := 0
	for _, f := range frames {
		n += f.size() - headerSize
		f.release()
	}
	l.mu.bytes -= n
	l.mu.Unlock()
	l.metrics().queue.Sub(float64(n))
}

func (l *lane) metrics() *laneMetrics { return &l.t.metrics.lanes[l.kind] }
