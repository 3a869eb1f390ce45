package main

import (
	"flag"
	"os"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/shardd/shardd/internal/cli"
)

var update = flag.Bool("update", false, "rewrite the golden files and the reference page")

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"shardctl": main})
}

func TestScriptsWithoutACluster(t *testing.T) {
	testscript.Run(t, testscript.Params{Dir: "testdata/offline", UpdateScripts: *update, RequireExplicitExec: true,
		Setup: func(env *testscript.Env) error {
			env.Setenv("SHARDCTL_ENDPOINTS", "127.0.0.1:1") // nobody listens there
			return nil
		}})
}

func TestReferencePageIsCurrent(t *testing.T) {
	const page = "../../docs/reference/shardctl.md"
	want := cli.Reference(newRoot(func(string) string { return "" }), "go test ./cmd/shardctl -update")
	if *update {
		if err := os.WriteFile(page, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Fatalf("%s is stale: run `go test ./cmd/shardctl -update`", page)
	}
}

func TestEvenSplitsAreEven(t *testing.T) {
	for _, n := range []int{1, 2, 3, 16, 64, 65536} {
		keys, err := evenSplits(n)
		if err != nil || len(keys) != n-1 {
			t.Fatalf("%d shards: %d keys, %v", n, len(keys), err)
		}
		last := 0
		for i, k := range keys {
			at := int(k[0])<<8 | int(k[1])
			if d := at - last; d < 65536/n || d > 65536/n+1 {
				t.Fatalf("%d shards: shard %d has %d of 65536 prefixes", n, i, d)
			}
			last = at
		}
	}
}
