package plan

import (
	"slices"
	"time"
)

// HotHistory keeps the load of the key space over time, in layers: the last half hour finely, the last four hours in
// columns of two minutes, the last week in columns of half an hour. A column divides the key space into ranges of about
// equal weight, so that busy parts have many and quiet ones few, at most as many as its share of the memory allows. Only
// shards with a known leader count.
//
// The idea of columns with bounds of their own that are merged on demand is that of the key visualiser of TiDB's PD.
type HotHistory struct {
	// MaxBytes bounds the memory, keys included (8 MiB).
	MaxBytes int

	layers [len(hotLayers)]hotRing
	next   time.Duration
}

// hotLayers are the layers, finest first. Each span is a multiple of the one before.
var hotLayers = [...]struct {
	span time.Duration
	keep int
}{{15 * time.Second, 120}, {2 * time.Minute, 120}, {30 * time.Minute, 336}}

const (
	maxHotRows = 256
	// A view of more shards than this is walked once a minute only.
	manyShards = 100_000
	hotRowSize = 16 + 12 // a string's head and three numbers
)

// hotLoad is requests, bytes and microseconds of processor per second.
type hotLoad [3]float32

// hotColumn is the load of each range over a time that ends at end. There is one bound more than loads.
type hotColumn struct {
	begin, end time.Duration
	bounds     []string
	loads      []hotLoad
}

type hotRing struct {
	columns []*hotColumn  // oldest first
	rolled  time.Duration // up to where columns went into the next layer
}

// Observe takes the loads of a view down if it is time to. It walks all shards then.
func (h *HotHistory) Observe(v *View, now time.Duration) {
	if now < h.next {
		return
	}
	span := hotLayers[0].span
	if v.Len() > manyShards {
		span = time.Minute
	}
	c := &hotColumn{begin: max(0, now-span), end: now}
	for sh := range v.Shards("") {
		if sh.Meta() {
			continue
		}
		if n := len(c.bounds); n == 0 {
			c.bounds = append(c.bounds, sh.Start)
		} else if c.bounds[n-1] != sh.Start {
			if sh.Start < c.bounds[n-1] {
				continue // an older range that overlaps
			}
			c.bounds, c.loads = append(c.bounds, sh.Start), append(c.loads, hotLoad{}) // a gap
		}
		var l hotLoad
		if sh.Leader != 0 {
			l = hotLoad{float32(sh.Load.Requests()), float32(sh.Load.Bytes()), float32(sh.Load.CPUMicros)}
		}
		c.bounds, c.loads = append(c.bounds, sh.End), append(c.loads, l)
	}
	if len(c.loads) == 0 {
		return // no report has come yet: nothing is known, which is not the same as no load
	}
	h.next = now + span
	h.add(0, c)
}

// add puts a column into a layer; once there is enough for one of the next layer, it is made.
func (h *HotHistory) add(layer int, c *hotColumn) {
	c = c.fit(h.share())
	r := &h.layers[layer]
	if len(r.columns) == 0 {
		r.rolled = c.begin
	}
	r.columns = append(r.columns, c)
	if layer+1 < len(hotLayers) && c.end-r.rolled >= hotLayers[layer+1].span {
		var in []*hotColumn
		for _, o := range r.columns {
			if o.end > r.rolled {
				in = append(in, o)
			}
		}
		r.rolled = c.end
		h.add(layer+1, merge(in))
	}
	if n := len(r.columns) - hotLayers[layer].keep; n > 0 {
		r.columns = slices.Delete(r.columns, 0, n)
	}
}

// share is what one column may take.
func (h *HotHistory) share() int {
	n := 0
	for _, l := range hotLayers {
		n += l.keep
	}
	limit := h.MaxBytes
	set(&limit, 8<<20)
	return limit / n
}

// Bytes is what the history takes.
func (h *HotHistory) Bytes() int {
	n := 0
	for i := range h.layers {
		for _, c := range h.layers[i].columns {
			n += c.bytes()
		}
	}
	return n
}

func (c *hotColumn) bytes() int {
	n := len(c.bounds) * hotRowSize
	for _, b := range c.bounds {
		n += len(b)
	}
	return n
}

// fit joins neighbouring ranges until the column takes no more than so many bytes.
func (c *hotColumn) fit(bytes int) *hotColumn {
	for rows := maxHotRows; ; rows /= 2 {
		if o := c.coarsen(rows); o.bytes() <= bytes || rows <= 1 {
			return o
		}
	}
}

