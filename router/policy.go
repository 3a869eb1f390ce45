package router

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/cenkalti/backoff/v5"

	"github.com/shardd/shardd/internal/wire"
)

// action is what follows from one attempt.
type action uint8

const (
	accept  action = iota // the answer is the result
	refuse                // definite and final
	unsure                // the write may have happened: final, never sent again (S2)
	follow                // another node leads: ask it
	repair                // the descriptor was old: take the new ones from the answer
	search                // the node does not have the shard: ask the Directory
	another               // the node cannot serve: ask the next replica
	waitFor               // the node, the queue to it, or its disk is full: the same again after a pause
)

// decide is the one table from what came back to what to do. Every code but Ambiguous says that a write did not and
// never will happen, so all of them may be followed by another attempt.
func decide(write bool, a *wire.Answer, err error) action {
	switch {
	case err == nil:
		return decideCode(write, a.Code)
	case errors.Is(err, ErrNotSent):
		switch {
		case errors.Is(err, ErrClosed):
			return refuse
		case errors.Is(err, ErrQueueFull):
			return waitFor
		}
		return another
	case write:
		return unsure
	case errors.Is(err, ErrClosed):
		return refuse
	}
	return another
}

func decideCode(write bool, c wire.Code) action {
	switch c {
	case wire.OK, wire.NotFound, wire.ConditionFailed:
		return accept
	case wire.NotLeader:
		return follow
	case wire.EpochMismatch:
		return repair
	case wire.ShardNotFound:
		return search
	case wire.Busy, wire.DiskFull: // of a full disk the leadership goes elsewhere, if it can
		return waitFor
	case wire.Unavailable, wire.TimedOut, wire.Failed:
		return another
	case wire.Invalid:
		return refuse
	}
	// Ambiguous, or a code that is newer than this binary: nothing may be assumed of a write.
	if write {
		return unsure
	}
	return another
}

// answerError is the Reason made of an answer that is not a result.
type answerError struct {
	code wire.Code
	arg  uint64
	text string
}

func reasonOf(a *wire.Answer) error {
	e := &answerError{code: a.Code, arg: a.Arg}
	switch a.Code {
	case wire.Busy, wire.Ambiguous, wire.Invalid, wire.Unavailable, wire.TimedOut, wire.Failed, wire.DiskFull:
		e.text = string(a.Payload[:min(len(a.Payload), 512)])
	}
	return e
}

func (e *answerError) Error() string {
	switch {
	case e.text != "":
		return fmt.Sprintf("node answered %s: %s", e.code, e.text)
	case e.code == wire.NotLeader && e.arg != 0:
		return fmt.Sprintf("node answered %s, n%d leads", e.code, e.arg)
	}
	return fmt.Sprintf("node answered %s", e.code)
}

// overloaded reports whether the reason of the last attempt was fullness.
func overloaded(err error) bool {
	var ae *answerError
	return errors.Is(err, ErrQueueFull) || errors.As(err, &ae) && ae.code == wire.Busy
}

// diskFull reports whether the reason of the last attempt was a full disk.
func diskFull(err error) bool {
	var ae *answerError
	return errors.As(err, &ae) && ae.code == wire.DiskFull
}

// pacer gives the pauses between the attempts of one operation: the first repair is tried at once, the rest back off
// exponentially with jitter. A full node is never asked again without a pause.
type pacer struct {
	used bool
	exp  *backoff.ExponentialBackOff
}

func (p *pacer) next(act action, a *wire.Answer, cfg *Config) time.Duration {
	if act != waitFor && !p.used {
		p.used = true
		return 0
	}
	if p.exp == nil {
		p.exp = &backoff.ExponentialBackOff{
			InitialInterval: cfg.BackoffMin, MaxInterval: cfg.BackoffMax, Multiplier: 1.5, RandomizationFactor: 0.5,
		}
		p.exp.Reset()
	}
	d := p.exp.NextBackOff()
	if act == waitFor && a.Code == wire.Busy {
		// The node's own wish, spread so that those it turned away do not come back together.
		asked := min(time.Duration(min(a.Arg, 60_000))*time.Millisecond, maxBusyPause)
		d = max(d, asked+time.Duration(rand.Int64N(int64(asked/2)+1)))
	}
	return d
}

// maxBusyPause bounds what a node can ask for: past it the client would rather look again.
const maxBusyPause = 2 * time.Second
