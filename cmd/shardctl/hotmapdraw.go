package main

import (
	"fmt"
	"math"
	"strings"
	"time"
	"unicode/utf8"

	sharddv1 "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/client/admin"
	"github.com/shardd/shardd/internal/cli"
)

// Shades of a map, coldest first, each a constant factor above the one before: background colours of the 256 that
// terminals have, or blocks. The hottest is the largest value of the map.
var (
	mapColours = []int{17, 18, 54, 91, 127, 162, 197, 203, 209, 215, 222, 229}
	mapBlocks  = []rune("░▒▓█")
)

// Factors from shade to shade: the scales reach down to about a 175th and a 64th of the largest value.
const (
	colourFactor = 1.6
	blockFactor  = 4
)

// drawHotMap draws a map in so many columns.
func drawHotMap(m *sharddv1.HotMapResponse, width int, colours bool) []string {
	rows := mapRows(m)
	if len(rows) == 0 {
		return []string{"nothing is known of the load yet: the driver begins to record when it starts"}
	}
	most := 0.0
	for _, row := range rows {
		for _, v := range row {
			most = max(most, v)
		}
	}
	label := 0
	for i := range rows {
		label = max(label, utf8.RuneCountInString(mapLabelOf(m, i)))
	}
	label = min(label, mapLabel)
	room := max(width-label-mapNow-3, 1)
	cells := min(len(m.GetTimes()), room)
	lines := []string{fmt.Sprintf("%s  %s", strings.Repeat(" ", label), mapTitle(m))}
	for i, row := range rows {
		line := pad(mapLabelOf(m, i), label) + "  " + mapCells(row[len(row)-cells:], most, colours)
		lines = append(lines, strings.TrimRight(line+"  "+mapValue(lastKnown(row), m.GetUnit()), " "))
	}
	lines = append(lines, strings.TrimRight(strings.Repeat(" ", label+2)+timeAxis(m.GetTimes()[len(m.GetTimes())-cells:]),
		" "))
	return append(lines, strings.Repeat(" ", label+2)+mapLegend(most, m.GetUnit(), colours))
}

// mapLabelOf is the key that a row begins with.
func mapLabelOf(m *sharddv1.HotMapResponse, row int) string {
	return orElse(mapKey(m.GetBounds()[row]), "first")
}

func mapTitle(m *sharddv1.HotMapResponse) string {
	times := m.GetTimes()
	each := time.Duration(0)
	if len(times) > 1 {
		each = millis((times[len(times)-1] - times[0]) / uint64(len(times)-1))
	}
	return fmt.Sprintf("%s by key range, a column is %s, the last figure is the latest", m.GetUnit(),
		span(each.Round(time.Second)))
}

// shadeOf is the shade of a value, from 1; 0 is none, -1 unknown.
func shadeOf(v, most float64, shades int, factor float64) int {
	switch {
	case v < 0:
		return -1
	case v == 0 || most <= 0:
		return 0
	}
	// The hottest shade ends at the largest value; a little slack for rounding.
	below := math.Floor(math.Log(most/v)/math.Log(factor) + 1e-9)
	return max(shades-int(below), 1)
}

func mapCells(row []float64, most float64, colours bool) string {
	var b strings.Builder
	last := -2 // background in force
	for _, v := range row {
		if !colours {
			switch s := shadeOf(v, most, len(mapBlocks), blockFactor); s {
			case -1:
				b.WriteRune('·')
			case 0:
				b.WriteByte(' ')
			default:
				b.WriteRune(mapBlocks[s-1])
			}
			continue
		}
		s := shadeOf(v, most, len(mapColours), colourFactor)
		if s != last && (s > 0 || last > 0) {
			b.WriteString(background(s))
		}
		last = s
		if s < 0 {
			b.WriteRune('·')
		} else {
			b.WriteByte(' ')
		}
	}
	if last > 0 {
		b.WriteString(background(0))
	}
	return b.String()
}

// background switches to the background of a shade, or back to the terminal's own.
func background(shade int) string {
	if shade <= 0 {
		return "\x1b[0m"
	}
	return fmt.Sprintf("\x1b[48;5;%dm", mapColours[shade-1])
}

func lastKnown(row []float64) float64 {
	for i := len(row) - 1; i >= 0; i-- {
		if row[i] >= 0 {
			return row[i]
		}
	}
	return -1
}

// mapValue is a figure of the map without its unit, unless that says bytes or is a part of a core.
func mapValue(v float64, unit string) string {
	switch {
	case v < 0:
		return "-"
	case strings.Contains(unit, admin.ByBytes):
		return cli.Bytes(uint64(v))
	case strings.HasPrefix(unit, microseconds):
		return cores(v / 1e6)
	}
	return rate(v)
}

// microseconds begins the unit of the processor's load.
const microseconds = "microseconds"

// mapUnit is the unit that goes with the figures of mapValue.
func mapUnit(unit string) string {
	switch {
	case strings.HasPrefix(unit, microseconds):
		return "of a core"
	case strings.HasPrefix(unit, admin.ByBytes):
		return strings.TrimSpace(strings.TrimPrefix(unit, admin.ByBytes))
	}
	return unit
}

// timeAxis writes the time of day under every twelfth column or so, at the moment that the column ends.
func timeAxis(times []uint64) string {
	const every = 12
	line := []rune{}
	for i := 0; i < len(times); i += every {
		text := "|" + time.UnixMilli(int64(times[i])).Format("15:04")
		if i+len(text) > len(times)+mapNow {
			break
		}
		for len(line) < i {
			line = append(line, ' ')
		}
		line = append(line, []rune(text)...)
	}
	return string(line)
}

func mapLegend(most float64, unit string, colours bool) string {
	if most <= 0 {
		return "no load"
	}
	if colours {
		var b strings.Builder
		for i := range mapColours {
			b.WriteString(background(i+1) + " ")
		}
		least := most / math.Pow(colourFactor, float64(len(mapColours)-1))
		return fmt.Sprintf("up to %s %s\x1b[0m %s %s", mapValue(least, unit), b.String(), mapValue(most, unit), mapUnit(unit))
	}
	var parts []string
	for i, r := range mapBlocks {
		top := most / math.Pow(blockFactor, float64(len(mapBlocks)-1-i))
		parts = append(parts, fmt.Sprintf("%c up to %s", r, mapValue(top, unit)))
	}
	return strings.Join(parts, "  ") + " " + mapUnit(unit)
}
