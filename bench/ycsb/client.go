package ycsb

import (
	"context"
	"errors"
	"fmt"

	"github.com/shardd/shardd/client"
	"github.com/shardd/shardd/internal/base"
)

// clientDB adapts the public client.
type clientDB struct {
	db   *client.DB
	keys *client.Range
	end  []byte
}

// NewClient returns a DB over the keys that the properties name (table and keyprefix) in a Shardd cluster.
func NewClient(db *client.DB, p Properties) (DB, error) {
	set, err := newSettings(p)
	if err != nil {
		return nil, err
	}
	prefix := []byte(set.keyPrefix)
	return &clientDB{db: db, keys: db.Prefix(prefix), end: base.PrefixEnd(prefix)}, nil
}

func (c *clientDB) Read(ctx context.Context, key []byte) ([]byte, error) {
	v, err := c.keys.Get(ctx, key)
	return v.Bytes, err
}

func (c *clientDB) Insert(ctx context.Context, key, record []byte) error {
	_, err := c.keys.Put(ctx, key, record)
	return err
}

func (c *clientDB) Update(ctx context.Context, key, record []byte) error {
	_, err := c.keys.Put(ctx, key, record)
	return err
}

func (c *clientDB) Scan(ctx context.Context, start []byte, count int, visit func(key, record []byte)) error {
	from, err := c.db.Range(start, c.end)
	if err != nil {
		return fmt.Errorf("scan from %q: %w", start, err)
	}
	for row, err := range from.Scan(ctx, client.Limit(count)) {
		if err != nil {
			return err
		}
		visit(row.Key, row.Value)
	}
	return nil
}

// ErrorClass names the kind of an error in one word, for counting: integrity, timeout, canceled, not_found, ambiguous,
// unavailable, overloaded, disk_full, invalid, closed or other.
func ErrorClass(err error) string {
	// Ambiguous comes before the context's errors, which it may wrap: what happened to the write matters more than why.
	for _, c := range []struct {
		is   error
		name string
	}{
		{ErrIntegrity, "integrity"}, {client.ErrAmbiguous, "ambiguous"}, {client.ErrNotFound, "not_found"},
		{client.ErrOverloaded, "overloaded"}, {client.ErrDiskFull, "disk_full"}, {client.ErrUnavailable, "unavailable"}, {client.ErrInvalid, "invalid"},
		{client.ErrOutOfRange, "invalid"}, {client.ErrClosed, "closed"},
		{context.DeadlineExceeded, "timeout"}, {context.Canceled, "canceled"},
	} {
		if errors.Is(err, c.is) {
			return c.name
		}
	}
	return "other"
}
