package shard

import (
	"context"
	"fmt"
	"log/slog"
)

// raftLogger takes raft's log lines. Its Info is chatter of every election of every group: debug here. Panic and Fatal
// panic, so that the pass faults the one replica (R9).
//
// It is no more than a pointer, which an interface holds without an allocation for each replica.
type raftLogger struct{ r *replica }

func (l raftLogger) printf(level slog.Level, format string, v []any) {
	if log := l.r.store.log; log.Enabled(context.Background(), level) {
		log.Log(context.Background(), level, "raft: "+fmt.Sprintf(format, v...), "replica", l.r.String())
	}
}

func (l raftLogger) print(level slog.Level, v []any) {
	if log := l.r.store.log; log.Enabled(context.Background(), level) {
		log.Log(context.Background(), level, "raft: "+fmt.Sprint(v...), "replica", l.r.String())
	}
}

func (l raftLogger) Debug(v ...any)                   { l.print(slog.LevelDebug, v) }
func (l raftLogger) Debugf(format string, v ...any)   { l.printf(slog.LevelDebug, format, v) }
func (l raftLogger) Info(v ...any)                    { l.print(slog.LevelDebug, v) }
func (l raftLogger) Infof(format string, v ...any)    { l.printf(slog.LevelDebug, format, v) }
func (l raftLogger) Warning(v ...any)                 { l.print(slog.LevelWarn, v) }
func (l raftLogger) Warningf(format string, v ...any) { l.printf(slog.LevelWarn, format, v) }
func (l raftLogger) Error(v ...any)                   { l.print(slog.LevelError, v) }
func (l raftLogger) Errorf(format string, v ...any)   { l.printf(slog.LevelError, format, v) }
func (l raftLogger) Fatal(v ...any)                   { panic(fmt.Sprint(v...)) }
func (l raftLogger) Fatalf(format string, v ...any)   { panic(fmt.Sprintf(format, v...)) }
func (l raftLogger) Panic(v ...any)                   { panic(fmt.Sprint(v...)) }
func (l raftLogger) Panicf(format string, v ...any)   { panic(fmt.Sprintf(format, v...)) }
