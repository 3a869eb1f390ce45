package plan

import (
	"fmt"
	"testing"
	"time"

	"github.com/shardd/shardd/internal/base"
)

// warm makes a view of shards with loads.
func warm(shards int, reads func(i int) uint32) *View {
	return build(zones(3, 3), shards, func(i int) ([]base.StoreID, uint64, Load) {
		return []base.StoreID{1, 2, 3}, 1 << 20, Load{Reads: reads(i)}
	})
}

func total(m *HotMap, column int) (sum float64) {
	n := len(m.Times)
	for r := range len(m.Bounds) - 1 {
		sum += m.Cells[r*n+column]
	}
	return sum
}

func TestHotHistoryKeepsTheSumAndTheSpot(t *testing.T) {
	v := warm(1000, func(i int) uint32 {
		if i == 700 {
			return 5000
		}
		return 1
	})
	h := &HotHistory{}
	h.Observe(NewView(), 0)
	if m := h.Map(time.Minute, time.Minute, 3, 3, "bytes"); len(m.Bounds)+len(m.Cells) > 0 || len(m.Times) != 3 {
		t.Fatalf("before any report: %+v", m)
	}
	for now := time.Duration(0); now <= 10*time.Minute; now += 5 * time.Second {
		h.Observe(v, now)
	}
	m := h.Map(10*time.Minute, 10*time.Minute, 10, 20, "requests")
	if len(m.Bounds) < 10 || len(m.Bounds) > 21 || len(m.Times) != 10 {
		t.Fatalf("%d bounds, %d columns", len(m.Bounds), len(m.Times))
	}
	for c := range m.Times {
		if got := total(m, c); got < 5990 || got > 6010 {
			t.Fatalf("column %d adds up to %.0f, want 5999", c, got)
		}
	}
	spot := fmt.Sprintf("\x02%07d", 700)
	for r := range len(m.Bounds) - 1 {
		hot := m.Cells[r*10] > 4000
		if in := m.Bounds[r] <= spot && spot < m.Bounds[r+1]; hot != in {
			t.Fatalf("row %d from %q: %.0f", r, m.Bounds[r], m.Cells[r*10])
		}
	}
	if m := h.Map(30*time.Minute, 20*time.Minute, 4, 4, "requests"); m.Bounds != nil {
		t.Fatal("load of a time that nobody saw")
	}
}

func TestHotHistoryGrowsCoarserAndStaysWithinItsBytes(t *testing.T) {
	v := warm(600, func(i int) uint32 { return uint32(i % 7) })
	h := &HotHistory{MaxBytes: 1 << 19}
	now := time.Duration(0)
	for ; now < 30*time.Hour; now += 15 * time.Second {
		h.Observe(v, now)
		if now == 15*time.Hour {
			if h.Bytes() > h.MaxBytes {
				t.Fatalf("%d bytes", h.Bytes())
			}
			v = warm(600, func(i int) uint32 { return 2 * uint32(i%7) })
		}
	}
	if h.Bytes() > h.MaxBytes || h.Bytes() < h.MaxBytes/20 {
		t.Fatalf("%d bytes", h.Bytes())
	}
	m := h.Map(now, 28*time.Hour, 28, 16, "requests")
	want := 0
	for i := range 600 {
		want += i % 7
	}
	for c := range m.Times {
		w := float64(want)
		if c >= 14 {
			w *= 2
		}
		if c == 13 {
			continue // the change falls into it
		}
		if got := total(m, c); got < w*0.99 || got > w*1.01 {
			t.Fatalf("column %d adds up to %.0f, want %.0f", c, got, w)
		}
	}
}
