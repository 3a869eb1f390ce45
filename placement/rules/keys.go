package rules

import (
	"bytes"
	"slices"
	"sort"

	"github.com/shardd/shardd/internal/base"
)

// Boundaries returns the routing keys at which another rule begins, ascending. A shard that has one inside is split
// there, and none is merged over one.
func (s *Set) Boundaries() [][]byte {
	var out [][]byte
	for i := range s.Rules {
		if s.Rules[i].System() {
			continue
		}
		out = append(out, s.Rules[i].Prefix)
		if end := base.PrefixEnd(s.Rules[i].Prefix); !bytes.Equal(end, base.UserEnd()) {
			out = append(out, end)
		}
	}
	slices.SortFunc(out, bytes.Compare)
	return slices.CompactFunc(out, bytes.Equal)
}

// Range is a part of the key space under one rule.
type Range struct {
	Start, End []byte // routing keys
	Rule       int    // index, -1 for the defaults
}

// Ranges divides the system space and the user space by rule; in the order of keys.
func (s *Set) Ranges() []Range {
	var out []Range
	start := base.UserStart()
	for _, b := range append(s.Boundaries(), base.UserEnd()) {
		out = append(out, Range{start, b, s.For(start)})
		start = b
	}
	return append(out, Range{base.SystemStart(), base.SystemEnd(), s.For(base.SystemStart())})
}

// inside returns the boundaries above start and below end.
func inside(all [][]byte, start, end []byte) [][]byte {
	lo := sort.Search(len(all), func(i int) bool { return bytes.Compare(all[i], start) > 0 })
	hi := sort.Search(len(all), func(i int) bool { return bytes.Compare(all[i], end) >= 0 })
	return all[lo:max(lo, hi)]
}

// Straddles returns the keys at which a shard with this range must be split, because rules begin or end there.
func (s *Set) Straddles(start, end []byte) [][]byte { return inside(s.Boundaries(), start, end) }

// SplitKey moves a key that was chosen to split [start, end) to one that divides no group of keys: the start of its
// group, or if that is not inside the range its end. False means that the range is one group. Routing keys throughout.
func (e *Effective) SplitKey(key, start, end []byte) ([]byte, bool) {
	within := func(k []byte) bool { return bytes.Compare(k, start) > 0 && bytes.Compare(k, end) < 0 }
	group := e.group(key)
	if group == nil {
		return key, within(key)
	}
	if within(group) {
		return group, true
	}
	if next := base.PrefixEnd(group); next != nil && within(next) {
		return next, true
	}
	return nil, false
}

// group returns the prefix that the key shares with its group, nil if it is in none.
func (e *Effective) group(key []byte) []byte {
	if e.Split.Count == 0 || !bytes.HasPrefix(key, e.Prefix) {
		return nil
	}
	at := len(e.Prefix)
	for range e.Split.Count {
		i := bytes.Index(key[at:], e.Split.Delimiter)
		if i < 0 {
			return nil
		}
		at += i + len(e.Split.Delimiter)
	}
	return key[:at]
}
