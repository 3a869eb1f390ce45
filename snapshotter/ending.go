package snapshotter

import (
	"context"
	"errors"
	"log/slog"
)

// end finishes the session if err is a refusal, for which it is final, and returns err.
func (r *recvStream) end(err error) error {
	var no *refusal
	if errors.As(err, &no) {
		r.s.end(r.sn, no)
	}
	return err
}

// end records how a session ended and gives back what it held but the slot.
func (s *Service) end(sn *session, result error) {
	s.discard(sn)
	s.reportReceived(sn, result)
	s.inbox.finish(sn, result, s.cfg.Clock.Boot())
}

// drop ends a session that nobody works on and that the inbox has forgotten.
func (s *Service) drop(sn *session, why error) {
	s.discard(sn)
	s.reportReceived(sn, why)
}

// discard removes the staging, which an install has done already, and the reservation.
func (s *Service) discard(sn *session) {
	if sn.staging != nil {
		if err := sn.staging.Remove(); err != nil {
			s.log.Warn("a staging is left until the next start", "shard", sn.shard.String(), "error", err)
		}
	}
	if sn.reserved > 0 {
		s.admission.resize(sn.reserved, 0)
		sn.reserved = 0
	}
}

// reportReceived counts and logs the end of a session.
func (s *Service) reportReceived(sn *session, result error) {
	var no *refusal
	kind, level := resultInstalled, slog.LevelInfo
	switch {
	case result == nil:
	case errors.As(result, &no):
		kind = resultDeclined
	case errors.Is(result, ErrStopped), errors.Is(result, ErrReplaced):
		kind = resultCancelled
	default:
		kind, level = resultFailed, slog.LevelWarn
	}
	spent := sn.meter.spent()
	s.metrics.receive.ended(kind, spent, sn.checked)
	p := sn.meter.progress()
	attrs := []slog.Attr{
		slog.String("shard", sn.shard.String()), slog.String("from", sn.from.String()),
		slog.Uint64("replica", uint64(sn.to)), slog.String("priority", p.Priority.String()),
		slog.Uint64("bytes", sn.bytes), slog.Int("resumes", sn.resumes), slog.Duration("elapsed", p.Elapsed),
		slog.Duration("reserving", spent[Reserving]), slog.Duration("streaming", spent[Streaming]),
		slog.Duration("verifying", sn.checked), slog.Duration("installing", spent[Installing]),
	}
	if result != nil {
		attrs = append(attrs, slog.Any("error", result))
	}
	s.log.LogAttrs(context.Background(), level, "snapshot "+receivedWords[kind], attrs...)
}

var receivedWords = [...]string{
	resultInstalled: "received", resultDeclined: "declined", resultCancelled: "dropped", resultFailed: "not received",
}
