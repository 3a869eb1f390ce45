package logq

import (
	"bytes"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"
)

// gate is a sink that hangs until it is opened.
type gate struct {
	open chan struct{}
	mu   sync.Mutex
	buf  bytes.Buffer
}

func (g *gate) Write(b []byte) (int, error) {
	<-g.open
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.buf.Write(b)
}

func TestAHangingSinkDropsLinesAndNeverBlocks(t *testing.T) {
	g := &gate{open: make(chan struct{})}
	w := New(g, 1000)
	line := []byte(strings.Repeat("x", 99) + "\n")
	for range 50 { // returns although nothing is ever written
		if n, err := w.Write(line); n != 100 || err != nil {
			t.Fatalf("Write = %d, %v", n, err)
		}
	}
	if got := w.Dropped(); got != 40 {
		t.Fatalf("dropped %d of 50 lines, want 40: ten fit into 1000 bytes", got)
	}
	if w.Close(time.Millisecond) {
		t.Fatal("Close says that all was written while the sink hangs")
	}
	close(g.open)
	if !w.Close(time.Minute) {
		t.Fatal("Close does not see the sink's recovery")
	}
	if got := strings.Count(g.buf.String(), "x\n"); got != 10 {
		t.Fatalf("%d lines came out, want 10", got)
	}
}

func TestLinesKeepTheirOrderAndCloseWritesAll(t *testing.T) {
	g := &gate{open: make(chan struct{})}
	close(g.open)
	w := New(g, 0)
	var want strings.Builder
	for i := range 1000 {
		fmt.Fprintf(w, "line %d\n", i)
		fmt.Fprintf(&want, "line %d\n", i)
	}
	if !w.Close(time.Minute) {
		t.Fatal("Close timed out")
	}
	if g.buf.String() != want.String() {
		t.Fatal("lines lost or out of order")
	}
	_, _ = w.Write([]byte("late\n"))
	if w.Dropped() != 1 {
		t.Fatalf("a line after Close counts as dropped; got %d", w.Dropped())
	}
}

func TestTheLossIsToldOnceTheSinkRecovers(t *testing.T) {
	g := &gate{open: make(chan struct{})}
	w := New(g, 10)
	for range 4 {
		_, _ = w.Write([]byte("12345\n"))
	}
	close(g.open)
	if !w.Close(time.Minute) {
		t.Fatal("Close timed out")
	}
	if got := g.buf.String(); !strings.Contains(got, "3 log lines were dropped") {
		t.Fatalf("not told; got %q", got)
	}
}
