package engine

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/shardd/shardd/internal/base"
)

// identState is the store span in memory. Changes enter it and Pebble's log under the lock, so both have them in one
// order; the wait for the sync is outside.
type identState struct {
	mu struct {
		sync.Mutex
		have    bool
		v       Ident
		pending chan struct{} // closed when the latest change is durable; nil if none was made
	}
}

// loadIdent reads the store span.
func (e *Engine) loadIdent() (err error) {
	id := &e.ident.mu.v
	lo, hi := spanBounds(spanStore)
	it, err := e.db.NewIter(&pebble.IterOptions{LowerBound: lo, UpperBound: hi})
	if err != nil {
		return fmt.Errorf("read store ident: %w", readError(err))
	}
	defer func() { err = errors.Join(err, readError(it.Close())) }()
	for ok := it.First(); ok; ok = it.Next() {
		k := it.Key()
		v, err := it.ValueAndErr()
		if err != nil {
			return fmt.Errorf("read store ident: %w", readError(err))
		}
		switch {
		case string(k) == string(identKey()):
			var fixed Ident
			if fixed, err = decodeIdent(v); err == nil {
				fixed.Peers, fixed.Meta, fixed.Fences, fixed.Recovery = id.Peers, id.Meta, id.Fences, id.Recovery
				*id, e.ident.mu.have = fixed, true
			}
		case string(k) == string(metaKey()):
			id.Meta, err = decodeMeta(v)
		case len(k) == peerKeyLen && k[2] == storePeer:
			var p PeerRecord
			if p, err = decodePeer(base.StoreID(u64at(k, 3)), v); err == nil {
				id.Peers = append(id.Peers, p) // ascending: keys are in order
			}
		case len(k) == peerKeyLen && k[2] == storeFence:
			var f Fence
			if f, err = decodeFence(base.StoreID(u64at(k, 3)), v); err == nil {
				id.Fences = append(id.Fences, f)
			}
		case string(k) == string(recoveryKey()):
			id.Recovery, err = decodeRecovery(v)
		default:
			err = fmt.Errorf("unknown key %x in the store span: %w", k, ErrCorrupt)
		}
		if err != nil {
			return err
		}
	}
	if err := it.Error(); err != nil {
		return fmt.Errorf("read store ident: %w", readError(err))
	}
	switch {
	case !e.ident.mu.have && (len(id.Peers) > 0 || id.Meta != nil || len(id.Fences) > 0 || id.Recovery != nil):
		return fmt.Errorf("peers without a store ident: %w", ErrCorrupt)
	case id.Format > FormatVersion:
		return fmt.Errorf("store ident: format %d, this binary knows %d: %w", id.Format, FormatVersion, errNewerLayout)
	case id.FormatMajor > uint32(FormatMajor):
		return fmt.Errorf("store ident: pebble format %d, this binary knows %d: %w",
			id.FormatMajor, FormatMajor, errNewerLayout)
	}
	return nil
}

// Ident returns the store's ident from memory; false if none has been written yet. The copy is the caller's, but for
// Meta and Recovery, which must not be changed.
func (e *Engine) Ident() (Ident, bool) {
	e.ident.mu.Lock()
	defer e.ident.mu.Unlock()
	id := e.ident.mu.v
	id.Peers, id.Fences = slices.Clone(id.Peers), slices.Clone(id.Fences)
	return id, e.ident.mu.have
}

// CheckIdent compares the ident with what the node is told to be and fails with ExitOtherCluster or ExitOtherStore. A
// zero cluster or store is not compared, nor is anything while there is no ident.
func (e *Engine) CheckIdent(cluster base.ClusterID, store base.StoreID) error {
	id, ok := e.Ident()
	switch {
	case !ok:
		return nil
	case !cluster.IsZero() && cluster != id.Cluster:
		return &OpenError{Code: ExitOtherCluster, Dir: e.opts.Dir,
			Err: fmt.Errorf("belongs to cluster %s, not %s", id.Cluster, cluster)}
	case store != 0 && store != id.Store:
		return &OpenError{Code: ExitOtherStore, Dir: e.opts.Dir,
			Err: fmt.Errorf("belongs to store %s, not %s", id.Store, store)}
	}
	return nil
}

// WriteIdent replaces the ident, its peers and meta descriptor included, and returns when it is durable. Format and
// FormatMajor are filled in; fences and recovery stay as they are.
func (e *Engine) WriteIdent(id Ident) error {
	if id.Cluster.IsZero() || id.Store == 0 || id.LongestPromise < 0 {
		return fmt.Errorf("write ident: cluster %s, store %s, promise %s", id.Cluster, id.Store, id.LongestPromise)
	}
	id.Format, id.FormatMajor = FormatVersion, uint32(FormatMajor)
	id.Peers = slices.Clone(id.Peers)
	slices.SortFunc(id.Peers, func(a, b PeerRecord) int { return cmpUint(uint64(a.Store), uint64(b.Store)) })
	for i, p := range id.Peers {
		if i > 0 && p.Store == id.Peers[i-1].Store {
			return fmt.Errorf("write ident: peer %s twice", p.Store)
		}
	}
	return e.changeIdent(func(old *Ident, b *Batch) (bool, error) {
		for _, p := range old.Peers {
			b.deleteLocal(peerKey(p.Store))
		}
		b.deleteLocal(metaKey())
		setRecord(b, identKey(), appendIdent(nil, &id))
		for i := range id.Peers {
			if err := setPeer(b, &id.Peers[i]); err != nil {
				return false, err
			}
		}
		if id.Meta != nil {
			if err := setMeta(b, id.Meta); err != nil {
				return false, err
			}
			id.Meta = id.Meta.Clone()
		}
		id.Fences, id.Recovery = old.Fences, old.Recovery
		*old, e.ident.mu.have = id, true
		return true, nil
	})
}

