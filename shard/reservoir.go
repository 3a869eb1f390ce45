package shard

import (
	"math"
	"math/rand/v2"
)

// reservoir keeps a sample of weighted spans, within windowSpans and windowBytes, such that heavy ones are as likely
// to be in it as their weight says. It is algorithm A-Res (P. Efraimidis, P. Spirakis, "Weighted random sampling with a
// reservoir", Information Processing Letters 97, 2006): each item draws u^(1/weight), the largest draws stay. Draws are
// kept as logarithms, which do not underflow.
//
// The spans are a heap with the smallest draw on top.
type reservoir struct {
	spans  []span
	bytes  int
	border float64 // largest draw that was turned away; 0 none, since draws are below it
	free   []span  // of the window before: their buffers are used again
}

type span struct {
	lo, hi []byte // hi nil: the key lo alone
	weight float64
	draw   float64 // ln(u) / weight
}

// add offers a span. What is kept is copied.
func (r *reservoir) add(lo, hi []byte, weight float64, rng *rand.Rand) {
	draw := -rng.ExpFloat64() / weight // -Exp(1) is distributed as ln(u)
	need := len(lo) + len(hi)
	for len(r.spans) > 0 && (len(r.spans) == windowSpans || r.bytes+need > windowBytes) {
		if draw <= r.spans[0].draw {
			r.turnAway(draw)
			return
		}
		r.pop()
	}
	var s span
	if n := len(r.free); n > 0 {
		s, r.free = r.free[n-1], r.free[:n-1]
	}
	s.lo, s.weight, s.draw = append(s.lo[:0], lo...), weight, draw
	if hi == nil {
		s.hi = nil
	} else {
		s.hi = append(s.hi[:0], hi...)
	}
	r.bytes += need
	r.push(s)
}

func (r *reservoir) turnAway(draw float64) {
	if r.border == 0 || draw > r.border {
		r.border = draw
	}
}

// estimate is what a kept span stands for: its weight over the chance that it is kept, so that the estimates of any
// part of the keys add up to its true weight on average (E. Cohen, H. Kaplan, "Summarizing data using bottom-k
// sketches", PODC 2007, rank conditioning). The draw u^(1/w) is above the border t with probability 1 - t^w.
func (r *reservoir) estimate(s *span) float64 {
	if r.border == 0 {
		return s.weight // all are here
	}
	return s.weight / -math.Expm1(r.border*s.weight)
}

func (r *reservoir) push(s span) {
	r.spans = append(r.spans, s)
	i := len(r.spans) - 1
	for i > 0 {
		up := (i - 1) / 2
		if r.spans[up].draw <= r.spans[i].draw {
			return
		}
		r.spans[up], r.spans[i] = r.spans[i], r.spans[up]
		i = up
	}
}

// pop drops the span with the smallest draw.
func (r *reservoir) pop() {
	top, n := r.spans[0], len(r.spans)-1
	r.turnAway(top.draw)
	r.bytes -= len(top.lo) + len(top.hi)
	r.spans[0], r.spans[n] = r.spans[n], span{}
	r.spans = r.spans[:n]
	for i := 0; ; {
		least := i
		for c := 2*i + 1; c <= 2*i+2 && c < n; c++ {
			if r.spans[c].draw < r.spans[least].draw {
				least = c
			}
		}
		if least == i {
			break
		}
		r.spans[i], r.spans[least] = r.spans[least], r.spans[i]
		i = least
	}
	r.keep(top)
}

// keep puts a span's buffers aside, unless they are large.
func (r *reservoir) keep(s span) {
	if cap(s.lo)+cap(s.hi) <= windowBytes/windowSpans && len(r.free) < windowSpans {
		r.free = append(r.free, s)
	}
}

func (r *reservoir) reset() {
	for _, s := range r.spans {
		r.keep(s)
	}
	clear(r.spans)
	r.spans, r.bytes, r.border = r.spans[:0], 0, 0
}
