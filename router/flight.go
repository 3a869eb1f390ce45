package router

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
)

// errNoAnswer ends an attempt whose answer did not come in time.
var errNoAnswer = errors.New("no answer in time")

// call is the part of an attempt that a Sender holds on to: pooled, unless an answer may still come after its end.
type call struct {
	op    wire.Op
	ch    chan outcome // capacity 1: done never blocks
	done  func(wire.Answer, error)
	timer *time.Timer
}

type outcome struct {
	answer wire.Answer
	err    error
}

func newCall() any {
	c := &call{ch: make(chan outcome, 1), timer: time.NewTimer(time.Hour)}
	c.timer.Stop()
	c.done = func(a wire.Answer, err error) { c.ch <- outcome{a, err} }
	return c
}

// flight is one operation on its way: launch sends an attempt, land takes its outcome and decides what follows.
type flight struct {
	call     *call
	lo, hi   []byte // what clip cuts from
	clip     bool   // a scan page or a piece of a DeleteRange: cut to the shard that is found
	reverse  bool
	start    time.Time
	deadline time.Time
	until    time.Time // end of this attempt's wait
	entry    *entry
	store    base.StoreID
	asked    asked        // of a read that any replica may serve
	led      bool         // store was picked as the leader, or on the search for it
	avoid    base.StoreID // failed last: ask another one first
	turn     int          // replicas tried without a hint
	attempts int
	failures int // attempts without an answer in a row; now and then the Directory may know better
	lookup   bool
	out      outcome
	said     error // why the last attempt that was not cut short has failed
	pacer    pacer

	over   bool
	answer wire.Answer
	err    error
	delay  time.Duration // before the next launch
}

// ready sets f up for an operation. It fails, without I/O, on one that is invalid.
func (r *Router) ready(ctx context.Context, f *flight, op wire.Op) {
	f.start = time.Now()
	f.deadline = f.start.Add(r.cfg.OpTimeout)
	if d, ok := ctx.Deadline(); ok {
		f.deadline = d
	}
	f.call = r.calls.Get().(*call)
	f.call.op = op
	if op.Code == wire.OpBatch && len(op.Key) == 0 {
		var s wire.Sub
		if _, err := wire.DecodeSub(op.Value, &s); err == nil {
			f.call.op.Key = s.Key
		}
	}
	f.reverse = op.Code == wire.OpScan && op.Flags&wire.FlagReverse != 0
	if err := f.call.op.Validate(); err != nil {
		f.fail(ErrInvalid, err)
	}
}

// release gives the call back. The answer stays valid.
func (r *Router) release(f *flight) {
	f.call.op = wire.Op{}
	r.calls.Put(f.call)
	f.call = nil
}

// launch routes the operation and sends it. If it cannot, the outcome says why.
func (r *Router) launch(ctx context.Context, f *flight) {
	if r.aim(ctx, f) {
		r.cfg.Sender.Send(ctx, f.store, &f.call.op, f.call.done)
	}
}

// aim makes the operation ready to be sent to f.store. If it cannot, the outcome says why.
func (r *Router) aim(ctx context.Context, f *flight) bool {
	f.out, f.until = outcome{}, time.Time{}
	now := time.Now()
	if err := ctx.Err(); err != nil || !now.Before(f.deadline) {
		f.out.err = fmt.Errorf("%w: %w", endOf(ctx), ErrNotSent)
		return false
	}
	if err := r.route(ctx, f); err != nil {
		f.out.err = err
		return false
	}
	f.store = 0
	if f.call.op.AnyReplica() {
		f.store = r.pickNear(f)
	}
	if f.led = f.store == 0; f.led {
		f.store = f.pick()
	}
	if f.store == 0 {
		f.lookup = true
		f.out.err = fmt.Errorf("%s has no voter to ask: %w", f.entry.desc.Shard, ErrNotSent)
		return false
	}
	op := &f.call.op
	op.Shard, op.Version = f.entry.desc.Shard, f.entry.desc.Epoch.Version
	left := f.deadline.Sub(now)
	f.until = f.deadline
	if op.Code.IsRead() && left > r.cfg.ReadTimeout+readSlack {
		left, f.until = r.cfg.ReadTimeout, now.Add(r.cfg.ReadTimeout+readSlack)
	} else {
		left -= min(left/10, readSlack) // so that the node's own definite answer arrives before we stop listening
	}
	op.Timeout = uint32(max(1, min(left/time.Millisecond, 1<<31)))
	f.attempts++
	return true
}

// readSlack is how much longer than the node the router waits for the answer.
const readSlack = 200 * time.Millisecond

// land waits for the attempt's outcome and judges it: f is over, or is to be launched again after f.delay.
func (r *Router) land(ctx context.Context, f *flight) {
	if f.out.err == nil && !f.until.IsZero() {
		r.await(ctx, f)
	}
	r.judge(ctx, f)
}

func (r *Router) await(ctx context.Context, f *flight) {
	select {
	case f.out = <-f.call.ch:
		return
	default:
	}
	f.call.timer.Reset(time.Until(f.until))
	defer f.call.timer.Stop()
	why := errNoAnswer
	select {
	case f.out = <-f.call.ch:
		return
	case <-ctx.Done():
		why = ctx.Err()
	case <-f.call.timer.C:
	}
	if r.cancel != nil && r.cancel.Cancel(f.store, f.call.op.Req) {
		f.out.err = fmt.Errorf("%w: %w", why, ErrNotSent)
		return
	}
	// The answer may come at any time now: leave this call to it.
	select {
	case f.out = <-f.call.ch:
		return
	default:
	}
	f.out.err = why
	next := r.calls.Get().(*call)
	next.op = f.call.op
	f.call = next
}

