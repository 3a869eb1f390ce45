package engine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2"
)

// eventQueueLen bounds the events waiting for the logger, in events.
const eventQueueLen = 1024

// eventLog carries log lines from Pebble's goroutines, which may hold Pebble's locks, to slog. It drops and counts
// what does not fit: logging never blocks the data path.
type eventLog struct {
	logger  *slog.Logger
	queue   chan slog.Record
	stop    chan struct{}
	done    chan struct{}
	dropped atomic.Uint64
	once    sync.Once
}

func newEventLog(logger *slog.Logger) *eventLog {
	l := &eventLog{
		logger: logger, queue: make(chan slog.Record, eventQueueLen),
		stop: make(chan struct{}), done: make(chan struct{}),
	}
	go l.run()
	return l
}

func (l *eventLog) log(level slog.Level, msg string, attrs ...slog.Attr) {
	if !l.logger.Enabled(context.Background(), level) {
		return
	}
	r := slog.NewRecord(time.Now(), level, msg, 0)
	r.AddAttrs(attrs...)
	select {
	case l.queue <- r:
	default:
		l.dropped.Add(1)
	}
}

func (l *eventLog) run() {
	defer close(l.done)
	for {
		select {
		case r := <-l.queue:
			_ = l.logger.Handler().Handle(context.Background(), r)
		case <-l.stop:
			for {
				select {
				case r := <-l.queue:
					_ = l.logger.Handler().Handle(context.Background(), r)
				default:
					return
				}
			}
		}
	}
}

// close writes out what is queued and joins the goroutine.
func (l *eventLog) close() {
	l.once.Do(func() { close(l.stop) })
	<-l.done
}

// emptyFlush is the text of the error, not exported by Pebble, with which a flush of nothing ends.
const emptyFlush = "pebble: empty table"

// failureEvery is the least time between two lines about the same kind of failing background work, which Pebble tries
// again and again.
const failureEvery = 10 * time.Second

// limited lets one line through per failureEvery and counts the others.
type limited struct {
	mu      sync.Mutex
	last    time.Time
	skipped int
}

// log writes the line, with how many were left out since the last one, or leaves it out.
func (r *limited) log(l *eventLog, level slog.Level, msg string, err error) {
	r.mu.Lock()
	now := time.Now()
	if !r.last.IsZero() && now.Sub(r.last) < failureEvery {
		r.skipped++
		r.mu.Unlock()
		return
	}
	skipped := r.skipped
	r.last, r.skipped = now, 0
	r.mu.Unlock()
	l.log(level, msg, slog.String("error", oneLine(err.Error())), slog.Int("left_out", skipped))
}

// oneLine makes one line of Pebble's description of a damage, without what is only for its own machinery.
func oneLine(s string) string {
	s = strings.ReplaceAll(s, "<corruption detail carrier>", "")
	return strings.Trim(strings.Join(strings.Fields(s), " "), " :")
}

// pebbleLogger is Pebble's Logger. Its lines are for debugging Pebble; what an operator needs comes as events.
type pebbleLogger struct{ e *Engine }

func (p pebbleLogger) Infof(format string, args ...any) {
	if p.e.events.logger.Enabled(context.Background(), slog.LevelDebug) {
		p.e.events.log(slog.LevelDebug, fmt.Sprintf(format, args...))
	}
}

func (p pebbleLogger) Errorf(format string, args ...any) {
	p.e.events.log(slog.LevelError, fmt.Sprintf(format, args...))
}

// Fatalf records the reason and never returns: Pebble's state is undefined after it. It ends the goroutine it is on
// with its deferred calls, so that a caller's joins still work.
func (p pebbleLogger) Fatalf(format string, args ...any) {
	cause := fmt.Errorf(format, args...)
	for _, a := range args {
		if err, ok := a.(error); ok {
			cause = fmt.Errorf("%s: %w", fmt.Sprintf(format, args...), err)
			break
		}
	}
	p.e.fail(fmt.Errorf("pebble: %w", cause))
	if !p.e.fatal.pebbleDead.Swap(true) {
		close(p.e.fatal.dead)
	}
	runtime.Goexit()
}

// listener wires Pebble's events to the log and the counters. It runs on Pebble's goroutines, some of them under
// Pebble's locks: nothing in it waits.
func (e *Engine) listener() *pebble.EventListener {
	m, log := &e.metrics, e.events
	var background, compactions, flushes limited
	return &pebble.EventListener{
		BackgroundError: func(err error) {
			m.backgroundErrors.Inc()
			background.log(log, slog.LevelError, "background work of the engine failed", err)
			if e.fatal.opening.Load() && !pebble.IsCorruptionError(err) {
				e.fail(err) // on a full disk, say, Pebble would try for ever to flush what it has replayed
			}
		},
		DataCorruption: func(i pebble.DataCorruptionInfo) {
			e.damaged(i.Path, keyRange(i), i.String())
		},
		CompactionEnd: func(i pebble.CompactionInfo) {
			m.compactions.Inc()
			m.compactionSeconds.Add(i.TotalDuration.Seconds())
			if i.Err != nil {
				compactions.log(log, slog.LevelWarn, "compaction failed", i.Err)
				return
			}
			log.log(slog.LevelDebug, "compaction", slog.String("detail", i.String()))
		},
		WALCreated: func(i pebble.WALCreateInfo) {
			if i.Err == nil {
				e.epochs.logCreated()
			}
		},
		FlushBegin: func(pebble.FlushInfo) { e.epochs.flushBegan() },
		FlushEnd: func(i pebble.FlushInfo) {
			m.flushes.Inc()
			m.flushSeconds.Add(i.TotalDuration.Seconds())
			if i.Err != nil && i.Err.Error() == emptyFlush {
				e.epochs.flushEnded()
				return // not a failure: a new store rotates its log with nothing in it to flush
			}
			if i.Err != nil {
				if !errors.Is(i.Err, pebble.ErrCancelledCompaction) { // an excise came between: the next try follows
					e.flushes.fail(i.Err)
				}
				flushes.log(log, slog.LevelWarn, "flush failed", i.Err)
				return
			}
			e.epochs.flushEnded()
			log.log(slog.LevelDebug, "flush", slog.String("detail", i.String()))
		},
		WriteStallBegin: func(i pebble.WriteStallBeginInfo) {
			m.stalls.Inc()
			e.stallStart.Store(int64(e.now()))
			log.log(slog.LevelWarn, "writes stalled: flushes or compactions are behind",
				slog.String("reason", i.Reason))
		},
		WriteStallEnd: func() {
			d := e.now() - time.Duration(e.stallStart.Swap(0))
			m.stallSeconds.Add(d.Seconds())
			log.log(slog.LevelInfo, "write stall over", slog.Duration("took", d))
		},
		DiskSlow: func(i pebble.DiskSlowInfo) {
			m.diskSlow.Inc()
			log.log(slog.LevelWarn, "slow disk", slog.String("op", i.OpType.String()), slog.String("file", i.Path),
				slog.Duration("for", i.Duration))
		},
		LowDiskSpace: func(i pebble.LowDiskSpaceInfo) {
			log.log(slog.LevelWarn, "disk is getting full", slog.String("detail", i.String()))
		},
		PossibleAPIMisuse: func(i pebble.PossibleAPIMisuseInfo) {
			log.log(slog.LevelWarn, "possible misuse of pebble", slog.String("detail", i.String()))
		},
		FormatUpgrade: func(v pebble.FormatMajorVersion) {
			log.log(slog.LevelDebug, "format upgraded", slog.String("to", v.String()))
		},
	}
}
