package engine

import (
	"testing"
	"time"
)

// TestALongestPromiseOnceRaisedOutlivesAPowerLoss (V7): it is durable when RaisePromise returns, and goes down only when
// told to.
func TestALongestPromiseOnceRaisedOutlivesAPowerLoss(t *testing.T) {
	fs := NewMemFS()
	e := mustOpen(t, testOptions(t, fs))
	if _, err := e.RaisePromise(time.Second); err == nil {
		t.Error("a store without ident promises")
	}
	id := testIdent()
	id.LongestPromise = 0
	if err := e.WriteIdent(id); err != nil {
		t.Fatal(err)
	}
	raise := func(d, want time.Duration) {
		t.Helper()
		before, err := e.RaisePromise(d)
		if err != nil || before != want {
			t.Fatalf("raise to %s: %s was on record, %v; want %s", d, before, err, want)
		}
	}
	raise(800*time.Millisecond, 0)
	raise(800*time.Millisecond, 800*time.Millisecond)
	raise(100*time.Millisecond, 800*time.Millisecond)

	lost := fs.CrashClone(0, 1)
	e2 := mustOpen(t, testOptions(t, lost))
	if got, _ := e2.Ident(); got.LongestPromise != 800*time.Millisecond || got.Incarnation != id.Incarnation {
		t.Errorf("after a power loss: %+v", got)
	}
	mustClose(t, e2)
	raise(2*time.Second, 800*time.Millisecond)
	for _, d := range []time.Duration{3 * time.Second, time.Second, -1} {
		if err := e.LowerPromise(d); err != nil {
			t.Fatal(err)
		}
	}
	mustClose(t, e)
	e = mustOpen(t, testOptions(t, fs))
	if got, _ := e.Ident(); got.LongestPromise != time.Second {
		t.Errorf("lowered to %s, want 1s", got.LongestPromise)
	}
	mustClose(t, e)
}
