package config

import (
	"fmt"
	"net"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// Value is a setting's typed slot. Set reads the text of a flag, a variable or a YAML scalar; setting the text that
// String gives changes nothing. It satisfies pflag.Value.
type Value interface {
	Set(string) error
	String() string
	// Type is the word that help and the reference show for the value.
	Type() string
}

type value[T any] struct {
	at    *T
	typ   string
	parse func(string) (T, error)
	show  func(T) string
	yaml  func(*yaml.Node) (string, error) // text of a YAML node that is not a scalar; nil: refused
	bare  bool                             // a flag without a value means true
}

func (v *value[T]) Set(s string) error {
	t, err := v.parse(strings.TrimSpace(s))
	if err != nil {
		return err
	}
	*v.at = t
	return nil
}

func (v *value[T]) String() string { return v.show(*v.at) }
func (v *value[T]) Type() string   { return v.typ }

// IsBoolFlag lets pflag take the flag without a value.
func (v *value[T]) IsBoolFlag() bool { return v.bare }

func (v *value[T]) compound(n *yaml.Node) (string, error) {
	if v.yaml == nil {
		return "", fmt.Errorf("want one %s", v.typ)
	}
	return v.yaml(n)
}

func stringVar(at *string, def string) Value {
	*at = def
	return &value[string]{at: at, typ: "string", parse: func(s string) (string, error) { return s, nil },
		show: func(s string) string { return s }}
}

func addrVar(at *string, def string) Value {
	*at = def
	return &value[string]{at: at, typ: "host:port", parse: parseAddr, show: func(s string) string { return s }}
}

func parseAddr(s string) (string, error) {
	if s == "" {
		return "", nil
	}
	_, port, err := net.SplitHostPort(s)
	if err != nil {
		return "", fmt.Errorf("%q is not host:port (such as 127.0.0.1:7400)", s)
	}
	if n, err := strconv.Atoi(port); err != nil || n < 0 || n > 65535 {
		return "", fmt.Errorf("%q: port %q is not a number from 0 to 65535", s, port)
	}
	return s, nil
}

func enumVar(at *string, def string, words ...string) Value {
	*at = def
	return &value[string]{at: at, typ: strings.Join(words, "|"), show: func(s string) string { return s },
		parse: func(s string) (string, error) {
			if !slices.Contains(words, s) {
				return "", fmt.Errorf("%q is none of %s", s, strings.Join(words, ", "))
			}
			return s, nil
		}}
}

func boolVar(at *bool, def bool) Value {
	*at = def
	return &value[bool]{at: at, typ: "bool", bare: true, show: strconv.FormatBool,
		parse: func(s string) (bool, error) {
			b, err := strconv.ParseBool(s)
			if err != nil {
				return false, fmt.Errorf("%q is neither true nor false", s)
			}
			return b, nil
		}}
}

func intVar(at *int, def, lo, hi int) Value {
	*at = def
	return &value[int]{at: at, typ: "int", show: strconv.Itoa,
		parse: func(s string) (int, error) {
			n, err := strconv.Atoi(s)
			if err != nil {
				return 0, fmt.Errorf("%q is not a whole number", s)
			}
			if n < lo || n > hi {
				return 0, fmt.Errorf("%d is not within %d and %d", n, lo, hi)
			}
			return n, nil
		}}
}

func floatVar(at *float64, def, lo, hi float64) Value {
	*at = def
	show := func(f float64) string { return strconv.FormatFloat(f, 'g', -1, 64) }
	return &value[float64]{at: at, typ: "fraction", show: show,
		parse: func(s string) (float64, error) {
			f, err := strconv.ParseFloat(s, 64)
			if err != nil {
				return 0, fmt.Errorf("%q is not a number (such as %s)", s, show(def))
			}
			if !(f >= lo && f <= hi) { // NaN is neither
				return 0, fmt.Errorf("%s is not within %s and %s", show(f), show(lo), show(hi))
			}
			return f, nil
		}}
}

func durationVar(at *time.Duration, def time.Duration) Value {
	*at = def
	return &value[time.Duration]{at: at, typ: "duration", show: time.Duration.String,
		parse: func(s string) (time.Duration, error) {
			d, err := time.ParseDuration(s)
			if err != nil {
				return 0, fmt.Errorf("%q is not a duration (such as 500ms, 10s or 2m)", s)
			}
			return d, nil
		}}
}

func bytesVar(at *int64, def int64) Value {
	*at = def
	return &value[int64]{at: at, typ: "bytes", parse: ParseBytes, show: FormatBytes}
}

func listVar(at *[]string) Value {
	return &value[[]string]{at: at, typ: "host:port,...",
		show: func(l []string) string { return strings.Join(l, ",") },
		parse: func(s string) ([]string, error) {
			var out []string
			for _, part := range strings.Split(s, ",") {
				part = strings.TrimSpace(part)
				if part == "" {
					continue
				}
				a, err := parseAddr(part)
				if err != nil {
					return nil, err
				}
				out = append(out, a)
			}
			return out, nil
		},
		yaml: func(n *yaml.Node) (string, error) {
			var l []string
			if n.Kind != yaml.SequenceNode || n.Decode(&l) != nil {
				return "", fmt.Errorf("want a list of host:port")
			}
			return strings.Join(l, ","), nil
		}}
}

func mapVar(at *map[string]string) Value {
	show := func(m map[string]string) string {
		var l []string
		for k, v := range m {
			l = append(l, k+"="+v)
		}
		sort.Strings(l)
		return strings.Join(l, ",")
	}
	return &value[map[string]string]{at: at, typ: "key=value,...", show: show,
		parse: func(s string) (map[string]string, error) {
			out := map[string]string{}
			for _, part := range strings.Split(s, ",") {
				part = strings.TrimSpace(part)
				if part == "" {
					continue
				}
				k, v, ok := strings.Cut(part, "=")
				if k, v = strings.TrimSpace(k), strings.TrimSpace(v); !ok || k == "" || v == "" {
					return nil, fmt.Errorf("%q is not key=value (such as zone=a)", part)
				}
				out[k] = v
			}
			return out, nil
		},
		yaml: func(n *yaml.Node) (string, error) {
			var m map[string]string
			if n.Kind != yaml.MappingNode || n.Decode(&m) != nil {
				return "", fmt.Errorf("want a map of label to value")
			}
			for k, v := range m {
				if strings.ContainsAny(k+v, ",=") {
					return "", fmt.Errorf("label %q: neither key nor value may hold a comma or an equals sign", k)
				}
			}
			return show(m), nil
		}}
}

// ParseBytes reads a number of bytes with an optional unit: 64MiB, 1.5GiB, 512k (binary units throughout), 0, -1.
func ParseBytes(s string) (int64, error) {
	digits := strings.TrimRight(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ ")
	unit := strings.TrimSpace(strings.ToLower(s[len(digits):]))
	shift, ok := map[string]uint{"": 0, "b": 0, "k": 10, "kb": 10, "kib": 10, "m": 20, "mb": 20, "mib": 20, "g": 30,
		"gb": 30, "gib": 30, "t": 40, "tb": 40, "tib": 40}[unit]
	f, err := strconv.ParseFloat(digits, 64)
	if err != nil || !ok || f*float64(int64(1)<<shift) >= 1<<62 || f*float64(int64(1)<<shift) <= -(1<<62) {
		return 0, fmt.Errorf("%q is not a size (such as 512MiB or 2GiB)", s)
	}
	return int64(f * float64(int64(1)<<shift)), nil
}

// FormatBytes is the shortest exact form that ParseBytes reads back.
func FormatBytes(n int64) string {
	for _, u := range []struct {
		name  string
		shift uint
	}{{"TiB", 40}, {"GiB", 30}, {"MiB", 20}, {"KiB", 10}} {
		if n > 0 && n%(1<<u.shift) == 0 {
			return strconv.FormatInt(n>>u.shift, 10) + u.name
		}
	}
	return strconv.FormatInt(n, 10)
}
