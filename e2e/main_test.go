// Package e2e runs clusters of real processes: it kills, pauses and restarts them under load, damages their files and
// sends garbage to their ports, and judges what clients saw.
package e2e

import (
	"flag"
	"fmt"
	"os"
	"testing"

	"github.com/shardd/shardd/e2e/harness"
)

// TestMain builds the binaries once. SHARDD_E2E picks how long the tests run: empty (as part of go test ./...), short
// (about two minutes) or long (see docs/results).
func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(run(m))
}

func run(m *testing.M) int {
	if testing.Short() {
		return m.Run() // every test skips itself
	}
	dir, err := os.MkdirTemp("", "shardd-e2e-bin-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	if _, err := harness.Build(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if err := os.Setenv(binariesEnv, dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// binariesEnv hands the folder of the binaries from TestMain to the tests.
const binariesEnv = "SHARDD_E2E_BIN"

func binaries(t *testing.T) harness.Binaries {
	t.Helper()
	if testing.Short() {
		t.Skip("starts real processes; not with -short")
	}
	dir := os.Getenv(binariesEnv)
	return harness.Binaries{Shardd: dir + "/shardd", Shardctl: dir + "/shardctl"}
}

// scale is how many rounds the tests that repeat themselves run.
func scale(quick, short, long int) int {
	switch os.Getenv("SHARDD_E2E") {
	case "short":
		return short
	case "long":
		return long
	}
	return quick
}
