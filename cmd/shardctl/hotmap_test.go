package main

import (
	"context"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"unicode/utf8"

	sharddv1 "github.com/shardd/shardd/api/shardd/v1"
)

func aMap(t *testing.T, rows, columns uint32, by string) *sharddv1.HotMapResponse {
	t.Helper()
	m, err := (&fakeCluster{}).HotMap(context.Background(), &sharddv1.HotMapRequest{BackMs: 3600000, Rows: rows,
		Columns: columns, By: by})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

var colour = regexp.MustCompile("\x1b\\[[0-9;]*m")

func TestAMapFitsItsTerminal(t *testing.T) {
	for _, by := range []string{"requests", "bytes"} {
		for _, width := range []int{40, 80, 120} {
			f := hotMapFlags{by: by}
			_, req := f.fit(width, 24)
			if req.GetColumns() < 10 || req.GetRows() > 24-mapMargins {
				t.Errorf("asks for %d columns and %d rows on %d", req.GetColumns(), req.GetRows(), width)
			}
			for _, colours := range []bool{false, true} {
				lines := drawHotMap(aMap(t, req.GetRows(), req.GetColumns(), by), width, colours)
				if len(lines) > 22 {
					t.Errorf("%d lines on a terminal of 24", len(lines))
				}
				for _, l := range lines[1 : len(lines)-1] { // title and legend wrap
					plain := colour.ReplaceAllString(l, "")
					if n := utf8.RuneCountInString(plain); n > width {
						t.Errorf("a line of %d columns on a terminal of %d: %s", n, width, plain)
					}
				}
			}
		}
	}
}

func TestColoursOfAMapEndWithItsCells(t *testing.T) {
	for _, l := range drawHotMap(aMap(t, 8, 40, ""), 80, true) {
		codes := colour.FindAllString(l, -1)
		if len(codes) > 0 && codes[len(codes)-1] != "\x1b[0m" {
			t.Errorf("a colour runs on: %q", l)
		}
	}
}

func TestShadesRiseByAFactorUpToTheLargestValue(t *testing.T) {
	for _, k := range []struct {
		v    float64
		want int
	}{{-1, -1}, {0, 0}, {0.001, 1}, {1, 1}, {1.01, 2}, {4, 2}, {4.01, 3}, {16, 3}, {17, 4}, {64, 4}} {
		if got := shadeOf(k.v, 64, 4, 4); got != k.want {
			t.Errorf("%g of 64 is shade %d, want %d", k.v, got, k.want)
		}
	}
	if shadeOf(0, 0, 4, 4) != 0 || shadeOf(-1, 0, 4, 4) != -1 {
		t.Error("a map without load has shades")
	}
}

func TestAMapOfNothingSaysSo(t *testing.T) {
	if l := drawHotMap(&sharddv1.HotMapResponse{}, 80, true); len(l) != 1 || !strings.Contains(l[0], "nothing is known") {
		t.Errorf("drew %v", l)
	}
	m := aMap(t, 2, 3, "")
	for i := range m.GetCells() {
		m.Cells[i] = 0
	}
	if l := drawHotMap(m, 80, true); !strings.HasSuffix(l[len(l)-1], "no load") {
		t.Errorf("drew %q", l)
	}
	m.Cells = m.Cells[:4] // cut short
	if rows := mapRows(m); len(rows) != 1 || len(toHotMapJSON(m).Cells) != 1 {
		t.Errorf("%d rows of a map that was cut short", len(rows))
	}
}

func TestRatesAndSpansStayShort(t *testing.T) {
	for n, want := range map[float64]string{0: "0", 0.25: "0.2", 9.94: "9.9", 9.96: "10", 9999: "9999", 9999.6: "10.0k",
		999949: "999.9k", 1.2e6: "1.2M"} {
		if got := rate(n); got != want {
			t.Errorf("rate(%g) = %s, want %s", n, got, want)
		}
	}
	for ms, want := range map[uint64]string{0: "0s", 850: "850ms", 12345: "12s", 200000: "3m20s", 7200000: "2h",
		86400000: "1d", 356400000: "4d3h"} {
		if got := span(millis(ms)); got != want {
			t.Errorf("span(%d ms) = %s, want %s", ms, got, want)
		}
	}
	if fmt.Sprint(rate(1e9)) != "1000.0M" {
		t.Error(rate(1e9))
	}
}
