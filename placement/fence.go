package placement

import (
	"context"
	"fmt"

	"github.com/shardd/shardd/internal/wire"
)

// Fencing of the driver. A meta leader that has lost its leadership may not know it yet, and a write of it may be on
// its way. So whoever begins to drive raises the term in one record, and everything that a driver starts or writes is
// conditional on the version of that record: what an earlier driver still sends finds another one.

// Fence is the right to drive at a term, until another leader takes it.
type Fence struct {
	Term    uint64
	version uint64
}

// TakeFence records that the meta leader of a term drives. ErrStale: one of a later term does.
func (d *Directory) TakeFence(ctx context.Context, term uint64) (Fence, error) {
	for {
		v, ver, err := d.kv.Get(ctx, driverKey())
		if err != nil {
			return Fence{}, fmt.Errorf("read the driver's term: %w", err)
		}
		if ver != 0 {
			have, err := decodeNumber("driver's term", v)
			switch {
			case err != nil:
				return Fence{}, err
			case have > term:
				return Fence{}, fmt.Errorf("term %d, one of term %d drives: %w", term, have, ErrStale)
			case have == term:
				return Fence{term, ver}, nil
			}
		}
		// Read again whatever came of it: only a read tells the version.
		err = d.kv.Apply(ctx, []wire.Sub{
			checkVersion(driverKey(), ver), {Code: wire.OpPut, Key: driverKey(), Value: appendNumber(nil, term)},
		})
		if err != nil && ctx.Err() != nil {
			return Fence{}, fmt.Errorf("record the driver's term: %w", err)
		}
	}
}

// fenced returns the condition that f is still held, none without f. ErrStale: another driver has taken it.
func (d *Directory) fenced(ctx context.Context, f *Fence) ([]wire.Sub, error) {
	if f == nil {
		return nil, nil
	}
	_, ver, err := d.kv.Get(ctx, driverKey())
	if err != nil {
		return nil, err
	}
	if ver != f.version {
		return nil, fmt.Errorf("another meta leader drives: %w", ErrStale)
	}
	return []wire.Sub{checkVersion(driverKey(), ver)}, nil
}

// CreateDriverJob is CreateJob for the driver. ErrStale: another meta leader drives by now.
func (d *Directory) CreateDriverJob(ctx context.Context, f Fence, j *Job) error {
	j.Owner, j.Spec.Origin = f.Term, OriginDriver
	return d.createJob(ctx, j, &f)
}
