package snapshotter

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	mathrand "math/rand/v2"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/shardd/shardd/engine"
)

// A job is one request at the sender. It waits in the queue, gets a slot, is streamed in one or more attempts, and
// leaves the slot: for good, or to ask again later if the receiver put it off.
type job struct {
	s      *Service
	req    Request
	key    jobKey
	meter  *meter
	ctx    context.Context // ends with ErrReplaced or ErrStopped
	cancel context.CancelCauseFunc
	done   sync.Once

	seq       uint64        // the queue's
	notBefore time.Duration // the queue's; boot time

	// Owned by the goroutine that has the slot.
	asked    time.Duration // boot time of the first attempt
	attempts int
	declines int
	sent     uint64 // bytes of chunks, repeated ones included
	chunks   uint32
	resumes  int
	checked  time.Duration // spent on building and verifying chunks
}

func newJob(s *Service, req Request) *job {
	j := &job{s: s, req: req, key: jobKey{req.Shard, req.To}}
	j.ctx, j.cancel = context.WithCancelCause(context.Background())
	j.meter = newMeter(s.cfg.Clock, Progress{
		Shard: req.Shard, FromStore: s.cfg.Store, ToStore: req.ToStore, ToReplica: req.To, Sending: true,
		Priority: req.Priority,
	})
	return j
}

// cause is why the job was cancelled, or otherwise if it was not.
func (j *job) cause(otherwise error) error {
	if err := context.Cause(j.ctx); err != nil {
		return err
	}
	return otherwise
}

// finish reports the end, once.
func (j *job) finish(err error) {
	j.done.Do(func() {
		j.cancel(ErrStopped)
		j.report(err)
		if j.req.Done != nil {
			j.req.Done(err)
		}
	})
}

func (j *job) report(err error) {
	var d *DeclinedError
	result, level := resultInstalled, slog.LevelInfo
	switch {
	case err == nil:
	case errors.As(err, &d):
		result = resultDeclined
	case errors.Is(err, ErrStopped), errors.Is(err, ErrReplaced):
		result = resultCancelled
	default:
		result, level = resultFailed, slog.LevelWarn
	}
	spent := j.meter.spent()
	j.s.metrics.send.ended(result, spent, j.checked)
	p := j.meter.progress()
	attrs := []slog.Attr{
		slog.String("shard", j.req.Shard.String()), slog.String("to", j.req.ToStore.String()),
		slog.Uint64("replica", uint64(j.req.To)), slog.String("priority", j.req.Priority.String()),
		slog.Uint64("bytes", j.sent), slog.Uint64("chunks", uint64(j.chunks)), slog.Int("resumes", j.resumes),
		slog.Int("declines", j.declines), slog.Duration("elapsed", p.Elapsed),
		slog.Duration("waiting", spent[Waiting]), slog.Duration("reserving", spent[Reserving]),
		slog.Duration("streaming", spent[Streaming]), slog.Duration("installing", spent[Installing]),
	}
	if err != nil {
		attrs = append(attrs, slog.Any("error", err))
	}
	j.s.log.LogAttrs(context.Background(), level, "snapshot "+sentWords[result], attrs...)
}

var sentWords = [...]string{
	resultInstalled: "sent", resultDeclined: "declined by the receiver", resultCancelled: "cancelled", resultFailed: "not sent",
}

// runJob uses the slot that the queue gave to j.
func (s *Service) runJob(j *job) {
	now := s.cfg.Clock.Boot()
	if j.attempts == 0 {
		j.asked = now
	}
	j.attempts++
	err := s.sendSnapshot(j)
	now = s.cfg.Clock.Boot()
	var d *DeclinedError
	if errors.As(err, &d) {
		j.declines++
		if again := now + d.Wait; d.Wait > 0 && again < j.asked+s.cfg.Timeouts.Reserve {
			j.meter.enter(Waiting)
			s.log.Debug("snapshot put off", slog.String("shard", j.req.Shard.String()),
				slog.String("to", j.req.ToStore.String()), slog.String("reason", d.Reason), slog.Duration("wait", d.Wait))
			if s.queue.leave(j, true, again) {
				return
			}
			j.finish(j.cause(ErrReplaced))
			return
		}
	}
	s.queue.leave(j, false, 0)
	j.finish(err)
}

