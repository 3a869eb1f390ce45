package config

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"
)

var update = flag.Bool("update", false, "rewrite the reference page")

func load(t *testing.T, file string, environ []string, args ...string) (*Config, []*Setting, error) {
	t.Helper()
	flags := pflag.NewFlagSet("start", pflag.ContinueOnError)
	AddFlags(flags)
	if file != "" {
		path := filepath.Join(t.TempDir(), "shardd.yaml")
		if err := os.WriteFile(path, []byte(file), 0o600); err != nil {
			t.Fatal(err)
		}
		args = append(args, "--config", path)
	}
	if err := flags.Parse(args); err != nil {
		t.Fatal(err)
	}
	return Load(flags, environ)
}

func TestLaterPlacesWin(t *testing.T) {
	file := "data-dir: /file\ntick: 50ms\nlog-level: warn\ncache: 64MiB\n"
	c, table, err := load(t, file, []string{"SHARDD_TICK=20ms", "SHARDD_LOG_LEVEL=error", "HOME=/x"},
		"--log-level", "debug")
	if err != nil {
		t.Fatal(err)
	}
	if c.DataDir != "/file" || c.Tick != 20*time.Millisecond || c.LogLevel != "debug" || c.CacheBytes != 64<<20 {
		t.Fatalf("got %+v", c)
	}
	for name, want := range map[string]Source{"data-dir": FromFile, "tick": FromEnv, "log-level": FromFlag,
		"http": FromDefault} {
		if got := find(table, name).From; got != want {
			t.Errorf("%s comes from %s, want %s", name, got, want)
		}
	}
}

func TestDefaultsAreValid(t *testing.T) {
	c, _, err := load(t, "", nil, "--data-dir", "d")
	if err != nil {
		t.Fatal(err)
	}
	if c.Listen != "127.0.0.1:7400" || c.GCPercent != 400 || c.ElectionTicks != 10 {
		t.Fatalf("got %+v", c)
	}
}

func TestListsAndMapsHaveAYAMLForm(t *testing.T) {
	c, _, err := load(t, "data-dir: d\njoin: [a:1, b:2]\nlabels:\n  zone: a\n  rack: \"3\"\npprof:\n", nil)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Join(c.Join, " ") != "a:1 b:2" || c.Labels["zone"] != "a" || c.Labels["rack"] != "3" {
		t.Fatalf("got join %q labels %v", c.Join, c.Labels)
	}
}

func TestBadSettingsAreRefusedByName(t *testing.T) {
	for _, tc := range []struct{ name, file, env, flag, want string }{
		{"unknown key", "data-dirr: x\n", "", "", `yaml:1: unknown setting "data-dirr"; did you mean "data-dir"?`},
		{"unknown key by prefix", "tick: 1s\nlog: x\n", "", "", `did you mean "log-format"?`},
		{"unknown variable", "", "SHARDD_DATADIR=x", "", `unknown setting "SHARDD_DATADIR"; did you mean "SHARDD_DATA_DIR"?`},
		{"twice", "tick: 1s\ntick: 2s\n", "", "", ":2: tick: given twice"},
		{"not a duration", "tick: soon\n", "", "", `yaml:1: tick: "soon" is not a duration`},
		{"list for a scalar", "tick: [1s]\n", "", "", "tick: want one duration"},
		{"not a mapping", "- a\n", "", "", "want `name: value` lines"},
		{"two documents", "tick: 1s\n---\ntick: 2s\n", "", "", "more than one YAML document"},
		{"bad size", "", "SHARDD_CACHE=lots", "", `SHARDD_CACHE: cache: "lots" is not a size`},
		{"small size", "data-dir: d\ncache: 10k\n", "", "", "cache is 10KiB: it must be at least 1MiB"},
		{"bad address", "listen: nowhere\n", "", "", "is not host:port"},
		{"no directory", "", "", "", "give --data-dir DIR"},
		{"pprof without http", "data-dir: d\npprof: true\n", "", "", "give --http HOST:PORT"},
		{"slow heartbeats", "data-dir: d\nheartbeat-ticks: 20\n", "", "", "must be below election-ticks (10)"},
		{"short lease", "data-dir: d\nlease-support: 10ms\n", "", "", "lease-support is 10ms: it must be between 100ms and 1m"},
		{"no margin", "clock-margin: 0\n", "", "", "yaml:1: clock-margin: 0 is not within 0.001 and 0.5"},
		{"not a fraction", "clock-margin: NaN\n", "", "", "clock-margin: NaN is not within"},
		{"missing file", "", "SHARDD_CONFIG=/does/not/exist.yaml", "", "/does/not/exist.yaml does not exist"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, _, err := load(t, tc.file, []string{tc.env})
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Fatalf("got %v\nwant %s", err, tc.want)
			}
		})
	}
}

func TestDumpReadsBack(t *testing.T) {
	_, table, err := load(t, "", nil, "--data-dir", "/d: x", "--join", "a:1,b:2", "--labels", "zone=a", "--cache", "96MiB",
		"--memory-limit", "-1")
	if err != nil {
		t.Fatal(err)
	}
	var first bytes.Buffer
	if err := Dump(&first, table); err != nil {
		t.Fatal(err)
	}
	_, again, err := load(t, first.String(), nil)
	if err != nil {
		t.Fatalf("%v\n%s", err, first.String())
	}
	for i, s := range table {
		if got := again[i].Value.String(); got != s.Value.String() {
			t.Errorf("%s: %q became %q", s.Name, s.Value, got)
		}
	}
}

func TestBytesRoundTrip(t *testing.T) {
	for text, want := range map[string]int64{"0": 0, "-1": -1, "1": 1, "1k": 1024, "1.5GiB": 3 << 29, " 2 mb ": 2 << 20} {
		got, err := ParseBytes(strings.TrimSpace(text))
		if err != nil || got != want {
			t.Errorf("ParseBytes(%q) = %d, %v, want %d", text, got, err, want)
		}
		if back, err := ParseBytes(FormatBytes(got)); err != nil || back != got {
			t.Errorf("%q does not read back: %d, %v", FormatBytes(got), back, err)
		}
	}
	for _, bad := range []string{"", "k", "1x", "1e30", "99999999TiB"} {
		if n, err := ParseBytes(bad); err == nil {
			t.Errorf("ParseBytes(%q) = %d, want an error", bad, n)
		}
	}
}

func TestReferencePageIsCurrent(t *testing.T) {
	const page = "../../docs/reference/settings.md"
	var want bytes.Buffer
	if err := Markdown(&want); err != nil {
		t.Fatal(err)
	}
	if *update {
		if err := os.WriteFile(page, want.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want.Bytes()) {
		t.Fatalf("%s is stale: run `go test ./internal/config -update`", page)
	}
}

func FuzzYAML(f *testing.F) {
	f.Add([]byte("tick: 1s\njoin: [a:1]\n"))
	f.Add([]byte("a: &x [*x]\n"))
	f.Fuzz(func(_ *testing.T, b []byte) {
		_ = fromYAML(Table(&Config{}), "f", bytes.NewReader(b)) // must not panic
	})
}
