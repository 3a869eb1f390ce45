package rules

import (
	"bytes"
	"fmt"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Diff says what changes from one set to another, a line for each thing that does, empty if nothing. shards, if not nil,
// returns how many shards lie in [start, end), routing keys, or reach into it; each changed rule then says how many it is
// for.
func Diff(from, to *Set, shards func(start, end []byte) int) []string {
	if from.Equal(to) {
		return nil
	}
	var out []string
	count := func(s *Set, rule int) string {
		if shards == nil {
			return ""
		}
		n := 0
		for _, r := range s.Ranges() {
			if r.Rule == rule {
				n += shards(r.Start, r.End)
			}
		}
		return " (" + plural(n, "shard") + ")"
	}
	if lines := diffNode("", from.Defaults.node(), to.Defaults.node()); len(lines) > 0 {
		out = append(out, "~ "+DefaultsName+count(to, -1))
		out = append(out, lines...)
	}
	old := map[string]int{}
	for i := range from.Rules {
		old[from.Rules[i].Name] = i
	}
	for i := range to.Rules {
		r := &to.Rules[i]
		o, ok := old[r.Name]
		delete(old, r.Name)
		if !ok {
			out = append(out, "+ rule "+r.Name+count(to, i))
			out = append(out, diffNode("", &yaml.Node{Kind: yaml.MappingNode}, r.node())...)
			continue
		}
		if lines := diffNode("", from.Rules[o].node(), r.node()); len(lines) > 0 {
			out = append(out, "~ rule "+r.Name+count(to, i))
			out = append(out, lines...)
		}
	}
	for i := range from.Rules {
		r := &from.Rules[i]
		if at, gone := old[r.Name]; gone && at == i {
			out = append(out, fmt.Sprintf("- rule %s%s: its keys fall to %s", r.Name, count(from, i), to.name(to.For(r.Prefix))))
		}
	}
	for _, b := range to.Boundaries() {
		if !has(from.Boundaries(), b) {
			out = append(out, "  splits at "+keyText(b[1:]))
		}
	}
	return out
}

func (s *Set) name(i int) string {
	if i < 0 {
		return DefaultsName
	}
	return "rule " + s.Rules[i].Name
}

func has(all [][]byte, b []byte) bool {
	for _, o := range all {
		if bytes.Equal(o, b) {
			return true
		}
	}
	return false
}

// diffNode compares two maps of the canonical form, key by key.
func diffNode(path string, a, b *yaml.Node) []string {
	var out []string
	get := func(n *yaml.Node, k string) *yaml.Node {
		for i := 0; i+1 < len(n.Content); i += 2 {
			if n.Content[i].Value == k {
				return n.Content[i+1]
			}
		}
		return nil
	}
	line := func(sign, k, text string) { out = append(out, "    "+sign+" "+path+k+": "+text) }
	for i := 0; i+1 < len(a.Content); i += 2 {
		if k := a.Content[i].Value; get(b, k) == nil {
			line("-", k, flow(a.Content[i+1]))
		}
	}
	for i := 0; i+1 < len(b.Content); i += 2 {
		k, v := b.Content[i].Value, b.Content[i+1]
		switch o := get(a, k); {
		case o == nil:
			if k != "name" {
				line("+", k, flow(v))
			}
		case o.Kind == yaml.MappingNode && v.Kind == yaml.MappingNode:
			sub := diffNode(path+k+".", o, v)
			out = append(out, sub...)
		case flow(o) != flow(v):
			line("~", k, flow(o)+" -> "+flow(v))
		}
	}
	return out
}

// flow is a value on one line.
func flow(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		var out []string
		for i := 0; i+1 < len(n.Content); i += 2 {
			out = append(out, n.Content[i].Value+": "+flow(n.Content[i+1]))
		}
		return "{" + strings.Join(out, ", ") + "}"
	case yaml.SequenceNode:
		var out []string
		for _, c := range n.Content {
			out = append(out, flow(c))
		}
		return "[" + strings.Join(out, ", ") + "]"
	}
	return n.Value
}
