package placement

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
)

// Row is one row of the meta shard. Key is a routing key; Version is that of the last write.
type Row struct {
	Key, Value []byte
	Version    uint64
}

// KV reads and writes the meta shard linearizably, from any node.
type KV interface {
	// Get returns version 0 if the key is absent.
	Get(ctx context.Context, key []byte) (value []byte, version uint64, err error)
	// Scan returns up to limit rows of [lo, hi); fewer only if there are no more. limit 0: all.
	Scan(ctx context.Context, lo, hi []byte, limit int, reverse bool) ([]Row, error)
	// Apply runs the steps atomically. ErrConflict: a condition did not hold and nothing was written. Any other error
	// leaves open whether the steps took effect.
	Apply(ctx context.Context, steps []wire.Sub) error
}

// ErrConflict is what KV.Apply returns when a condition of the steps does not hold.
var ErrConflict = errors.New("condition does not hold")

// ErrStale marks an update that is older than what the directory holds.
var ErrStale = errors.New("older than what the directory holds")

// ErrNotFound marks a record that the directory does not have.
var ErrNotFound = errors.New("not in the directory")

// maxConflicts bounds the repeats of one update; each lost race means that another one won.
const maxConflicts = 64

// Directory is the typed view of the meta shard's contents. It is safe for concurrent use, and any number of them may
// work on one meta shard.
type Directory struct {
	kv KV

	ids struct {
		sync.Mutex
		free map[IDKind]idRange
	}
}

// NewDirectory returns a directory over kv.
func NewDirectory(kv KV) *Directory {
	d := &Directory{kv: kv}
	d.ids.free = make(map[IDKind]idRange)
	return d
}

// Cluster returns the cluster's record.
func (d *Directory) Cluster(ctx context.Context) (Cluster, error) {
	v, ver, err := d.kv.Get(ctx, ClusterKey())
	switch {
	case err != nil:
		return Cluster{}, fmt.Errorf("read cluster record: %w", err)
	case ver == 0:
		return Cluster{}, fmt.Errorf("cluster record: %w", ErrNotFound)
	}
	return DecodeCluster(v)
}

// Founding returns the founding record, and nil once the making of the cluster is finished.
func (d *Directory) Founding(ctx context.Context) (*Founding, error) {
	v, ver, err := d.kv.Get(ctx, FoundingKey())
	switch {
	case err != nil:
		return nil, fmt.Errorf("read founding record: %w", err)
	case ver == 0:
		return nil, nil
	}
	return DecodeFounding(v)
}

// FinishFounding removes the founding record; every founding node and first shard exists. Repeating it is harmless.
func (d *Directory) FinishFounding(ctx context.Context) error {
	if err := d.kv.Apply(ctx, []wire.Sub{{Code: wire.OpDelete, Key: FoundingKey()}}); err != nil {
		return fmt.Errorf("remove founding record: %w", err)
	}
	return nil
}

// Nodes returns all node records in the order of their ids.
func (d *Directory) Nodes(ctx context.Context) ([]Node, error) {
	lo, hi := tagSpan(tagNode)
	rows, err := d.kv.Scan(ctx, lo, hi, 0, false)
	if err != nil {
		return nil, fmt.Errorf("read node records: %w", err)
	}
	out := make([]Node, 0, len(rows))
	for _, r := range rows {
		n, err := DecodeNode(r.Value)
		if err != nil {
			return nil, err
		}
		out = append(out, n)
	}
	return out, nil
}

// RegisterNode updates the record of a node that has one. It writes only if something changed. ErrStale: a later
// incarnation has registered; ErrNotFound: the id was never given out.
func (d *Directory) RegisterNode(ctx context.Context, n Node) error {
	if err := n.Validate(); err != nil {
		return fmt.Errorf("register: %w: %w", err, ErrInvalid)
	}
	key := NodeKey(n.ID)
	return d.retry(ctx, "register "+n.ID.String(), func() ([]wire.Sub, error) {
		v, ver, err := d.kv.Get(ctx, key)
		if err != nil {
			return nil, err
		}
		if ver == 0 {
			return nil, ErrNotFound
		}
		old, err := DecodeNode(v)
		if err != nil {
			return nil, err
		}
		if n.Incarnation < old.Incarnation {
			return nil, fmt.Errorf("incarnation %d, registered %d: %w", n.Incarnation, old.Incarnation, ErrStale)
		}
		if n.Equal(&old) {
			return nil, nil
		}
		return []wire.Sub{checkVersion(key, ver), {Code: wire.OpPut, Key: key, Value: n.Append(nil)}}, nil
	})
}

// Join gives a node without ident an id and a record. The same nonce always gets the same id, so a join may be repeated
// until it is answered. The nonce has 8 to 64 random bytes.
func (d *Directory) Join(ctx context.Context, nonce []byte, n Node) (base.StoreID, error) {
	if len(nonce) < 8 || len(nonce) > 64 {
		return 0, fmt.Errorf("join: nonce of %d bytes, want 8 to 64: %w", len(nonce), ErrInvalid)
	}
	if err := n.Validate(); err != nil {
		return 0, fmt.Errorf("join: %w: %w", err, ErrInvalid)
	}
	key := nonceKey(nonce)
	var id base.StoreID
	err := d.retry(ctx, "join", func() ([]wire.Sub, error) {
		v, ver, err := d.kv.Get(ctx, key)
		if err != nil {
			return nil, err
		}
		if ver != 0 {
			u, err := decodeNumber("nonce record", v)
			id = base.StoreID(u)
			return nil, err
		}
		first, err := d.AllocIDs(ctx, NodeIDs, 1)
		if err != nil {
			return nil, err
		}
		id = base.StoreID(first)
		n.ID, n.Incarnation = id, 0
		return []wire.Sub{
			checkVersion(key, 0),
			checkVersion(NodeKey(id), 0),
			{Code: wire.OpPut, Key: key, Value: appendNumber(nil, first)},
			{Code: wire.OpPut, Key: NodeKey(id), Value: n.Append(nil)},
		}, nil
	})
	if err != nil {
		return 0, err
	}
	return id, nil
}

// retry runs plan and applies its steps until no condition fails; no steps mean that there is nothing to do.
func (d *Directory) retry(ctx context.Context, what string, plan func() ([]wire.Sub, error)) error {
	for range maxConflicts {
		steps, err := plan()
		if err == nil && len(steps) > 0 {
			err = d.kv.Apply(ctx, steps)
		}
		if err == nil {
			return nil
		}
		if !errors.Is(err, ErrConflict) {
			return fmt.Errorf("%s: %w", what, err)
		}
	}
	return fmt.Errorf("%s: lost %d races in a row: %w", what, maxConflicts, ErrConflict)
}

// checkVersion is the condition that a key still has the version that was read, 0 for absent.
func checkVersion(key []byte, version uint64) wire.Sub {
	if version == 0 {
		return wire.Sub{Code: wire.OpCheckAbsent, Key: key}
	}
	return wire.Sub{Code: wire.OpCheckVersion, Key: key, Arg: version}
}
