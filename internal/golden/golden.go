// Package golden compares bytes with a reviewed text file, for tests of everything that is stored or sent. A change of
// such a file is a change of format: it needs a new layout version, not just a new file. It is imported by tests only.
package golden

import (
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// UpdateEnv is the environment variable that, when set to 1, makes Check write the file instead of comparing it.
const UpdateEnv = "SHARDD_UPDATE_GOLDEN"

// File collects named byte strings and renders them as hex, 32 bytes a line.
type File struct{ text strings.Builder }

// Add appends one byte string under a name.
func (f *File) Add(name string, b []byte) {
	fmt.Fprintf(&f.text, "# %s (%d bytes)\n", name, len(b))
	for len(b) > 0 {
		n := min(len(b), 32)
		f.text.WriteString(hex.EncodeToString(b[:n]) + "\n")
		b = b[n:]
	}
}

// Text appends text under a name, for the meaning of bytes rather than the bytes.
func (f *File) Text(name, text string) {
	fmt.Fprintf(&f.text, "# %s\n%s", name, text)
}

// Check compares what was added with testdata/name.
func (f *File) Check(t testing.TB, name string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if os.Getenv(UpdateEnv) == "1" {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(f.text.String()), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v (set %s=1 to write it)", err, UpdateEnv)
	}
	if got := f.text.String(); got != string(want) {
		t.Fatalf("%s: bytes changed; old files and old logs could not be read any more\n--- want\n%s--- got\n%s",
			path, want, got)
	}
}