// coarsen joins neighbouring ranges so that at most rows are left, of about equal weight: half of it is load, by the
// measure in which the range is largest, half is the number of ranges.
func (c *hotColumn) coarsen(rows int) *hotColumn {
	if len(c.loads) <= rows {
		return c
	}
	var total hotLoad
	for _, l := range c.loads {
		total.add(l, 1)
	}
	out := &hotColumn{begin: c.begin, end: c.end, bounds: []string{c.bounds[0]}}
	var sum hotLoad
	at := 0.0
	for i, l := range c.loads {
		sum.add(l, 1)
		w := 1 / float64(len(c.loads))
		most := 0.0
		for m := range l {
			if total[m] > 0 {
				most = max(most, float64(l[m]/total[m]))
			}
		}
		at += w + most
		left := rows - len(out.loads)
		if last := i == len(c.loads)-1; last || left > 1 && at >= 2.0/float64(rows) {
			out.bounds, out.loads = append(out.bounds, c.bounds[i+1]), append(out.loads, sum)
			sum, at = hotLoad{}, 0
		}
	}
	return out
}

func (l *hotLoad) add(o hotLoad, share float32) {
	for i := range l {
		l[i] += o[i] * share
	}
}

// merge averages columns over their time, on all of their bounds.
func merge(in []*hotColumn) *hotColumn {
	var bounds []string
	for _, c := range in {
		bounds = append(bounds, c.bounds...)
	}
	slices.Sort(bounds)
	bounds = slices.Compact(bounds)
	out := &hotColumn{begin: in[0].begin, end: in[len(in)-1].end, bounds: bounds, loads: make([]hotLoad, max(0, len(bounds)-1))}
	var whole time.Duration
	for _, c := range in {
		whole += c.end - c.begin
	}
	for _, c := range in {
		share := 1 / float32(len(in))
		if whole > 0 {
			share = float32(float64(c.end-c.begin) / float64(whole))
		}
		c.spread(bounds, func(row int, l hotLoad) { out.loads[row].add(l, share) })
	}
	return out
}

// spread gives the column's loads to rows with other bounds. A range that lies over several rows is shared out evenly:
// how the load lies inside it is not known.
func (c *hotColumn) spread(bounds []string, to func(row int, l hotLoad)) {
	last := len(bounds) - 2
	for i, l := range c.loads {
		if l == (hotLoad{}) {
			continue
		}
		lo, _ := slices.BinarySearch(bounds, c.bounds[i])
		if lo > 0 && (lo > last || bounds[lo] != c.bounds[i]) {
			lo--
		}
		hi, _ := slices.BinarySearch(bounds, c.bounds[i+1])
		hi = min(hi, last+1)
		if hi <= lo {
			continue
		}
		var part hotLoad
		part.add(l, 1/float32(hi-lo))
		for r := lo; r < hi; r++ {
			to(r, part)
		}
	}
}

// HotMap is a part of the history as a grid.
type HotMap struct {
	// Bounds are rows+1 routing keys, Times the ends of the columns on the boot clock, oldest first.
	Bounds []string
	Times  []time.Duration
	// Cells are row by row, a value per second for each column; -1 where nothing is known.
	Cells []float64
}

// Map returns the load of the last so long, as a grid of at most so many rows and of so many columns. by is requests,
// bytes or cpu.
func (h *HotHistory) Map(now, back time.Duration, columns, rows int, by string) *HotMap {
	columns, rows = max(1, columns), max(1, rows)
	which := max(0, slices.Index([]string{"requests", "bytes", "cpu"}, by))
	m := &HotMap{}
	slots := make([]*hotColumn, columns)
	var known []*hotColumn
	for i := range slots {
		begin, end := now-back+back*time.Duration(i)/time.Duration(columns), now-back+back*time.Duration(i+1)/time.Duration(columns)
		m.Times = append(m.Times, end)
		if slots[i] = h.slot(begin, end); slots[i] != nil {
			known = append(known, slots[i])
		}
	}
	if len(known) == 0 {
		return m
	}
	m.Bounds = merge(known).coarsen(rows).bounds
	n := len(m.Bounds) - 1
	m.Cells = make([]float64, n*columns)
	for i, c := range slots {
		for r := range n {
			if c == nil {
				m.Cells[r*columns+i] = -1
			}
		}
		if c != nil {
			c.spread(m.Bounds, func(row int, l hotLoad) { m.Cells[row*columns+i] += float64(l[which]) })
		}
	}
	return m
}

// slot returns the load of a time, of the finest layer that knows it; nil if none does.
func (h *HotHistory) slot(begin, end time.Duration) *hotColumn {
	for i := range h.layers {
		cs := h.layers[i].columns
		if len(cs) == 0 || cs[0].begin > begin && i+1 < len(h.layers) && len(h.layers[i+1].columns) > 0 &&
			h.layers[i+1].columns[0].begin < cs[0].begin {
			continue // a coarser layer reaches back further
		}
		var in []*hotColumn
		for _, c := range cs {
			if c.end > begin && c.begin < end {
				in = append(in, c)
			}
		}
		if len(in) > 0 {
			return merge(in)
		}
	}
	return nil
}
