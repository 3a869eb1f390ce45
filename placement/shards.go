package placement

import (
	"bytes"
	"context"
	"fmt"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
)

// Lookup returns up to limit index records from the shard that holds key upwards. In reverse: downwards from the shard
// that holds the largest key below key. The index may be behind the shards; callers check what they get.
func (d *Directory) Lookup(ctx context.Context, key []byte, limit int, reverse bool) ([]Shard, error) {
	lo, hi := tagSpan(tagIndex)
	if limit < 1 {
		return nil, fmt.Errorf("look %x up: limit %d: %w", key, limit, ErrInvalid)
	}
	if !reverse {
		rows, err := d.kv.Scan(ctx, indexAbove(key), hi, limit, false)
		if err != nil {
			return nil, fmt.Errorf("look %x up: %w", key, err)
		}
		return decodeShards(rows)
	}
	rows, err := d.kv.Scan(ctx, indexFrom(key), hi, 1, false)
	if err != nil {
		return nil, fmt.Errorf("look %x up: %w", key, err)
	}
	top := hi
	if len(rows) > 0 {
		top = rows[0].Key
	}
	if limit > len(rows) {
		more, err := d.kv.Scan(ctx, lo, top, limit-len(rows), true)
		if err != nil {
			return nil, fmt.Errorf("look %x up: %w", key, err)
		}
		rows = append(rows, more...)
	}
	return decodeShards(rows)
}

// ListShards returns a page of index records: the meta shard first, then the user shards in key order. after is the
// start key of the last shard of the page before, empty for the first page; next is that of this page, nil at the end.
func (d *Directory) ListShards(ctx context.Context, after []byte, limit int) (page []Shard, next []byte, err error) {
	if limit < 1 {
		return nil, nil, fmt.Errorf("list shards: limit %d: %w", limit, ErrInvalid)
	}
	if len(after) == 0 {
		meta, err := d.Lookup(ctx, base.SystemStart(), 1, false)
		if err != nil {
			return nil, nil, err
		}
		page = meta
		if len(page) == limit {
			return page, page[len(page)-1].Desc.Start, nil
		}
	}
	from := base.UserStart()
	if bytes.Compare(after, base.UserStart()) >= 0 && bytes.Compare(after, base.UserEnd()) < 0 {
		from = after
	}
	// Two more than asked for: the shard that starts at after comes first and is left out, and one tells that there is
	// more to come.
	rows, err := d.Lookup(ctx, from, limit-len(page)+2, false)
	if err != nil {
		return nil, nil, err
	}
	more := false
	for _, s := range rows {
		if bytes.Compare(s.Desc.Start, base.UserEnd()) >= 0 {
			break
		}
		if len(after) > 0 && bytes.Equal(from, after) && bytes.Compare(s.Desc.Start, after) <= 0 {
			continue
		}
		if len(page) == limit {
			more = true
			break
		}
		page = append(page, s)
	}
	if more {
		next = page[len(page)-1].Desc.Start
	}
	return page, next, nil
}

// Creating returns up to limit shards that Init has not finished, in key order.
func (d *Directory) Creating(ctx context.Context, limit int) ([]Shard, error) {
	lo, hi := tagSpan(tagIndex)
	var out []Shard
	for {
		rows, err := d.kv.Scan(ctx, lo, hi, 1024, false)
		if err != nil {
			return nil, fmt.Errorf("read descriptor index: %w", err)
		}
		shards, err := decodeShards(rows)
		if err != nil {
			return nil, err
		}
		for _, s := range shards {
			if s.Creating && len(out) < limit {
				out = append(out, s)
			}
		}
		if len(rows) < 1024 || len(out) == limit {
			return out, nil
		}
		lo = append(bytes.Clone(rows[len(rows)-1].Key), 0)
	}
}

