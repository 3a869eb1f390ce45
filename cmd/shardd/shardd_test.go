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
	testscript.Main(m, map[string]func(){"shardd": main})
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{Dir: "testdata/script", UpdateScripts: *update, RequireExplicitExec: true})
}

func TestReferencePageIsCurrent(t *testing.T) {
	const page = "../../docs/reference/shardd.md"
	want := cli.Reference(newRoot(), "go test ./cmd/shardd -update")
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
		t.Fatalf("%s is stale: run `go test ./cmd/shardd -update`", page)
	}
}
