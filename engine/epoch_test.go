package engine

import (
	"testing"

	"github.com/shardd/shardd/internal/base"
)

func TestTheFlushEpochTellsTablesFromMemtables(t *testing.T) {
	o := testOptions(t, NewMemFS())
	o.MemTableBytes = 256 << 10
	e := mustOpen(t, o)
	defer mustClose(t, e)
	start := e.FlushEpoch()
	if start.Flushed > start.Now {
		t.Fatalf("%+v", start)
	}
	commit(t, e, false, func(b *Batch) { b.Put(userKey(1), ValueHeader{Version: 1}, make([]byte, 1000)) })
	if e.ApproxBytes(base.UserStart(), base.UserEnd()) != 0 || e.FlushEpoch().Flushed > start.Now {
		t.Fatal("the first write is in a table already")
	}
	// Other data pushes it out.
	for i := 0; e.FlushEpoch().Flushed <= start.Now; i++ {
		if i > 100_000 {
			t.Fatalf("%+v after so many writes", e.FlushEpoch())
		}
		commit(t, e, false, func(b *Batch) { b.Put(userKey(1000+i), ValueHeader{Version: 1}, make([]byte, 1000)) })
	}
	if e.ApproxBytes(userKey(1), userKey(2)) == 0 {
		t.Error("the epoch says that the first write is in a table, the tables do not")
	}
	if now := e.FlushEpoch(); now.Now < now.Flushed {
		t.Errorf("%+v", now)
	}
}