// MarkCreated clears the creating flag of shards; those that changed meanwhile or are unknown are left as they are. At
// most 512 at a time.
func (d *Directory) MarkCreated(ctx context.Context, shards []*base.Descriptor) error {
	if len(shards) > 512 {
		return fmt.Errorf("mark %d shards created, at most 512: %w", len(shards), ErrInvalid)
	}
	return d.retry(ctx, "mark shards created", func() ([]wire.Sub, error) {
		var steps []wire.Sub
		for _, desc := range shards {
			key := indexKey(desc.End)
			v, ver, err := d.kv.Get(ctx, key)
			if err != nil {
				return nil, err
			}
			if ver == 0 {
				continue
			}
			s, err := DecodeShard(v)
			if err != nil {
				return nil, err
			}
			if s.Desc.Shard != desc.Shard || !s.Creating {
				continue
			}
			s.Creating = false
			steps = append(steps, checkVersion(key, ver), wire.Sub{Code: wire.OpPut, Key: key, Value: s.Append(nil)})
		}
		return steps, nil
	})
}

// PutDescriptor records a shard's descriptor if it is newer than every record whose range it touches; those that it
// replaces go. ErrStale: the index holds one that is not older and differs. Recording the same again changes nothing.
func (d *Directory) PutDescriptor(ctx context.Context, desc *base.Descriptor) error {
	if err := desc.Validate(); err != nil {
		return fmt.Errorf("record descriptor: %w: %w", err, ErrInvalid)
	}
	if len(desc.End) > maxIndexEnd {
		return fmt.Errorf("record descriptor %s: end of %d bytes, at most %d: %w",
			desc.Shard, len(desc.End), maxIndexEnd, ErrInvalid)
	}
	return d.retry(ctx, "record descriptor "+desc.Shard.String(), func() ([]wire.Sub, error) {
		touched, same, err := d.touched(ctx, desc)
		if err != nil || same {
			return nil, err
		}
		var steps []wire.Sub
		put := wire.Sub{Code: wire.OpPut, Key: indexKey(desc.End)}
		creating, replaced := false, false
		for _, t := range touched {
			steps = append(steps, checkVersion(t.row.Key, t.row.Version))
			creating = creating || t.shard.Creating && t.shard.Desc.Shard == desc.Shard
			if bytes.Equal(t.row.Key, put.Key) {
				replaced = true
			} else {
				steps = append(steps, wire.Sub{Code: wire.OpDelete, Key: t.row.Key})
			}
		}
		if !replaced {
			steps = append(steps, checkVersion(put.Key, 0))
		}
		put.Value = (&Shard{Desc: desc, Creating: creating}).Append(nil)
		return append(steps, put), nil
	})
}

type touchedRow struct {
	row   Row
	shard Shard
}

// touched returns the records whose ranges overlap desc's, or same if one of them is desc.
func (d *Directory) touched(ctx context.Context, desc *base.Descriptor) (out []touchedRow, same bool, err error) {
	_, hi := tagSpan(tagIndex)
	for lo := indexAbove(desc.Start); ; {
		rows, err := d.kv.Scan(ctx, lo, hi, 16, false)
		if err != nil {
			return nil, false, err
		}
		for _, r := range rows {
			s, err := DecodeShard(r.Value)
			if err != nil {
				return nil, false, err
			}
			switch {
			case !s.Desc.Overlaps(desc):
				return out, false, nil
			case bytes.Equal(s.Desc.Append(nil), desc.Append(nil)):
				return nil, true, nil
			case s.Desc.Shard == desc.Shard && !desc.Epoch.Newer(s.Desc.Epoch),
				s.Desc.Shard != desc.Shard && desc.Epoch.Version <= s.Desc.Epoch.Version:
				return nil, false, fmt.Errorf("epoch %s against %s: %w", desc.Epoch, s.Desc, ErrStale)
			}
			out = append(out, touchedRow{r, s})
		}
		if len(rows) < 16 {
			return out, false, nil
		}
		lo = append(bytes.Clone(rows[len(rows)-1].Key), 0)
	}
}

func decodeShards(rows []Row) ([]Shard, error) {
	out := make([]Shard, 0, len(rows))
	for _, r := range rows {
		s, err := DecodeShard(r.Value)
		if err != nil {
			return nil, err
		}
		out = append(out, s)
	}
	return out, nil
}
