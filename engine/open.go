package engine

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"runtime/debug"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// Open opens or creates the store in Options.Dir.
//
// Stages: look (refuse what is not ours, before anything is touched), lock, mark the directory as ours, check manifest
// and log, let Pebble recover, read the ident. A crash in any of them leaves a directory that opens again. Everything
// that Pebble replays from its log has been flushed and synced when Open returns: entries that an earlier life wrote
// but never synced may be acknowledged now.
//
// It fails with an *OpenError for whatever has an exit code, and with a plain error otherwise.
func Open(o Options) (*Engine, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	o = o.withDefaults()
	e := &Engine{opts: o, start: time.Now()}
	e.fatal.ch, e.fatal.dead = make(chan struct{}), make(chan struct{})
	e.fatal.opening.Store(true)
	e.metrics.init()
	e.batches.New = func() any { return &Batch{e: e} }
	e.iters.New = func() any { return &Iter{e: e} }
	e.cache.init(o.EntryCacheBytes)
	e.rows.init(o.RowCacheBytes)
	e.damage.init()
	e.events = newEventLog(o.Logger)

	if err := e.openDB(); err != nil {
		e.events.close()
		return nil, classify(o.Dir, err)
	}
	err := e.loadIdent()
	if err == nil {
		err = e.register()
	}
	e.fatal.opening.Store(false)
	if e.fatal.stopped.Load() { // by Pebble's background work
		err = errors.Join(e.openFailure(), err)
	}
	if err != nil {
		e.unregister()
		err = errors.Join(classify(o.Dir, err), e.closeDB(e.db), e.lock.Close(), e.fsClose())
		e.events.close()
		return nil, err
	}
	e.pollSpace()
	e.syncs.start(e)
	e.probe.start(e)
	go e.runDamage()
	return e, nil
}

func (e *Engine) openDB() (err error) {
	dir, fs := e.opts.Dir, e.guarded()
	if _, found, err := checkOurs(fs, dir); err != nil {
		return err
	} else if !found {
		if err := makeDir(fs, dir); err != nil {
			return err
		}
	}
	if e.lock, err = lockDir(fs, dir); err != nil {
		return err
	}
	e.fsClose = func() error { return nil }
	defer func() {
		if err != nil {
			err = errors.Join(err, e.lock.Close(), e.fsClose())
		}
	}()

	state, found, err := checkOurs(fs, dir) // again: now nobody else can change it
	if err != nil {
		return err
	}
	if err := e.freeReserve(); err != nil {
		return err
	}
	if !found {
		state = markerCreating
		if err := e.mark(fs, state); err != nil {
			return err
		}
	}
	if err := fs.RemoveAll(fs.PathJoin(dir, stagingDir)); err != nil { // no snapshot outlives its process
		return fmt.Errorf("remove staging: %w", err)
	}
	if err := checkPebbleFormat(fs, dir); err != nil {
		return err
	}
	if err := checkManifest(fs, dir); err != nil {
		return err
	}
	if err := checkLastLog(fs, dir); err != nil {
		return err
	}

	po := e.opts.pebbleOptions()
	po.Lock = e.lock
	po.ErrorIfNotExists = state == markerReady
	po.Logger = pebbleLogger{e}
	po.EventListener = e.listener()
	po.CompactionConcurrencyRange = func() (int, int) {
		held := int(e.damage.held.Load()) // holds need no processor
		return 1 + held, compactionConcurrency() + held
	}
	po.Experimental.CompactionScheduler = newCompactions()
	po.Cache = pebble.NewCache(e.opts.CacheBytes)
	defer po.Cache.Unref() // Pebble has its own reference
	po.FS = fs
	if e.opts.FS.mem == nil {
		// Below the guard, whose waits are not the disk's.
		checked, closer := vfs.WithDiskHealthChecks(e.opts.FS.inner, e.opts.DiskSlow, nil, po.EventListener.DiskSlow)
		po.FS, e.fsClose = guardFS{FS: checked, fs: e.opts.FS, e: e}, closer.Close
	}
	if e.db, err = e.openPebble(po); err != nil {
		return err
	}
	e.damage.opened.Store(true)
	if err := e.checkBlobs(fs); err != nil {
		return errors.Join(err, e.closeDB(e.db))
	}
	if state == markerCreating {
		// Pebble makes the first log in its oldest format, which cannot tell damage from a torn end. Start the second.
		if err := e.db.Flush(); err != nil {
			return errors.Join(err, e.closeDB(e.db))
		}
		if err := e.mark(fs, markerReady); err != nil {
			return errors.Join(err, e.closeDB(e.db))
		}
	}
	return nil
}

// guarded is the file system for everything that changes the directory.
func (e *Engine) guarded() vfs.FS { return guardFS{FS: e.opts.FS.inner, fs: e.opts.FS, e: e} }

// openPebble runs pebble.Open on a goroutine of its own: on some damage Pebble panics, and on some errors it calls
// Fatalf, which must not return and so ends its goroutine, perhaps one that pebble.Open waits for. All come back as
// errors. A failure that the guard has seen lets pebble.Open run to its end; the database is then closed again.
func (e *Engine) openPebble(po *pebble.Options) (*pebble.DB, error) {
	type result struct {
		db  *pebble.DB
		err error
	}
	ch := make(chan result, 1)
	go func() {
		r := result{err: errors.New("pebble gave up")} // what is left after a Fatalf
		defer func() {
			if p := recover(); p != nil {
				e.events.log(slog.LevelDebug, "panic in pebble", slog.String("stack", string(debug.Stack())))
				r = result{err: fmt.Errorf("pebble found its files inconsistent: %v: %w", p, ErrCorrupt)}
			}
			ch <- r
		}()
		r.db, r.err = pebble.Open(e.opts.Dir, po)
	}()
	var r result
	select {
	case r = <-ch:
	case <-e.fatal.dead:
	}
	if !e.fatal.stopped.Load() {
		return r.db, r.err
	}
	err := e.openFailure()
	if r.db != nil {
		err = errors.Join(err, e.closeDB(r.db))
	}
	return nil, err
}

// closeDB closes a database whose opening has failed.
func (e *Engine) closeDB(db *pebble.DB) error {
	e.damage.close()
	return db.Close()
}

// mark writes the STORE marker, through the guard, which turns its errors into a failure of the store.
func (e *Engine) mark(fs vfs.FS, state byte) error {
	err := writeMarker(fs, e.opts.Dir, state)
	if e.fatal.stopped.Load() {
		return e.openFailure()
	}
	return err
}

func (e *Engine) openFailure() error {
	e.fatal.mu.Lock()
	defer e.fatal.mu.Unlock()
	return e.fatal.err
}

// errMetrics keeps a clash of metrics from passing for damage.
var errMetrics = errors.New("register metrics of the engine")

func (e *Engine) register() error {
	if e.opts.Registerer == nil {
		return nil
	}
	for _, c := range append(e.metrics.all, newCollector(e)) {
		if err := e.opts.Registerer.Register(c); err != nil {
			return fmt.Errorf("%w: %w", errMetrics, err)
		}
		e.reg = append(e.reg, c)
	}
	return nil
}

func (e *Engine) unregister() {
	for _, c := range e.reg {
		e.opts.Registerer.Unregister(c)
	}
}

// get reads one small record; ok is false if it does not exist. The value is a copy.
func (e *Engine) get(key []byte) (value []byte, ok bool, err error) {
	v, closer, err := e.db.Get(key)
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, readError(err)
	}
	value = append(make([]byte, 0, len(v)), v...)
	return value, true, closeGet(closer)
}

func closeGet(c io.Closer) error { return readError(c.Close()) }