// judge turns the outcome into what follows. This and pacer are the only places that retry anything.
func (r *Router) judge(ctx context.Context, f *flight) {
	a, err := &f.out.answer, f.out.err
	if errors.Is(err, ErrCrossShard) {
		f.fail(ErrCrossShard, err)
		return
	}
	act := decide(f.call.op.Code.IsWrite(), a, err)
	if err == nil {
		f.failures = 0
	} else {
		f.failures++
	}
	if act == accept && f.clip && f.call.op.Code == wire.OpScan && a.Version != 0 && a.Version != f.call.op.Version {
		act = search // the page was cut from another range than the one we would resume after
	}
	if act == accept {
		if f.led && f.entry.leader.Load() != uint64(f.store) {
			f.entry.leader.Store(uint64(f.store))
		}
		if f.call.op.AnyReplica() {
			r.metrics.servedBy(f)
		}
		f.over, f.answer = true, *a
		return
	}
	if err == nil {
		err = reasonOf(a)
	}
	switch act {
	case refuse:
		kind := ErrInvalid
		if f.out.err != nil {
			kind = ErrUnavailable
		}
		f.fail(kind, err)
		return
	case unsure:
		f.entry.forget(f.store) // so that the next operation asks around
		r.metrics.ambiguous.Inc()
		f.fail(ErrAmbiguous, err)
		return
	}
	r.learn(f, act, a)
	r.metrics.retries.WithLabelValues(label(a, f.out.err)).Inc()
	f.delay = f.pacer.next(act, a, &r.cfg)
	if ctx.Err() == nil && time.Now().Add(f.delay).Before(f.deadline) {
		f.said = err
		return
	}
	if ctx.Err() != nil && f.out.err != nil && f.said != nil {
		err = f.said // the last attempt was cut short: what the one before heard says more
	}
	kind := ErrUnavailable
	switch {
	case overloaded(err):
		kind = ErrOverloaded
	case diskFull(err):
		kind = ErrDiskFull
	}
	if why := endOf(ctx); !errors.Is(err, why) {
		err = fmt.Errorf("%w; last: %w", why, err)
	}
	f.fail(kind, err)
}

// learn repairs the cache, or the choice of replica, from what came back.
func (r *Router) learn(f *flight, act action, a *wire.Answer) {
	e := f.entry
	if e != nil && f.near() {
		if !f.until.IsZero() { // it was sent
			r.learnNear(f, act, a)
		}
		return
	}
	switch act {
	case follow:
		f.avoid = f.store
		if lead := base.StoreID(a.Arg); lead != 0 && lead != f.store {
			e.leader.Store(uint64(lead))
			if !listed(e.desc, lead) {
				f.lookup = f.attempts > 1 // a member that we have not heard of: our descriptor is old
			}
			return
		}
		e.forget(f.store)
	case repair:
		r.insertAll(f.store, a)
		f.lookup = r.cached(f) == e // nothing new for our key: the node may be behind, or the range merged away
	case search:
		f.avoid, f.lookup = f.store, true
		e.forget(f.store)
	case another:
		if e == nil || f.until.IsZero() {
			return // not routed at all
		}
		f.avoid = f.store
		e.forget(f.store)
		f.lookup = f.failures%4 == 3 // none of the replicas answers: have they moved?
	}
}

// insertAll takes the descriptors of an EpochMismatch into the cache.
func (r *Router) insertAll(from base.StoreID, a *wire.Answer) {
	ds, err := wire.DecodeDescriptors(a.Payload)
	if err != nil {
		r.log.Warn("node sent corrupt descriptors", "store", from.String(), "err", err)
	}
	for _, d := range ds {
		r.cache.insert(d, 0, from)
	}
}

// pick chooses the node to ask: the leader if there is a hint, else the replicas in turn.
func (f *flight) pick() base.StoreID {
	if lead := base.StoreID(f.entry.leader.Load()); lead != 0 && lead != f.avoid {
		f.avoid = 0
		return lead
	}
	reps := f.entry.desc.Replicas
	for range reps {
		rep := reps[(int(f.entry.desc.Shard%base.ShardID(len(reps)))+f.turn)%len(reps)]
		f.turn++
		if rep.Role != base.RoleLearner && (rep.Store != f.avoid || len(reps) == 1) {
			f.avoid = 0
			return rep.Store
		}
	}
	avoided := f.avoid
	f.avoid = 0
	return avoided
}

// fits reports whether every key of the operation lies in the shard.
func fits(op *wire.Op, d *base.Descriptor) bool {
	switch op.Code {
	case wire.OpScan, wire.OpDeleteRange:
		return bytes.Compare(op.Key, d.Start) >= 0 && bytes.Compare(op.Value, d.End) <= 0
	case wire.OpBatch:
		var s wire.Sub
		for b := op.Value; len(b) > 0; {
			rest, err := wire.DecodeSub(b, &s)
			if err != nil {
				return true // ready has validated it
			}
			if !d.Contains(s.Key) || s.Code == wire.OpDeleteRange && bytes.Compare(s.Value, d.End) > 0 {
				return false
			}
			b = rest
		}
	}
	return true
}

// fail ends the flight with an *Error.
func (f *flight) fail(kind, reason error) {
	e := &Error{
		Op: f.call.op.Code, Key: bytes.Clone(f.call.op.Key), Store: f.store, Attempts: f.attempts,
		Elapsed: time.Since(f.start), Kind: kind, Reason: reason,
	}
	if f.entry != nil {
		e.Shard = f.entry.desc.Shard
	}
	f.over, f.err = true, e
}

// endOf says why an operation may not go on.
func endOf(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return context.DeadlineExceeded
}
