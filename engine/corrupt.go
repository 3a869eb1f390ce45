package engine

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"log/slog"
	"math"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/shardd/shardd/internal/base"
)

// Damaged tables. Pebble checks every block that it reads from disk against its checksum, so damage is an error of the
// reader that meets it, never a wrong value. What is left to do is to say which keys are behind it, and to keep
// Pebble's background work off it: Pebble puts a failed compaction off only if its tables are below L0, and loads the
// statistics of a table again at once after a failure, for ever. So a background job that meets damage is held for a
// minute before it learns of it (docs/decisions/0009-holding-pebbles-background-jobs.md). While it is held its tables
// count as being compacted, which keeps them from being picked again, and one more compaction may run in its place.

// damageHold is for how long a background job that met damage is held.
const damageHold = time.Minute

// maxCorruptFiles bounds what is remembered; a disk with more damage than that needs no list.
const maxCorruptFiles = 1000

// CorruptFile is a damaged table, or a file of values that tables refer to. Lo and Hi are the bounds of the keys in it,
// [Lo, Hi), as the engine stores them; nil if unknown. A file that several tables share is listed for each of them that
// met the damage.
type CorruptFile struct {
	Path   string
	Lo, Hi []byte
}

type damageState struct {
	opened  atomic.Bool   // Pebble is open: before, it waits for its jobs, which then must not be held
	held    atomic.Int64  // background jobs that are held now
	closing chan struct{} // closed by Close: ends the holds and the goroutine
	wake    chan struct{}
	joined  chan struct{}
	once    sync.Once

	mu struct {
		sync.Mutex
		seen  map[string]bool // by path and bounds
		queue []CorruptFile   // not announced yet
		files []CorruptFile
	}
}

func (d *damageState) init() {
	d.closing, d.joined = make(chan struct{}), make(chan struct{})
	d.wake = make(chan struct{}, 1)
	d.mu.seen = make(map[string]bool)
}

// close ends the holds and the announcements. It is called before Pebble is closed, which waits for its jobs.
func (d *damageState) close() { d.once.Do(func() { close(d.closing) }) }

// CorruptFiles returns the damaged files met since the store was opened.
func (e *Engine) CorruptFiles() []CorruptFile {
	e.damage.mu.Lock()
	defer e.damage.mu.Unlock()
	return slices.Clone(e.damage.mu.files)
}

// LocalShards tells whose records, other than data, may be among the keys in [lo, hi) that OnCorrupt was called with:
// those of the shards from first to last. ok is false if no shard's are: the keys are data, or the store's own. Tables
// hold the records of many shards, of which most will be whole; a replica whose own are not finds out by reading them.
func LocalShards(lo, hi []byte) (first, last base.ShardID, ok bool) {
	from, to := []byte{spaceLocal, spanApplied}, []byte{spaceLocal, spanRaft + 1} // all spans keyed by shard
	if bytes.Compare(lo, from) < 0 {
		lo = from
	}
	if hi == nil || bytes.Compare(hi, to) > 0 {
		hi = to
	}
	if bytes.Compare(lo, hi) >= 0 {
		return 0, 0, false
	}
	if len(hi) <= 2 || lo[1] != hi[1] {
		return 0, math.MaxUint64, true
	}
	at := func(k []byte) uint64 {
		var b [8]byte
		copy(b[:], k[2:])
		return binary.BigEndian.Uint64(b[:])
	}
	end := at(hi)
	if len(hi) <= shardKeyLen { // nothing of the shard itself is below it
		if end == 0 {
			return 0, 0, false
		}
		end--
	}
	return base.ShardID(at(lo)), base.ShardID(end), true
}

// damaged takes note of a damaged file; b is nil if its keys are not known. It is called by whoever met the damage, on
// Pebble's goroutines and perhaps under Pebble's locks, and waits only on a background job that holds none.
func (e *Engine) damaged(path string, b *pebble.KeyRange, detail string) {
	e.metrics.corruptions.Inc()
	f := CorruptFile{Path: path}
	if b != nil {
		f.Lo, f.Hi = bytes.Clone(b.Start), bytes.Clone(b.End)
	}
	if e.damage.note(f) {
		e.events.log(slog.LevelError, "damaged file", slog.String("file", path),
			slog.String("keys", fmt.Sprintf("[%x, %x)", f.Lo, f.Hi)), slog.String("detail", oneLine(detail)))
	}
	if !e.damage.opened.Load() || !onBackgroundJob() {
		return
	}
	e.damage.held.Add(1)
	defer e.damage.held.Add(-1)
	hold := time.NewTimer(e.opts.damageHold)
	defer hold.Stop()
	select {
	case <-hold.C:
	case <-e.damage.closing:
	}
}

