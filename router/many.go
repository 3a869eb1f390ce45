package router

import (
	"context"
	"time"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
)

// One DoMany has at most inFlight operations on their way, and as many as are expected to bring inFlightBytes of keys,
// values and answers. How large answers are is guessed from those of the past; until there are any, at firstGuess.
const (
	inFlight      = 1024
	inFlightBytes = 16 << 20
	firstGuess    = 8 << 10
)

// DoMany runs independent operations at the same time, a bounded part of them at once: those for one node leave in one
// frame. Answer and error i belong to operation i, as from Do. Once ctx has ended nothing more is sent.
func (r *Router) DoMany(ctx context.Context, ops []wire.Op) ([]wire.Answer, []error) {
	answers, errs := make([]wire.Answer, len(ops)), make([]error, len(ops))
	var fs []flight
	for at := 0; at < len(ops); {
		n := r.batchOf(ops[at:])
		if cap(fs) < n {
			fs = make([]flight, n)
		}
		fs = fs[:n]
		clear(fs)
		for i := range fs {
			r.ready(ctx, &fs[i], ops[at+i])
		}
		r.flyMany(ctx, fs)
		bytes := 0
		for i := range fs {
			r.release(&fs[i])
			answers[at+i], errs[at+i] = fs[i].answer, fs[i].err
			bytes += len(fs[i].answer.Payload)
		}
		r.sawAnswers(n, bytes)
		at += n
	}
	return answers, errs
}

// batchOf returns how many of the operations, at least one, may be on their way together.
func (r *Router) batchOf(ops []wire.Op) int {
	guess := int(r.rowBytes.Load())
	if guess == 0 {
		guess = firstGuess
	}
	n := 0
	for bytes := 0; n < min(len(ops), inFlight); n++ {
		bytes += guess + ops[n].Size()
		if n > 0 && bytes > inFlightBytes {
			break
		}
	}
	return n
}

// sawAnswers corrects the guess: at once upwards, slowly downwards.
func (r *Router) sawAnswers(n, bytes int) {
	old, now := r.rowBytes.Load(), int64(bytes/n)+1
	if now < old {
		now = old - (old-now)/4
	}
	r.rowBytes.Store(now) // of concurrent calls any may win
}

// flyMany repeats rounds of attempts until all are over: each round is sent as a whole before any answer is awaited.
func (r *Router) flyMany(ctx context.Context, fs []flight) {
	var out round
	for {
		open, delay := false, time.Duration(0)
		for i := range fs {
			if !fs[i].over {
				open, delay = true, max(delay, fs[i].delay)
			}
		}
		if !open {
			return
		}
		r.pause(ctx, delay)
		for i := range fs {
			if f := &fs[i]; !f.over && r.aim(ctx, f) {
				out.add(f)
			}
		}
		out.send(ctx, r)
		for i := range fs {
			if !fs[i].over {
				r.land(ctx, &fs[i])
			}
		}
	}
}

// round gathers what is to be sent, by node.
type round struct{ to []share }

type share struct {
	store base.StoreID
	ops   []*wire.Op
	dones []func(wire.Answer, error)
}

func (o *round) add(f *flight) {
	i := 0
	for i < len(o.to) && o.to[i].store != f.store {
		i++
	}
	if i == len(o.to) {
		o.to = append(o.to, share{store: f.store})
	}
	s := &o.to[i]
	s.ops, s.dones = append(s.ops, &f.call.op), append(s.dones, f.call.done)
}

func (o *round) send(ctx context.Context, r *Router) {
	for i := range o.to {
		s := &o.to[i]
		switch {
		case len(s.ops) == 0:
		case r.many != nil:
			r.many.SendMany(ctx, s.store, s.ops, s.dones)
		default:
			for k, op := range s.ops {
				r.cfg.Sender.Send(ctx, s.store, op, s.dones[k])
			}
		}
		clear(s.ops)
		clear(s.dones)
		s.ops, s.dones = s.ops[:0], s.dones[:0]
	}
}