// transfer is what outlives a broken stream: the snapshot's name at the receiver, the view, and the position.
type transfer struct {
	id    [16]byte
	small []*engine.Chunk // the whole state, nil if it is streamed from the view
	view  *engine.View    // pinned once granted; nil for a small shard
	meta  []byte          // what the view, or small, holds; nil before
	total uint64

	granted time.Duration // boot time; 0 before
	alive   time.Duration // boot time of the last progress
	staged  uint32        // chunks that the receiver has said to have
	damaged int           // streams that broke by damage on the way, since the last progress
	ends    []uint64      // ends[i]: bytes of the chunks up to and with i
}

func newTransfer(now time.Duration) *transfer {
	t := &transfer{alive: now}
	_, _ = rand.Read(t.id[:]) // never fails
	return t
}

func (t *transfer) close() error {
	if t.view == nil {
		return nil
	}
	v := t.view
	t.view = nil
	return v.Close()
}

// before returns the bytes of the chunks in front of chunk seq.
func (t *transfer) before(seq uint32) uint64 {
	if seq == 0 || int(seq) > len(t.ends) {
		return 0
	}
	return t.ends[seq-1]
}

const (
	maxDamaged = 5 // streams in a row that damage a chunk: it is not chance
	firstPause = 50 * time.Millisecond
	maxPause   = time.Second
)

// sendSnapshot streams until the snapshot is installed, is declined, or is given up. A broken stream is resumed for as
// long as the receiver keeps what it has.
func (s *Service) sendSnapshot(j *job) (err error) {
	j.meter.enter(Reserving)
	t := newTransfer(s.cfg.Clock.Boot())
	defer func() { err = errors.Join(err, t.close()) }()
	if err := s.prepareSmall(j, t); err != nil {
		return err
	}
	for pause := firstPause; ; pause = min(2*pause, maxPause) {
		staged := t.staged
		err := s.attempt(j, t)
		switch {
		case err == nil:
			return nil
		case j.ctx.Err() != nil:
			return context.Cause(j.ctx)
		case !resumable(err, t):
			return err
		}
		if status.Code(err) == codes.DataLoss {
			if t.damaged++; t.damaged > maxDamaged {
				return fmt.Errorf("chunk %d arrives damaged, %d times in a row: %w", t.staged, t.damaged, err)
			}
		}
		if t.staged > staged {
			pause = firstPause
		}
		if idle := s.cfg.Clock.Boot() - t.alive; idle+pause > s.cfg.Timeouts.Resume {
			return fmt.Errorf("no progress for %s: %w", idle.Round(time.Millisecond), err)
		}
		j.resumes++
		s.metrics.send.resumes.Inc()
		s.log.Debug("snapshot stream broke", slog.String("shard", j.req.Shard.String()),
			slog.String("to", j.req.ToStore.String()), slog.Uint64("staged", uint64(t.staged)), slog.Any("error", err))
		// Half of the pause by chance, so that the senders of a receiver that restarts do not come back at once.
		if err := sleep(j.ctx, pause/2+mathrand.N(pause/2)); err != nil {
			return err
		}
		if t.small != nil {
			_, _ = rand.Read(t.id[:]) // cheaper to send again than to agree on where it broke
		}
	}
}

// resumable tells whether another stream may bring the snapshot further.
func resumable(err error, t *transfer) bool {
	var d *DeclinedError
	if errors.As(err, &d) {
		// Nothing is lost yet if the receiver has no slot for the moment: what it has staged stays.
		return d.Wait > 0 && t.view != nil && t.staged > 0
	}
	var b *brokenError
	if !errors.As(err, &b) {
		return false
	}
	switch status.Code(b.err) {
	case codes.InvalidArgument, codes.Unimplemented, codes.FailedPrecondition, codes.PermissionDenied,
		codes.Unauthenticated:
		return false
	}
	return true
}

// brokenError is the end of a stream that is not an answer.
type brokenError struct{ err error }

func (e *brokenError) Error() string              { return "stream: " + e.err.Error() }
func (e *brokenError) Unwrap() error              { return e.err }
func (e *brokenError) GRPCStatus() *status.Status { return status.Convert(e.err) }
