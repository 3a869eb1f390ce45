package liveness

import (
	"time"

	"github.com/shardd/shardd/internal/base"
)

// Receive takes a body from the transport, which knows the incarnation of its sender (0: not known). It is cheap, never
// blocks, and keeps nothing of the payload. What is malformed, old or of an earlier incarnation is dropped and counted.
func (m *Monitor) Receive(from base.StoreID, incarnation uint64, payload []byte) {
	if m.cfg.Promise == 0 {
		return
	}
	// Before the lock: a promise counts from when its request came, or later, and both are after it was sent.
	now, healthy := m.cfg.Clock.Boot(), m.cfg.Healthy()
	b, err := parseBody(payload)
	if err != nil || from == 0 || from == m.cfg.Store {
		m.metrics.dropped[dropMalformed].Inc()
		return
	}
	m.mu.Lock()
	defer m.unlock()
	if reason := m.takeLocked(from, incarnation, &b, now, healthy); reason != taken {
		m.metrics.dropped[reason].Inc()
		return
	}
	m.metrics.received.Inc()
}

func (m *Monitor) takeLocked(from base.StoreID, incarnation uint64, b *body, now time.Duration, healthy bool) int {
	p := m.peerLocked(from)
	switch {
	case incarnation != 0 && b.from != incarnation, b.from < p.incarnation:
		return dropIncarnation
	case b.from > p.incarnation:
		m.newLifeLocked(p, b.from)
	case b.seq <= p.seq:
		return dropOld
	}
	if p.seq != 0 && b.seq > p.seq+1 {
		p.urgent = true // it lost a body, and so most of the time that its support has left
	}
	p.seq, p.heardAt, p.asks = b.seq, now, b.asks
	if b.to == m.cfg.Incarnation { // else it speaks of bodies that an earlier life of ours has sent
		m.heardLocked(p, b, now)
	}
	var items []Group
	if items, p.releasesTaken = fresh(b.releases, b.firstRelease, p.releasesTaken); len(items) > 0 {
		m.eventLocked(event{kind: released, store: from, items: items})
	}
	if items, p.questionsTaken = fresh(b.queries, b.firstQuestion, p.questionsTaken); len(items) > 0 {
		m.eventLocked(event{kind: asked, store: from, items: items})
	}
	if b.asks {
		m.grantLocked(p, b, now)
	}
	if p.urgent {
		if p.due(m.cfg.Interval) <= now {
			m.sendLocked(p, now, healthy)
		} else {
			poke(m.wake)
		}
	}
	return taken
}

// newLifeLocked forgets what was between us and an earlier incarnation of a store: it holds no leases any more, and its
// promises are kept by its silence, not under epochs.
func (m *Monitor) newLifeLocked(p *peer, incarnation uint64) {
	for pr := p.promise.Load(); pr != nil; pr = p.promise.Load() {
		if pr.ended || p.promise.CompareAndSwap(pr, &promise{epoch: pr.epoch, until: pr.until, ended: true}) {
			m.lapsedLocked(p, pr.epoch, "restart")
			break
		}
	}
	if h := p.held.Swap(nil); h != nil && p.counted {
		m.eventLocked(event{kind: supportLost, store: p.store, epoch: h.Epoch, why: "restart"})
	}
	if p.incarnation != 0 { // what waits is for that life
		p.releases.clear()
		p.questions.clear()
	}
	p.incarnation, p.seq, p.counted, p.hasHeard, p.granted = incarnation, 0, false, false, 0
	p.releasesTaken, p.questionsTaken = 0, 0
	p.urgent = true
}

// heardLocked takes what a body says about ours: which it has heard, and which has support.
func (m *Monitor) heardLocked(p *peer, b *body, now time.Duration) {
	p.releases.taken(b.releasesTaken)
	p.questions.taken(b.questionsTaken)
	if at, ok := p.when(b.heard); ok {
		p.heardUs, p.hasHeard = at, true
	}
	at, ok := p.when(b.granted)
	if !ok {
		return
	}
	// V2, V13: from when we sent it, less the margin; the lower time and the greater margin of both stores' settings.
	d := min(b.grantedFor, m.cfg.Promise)
	until := at + d - time.Duration(float64(d)*float64(max(b.margin, m.margin))/million) - 1
	old := p.held.Load()
	if old != nil && (b.epoch < old.Epoch || b.epoch == old.Epoch && until <= old.Until) || until <= now {
		return
	}
	p.held.Store(&Support{Epoch: b.epoch, Until: until})
	isFresh := old == nil || old.Epoch != b.epoch
	if isFresh || !p.counted || old.Until <= now {
		p.counted = true
		m.eventLocked(event{kind: supportGained, store: p.store, epoch: b.epoch, fresh: isFresh})
	}
}

// when returns the time at which our body of that number left, if it is remembered.
func (p *peer) when(seq uint64) (time.Duration, bool) {
	s := p.sentAt[seq%sentRing]
	return s.at, seq != 0 && s.seq == seq
}

// grantLocked promises support to a store that asks for it and shows that it hears us.
func (m *Monitor) grantLocked(p *peer, b *body, now time.Duration) {
	// V13. Three quarters of D, so that one body may be lost: in a one-way cut our promise ends at most that much later than
	// what the store can count on.
	if !p.hasHeard || now-p.heardUs > m.cfg.Promise*3/4 {
		p.urgent = true // it needs a body of ours to show
		return
	}
	d := min(b.promise, m.cfg.Promise)
	p.granted, p.grantedFor = b.seq, d
	for {
		pr := p.settle(now)
		if pr.binds(now) {
			if p.promise.CompareAndSwap(pr, &promise{epoch: pr.epoch, until: max(pr.until, now+d)}) {
				return
			}
			continue
		}
		if pr != nil {
			m.lapsedLocked(p, pr.epoch, "lapsed")
		}
		m.mu.counter++
		epoch := m.cfg.Incarnation<<epochBits | m.mu.counter
		p.promise.Store(&promise{epoch: epoch, until: now + d}) // nobody else replaces one that has ended
		p.urgent = true
		m.eventLocked(event{kind: begin, store: p.store, epoch: epoch})
		return
	}
}
