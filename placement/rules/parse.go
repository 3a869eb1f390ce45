package rules

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/config"
)

// BadRuleError is a fault in a zones file.
type BadRuleError struct {
	File    string
	Line    int
	Key     string
	Nearest string // the known key that is closest, if the key is unknown
	Err     error  // what is wrong with the value; nil if the key is unknown
}

// Error names the place, the key and the remedy.
func (e *BadRuleError) Error() string {
	if e.Err != nil {
		return fmt.Sprintf("%s:%d: %s: %v", e.File, e.Line, e.Key, e.Err)
	}
	return fmt.Sprintf("%s:%d: unknown key %q; did you mean %q?", e.File, e.Line, e.Key, e.Nearest)
}

// Unwrap returns what is wrong with the value.
func (e *BadRuleError) Unwrap() error { return e.Err }

// Parse reads a zones file; name stands for it in errors, which are a *BadRuleError where a line is at fault. An empty
// file is the set of built-in defaults.
func Parse(name string, text []byte) (*Set, error) {
	if len(text) > MaxText {
		return nil, fmt.Errorf("%s: %d bytes, at most %d", name, len(text), MaxText)
	}
	dec := yaml.NewDecoder(bytes.NewReader(text))
	var doc yaml.Node
	if err := dec.Decode(&doc); err != nil {
		if errors.Is(err, io.EOF) {
			return Default(), nil
		}
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if err := dec.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%s: more than one YAML document", name)
	}
	p := &parser{file: name}
	s := p.set(doc.Content[0])
	if p.err != nil {
		return nil, p.err
	}
	s.sortRules()
	// The canonical text may be longer than what was read, and is what is kept.
	if n := len(s.Marshal()); n > MaxText {
		return nil, fmt.Errorf("%s: %d bytes written out in full, at most %d", name, n, MaxText)
	}
	return s, nil
}

// parser keeps the first error; after it, what it reads means nothing.
type parser struct {
	file string
	err  error
}

func (p *parser) fail(n *yaml.Node, key string, format string, args ...any) {
	if p.err == nil {
		p.err = &BadRuleError{File: p.file, Line: n.Line, Key: key, Err: fmt.Errorf(format, args...)}
	}
}

// fields calls read for each known key of a map, and fails on others.
func (p *parser) fields(n *yaml.Node, what string, read map[string]func(k string, v *yaml.Node)) {
	if null(n) {
		return
	}
	if n.Kind != yaml.MappingNode {
		p.fail(n, what, "want `key: value` lines")
		return
	}
	var known []string
	for k := range read {
		known = append(known, k)
	}
	slices.Sort(known)
	seen := map[string]bool{}
	for i := 0; i+1 < len(n.Content) && p.err == nil; i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		f := read[k.Value]
		switch {
		case f == nil:
			p.err = &BadRuleError{File: p.file, Line: k.Line, Key: k.Value, Nearest: config.Nearest(known, k.Value)}
		case seen[k.Value]:
			p.fail(k, k.Value, "given twice")
		case v.Kind == yaml.AliasNode:
			p.fail(v, k.Value, "aliases are not known here: write it out")
		case !null(v): // `key:` with nothing after it says nothing
			f(k.Value, v)
		}
		seen[k.Value] = true
	}
}

func null(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.Tag == "!!null" }

func (p *parser) set(n *yaml.Node) *Set {
	s := &Set{}
	p.fields(n, "file", map[string]func(string, *yaml.Node){
		"defaults": func(k string, v *yaml.Node) { p.fields(v, k, p.settings(&s.Defaults)) },
		"rules": func(k string, v *yaml.Node) {
			for _, item := range p.list(k, v, MaxRules) {
				s.Rules = append(s.Rules, p.rule(item))
			}
		},
	})
	if p.err != nil {
		return s
	}
	names, prefixes := map[string]int{DefaultsName: 0}, map[string]*Rule{}
	for i := range s.Rules {
		r := &s.Rules[i]
		at := &yaml.Node{Line: r.line}
		if line, ok := names[r.Name]; ok && line == 0 {
			p.fail(at, "name", "%q is taken by the defaults", r.Name)
		} else if ok {
			p.fail(at, "name", "%q is the name of the rule of line %d too", r.Name, line)
		}
		names[r.Name] = r.line
		if o := prefixes[string(r.Prefix)]; o != nil {
			p.fail(at, r.Name, "is for the same keys as rule %s", o.Name)
		}
		prefixes[string(r.Prefix)] = r
	}
	p.whole(DefaultsName, 0, s.Rule(-1))
	for i := range s.Rules {
		p.whole(s.Rules[i].Name, s.Rules[i].line, s.Rule(i))
	}
	return s
}

