package cli

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

func TestQuotedBytesCannotMoveTheCursorAndReadBack(t *testing.T) {
	for in, want := range map[string]string{
		"user1": "user1", "": `""`, "a b": `"a b"`, "\x1b[2J": `"\x1b[2J"`, "\xff\x00": `"\xff\x00"`,
		`q"\`: `"q\"\\"`, "é": "é", "a\nb": `"a\nb"`, "\u202e": `"\u202e"`,
	} {
		got := Quote([]byte(in))
		if got != want {
			t.Errorf("Quote(%q) = %s, want %s", in, got, want)
		}
		if back, err := Unquote(got); err != nil || string(back) != in {
			t.Errorf("Unquote(%s) = %q, %v", got, back, err)
		}
	}
}

func FuzzQuote(f *testing.F) {
	f.Add([]byte("user1\xff\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		q := Quote(b)
		if back, err := Unquote(q); err != nil || !bytes.Equal(back, b) {
			t.Fatalf("%q -> %s -> %q, %v", b, q, back, err)
		}
		if strings.ContainsAny(q, "\n\r\t\x1b") {
			t.Fatalf("%s holds a control character", q)
		}
	})
}

func TestKeysAndValuesFromArguments(t *testing.T) {
	if b, err := Key("6a6B", true); err != nil || string(b) != "jk" {
		t.Errorf("hex key: %q, %v", b, err)
	}
	if _, err := Key("6", true); ExitCode(err) != ExitUsage {
		t.Errorf("odd hex: %v", err)
	}
	if b, err := Value("-", false, strings.NewReader("from\n"), 10); err != nil || string(b) != "from\n" {
		t.Errorf("value from standard input: %q, %v", b, err)
	}
	if b, err := Value("-", true, strings.NewReader("6a\n"), 10); err != nil || string(b) != "j" {
		t.Errorf("hex from standard input: %q, %v", b, err)
	}
	if _, err := Value("-", false, strings.NewReader("12345"), 4); ExitCode(err) != ExitUsage {
		t.Errorf("oversized value: %v", err)
	}
}

func TestErrorsCarryCodesAndAdvice(t *testing.T) {
	root := func() *cobra.Command {
		r := &cobra.Command{Use: "tool"}
		one := &cobra.Command{Use: "one ARG", Args: cobra.ExactArgs(1)}
		one.RunE = func(_ *cobra.Command, args []string) error {
			if args[0] == "plain" {
				return errors.New("plain")
			}
			return Fail(ExitConflict, "Read it again.", "key %s changed", args[0])
		}
		r.AddCommand(one)
		return r
	}
	for _, tc := range []struct {
		args string
		code int
		want string
	}{
		{"one k", ExitConflict, "tool: key k changed\nRead it again.\n"},
		{"one plain", ExitFailed, "tool: plain\n"},
		{"one", ExitUsage, "tool: accepts 1 arg(s), received 0\nUsage: tool one ARG"},
		{"one k --nope", ExitUsage, "tool: unknown flag: --nope\n`tool one --help` lists the flags.\n"},
		{"two", ExitUsage, "tool: unknown command \"two\" for \"tool\""},
	} {
		var out, errOut bytes.Buffer
		code := Execute(context.Background(), root(), strings.Fields(tc.args), strings.NewReader(""), &out, &errOut)
		if code != tc.code || !strings.HasPrefix(errOut.String(), tc.want) || out.Len() > 0 {
			t.Errorf("%s: code %d, out %q, err %q; want %d, %q", tc.args, code, out.String(), errOut.String(), tc.code, tc.want)
		}
	}
}

func TestTablesAlignWithoutTrailingBlanks(t *testing.T) {
	var b bytes.Buffer
	if err := Table(&b, []string{"ID", "STATE", ""}, [][]string{{"n1", "up", ""}, {"n10", "down", "x"}}); err != nil {
		t.Fatal(err)
	}
	if want := "ID   STATE\nn1   up\nn10  down   x\n"; b.String() != want {
		t.Errorf("got\n%s\nwant\n%s", b.String(), want)
	}
	if got := Bytes(3565158); got != "3.4 MiB" {
		t.Errorf("Bytes = %s", got)
	}
}