// RaiseIncarnation adds one to the incarnation and returns it once durable. Call it at every start, before anything of
// this life can reach another store.
func (e *Engine) RaiseIncarnation() (uint64, error) {
	var inc uint64
	err := e.changeIdent(func(id *Ident, b *Batch) (bool, error) {
		if !e.ident.mu.have {
			return false, errors.New("raise incarnation: the store has no ident yet")
		}
		id.Incarnation++
		id.Format, id.FormatMajor = FormatVersion, uint32(FormatMajor) // what this life writes, older binaries may not know
		inc = id.Incarnation
		setRecord(b, identKey(), appendIdent(nil, id))
		return true, nil
	})
	return inc, err
}

// RaisePromise remembers that this store may promise lease support for d, and returns, once that is durable, the longest
// promise that was on record before: what earlier lives may have given (rule V7). A shorter one changes nothing. Call it
// at every start, before support is given.
func (e *Engine) RaisePromise(d time.Duration) (before time.Duration, err error) {
	err = e.changeIdent(func(id *Ident, b *Batch) (bool, error) {
		if !e.ident.mu.have {
			return false, errors.New("raise promise: the store has no ident yet")
		}
		if before = id.LongestPromise; d <= before {
			return false, nil
		}
		id.LongestPromise = d
		setRecord(b, identKey(), appendIdent(nil, id))
		return true, nil
	})
	if err != nil {
		return 0, err
	}
	return before, nil
}

// LowerPromise sets the record down to d, the longest promise of this life, once those of earlier lives are over. It
// returns when that is durable.
func (e *Engine) LowerPromise(d time.Duration) error {
	return e.changeIdent(func(id *Ident, b *Batch) (bool, error) {
		if !e.ident.mu.have || d < 0 || d >= id.LongestPromise {
			return false, nil
		}
		id.LongestPromise = d
		setRecord(b, identKey(), appendIdent(nil, id))
		return true, nil
	})
}

// RecordPeer remembers a store's address and the highest incarnation seen; a record with a lower incarnation than the
// known one is ignored. It returns when the knowledge is durable and syncs only if something has changed.
func (e *Engine) RecordPeer(p PeerRecord) error {
	return e.changeIdent(func(id *Ident, b *Batch) (bool, error) {
		if !e.ident.mu.have {
			return false, fmt.Errorf("record peer %s: the store has no ident yet", p.Store)
		}
		i, found := slices.BinarySearchFunc(id.Peers, p.Store,
			func(r PeerRecord, s base.StoreID) int { return cmpUint(uint64(r.Store), uint64(s)) })
		if found && (id.Peers[i] == p || id.Peers[i].Incarnation > p.Incarnation) {
			return false, nil
		}
		if err := setPeer(b, &p); err != nil {
			return false, err
		}
		if found {
			id.Peers[i] = p
		} else {
			id.Peers = slices.Insert(id.Peers, i, p)
		}
		return true, nil
	})
}

// RecordMeta remembers the meta shard's descriptor if it is newer than the known one. It returns when durable.
func (e *Engine) RecordMeta(d *base.Descriptor) error {
	return e.changeIdent(func(id *Ident, b *Batch) (bool, error) {
		if !e.ident.mu.have {
			return false, errors.New("record meta descriptor: the store has no ident yet")
		}
		if id.Meta != nil && !d.Epoch.Newer(id.Meta.Epoch) {
			return false, nil
		}
		if err := setMeta(b, d); err != nil {
			return false, err
		}
		id.Meta = d.Clone()
		return true, nil
	})
}

// changeIdent runs change under the lock, with a batch for what it writes, and waits until that is durable, or until
// what an earlier caller wrote is, if nothing changed.
func (e *Engine) changeIdent(change func(id *Ident, b *Batch) (changed bool, err error)) error {
	b := e.NewBatch()
	e.ident.mu.Lock()
	changed, err := change(&e.ident.mu.v, b)
	if err == nil && changed {
		done := make(chan struct{})
		if err = e.commitAsync(b, func() { close(done) }); err == nil {
			e.ident.mu.pending = done
		}
	}
	pending := e.ident.mu.pending
	e.ident.mu.Unlock()
	if err != nil {
		return err
	}
	if pending != nil {
		select {
		case <-pending:
		case <-e.fatal.ch:
			return e.stopErr()
		}
	}
	b.Close()
	return nil
}

func setRecord(b *Batch, key, value []byte) {
	k, v := b.set(len(key), len(value))
	copy(k, key)
	copy(v, value)
}

func setPeer(b *Batch, p *PeerRecord) error {
	if p.Store == 0 || len(p.Addr) > maxAddrLen {
		return fmt.Errorf("record peer %s: store id 0, or address over %d bytes", p.Store, maxAddrLen)
	}
	setRecord(b, peerKey(p.Store), appendPeer(nil, p))
	return nil
}

func setMeta(b *Batch, d *base.Descriptor) error {
	if err := d.Validate(); err != nil {
		return fmt.Errorf("record meta descriptor: %w", err)
	}
	setRecord(b, metaKey(), appendMeta(nil, d))
	return nil
}

func cmpUint(a, b uint64) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}
