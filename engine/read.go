package engine

import (
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2"
)

// Get reads one routing key and appends the user's bytes to buf. ok is false, and value is buf, if the key does not
// exist. A damaged block is an error wrapping ErrCorrupt, never a wrong value; damage below a row that the row cache holds
// is found by others.
func (e *Engine) Get(key, buf []byte) (h ValueHeader, value []byte, ok bool, err error) {
	return e.lookUp(key, buf, true)
}

// GetOnce is Get of a row that nobody is expected to read again soon, such as one that is about to be written: it does not
// bring the row into the row cache.
func (e *Engine) GetOnce(key, buf []byte) (h ValueHeader, value []byte, ok bool, err error) {
	return e.lookUp(key, buf, false)
}

func (e *Engine) lookUp(key, buf []byte, keep bool) (h ValueHeader, value []byte, ok bool, err error) {
	row, ticket := e.rows.get(key)
	if row != nil {
		return row.header, append(buf, row.data[row.keyLen:]...), true, nil
	}
	v, closer, err := e.db.Get(key)
	if errors.Is(err, pebble.ErrNotFound) {
		return ValueHeader{}, buf, false, nil
	}
	if err != nil {
		return ValueHeader{}, buf, false, fmt.Errorf("get %x: %w", key, readError(err))
	}
	h, user, err := decodeValue(v)
	if err == nil {
		value = append(buf, user...)
	}
	if err = errors.Join(err, closer.Close()); err != nil {
		return ValueHeader{}, buf, false, fmt.Errorf("get %x: %w", key, readError(err))
	}
	if keep {
		e.rows.put(ticket, key, h, value[len(buf):])
	}
	return h, value, true, nil
}

// Iter walks over a range of routing keys, forward or in reverse. It is a view (rule W1): what is committed or excised
// after NewIter returned is not seen by it. It belongs to one goroutine at a time, and holds files and memory until
// closed.
type Iter struct {
	e       *Engine
	it      *pebble.Iterator
	opts    pebble.IterOptions
	reverse bool
	valid   bool
	decoded bool
	header  ValueHeader
	value   []byte
	err     error
}

// NewIter opens an iterator over [lo, hi), placed at its first key, or at its last with reverse. The bounds are copied.
func (e *Engine) NewIter(lo, hi []byte, reverse bool) (*Iter, error) {
	if len(lo) == 0 || len(hi) == 0 {
		return nil, fmt.Errorf("iterator over [%x, %x): bounds must not be empty: %w", lo, hi, ErrInvalidKey)
	}
	i := e.iters.Get().(*Iter)
	i.opts = pebble.IterOptions{LowerBound: lo, UpperBound: hi}
	it, err := e.db.NewIter(&i.opts)
	i.opts = pebble.IterOptions{}
	if err != nil {
		e.iters.Put(i)
		return nil, fmt.Errorf("iterator over [%x, %x): %w", lo, hi, readError(err))
	}
	i.it, i.reverse, i.err = it, reverse, nil
	if reverse {
		i.set(it.Last())
	} else {
		i.set(it.First())
	}
	return i, nil
}

func (i *Iter) set(valid bool) { i.valid, i.decoded, i.value = valid, false, nil }

// Valid reports whether the iterator is at a key. When it turns false, Err tells the end from a failure.
func (i *Iter) Valid() bool { return i.valid && i.err == nil }

// Next moves to the next key, which is the one below with reverse, and reports whether there is one.
func (i *Iter) Next() bool {
	if !i.Valid() {
		return false
	}
	if i.reverse {
		i.set(i.it.Prev())
	} else {
		i.set(i.it.Next())
	}
	return i.valid
}

// Key returns the routing key, valid until the next move.
func (i *Iter) Key() []byte { return i.it.Key() }

// Header returns the value's header; zero, with Err set, if the value cannot be read.
func (i *Iter) Header() ValueHeader {
	i.decode()
	return i.header
}

// Value returns the user's bytes, valid until the next move; nil, with Err set, if they cannot be read. Values are
// fetched only when asked for: a scan of keys reads none.
func (i *Iter) Value() []byte {
	i.decode()
	return i.value
}

func (i *Iter) decode() {
	if i.decoded || !i.Valid() {
		return
	}
	i.decoded = true
	v, err := i.it.ValueAndErr()
	if err == nil {
		i.header, i.value, err = decodeValue(v)
	}
	if err != nil {
		i.header, i.value = ValueHeader{}, nil
		i.err = fmt.Errorf("value of %x: %w", i.it.Key(), readError(err))
	}
}

// Err returns the first failure, wrapping ErrCorrupt for damage.
func (i *Iter) Err() error {
	if i.err != nil {
		return i.err
	}
	if err := i.it.Error(); err != nil {
		return fmt.Errorf("iterate: %w", readError(err))
	}
	return nil
}

// Close releases the iterator and returns Err. It must not be used afterwards.
func (i *Iter) Close() error {
	err := i.Err()
	if cerr := i.it.Close(); err == nil && cerr != nil {
		err = fmt.Errorf("iterate: %w", readError(cerr))
	}
	e := i.e
	*i = Iter{e: e}
	e.iters.Put(i)
	return err
}
