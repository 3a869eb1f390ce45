package node

import (
	"sort"
	"time"

	"github.com/shardd/shardd/placement/plan"
)

// The load of the key space over time, kept by the driver in memory: the last minutes finely, the last day coarsely. A
// column holds the load of at most heatRows stretches of neighbouring shards; stretches follow the shards as they are at
// the time, so columns have borders of their own, which are brought together when they are shown or made coarser.

const (
	heatRows = 512
	// heatShards is how many shards one second of pause between columns pays for: the walk takes the lock of the view.
	heatShards = 20_000
)

// heatLayers are the widths of columns and how many are kept.
var heatLayers = [...]struct {
	step time.Duration
	keep int
}{{10 * time.Second, 90}, {time.Minute, 120}, {10 * time.Minute, 144}}

// heat is the load of a stretch per second.
type heat struct{ requests, bytes, cpu float64 }

func (h *heat) add(o heat, share float64) {
	h.requests += o.requests * share
	h.bytes += o.bytes * share
	h.cpu += o.cpu * share
}

func (h heat) of(by string) float64 {
	switch by {
	case "bytes":
		return h.bytes
	case "cpu":
		return h.cpu
	}
	return h.requests
}

// heatColumn is the load at one time. Stretch i begins at starts[i] and ends where the next one begins.
type heatColumn struct {
	end    time.Duration // Boot time
	starts []string
	cells  []heat
}

// heatMap is guarded by the lock of the view.
type heatMap struct {
	layers  [len(heatLayers)][]heatColumn
	sampled time.Duration // Boot time of the last column
}

// sample takes a column if it is time to.
func (h *heatMap) sample(v *plan.View, now time.Duration) {
	every := max(heatLayers[0].step, time.Duration(v.Len()/heatShards)*time.Second)
	if h.sampled != 0 && now-h.sampled < every {
		return
	}
	col := heatColumn{end: now}
	per := max((v.Len()+heatRows-1)/heatRows, 1)
	n := 0
	for sh := range v.Shards("") {
		if sh.Meta() {
			continue
		}
		if n%per == 0 {
			col.starts = append(col.starts, sh.Start)
			col.cells = append(col.cells, heat{})
		}
		n++
		col.cells[len(col.cells)-1].add(heat{
			float64(sh.Load.Requests()), float64(sh.Load.Bytes()), float64(sh.Load.CPUMicros),
		}, 1)
	}
	if n == 0 {
		return // no report has come yet: nothing is known, which is not the same as no load
	}
	h.sampled = now
	h.add(0, col)
}

// add puts a column into a layer; as many as make one of the next layer go there as one, their average.
func (h *heatMap) add(layer int, col heatColumn) {
	cols := append(h.layers[layer], col)
	if over := len(cols) - heatLayers[layer].keep; over > 0 {
		cols = append([]heatColumn(nil), cols[over:]...)
	}
	h.layers[layer] = cols
	if layer+1 == len(heatLayers) {
		return
	}
	step := heatLayers[layer+1].step
	var last time.Duration
	if n := len(h.layers[layer+1]); n > 0 {
		last = h.layers[layer+1][n-1].end
	}
	if col.end-last < step {
		return
	}
	mean := heatColumn{end: col.end, starts: col.starts, cells: make([]heat, len(col.starts))}
	from := max(last, col.end-step)
	count := 0.0
	for _, c := range cols {
		if c.end > from {
			count++
		}
	}
	for _, c := range cols {
		if c.end > from {
			for i, x := range c.spread(mean.starts) {
				mean.cells[i].add(x, 1/count)
			}
		}
	}
	h.add(layer+1, mean)
}

// spread returns the load of the column in stretches with other borders. A stretch that reaches over several of those is
// divided among them evenly: nothing is known of where in it the load was.
func (c *heatColumn) spread(starts []string) []heat {
	out := make([]heat, len(starts))
	if len(starts) == 0 {
		return out
	}
	for i, start := range c.starts {
		// The first and the last of the new stretches that this one touches.
		lo := max(sort.SearchStrings(starts, start+"\x00")-1, 0)
		hi := len(starts) - 1
		if i+1 < len(c.starts) {
			hi = max(sort.SearchStrings(starts, c.starts[i+1])-1, lo)
		}
		for j := lo; j <= hi; j++ {
			out[j].add(c.cells[i], 1/float64(hi-lo+1))
		}
	}
	return out
}

// grid draws the last stretch of time in rows and columns. values are row by row, -1 where nothing is known.
func (h *heatMap) grid(back time.Duration, rows, columns int, by string, now time.Duration) (
	starts []string, ends []time.Duration, values []float64) {
	layer := len(heatLayers) - 1
	for i, l := range heatLayers {
		if back <= l.step*time.Duration(l.keep) {
			layer = i
			break
		}
	}
	if n := len(h.layers[0]); n > 0 {
		latest := h.layers[0][n-1].starts
		for i := range rows {
			at := i * len(latest) / rows
			if i == 0 || at != (i-1)*len(latest)/rows {
				starts = append(starts, latest[at])
			}
		}
	}
	rows = len(starts)
	values = make([]float64, rows*columns)
	for i := range values {
		values[i] = -1
	}
	width := back / time.Duration(columns)
	for col := range columns {
		end := now - width*time.Duration(columns-1-col)
		ends = append(ends, end)
		sums, n := make([]heat, rows), 0
		for l := layer; l >= 0 && n == 0; l-- { // what a coarse layer does not have yet
			for i := range h.layers[l] {
				c := &h.layers[l][i]
				// A column stands for the time before its end.
				if c.end > end-width && c.end-heatLayers[l].step < end {
					n++
					for j, x := range c.spread(starts) {
						sums[j].add(x, 1)
					}
				}
			}
		}
		for j := range sums {
			if n > 0 {
				values[j*columns+col] = sums[j].of(by) / float64(n)
			}
		}
	}
	return starts, ends, values
}