// note queues a file for OnCorrupt and reports whether it is new.
func (d *damageState) note(f CorruptFile) bool {
	key := fmt.Sprintf("%s %x %x", f.Path, f.Lo, f.Hi)
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.mu.seen[key] || len(d.mu.seen) >= maxCorruptFiles {
		return false
	}
	d.mu.seen[key] = true
	d.mu.queue = append(d.mu.queue, f)
	select {
	case d.wake <- struct{}{}:
	default:
	}
	return true
}

// onBackgroundJob reports whether the caller runs in a part of Pebble that reads tables without holding Pebble's locks
// and starts anew when it fails. Pebble has no other way to tell: its event does not say for whom the block was read.
func onBackgroundJob() bool {
	var pcs [64]uintptr
	frames := runtime.CallersFrames(pcs[:runtime.Callers(2, pcs[:])])
	for {
		f, more := frames.Next()
		if name, ok := strings.CutPrefix(f.Function, "github.com/cockroachdb/pebble/v2."); ok {
			switch name {
			case "(*DB).compactAndWrite", "(*blobFileRewriter).Rewrite", "(*DB).loadTableStats":
				return true
			}
		}
		if !more {
			return false
		}
	}
}

// runDamage announces damaged files, one after the other, until Close.
func (e *Engine) runDamage() {
	defer close(e.damage.joined)
	for {
		select {
		case <-e.damage.wake:
			for e.pollDamage() {
			}
		case <-e.damage.closing:
			return
		}
	}
}

// pollDamage announces one file.
func (e *Engine) pollDamage() (worked bool) {
	d := &e.damage
	d.mu.Lock()
	if len(d.mu.queue) == 0 {
		d.mu.Unlock()
		return false
	}
	f := d.mu.queue[0]
	d.mu.queue = d.mu.queue[1:]
	d.mu.Unlock()
	if f.Hi == nil {
		f.Lo, f.Hi = e.boundsOf(f.Path)
	}
	d.mu.Lock()
	d.mu.files = append(d.mu.files, f)
	d.mu.Unlock()
	select {
	case <-d.closing: // nobody may be there any more
	default:
		if e.opts.OnCorrupt != nil {
			e.opts.OnCorrupt(bytes.Clone(f.Lo), bytes.Clone(f.Hi))
		}
	}
	return true
}

// boundsOf looks up which keys are in a file, or refer to it; nil if that is not known.
func (e *Engine) boundsOf(path string) (lo, hi []byte) {
	num, kind, _ := strings.Cut(e.opts.FS.inner.PathBase(path), ".")
	n, err := strconv.ParseUint(num, 10, 64)
	if err != nil {
		return nil, nil
	}
	levels, err := e.db.SSTables()
	if err != nil {
		return nil, nil
	}
	for _, level := range levels {
		for i := range level {
			t := &level[i]
			in := uint64(t.BackingSSTNum) == n
			if kind == "blob" {
				in = false
				for _, id := range t.GetBlobReferenceFiles() { // a file keeps its number until it is rewritten
					in = in || uint64(id) == n
				}
			}
			if !in {
				continue
			}
			end := t.Largest.UserKey
			if !t.Largest.IsExclusiveSentinel() {
				end = append(bytes.Clone(end), 0)
			}
			if lo == nil || bytes.Compare(t.Smallest.UserKey, lo) < 0 {
				lo = t.Smallest.UserKey
			}
			if bytes.Compare(end, hi) > 0 {
				hi = end
			}
		}
	}
	return bytes.Clone(lo), bytes.Clone(hi)
}

// keyRange turns the bounds in Pebble's event into a range with an exclusive end; nil for those of a blob file, which
// has none.
func keyRange(i pebble.DataCorruptionInfo) *pebble.KeyRange {
	b := i.Bounds
	if len(b.Start) == 0 && len(b.End.Key) == 0 {
		return nil
	}
	end := bytes.Clone(b.End.Key)
	if b.End.IsUpperBoundFor(bytes.Compare, end) { // inclusive
		end = append(end, 0)
	}
	return &pebble.KeyRange{Start: b.Start, End: end}
}
