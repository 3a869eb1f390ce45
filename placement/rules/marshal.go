package rules

import (
	"bytes"
	"encoding/hex"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"

	"github.com/shardd/shardd/internal/config"
)

// Marshal returns the canonical text of the set: rules in the order of their keys, keys in a fixed order, nothing that
// was not said. Two sets with the same text are the same, and Parse reads it back.
func (s *Set) Marshal() []byte {
	root := &yaml.Node{Kind: yaml.MappingNode}
	if d := s.Defaults.node(); len(d.Content) > 0 {
		put(root, "defaults", d)
	}
	if len(s.Rules) > 0 {
		list := &yaml.Node{Kind: yaml.SequenceNode}
		for i := range s.Rules {
			list.Content = append(list.Content, s.Rules[i].node())
		}
		put(root, "rules", list)
	}
	if len(root.Content) == 0 {
		return nil
	}
	var out bytes.Buffer
	enc := yaml.NewEncoder(&out)
	enc.SetIndent(2)
	if err := enc.Encode(root); err != nil {
		panic(err) // scalars, lists and maps made above always encode
	}
	return out.Bytes()
}

// Equal reports whether the two say the same in the same way.
func (s *Set) Equal(o *Set) bool { return bytes.Equal(s.Marshal(), o.Marshal()) }

func (r *Rule) node() *yaml.Node {
	n := &yaml.Node{Kind: yaml.MappingNode}
	put(n, "name", str(r.Name))
	if r.System() {
		put(n, "shards", str("system"))
	} else {
		put(n, "prefix", str(keyText(r.Prefix[1:])))
	}
	n.Content = append(n.Content, r.Settings.node().Content...)
	return n
}

func (s *Settings) node() *yaml.Node {
	n := &yaml.Node{Kind: yaml.MappingNode}
	if s.Replicas != nil {
		put(n, "replicas", num(*s.Replicas))
	}
	if s.Learners != nil {
		put(n, "learners", num(*s.Learners))
	}
	if s.Spread != nil {
		l := &yaml.Node{Kind: yaml.SequenceNode, Style: yaml.FlowStyle}
		for _, level := range s.Spread {
			l.Content = append(l.Content, str(level))
		}
		put(n, "spread", l)
	}
	if c := s.Constraints; c != nil {
		m := mapping(&yaml.Node{Kind: yaml.MappingNode}, "required", c.Required, "prohibited", c.Prohibited, "preferred",
			c.Preferred)
		put(n, "constraints", m)
	}
	if s.Groups != nil {
		list := &yaml.Node{Kind: yaml.SequenceNode}
		if len(s.Groups) == 0 {
			list.Style = yaml.FlowStyle
		}
		for _, g := range s.Groups {
			m := &yaml.Node{Kind: yaml.MappingNode}
			if g.Name != "" {
				put(m, "name", str(g.Name))
			}
			put(m, "replicas", num(g.Replicas))
			if g.Learner {
				put(m, "role", str("learner"))
			}
			list.Content = append(list.Content, mapping(m, "required", g.Required))
		}
		put(n, "groups", list)
	}
	if l := s.Leaders; l != nil {
		put(n, "leaders", mapping(&yaml.Node{Kind: yaml.MappingNode}, "prefer", l.Prefer, "avoid", l.Avoid))
	}
	if s.Split != nil {
		m := &yaml.Node{Kind: yaml.MappingNode}
		if s.Split.Count > 0 {
			put(m, "delimiter", str(keyText(s.Split.Delimiter)))
		}
		put(m, "count", num(s.Split.Count))
		put(n, "split", m)
	}
	if s.SplitSize != nil {
		put(n, "split-size", str(config.FormatBytes(*s.SplitSize)))
	}
	if s.Merge != nil {
		word := "never"
		if *s.Merge {
			word = "auto"
		}
		put(n, "merge", str(word))
	}
	return n
}

// mapping adds the lists that have something in them; pairs alternate names and lists.
func mapping(m *yaml.Node, pairs ...any) *yaml.Node {
	for i := 0; i < len(pairs); i += 2 {
		sels := pairs[i+1].([]Selector)
		if len(sels) == 0 {
			continue
		}
		l := &yaml.Node{Kind: yaml.SequenceNode, Style: yaml.FlowStyle}
		for _, s := range sels {
			l.Content = append(l.Content, str(s.String()))
		}
		put(m, pairs[i].(string), l)
	}
	if len(m.Content) == 0 {
		m.Style = yaml.FlowStyle
	}
	return m
}

func put(m *yaml.Node, k string, v *yaml.Node) { m.Content = append(m.Content, str(k), v) }
func num(n int) *yaml.Node {
	return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!int", Value: strconv.Itoa(n)}
}

func str(s string) *yaml.Node {
	n := &yaml.Node{}
	n.SetString(s)
	return n
}

// keyText is the form of key bytes that parsePrefix reads: as text if it is printable, else in hex.
func keyText(b []byte) string {
	s := string(b)
	if utf8.ValidString(s) && !strings.HasPrefix(s, "0x") &&
		!strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return s
	}
	return "0x" + hex.EncodeToString(b)
}
