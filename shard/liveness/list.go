package liveness

// maxPending bounds each list towards one peer: a store that stops leads that many groups with a follower there.
const maxPending = 16 << 10

// list is what one peer has yet to acknowledge, numbered. INVARIANT(list): items[i] has number first + i, and numbers
// never repeat within a life.
type list struct {
	items []Group
	first uint64 // number of items[0], or of the next item
}

func newList() list { return list{first: 1} }

// add appends items and returns how many old ones were forgotten for them.
func (l *list) add(gs []Group) (forgotten int) {
	l.items = append(l.items, gs...)
	if forgotten = len(l.items) - maxPending; forgotten <= 0 {
		return 0
	}
	l.items, l.first = l.items[forgotten:], l.first+uint64(forgotten)
	return forgotten
}

// taken drops what the peer has acknowledged: everything up to number n.
func (l *list) taken(n uint64) {
	if n < l.first {
		return
	}
	drop := min(n-l.first+1, uint64(len(l.items)))
	l.items, l.first = l.items[drop:], l.first+drop
	if len(l.items) == 0 {
		l.items = nil // its array
	}
}

// clear forgets all; numbers go on.
func (l *list) clear() { l.first, l.items = l.first+uint64(len(l.items)), nil }

// head returns the oldest items that fit a body. They must not be changed.
func (l *list) head() []Group { return l.items[:min(len(l.items), maxItems)] }

// fresh returns those of a peer's items, numbered from first, that were not taken before, and the number up to which all
// are taken now. A gap is what the peer has forgotten.
func fresh(items []Group, first, taken uint64) ([]Group, uint64) {
	if len(items) == 0 {
		return nil, taken
	}
	last := first + uint64(len(items)) - 1
	if first == 0 || last < first || last <= taken {
		return nil, taken
	}
	if first <= taken {
		items = items[taken+1-first:]
	}
	return items, last
}
