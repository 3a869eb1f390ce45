package placement

import (
	"context"
	"encoding/binary"
	"fmt"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
)

// Commission is whether a node belongs to the cluster for good. The numbers are part of the format.
type Commission uint8

// Commissions. A node that leaves or has left is given nothing; only a removed one is refused.
const (
	InCommission    Commission = 0
	Decommissioning Commission = 1
	Decommissioned  Commission = 2
	Removed         Commission = 3
)

// String returns the word that the API uses, empty for a node in commission.
func (c Commission) String() string {
	if c == InCommission {
		return ""
	}
	return word([]string{"", "decommissioning", "decommissioned", "removed"}, int(c))
}

// SetCommission records the commission of a node. ErrNotFound: there is no such node; ErrStale: it has been removed,
// which nothing takes back.
func (d *Directory) SetCommission(ctx context.Context, node base.StoreID, c Commission) error {
	return d.retry(ctx, "commission of "+node.String(), func() ([]wire.Sub, error) {
		_, ver, err := d.kv.Get(ctx, NodeKey(node))
		if err != nil {
			return nil, err
		}
		if ver == 0 {
			return nil, ErrNotFound
		}
		old, oldVer, err := d.kv.Get(ctx, commissionKey(node))
		if err != nil {
			return nil, err
		}
		if oldVer != 0 {
			have, err := decodeCommission(old)
			if err != nil || have == c {
				return nil, err
			}
			if have == Removed {
				return nil, fmt.Errorf("it has been removed: %w", ErrStale)
			}
		} else if c == InCommission {
			return nil, nil
		}
		return []wire.Sub{
			checkVersion(NodeKey(node), ver), checkVersion(commissionKey(node), oldVer), commissionSub(node, c),
		}, nil
	})
}

func commissionSub(node base.StoreID, c Commission) wire.Sub {
	if c == InCommission {
		return wire.Sub{Code: wire.OpDelete, Key: commissionKey(node)}
	}
	return wire.Sub{Code: wire.OpPut, Key: commissionKey(node), Value: []byte{recordVersion, byte(c)}}
}

// commissionSteps are the steps by which a decommission marks its node, conditional on what the mark is now: Decommissioning
// is not set on a node that was removed (ErrInvalid), and Decommissioned only on one that is still leaving, so that a
// decommission that ends takes no removal and no recommission back.
func (d *Directory) commissionSteps(ctx context.Context, node base.StoreID, to Commission) ([]wire.Sub, error) {
	v, ver, err := d.kv.Get(ctx, commissionKey(node))
	if err != nil {
		return nil, err
	}
	have := InCommission
	if ver != 0 {
		if have, err = decodeCommission(v); err != nil {
			return nil, err
		}
	}
	switch {
	case to == Decommissioning && have == Removed:
		return nil, fmt.Errorf("%s has been removed: %w", node, ErrInvalid)
	case to == Decommissioned && have != Decommissioning:
		return []wire.Sub{checkVersion(commissionKey(node), ver)}, nil
	}
	return []wire.Sub{checkVersion(commissionKey(node), ver), commissionSub(node, to)}, nil
}

// Commissions returns the commission of all nodes that are leaving or have left.
func (d *Directory) Commissions(ctx context.Context) (map[base.StoreID]Commission, error) {
	lo, hi := tagSpan(tagCommission)
	rows, err := d.kv.Scan(ctx, lo, hi, 0, false)
	if err != nil {
		return nil, fmt.Errorf("read commissions: %w", err)
	}
	out := make(map[base.StoreID]Commission, len(rows))
	for _, row := range rows {
		c, err := decodeCommission(row.Value)
		if err != nil {
			return nil, err
		}
		if len(row.Key) != len(lo)+8 {
			return nil, fmt.Errorf("commission %x: %w", row.Key, base.ErrCorrupt)
		}
		out[base.StoreID(binary.BigEndian.Uint64(row.Key[len(lo):]))] = c
	}
	return out, nil
}

// decodeCommission reads: u8 version | u8 commission.
func decodeCommission(b []byte) (Commission, error) {
	r := newReader("commission", b)
	c := Commission(r.u8())
	if err := r.end(); err != nil {
		return 0, err
	}
	if c < Decommissioning || c > Removed {
		return 0, fmt.Errorf("commission %d: %w", c, base.ErrCorrupt)
	}
	return c, nil
}
