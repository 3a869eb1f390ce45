package cli

import (
	"bytes"
	"os"
	"testing"
)

func TestAScreenRedrawsInPlace(t *testing.T) {
	var b bytes.Buffer
	s := ScreenOf(&b, 21)
	for _, lines := range [][]string{{"one", "two"}, {"a line that is too long", "x\x1b[2J", "three"}, {"end"}} {
		if err := s.Draw(lines); err != nil {
			t.Fatal(err)
		}
	}
	want := "\rone\x1b[K\n\rtwo\x1b[K\n\x1b[J" +
		"\x1b[2A\ra line that is to...\x1b[K\n\rx?[2J\x1b[K\n\rthree\x1b[K\n\x1b[J" +
		"\x1b[3A\rend\x1b[K\n\x1b[J"
	if b.String() != want {
		t.Errorf("got  %q\nwant %q", b.String(), want)
	}
}

func TestANarrowedTerminalHasWrappedTheBlock(t *testing.T) {
	var b bytes.Buffer
	s := ScreenOf(&b, 41)
	if err := s.Draw([]string{"thirty-three columns are in here.", "x"}); err != nil {
		t.Fatal(err)
	}
	s.width = func() int { return 11 }
	b.Reset()
	if err := s.Draw(nil); err != nil {
		t.Fatal(err)
	}
	if got, want := b.String(), "\x1b[4A\x1b[J"; got != want { // three rows of the long line, one of the short one
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestOnlyATerminalIsAScreen(t *testing.T) {
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	if NewScreen(null) != nil || NewScreen(&bytes.Buffer{}) != nil {
		t.Error("drew on something that is no terminal")
	}
}
