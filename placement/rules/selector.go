package rules

import (
	"fmt"
	"slices"
	"strings"
)

// Selector is a condition on the labels of a store: terms divided by commas that must all hold. The terms are
//
//	key=value   key!=value   key in (a, b)   key not in (a, b)   key   !key
//
// where key alone asks that the label is there. A label that is not there is not equal to anything and in no list. The
// zero value holds for every store.
type Selector struct {
	terms []term
}

type op uint8

const (
	opIn op = iota
	opNotIn
	opHas
	opHasNot
)

type term struct {
	key    string
	op     op
	values []string // sorted
}

// Matches reports whether all terms hold.
func (s Selector) Matches(labels map[string]string) bool {
	for _, t := range s.terms {
		v, ok := labels[t.key]
		switch t.op {
		case opIn:
			ok = ok && slices.Contains(t.values, v)
		case opNotIn:
			ok = !ok || !slices.Contains(t.values, v)
		case opHasNot:
			ok = !ok
		}
		if !ok {
			return false
		}
	}
	return true
}

// Keys returns the labels that the selector looks at.
func (s Selector) Keys() []string {
	var out []string
	for _, t := range s.terms {
		if !slices.Contains(out, t.key) {
			out = append(out, t.key)
		}
	}
	return out
}

// Equal reports whether both were written the same way, blanks and the order of values aside.
func (s Selector) Equal(o Selector) bool { return s.String() == o.String() }

// String returns the canonical text, which ParseSelector reads back.
func (s Selector) String() string {
	var out []string
	for _, t := range s.terms {
		switch {
		case t.op == opHas:
			out = append(out, t.key)
		case t.op == opHasNot:
			out = append(out, "!"+t.key)
		case len(t.values) == 1 && t.op == opIn:
			out = append(out, t.key+"="+t.values[0])
		case len(t.values) == 1:
			out = append(out, t.key+"!="+t.values[0])
		case t.op == opIn:
			out = append(out, t.key+" in ("+strings.Join(t.values, ", ")+")")
		default:
			out = append(out, t.key+" not in ("+strings.Join(t.values, ", ")+")")
		}
	}
	return strings.Join(out, ", ")
}

// ParseSelector reads a selector; the error quotes the term at fault.
func ParseSelector(text string) (Selector, error) {
	var s Selector
	for _, part := range cutTerms(text) {
		t, err := parseTerm(strings.TrimSpace(part))
		if err != nil {
			return Selector{}, err
		}
		s.terms = append(s.terms, t)
	}
	return s, nil
}

// cutTerms divides at the commas outside brackets.
func cutTerms(text string) (out []string) {
	depth, from := 0, 0
	for i, c := range text {
		switch {
		case c == '(':
			depth++
		case c == ')':
			depth--
		case c == ',' && depth == 0:
			out = append(out, text[from:i])
			from = i + 1
		}
	}
	return append(out, text[from:])
}

func parseTerm(s string) (term, error) {
	if rest, ok := strings.CutPrefix(s, "!"); ok && !strings.Contains(rest, "=") {
		return newTerm(s, rest, opHasNot)
	}
	if k, list, ok := strings.Cut(s, "("); ok {
		list, ok = strings.CutSuffix(list, ")")
		words := strings.Fields(k)
		switch n := len(words); {
		case !ok:
		case n == 2 && words[1] == "in":
			return newTerm(s, words[0], opIn, strings.Split(list, ",")...)
		case n == 3 && words[1] == "not" && words[2] == "in", n == 2 && words[1] == "notin":
			return newTerm(s, words[0], opNotIn, strings.Split(list, ",")...)
		}
		return term{}, badTerm(s)
	}
	if k, v, ok := strings.Cut(s, "!="); ok {
		return newTerm(s, k, opNotIn, v)
	}
	if k, v, ok := strings.Cut(s, "="); ok {
		return newTerm(s, k, opIn, v)
	}
	return newTerm(s, s, opHas)
}

func badTerm(s string) error {
	return fmt.Errorf("%q is no condition on labels: want key=value, key!=value, key in (a, b), key not in (a, b), key "+
		"or !key", s)
}

func newTerm(text, key string, o op, values ...string) (term, error) {
	t := term{key: strings.TrimSpace(key), op: o}
	if !word(t.key) {
		return term{}, badTerm(text)
	}
	for _, v := range values {
		if v = strings.TrimSpace(v); !word(v) {
			return term{}, badTerm(text)
		}
		t.values = append(t.values, v)
	}
	slices.Sort(t.values)
	t.values = slices.Compact(t.values)
	return t, nil
}

// word reports whether s can be a label or a value: some text without what the grammar uses.
func word(s string) bool {
	return s != "" && len(s) <= 256 && !strings.ContainsAny(s, "=!(),\"'\t\n\r ")
}
