package lint

import (
	"bytes"
	"testing"
)

// TestTextsNameNoMachine: paths and services of the machine that something was built on mean nothing to a reader.
func TestTextsNameNoMachine(t *testing.T) {
	// Put together here, so that this file does not hold them.
	forbidden := []string{"/wo" + "rk/", "proxy." + "golang"}
	for _, name := range files(t) {
		text := read(t, name)
		if bytes.IndexByte(text, 0) >= 0 {
			continue // not a text
		}
		for _, f := range forbidden {
			if at := bytes.Index(text, []byte(f)); at >= 0 {
				t.Errorf("%s:%d: contains %q", name, 1+bytes.Count(text[:at], []byte("\n")), f)
			}
		}
	}
}