// whole checks what only shows once the defaults are filled in.
func (p *parser) whole(name string, line int, e Effective) {
	voters := 0
	for _, g := range e.Groups {
		if !g.Learner {
			voters += g.Replicas
		}
	}
	if voters > e.Replicas {
		p.fail(&yaml.Node{Line: line}, name, "its groups want %d voters, but replicas is %d", voters, e.Replicas)
	}
}

func (p *parser) rule(n *yaml.Node) Rule {
	r := Rule{line: n.Line}
	read := p.settings(&r.Settings)
	read["name"] = func(k string, v *yaml.Node) {
		if r.Name = p.text(k, v); !word(r.Name) {
			p.fail(v, k, "%q: want a word without blanks", r.Name)
		}
	}
	where := func(k string, v *yaml.Node, prefix []byte) {
		if r.Prefix != nil {
			p.fail(v, k, "a rule has either prefix or shards")
		}
		r.Prefix = prefix
	}
	read["prefix"] = func(k string, v *yaml.Node) {
		prefix, err := parsePrefix(p.text(k, v))
		if err != nil {
			p.fail(v, k, "%w", err)
		}
		where(k, v, prefix)
	}
	read["shards"] = func(k string, v *yaml.Node) {
		if t := p.text(k, v); t != "system" {
			p.fail(v, k, "%q: the only shards with a name are system", t)
		}
		where(k, v, base.SystemStart())
	}
	p.fields(n, "rule", read)
	switch {
	case r.Name == "":
		p.fail(n, "rule", "has no name")
	case r.Prefix == nil:
		p.fail(n, r.Name, "has neither prefix nor shards: say which keys it is for")
	case r.System() && (r.Split != nil || r.SplitSize != nil || r.Merge != nil):
		p.fail(n, r.Name, "the meta shard is never split nor merged: split, split-size and merge mean nothing here")
	}
	return r
}

// parsePrefix returns the routing key of a prefix of user keys, as text or as hex digits after 0x.
func parsePrefix(text string) ([]byte, error) {
	key := []byte(text)
	if digits, ok := strings.CutPrefix(text, "0x"); ok {
		var err error
		if key, err = hex.DecodeString(digits); err != nil {
			return nil, fmt.Errorf("%q is not hex: want an even number of the digits 0-9a-f after 0x", text)
		}
	}
	switch {
	case len(key) == 0:
		return nil, errors.New("is empty: what holds for all keys belongs under defaults")
	case len(key) > MaxPrefix:
		return nil, fmt.Errorf("%d bytes, at most %d", len(key), MaxPrefix)
	}
	return base.UserKey(key), nil
}

func (p *parser) settings(s *Settings) map[string]func(string, *yaml.Node) {
	return map[string]func(string, *yaml.Node){
		"replicas": func(k string, v *yaml.Node) { s.Replicas = p.number(k, v, 1, MaxReplicas) },
		"learners": func(k string, v *yaml.Node) { s.Learners = p.number(k, v, 0, MaxLearners) },
		"spread": func(k string, v *yaml.Node) {
			s.Spread = []string{}
			for _, item := range p.list(k, v, MaxLevels) {
				l := p.text(k, item)
				if !word(l) || slices.Contains(s.Spread, l) {
					p.fail(item, k, "%q: want names of labels, widest first, each once", l)
				}
				s.Spread = append(s.Spread, l)
			}
		},
		"constraints": func(k string, v *yaml.Node) {
			s.Constraints = &Constraints{}
			p.fields(v, k, map[string]func(string, *yaml.Node){
				"required":   func(k string, v *yaml.Node) { s.Constraints.Required = p.selectors(k, v) },
				"prohibited": func(k string, v *yaml.Node) { s.Constraints.Prohibited = p.selectors(k, v) },
				"preferred":  func(k string, v *yaml.Node) { s.Constraints.Preferred = p.selectors(k, v) },
			})
		},
		"groups": func(k string, v *yaml.Node) {
			s.Groups = []Group{}
			for _, item := range p.list(k, v, MaxGroups) {
				s.Groups = append(s.Groups, p.group(item))
			}
		},
		"leaders": func(k string, v *yaml.Node) {
			s.Leaders = &Leaders{}
			p.fields(v, k, map[string]func(string, *yaml.Node){
				"prefer": func(k string, v *yaml.Node) { s.Leaders.Prefer = p.selectors(k, v) },
				"avoid":  func(k string, v *yaml.Node) { s.Leaders.Avoid = p.selectors(k, v) },
			})
		},
		"split": func(k string, v *yaml.Node) { s.Split = p.split(k, v) },
		"split-size": func(k string, v *yaml.Node) {
			n, err := config.ParseBytes(p.text(k, v))
			if err == nil && (n < minSplitSize || n > maxSplitSize) {
				err = fmt.Errorf("%s is not within %s and %s", config.FormatBytes(n), config.FormatBytes(minSplitSize),
					config.FormatBytes(maxSplitSize))
			}
			if err != nil {
				p.fail(v, k, "%w", err)
			}
			s.SplitSize = &n
		},
		"merge": func(k string, v *yaml.Node) {
			t := p.text(k, v)
			if t != "auto" && t != "never" {
				p.fail(v, k, "%q is neither auto nor never", t)
			}
			auto := t == "auto"
			s.Merge = &auto
		},
	}
}

