package router

import (
	"bytes"
	"context"
	"fmt"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
)

// cached returns the entry that f is routed by, or nil.
func (r *Router) cached(f *flight) *entry {
	switch {
	case !f.clip:
		return r.cache.at(f.call.op.Key)
	case f.reverse:
		return r.cache.below(f.hi)
	}
	return r.cache.at(f.lo)
}

// route finds the shard of f and, where f asks for it, cuts the range to it. ErrCrossShard is returned only after the
// Directory has been asked: a cached descriptor may be older than a merge.
func (r *Router) route(ctx context.Context, f *flight) error {
	e := r.cached(f)
	if e == nil || f.lookup {
		found, err := r.find(ctx, f, e)
		switch {
		case err == nil:
			e = found
		case e == nil:
			return err
		default:
			// What we know may still be right, and the data path must not depend on the control plane (L3).
			r.log.Debug("shard look-up failed, going on with the known route", "shard", e.desc.Shard.String(), "err", err)
		}
	}
	f.lookup, f.entry = false, e
	op := &f.call.op
	if f.clip {
		op.Key, op.Value = f.lo, f.hi
		if bytes.Compare(op.Key, e.desc.Start) < 0 {
			op.Key = e.desc.Start
		}
		if bytes.Compare(op.Value, e.desc.End) > 0 {
			op.Value = e.desc.End
		}
		return nil
	}
	for !fits(op, e.desc) {
		found, err := r.find(ctx, f, e)
		if err != nil {
			return err
		}
		if found == e {
			return fmt.Errorf("%s is [%q, %q): %w", e.desc.Shard, e.desc.Start, e.desc.End, ErrCrossShard)
		}
		e, f.entry = found, found
	}
	return nil
}

// find asks the Directory, one question at a time: of many operations that miss, the first brings the answer for most.
// bad is the entry that is missing something, or nil.
func (r *Router) find(ctx context.Context, f *flight, bad *entry) (*entry, error) {
	key := f.call.op.Key
	if f.clip {
		key = f.lo
		if f.reverse {
			key = f.hi
		}
	}
	ctx, cancel := context.WithDeadline(ctx, f.deadline)
	defer cancel()
	// On a node the Directory answers questions for user keys by reading system keys, through this same Router: the two
	// must not wait for each other.
	asking := r.asking[0]
	if isSystem(key, f.clip && f.reverse) {
		asking = r.asking[1]
	}
	select {
	case asking <- struct{}{}:
		defer func() { <-asking }()
	case <-ctx.Done():
		return nil, fmt.Errorf("look up a shard: %w: %w", ctx.Err(), ErrNotSent)
	}
	if e := r.cached(f); e != nil && e != bad {
		return e, nil // somebody else has repaired it
	}
	if err := r.ask(ctx, key, f.clip && f.reverse); err != nil {
		return nil, fmt.Errorf("look up a shard: %w: %w", err, ErrNotSent)
	}
	if e := r.cached(f); e != nil {
		return e, nil
	}
	return nil, fmt.Errorf("look up a shard: the directory knows none for this key: %w", ErrNotSent)
}

// ask puts one question to the Directory and takes its answer into the cache.
func (r *Router) ask(ctx context.Context, key []byte, reverse bool) error {
	ctx, cancel := context.WithTimeout(ctx, r.cfg.LookupTimeout)
	defer cancel()
	r.metrics.lookups.Inc()
	routes, err := r.cfg.Directory.Lookup(ctx, key, reverse)
	for _, rt := range routes {
		r.cache.insert(rt.Desc, rt.Leader, 0)
	}
	return err
}

// isSystem reports whether key, or the largest key below it, lies in the system space.
func isSystem(key []byte, below bool) bool {
	if below {
		return string(key) > string(base.SystemStart())
	}
	return string(key) >= string(base.SystemStart())
}

// label names an outcome for the retry metric.
func label(a *wire.Answer, err error) string {
	if err != nil {
		return "transport"
	}
	return a.Code.String()
}
