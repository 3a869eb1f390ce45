package placement

import (
	"context"
	"encoding/binary"
	"fmt"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
)

// DrainMode is what a node is kept free of. The numbers are part of the format.
type DrainMode uint8

// Modes; each keeps off what the one before it does as well.
const (
	DrainNone     DrainMode = 0
	DrainLeaders  DrainMode = 1
	DrainReplicas DrainMode = 2
)

// String returns the word that the API uses: none, leaders or replicas.
func (m DrainMode) String() string { return word([]string{"none", "leaders", "replicas"}, int(m)) }

// SetDraining marks a node, or with DrainNone takes the mark away. The mark outlives the job that set it. ErrNotFound:
// there is no such node.
func (d *Directory) SetDraining(ctx context.Context, node base.StoreID, mode DrainMode) error {
	return d.retry(ctx, "mark "+node.String()+" as draining "+mode.String(), func() ([]wire.Sub, error) {
		_, ver, err := d.kv.Get(ctx, NodeKey(node))
		if err != nil {
			return nil, err
		}
		if ver == 0 {
			return nil, ErrNotFound
		}
		return []wire.Sub{checkVersion(NodeKey(node), ver), drainSub(node, mode)}, nil
	})
}

func drainSub(node base.StoreID, mode DrainMode) wire.Sub {
	if mode == DrainNone {
		return wire.Sub{Code: wire.OpDelete, Key: drainKey(node)}
	}
	return wire.Sub{Code: wire.OpPut, Key: drainKey(node), Value: []byte{recordVersion, byte(mode)}}
}

// Draining returns the marks of all nodes that have one.
func (d *Directory) Draining(ctx context.Context) (map[base.StoreID]DrainMode, error) {
	lo, hi := tagSpan(tagDrain)
	rows, err := d.kv.Scan(ctx, lo, hi, 0, false)
	if err != nil {
		return nil, fmt.Errorf("read drain marks: %w", err)
	}
	out := make(map[base.StoreID]DrainMode, len(rows))
	for _, row := range rows {
		r := newReader("drain mark", row.Value)
		mode := DrainMode(r.u8())
		if err := r.end(); err != nil {
			return nil, err
		}
		if len(row.Key) != len(lo)+8 || mode > DrainReplicas {
			return nil, fmt.Errorf("drain mark %x of mode %d: %w", row.Key, mode, base.ErrCorrupt)
		}
		out[base.StoreID(binary.BigEndian.Uint64(row.Key[len(lo):]))] = mode
	}
	return out, nil
}