// A shard smaller than the first costs more to run than it holds; one larger than the second takes hours to move.
const (
	minSplitSize = 1 << 20
	maxSplitSize = 64 << 30
)

func (p *parser) split(k string, v *yaml.Node) *Split {
	s := &Split{}
	p.fields(v, k, map[string]func(string, *yaml.Node){
		"delimiter": func(k string, v *yaml.Node) {
			t := p.text(k, v)
			s.Delimiter = []byte(t)
			if digits, ok := strings.CutPrefix(t, "0x"); ok {
				b, err := hex.DecodeString(digits)
				if err != nil {
					p.fail(v, k, "%q is not hex", t)
				}
				s.Delimiter = b
			}
			if len(s.Delimiter) == 0 || len(s.Delimiter) > 16 {
				p.fail(v, k, "want 1 to 16 bytes")
			}
		},
		"count": func(k string, v *yaml.Node) {
			if n := p.number(k, v, 0, 64); n != nil {
				s.Count = *n
			}
		},
	})
	if (len(s.Delimiter) > 0) != (s.Count > 0) {
		p.fail(v, k, "groups of keys need both delimiter and count")
	}
	return s
}

func (p *parser) group(n *yaml.Node) Group {
	g := Group{Replicas: 1}
	p.fields(n, "group", map[string]func(string, *yaml.Node){
		"name": func(k string, v *yaml.Node) {
			if g.Name = p.text(k, v); !word(g.Name) {
				p.fail(v, k, "%q: want a word without blanks", g.Name)
			}
		},
		"replicas": func(k string, v *yaml.Node) {
			if n := p.number(k, v, 1, MaxReplicas); n != nil {
				g.Replicas = *n
			}
		},
		"role": func(k string, v *yaml.Node) {
			t := p.text(k, v)
			if t != "voter" && t != "learner" {
				p.fail(v, k, "%q is neither voter nor learner", t)
			}
			g.Learner = t == "learner"
		},
		"required": func(k string, v *yaml.Node) { g.Required = p.selectors(k, v) },
	})
	if len(g.Required) == 0 {
		p.fail(n, "group", "has no required: say on which nodes its replicas belong")
	}
	return g
}

// list returns the items of a sequence; a single scalar is a list of one.
func (p *parser) list(k string, v *yaml.Node, most int) []*yaml.Node {
	switch {
	case v.Kind == yaml.ScalarNode:
		return []*yaml.Node{v}
	case v.Kind != yaml.SequenceNode:
		p.fail(v, k, "want a list")
		return nil
	case len(v.Content) > most:
		p.fail(v, k, "%d entries, at most %d", len(v.Content), most)
		return nil
	}
	return v.Content
}

func (p *parser) selectors(k string, v *yaml.Node) []Selector {
	out := []Selector{}
	for _, item := range p.list(k, v, MaxSelectors) {
		s, err := ParseSelector(p.text(k, item))
		if err != nil {
			p.fail(item, k, "%w", err)
		}
		out = append(out, s)
	}
	return out
}

func (p *parser) text(k string, v *yaml.Node) string {
	if v.Kind != yaml.ScalarNode {
		p.fail(v, k, "want one word, in quotes if it has blanks or any of : , { } [ ] ! # in it")
	}
	return v.Value
}

func (p *parser) number(k string, v *yaml.Node, lo, hi int) *int {
	n, err := strconv.Atoi(p.text(k, v))
	switch {
	case err != nil:
		p.fail(v, k, "%q is not a whole number", v.Value)
	case n < lo || n > hi:
		p.fail(v, k, "%d is not within %d and %d", n, lo, hi)
	}
	return &n
}
