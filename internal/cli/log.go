package cli

import (
	"io"
	"log/slog"
	"os"
	"time"

	"github.com/lmittmann/tint"

	"github.com/shardd/shardd/internal/logq"
)

// Logger builds a process's logger: format text (coloured on a terminal) or json. Lines go through a queue that drops
// rather than blocks; flush writes out what is queued and must be called before the process ends.
func Logger(w io.Writer, format, level string) (log *slog.Logger, flush func()) {
	var lv slog.Level
	_ = lv.UnmarshalText([]byte(level)) // the settings table admits only known levels; anything else is info
	q := logq.New(w, 0)
	var h slog.Handler
	switch {
	case format == "json":
		h = slog.NewJSONHandler(q, &slog.HandlerOptions{Level: lv})
	case Terminal(w):
		h = tint.NewTextHandler(q, &tint.Options{Level: lv, TimeFormat: "15:04:05.000"})
	default:
		h = slog.NewTextHandler(q, &slog.HandlerOptions{Level: lv})
	}
	return slog.New(h), func() { q.Close(2 * time.Second) }
}

// Terminal reports whether w is a terminal that takes colours and carriage returns.
func Terminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok || os.Getenv("NO_COLOR") != "" || os.Getenv("TERM") == "dumb" {
		return false
	}
	st, err := f.Stat()
	return err == nil && st.Mode()&os.ModeCharDevice != 0
}
