package cli

import (
	"fmt"
	"io"
	"os"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// Screen is a block of lines that is redrawn in place, on a terminal and nowhere else. It uses no colour, so NO_COLOR
// changes nothing.
type Screen struct {
	w     io.Writer
	width func() int // columns of the terminal now
	drawn []int      // length of each line of the block as it stands, in columns
}

// NewScreen returns a Screen on w, or nil if w is not a terminal that can move its cursor.
func NewScreen(w io.Writer) *Screen {
	f, ok := w.(*os.File)
	if !ok || os.Getenv("TERM") == "dumb" || columns(f) == 0 {
		return nil
	}
	return &Screen{w: w, width: func() int { return columns(f) }}
}

// ScreenOf returns a Screen of a fixed width on any writer, for a terminal that is not this process's own.
func ScreenOf(w io.Writer, width int) *Screen {
	return &Screen{w: w, width: func() int { return width }}
}

// columns is the width of a terminal, 0 for anything else. A terminal that does not tell is taken for one of 80.
func columns(f *os.File) int {
	size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	switch {
	case err != nil:
		return 0
	case size.Col == 0:
		return 80
	}
	return int(size.Col)
}

// Width is how many columns a line may have: the last one stays free, since some terminals wrap on it.
func (s *Screen) Width() int { return max(s.width()-1, 10) }

// Draw replaces the block by lines; longer ones are cut.
func (s *Screen) Draw(lines []string) error {
	var b strings.Builder
	if up := s.rows(); up > 0 {
		fmt.Fprintf(&b, "\x1b[%dA", up)
	}
	width := s.Width()
	s.drawn = s.drawn[:0]
	for _, l := range lines {
		l = Cut(l, width)
		s.drawn = append(s.drawn, utf8.RuneCountInString(l))
		b.WriteString("\r" + l + "\x1b[K\n")
	}
	b.WriteString("\x1b[J") // a block that has shrunk leaves nothing behind
	_, err := io.WriteString(s.w, b.String())
	return err
}

// rows is how many rows the block takes now: a terminal that has become narrower has wrapped its lines.
func (s *Screen) rows() int {
	width, n := max(s.width(), 1), 0
	for _, l := range s.drawn {
		n += max(1, (l+width-1)/width)
	}
	return n
}

// Cut shortens a line to width columns and replaces what could move the cursor.
func Cut(line string, width int) string {
	line = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, line)
	if utf8.RuneCountInString(line) <= width {
		return strings.TrimRight(line, " ")
	}
	r := []rune(line)
	if width <= 3 {
		return string(r[:max(width, 0)])
	}
	return string(r[:width-3]) + "..."
}

// Size is how many columns and rows a terminal has, 0 and 0 if w is none.
func Size(w io.Writer) (columns, rows int) {
	f, ok := w.(*os.File)
	if !ok || os.Getenv("TERM") == "dumb" {
		return 0, 0
	}
	size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	switch {
	case err != nil:
		return 0, 0
	case size.Col == 0 || size.Row == 0: // a terminal that does not tell
		return 80, 24
	}
	return int(size.Col), int(size.Row)
}
