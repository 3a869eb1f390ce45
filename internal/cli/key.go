package cli

import (
	"encoding/hex"
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Quote shows bytes on a terminal or in a column: as they are if they are printable text without blanks or quotes,
// else in double quotes with Go's escapes, so that nothing a store holds can move the cursor. Unquote reads it back.
func Quote(b []byte) string {
	s := string(b)
	if s != "" && plain(s) && !strings.ContainsFunc(s, unicode.IsSpace) {
		return s
	}
	return quoted(s)
}

// QuoteText is Quote for a value on a line of its own, where blanks do no harm.
func QuoteText(b []byte) string {
	if s := string(b); plain(s) {
		return s
	}
	return quoted(string(b))
}

func plain(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool {
		return r == '"' || r == '\\' || !unicode.IsPrint(r)
	})
}

func quoted(s string) string {
	var out strings.Builder
	out.WriteByte('"')
	for len(s) > 0 {
		r, n := utf8.DecodeRuneInString(s)
		switch {
		case r == utf8.RuneError && n == 1:
			fmt.Fprintf(&out, `\x%02x`, s[0])
		case r == '"' || r == '\\':
			out.WriteByte('\\')
			out.WriteRune(r)
		case unicode.IsPrint(r):
			out.WriteRune(r)
		default:
			q := strconv.QuoteRune(r)
			out.WriteString(q[1 : len(q)-1])
		}
		s = s[n:]
	}
	out.WriteByte('"')
	return out.String()
}

// Unquote reads what Quote wrote.
func Unquote(s string) ([]byte, error) {
	if !strings.HasPrefix(s, `"`) {
		return []byte(s), nil
	}
	u, err := strconv.Unquote(s)
	if err != nil {
		return nil, fmt.Errorf("%s is not a quoted key", s)
	}
	return []byte(u), nil
}

// Key reads a key argument: its bytes, or with isHex its hex digits.
func Key(arg string, isHex bool) ([]byte, error) {
	if !isHex {
		return []byte(arg), nil
	}
	b, err := hex.DecodeString(arg)
	if err != nil {
		return nil, Usagef("%q is not hex: want an even number of the digits 0-9a-f", arg)
	}
	return b, nil
}

// Value reads a value argument: "-" means all of in, at most limit bytes; else its bytes or hex digits.
func Value(arg string, isHex bool, in io.Reader, limit int) ([]byte, error) {
	if arg != "-" {
		return Key(arg, isHex)
	}
	b, err := io.ReadAll(io.LimitReader(in, int64(limit)+1))
	if err != nil {
		return nil, fmt.Errorf("read the value from standard input: %w", err)
	}
	if len(b) > limit {
		return nil, Usagef("the value on standard input is over the limit of %d bytes", limit)
	}
	if isHex {
		return Key(strings.TrimSpace(string(b)), true)
	}
	return b, nil
}
