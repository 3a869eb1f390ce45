package liveness

import (
	"context"
	"time"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/clock"
)

// Beats. Tick is the clock of the state machine: it reports what has lapsed and sends what is due. Run calls it by a timer; a test calls it in virtual time.

// Run beats until ctx ends. When it returns nothing is sent any more by it; bodies may still be taken.
func (m *Monitor) Run(ctx context.Context) error {
	m.mu.Lock()
	m.mu.slack = m.cfg.Interval / slackShare
	m.mu.Unlock()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-timer.C:
		case <-m.wake:
		}
		timer.Reset(m.inStep(m.Tick(m.cfg.Clock.Boot())))
	}
}

// inStep lets beats go in step with the process's other ticks, if one of those comes a little sooner.
func (m *Monitor) inStep(next time.Duration) time.Duration {
	if at := clock.UntilAligned(m.cfg.Interval); at <= next && next-at < m.cfg.Interval/slackShare {
		return at
	}
	return next
}

// slackShare is the part of Interval by which a beat may leave early, to be in step with others.
const slackShare = 4

// Tick does what is due at boot time now, and returns after how long it wants to be called again: at most Interval.
func (m *Monitor) Tick(now time.Duration) (next time.Duration) {
	healthy := m.cfg.Healthy()
	m.mu.Lock()
	defer m.unlock()
	end := now + m.cfg.Interval
	supporting, supported := 0, 0
	for _, p := range *m.peers.Load() {
		m.lookLocked(p, now)
		m.checkLocked(p, now)
		if m.wantedLocked(p, now) {
			if due := p.due(m.cfg.Interval); due <= now || !p.urgent && due <= now+m.mu.slack {
				m.sendLocked(p, now, healthy)
			}
			end = min(end, p.due(m.cfg.Interval))
		}
		if pr := p.promise.Load(); pr.binds(now) {
			supporting++
			end = min(end, pr.until)
		}
		if p.counted {
			supported++
			end = min(end, p.held.Load().Until)
		}
	}
	m.metrics.supporting.Set(float64(supporting))
	m.metrics.supported.Set(float64(supported))
	return max(end-now, time.Millisecond)
}

// due is when the next body to a peer may leave.
func (p *peer) due(interval time.Duration) time.Duration {
	switch {
	case !p.beaten:
		return 0
	case p.urgent:
		return p.lastSent + interval/urgentShare
	}
	return p.lastSent + interval
}

// urgentShare bounds the bodies between two beats, whatever is urgent.
const urgentShare = 10

// lookLocked reports what has ended by itself.
func (m *Monitor) lookLocked(p *peer, now time.Duration) {
	if pr := p.settle(now); pr != nil && pr.ended {
		m.lapsedLocked(p, pr.epoch, "lapsed")
	}
	if h := p.held.Load(); p.counted && h.Until <= now {
		p.counted = false
		m.eventLocked(event{kind: supportLost, store: p.store, epoch: h.Epoch, why: "lapsed"})
	}
}

// lapsedLocked reports the end of an epoch of our support, once.
func (m *Monitor) lapsedLocked(p *peer, epoch uint64, why string) {
	if p.announced == epoch {
		return
	}
	p.announced = epoch
	m.eventLocked(event{kind: lapse, store: p.store, epoch: epoch, why: why})
}

// wantedLocked says whether a peer gets beats: one that shares a group with us, or that believes so: it has asked for support lately.
// State towards others is kept all the same: numbers of bodies must not start anew within a life.
func (m *Monitor) wantedLocked(p *peer, now time.Duration) bool {
	return m.cfg.Promise > 0 && (p.listed || p.asks && now-p.heardAt <= 2*m.cfg.Promise)
}

// checkLocked asks a store, now and then, about all groups that we follow there (V8).
func (m *Monitor) checkLocked(p *peer, now time.Duration) {
	if m.cfg.Follows == nil || m.cfg.CheckInterval < 0 || !p.promise.Load().binds(now) {
		p.nextCheck, p.round = 0, nil
		return
	}
	if p.nextCheck != 0 && now < p.nextCheck {
		return
	}
	// The first one after half a period to a period and a half from the start of support, like those between.
	if first := p.nextCheck == 0; !first && len(p.questions.items) == 0 {
		m.eventLocked(event{kind: check, store: p.store})
	}
	p.nextCheck = now + m.cfg.CheckInterval/2 + time.Duration(m.mu.rng.Int64N(int64(m.cfg.CheckInterval)))
}

const (
	// checkPart is about how many groups a check asks at once. All of tens of thousands in each check would be a good part of
	// what an idle store costs.
	checkPart = maxItems / 2
	// checkParts is in how many checks all groups have had their turn, however many there are.
	checkParts = 6
)

// check asks a store about the next part of the groups that we follow there, and after the last part about all anew. What has
// changed since a round began does no harm: the answer to an old question concerns an old term, and who is new to it
// is asked in the next.
func (m *Monitor) check(store base.StoreID) {
	m.mu.Lock()
	p := m.peer(store)
	begins := len(p.round) == 0
	m.unlock()
	var all []Group
	if begins {
		all = m.cfg.Follows(store)
	}
	m.mu.Lock()
	defer m.unlock()
	if begins {
		p.round, p.part = all, max(checkPart, (len(all)+checkParts-1)/checkParts)
	}
	n := min(len(p.round), p.part)
	if n == 0 {
		return
	}
	m.enqueueLocked(p, &p.questions, p.round[:n])
	if p.round = p.round[n:]; len(p.round) == 0 {
		p.round = nil // its array
	}
}

// sendLocked composes the state towards a peer and hands it to the transport. now was read before: the peer's support
// counts from it.
func (m *Monitor) sendLocked(p *peer, now time.Duration, healthy bool) {
	p.sent++
	p.sentAt[p.sent%sentRing] = sentBody{p.sent, now}
	p.lastSent, p.beaten, p.urgent = now, true, false
	b := body{
		margin: m.margin, from: m.cfg.Incarnation, to: p.incarnation, seq: p.sent, heard: p.seq,
		releasesTaken: p.releasesTaken, questionsTaken: p.questionsTaken,
		firstRelease: p.releases.first, firstQuestion: p.questions.first,
		releases: p.releases.head(), queries: p.questions.head(),
	}
	if b.asks = p.listed && healthy; b.asks {
		b.promise = m.cfg.Promise
	}
	if pr := p.promise.Load(); pr.binds(now) {
		b.granted, b.epoch, b.grantedFor = p.granted, pr.epoch, p.grantedFor
	}
	m.metrics.sent.Inc()
	m.cfg.Send(p.store, b.append(make([]byte, 0, bodyFixed+groupSize*(len(b.releases)+len(b.queries)))))
}
