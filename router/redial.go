package router

import (
	"time"

	"github.com/cenkalti/backoff/v5"
)

// wantedFor is how long a node that cannot be reached is tried again without an operation that asks for it.
const wantedFor = 10 * time.Second

// redial is the pace at which a link tries a node that cannot be reached. It belongs to the link's sender.
type redial struct {
	pause *backoff.ExponentialBackOff
	timer *time.Timer // runs while the node is tried again
}

func (r *redial) init(cfg *MuxConfig) {
	r.pause = &backoff.ExponentialBackOff{
		InitialInterval: cfg.RedialMin, MaxInterval: cfg.RedialMax, Multiplier: 2, RandomizationFactor: 0.3,
	}
	r.pause.Reset()
	r.timer = time.NewTimer(time.Hour)
	r.timer.Stop()
}

func (r *redial) succeeded() {
	r.pause.Reset()
	r.timer.Stop()
}

// shunLocked has operations fail for a while, because the node cannot be reached, and has it tried again after that. Until
// that has been done operations go on failing: a host that swallows what is sent to it costs none of them OpenTimeout.
func (l *link) shunLocked(err error) {
	now := time.Now()
	pause := l.redial.pause.NextBackOff()
	l.mu.down, l.mu.downUntil = err, now.Add(pause)
	if now.Sub(l.mu.wanted) < wantedFor {
		l.redial.timer.Reset(pause)
		l.busyLocked(pause)
	}
}

// busyLocked has operations fail while the node, which could not be reached, is tried again after a pause.
func (l *link) busyLocked(pause time.Duration) {
	if l.mu.down != nil {
		l.mu.downUntil = time.Now().Add(pause + 2*l.mux.cfg.OpenTimeout)
	}
}

// tryAgain opens a stream ahead of the operations that will need it: a node that comes back is given leaderships at once,
// and whoever is the first to follow one there would find it still shunned.
func (l *link) tryAgain() {
	if _, err := l.ensure(); err != nil {
		l.mu.Lock()
		l.shunLocked(err)
		l.mu.Unlock()
	}
}

// shunnedLocked reports whether an operation for the node fails at once.
func (l *link) shunnedLocked() bool {
	if l.mu.down == nil {
		return false
	}
	now := time.Now()
	if !now.Before(l.mu.downUntil) {
		return false
	}
	l.mu.wanted = now
	return true
}
