package client

import (
	"bytes"
	"context"
	"fmt"
	"iter"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/router"
)

// Row is one row of a Scan.
type Row struct {
	Key     []byte
	Value   []byte // empty with KeysOnly
	Version uint64
}

// ScanOption changes what a Scan returns, or how it reads; every ReadOption is one too.
type ScanOption interface{ scan(*router.ScanOptions) }

type scanOption func(*router.ScanOptions)

func (f scanOption) scan(o *router.ScanOptions) { f(o) }

// Limit ends the scan after n rows; 0 means no limit.
func Limit(n int) ScanOption { return scanOption(func(o *router.ScanOptions) { o.Limit = n }) }

// Reverse scans from the highest key down.
func Reverse() ScanOption { return scanOption(func(o *router.ScanOptions) { o.Reverse = true }) }

// KeysOnly leaves the values out.
func KeysOnly() ScanOption { return scanOption(func(o *router.ScanOptions) { o.KeysOnly = true }) }

// Prefetch fetches the next page while the caller works on this one.
func Prefetch() ScanOption { return scanOption(func(o *router.ScanOptions) { o.Prefetch = true }) }

// Parallel reads up to n shards at the same time, ahead of the caller, who still sees all rows in order. What waits for
// the caller is bounded by Budget. Worth it for long scans; with a small Limit most of what is read ahead is thrown
// away.
func Parallel(n int) ScanOption { return scanOption(func(o *router.ScanOptions) { o.Parallel = n }) }

// Budget bounds the rows that a Parallel scan reads ahead, in bytes. Default 8 MiB. It may be exceeded by one page.
func Budget(bytes int) ScanOption {
	return scanOption(func(o *router.ScanOptions) { o.Budget = bytes })
}

// Scan iterates over the rows of the Range in key order. It fetches byte-bounded pages as the caller goes along, or ahead
// of it with Prefetch and Parallel: each page is linearizable, unless an option says otherwise; all together are not one
// snapshot. Rows of one page share memory: clone what is kept for long. After an error the iteration ends. Breaking off
// calls off whatever is being read ahead.
//
//	for row, err := range users.Scan(ctx, client.Limit(10)) {
//		if err != nil {
//			return err
//		}
//		fmt.Printf("%s = %s\n", row.Key, row.Value)
//	}
func (r *Range) Scan(ctx context.Context, opts ...ScanOption) iter.Seq2[Row, error] {
	const op = "scan"
	var o router.ScanOptions
	for _, opt := range opts {
		opt.scan(&o)
	}
	return func(yield func(Row, error) bool) {
		if err := r.checkScan(&o); err != nil {
			yield(Row{}, opError(op, r.lo, err))
			return
		}
		for row, err := range r.db.router.Scan(ctx, r.from, r.to, o) {
			if err != nil {
				yield(Row{}, opError(op, r.lo, err))
				return
			}
			if !yield(Row{Key: row.Key[1:], Value: row.Value, Version: row.Version}, nil) {
				return
			}
		}
	}
}

func (r *Range) checkScan(o *router.ScanOptions) error {
	switch {
	case o.Limit < 0:
		return fmt.Errorf("limit of %d rows, want 0 (none) or more: %w", o.Limit, ErrInvalid)
	case o.Parallel < 0 || o.Parallel > maxParallel:
		return fmt.Errorf("%d shards in parallel, want 0 to %d: %w", o.Parallel, maxParallel, ErrInvalid)
	case o.Budget < 0:
		return fmt.Errorf("budget of %d bytes, want 0 (the default) or more: %w", o.Budget, ErrInvalid)
	case r.db.closed.Load():
		return ErrClosed
	}
	return checkMode(&o.ReadMode)
}

// maxParallel bounds the shards that one scan reads at the same time.
const maxParallel = 256

// ShardInfo describes one shard.
type ShardInfo struct {
	ID         uint64
	Start, End []byte   // user keys; a nil End is the end of the key space
	Leader     uint64   // node id, 0 if unknown
	Nodes      []uint64 // where the replicas are
	ConfVer    uint64   // rises with every change of the replicas
	Version    uint64   // rises with every change of the bounds
}

// Shards returns the shards that overlap the Range, in key order.
func (r *Range) Shards(ctx context.Context) ([]ShardInfo, error) {
	const op = "shards"
	if r.db.closed.Load() {
		return nil, opError(op, r.lo, ErrClosed)
	}
	routes, err := r.db.router.Shards(ctx, r.from, r.to)
	if err != nil {
		return nil, opError(op, r.lo, err)
	}
	out := make([]ShardInfo, 0, len(routes))
	for _, rt := range routes {
		d := rt.Desc
		s := ShardInfo{
			ID: uint64(d.Shard), Start: bytes.Clone(d.Start[1:]), Leader: uint64(rt.Leader),
			ConfVer: d.Epoch.ConfVer, Version: d.Epoch.Version,
		}
		if !bytes.Equal(d.End, base.UserEnd()) {
			s.End = bytes.Clone(d.End[1:])
		}
		for _, rep := range d.Replicas {
			s.Nodes = append(s.Nodes, uint64(rep.Store))
		}
		out = append(out, s)
	}
	return out, nil
}
