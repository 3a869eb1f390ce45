package e2e

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"testing"
)

// readResult reads a result file that an earlier run may have left, and reports whether there is one.
func readResult(t *testing.T, path string, into any) bool {
	t.Helper()
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false
	}
	if err == nil {
		err = json.Unmarshal(b, into)
	}
	if err != nil {
		t.Fatalf("go on from %s: %v (remove it to start over)", path, err)
	}
	return true
}

// putResult writes a result file, whole or not at all.
func putResult(t *testing.T, path string, v any) {
	t.Helper()
	b, err := json.MarshalIndent(v, "", "  ")
	if err == nil {
		err = os.WriteFile(path+".tmp", append(b, '\n'), 0o644)
	}
	if err == nil {
		err = os.Rename(path+".tmp", path)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// figuresCommand is how the test that runs is run at full length.
func figuresCommand(t *testing.T) string {
	return "SHARDD_E2E=figures go test -count 1 -timeout 1h -v -run " + t.Name() + " ./e2e"
}

// putText writes a file beside the results.
func putText(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Logf("\n%s", text)
}

// makeDir makes a folder for results and returns it.
func makeDir(t *testing.T, dir string) string {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}
