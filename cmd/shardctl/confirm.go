package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/shardd/shardd/internal/cli"
)

// confirm asks for a phrase to be typed and fails unless it is. Where nobody can be asked it fails at once and names the
// flag that stands for the answer.
func confirm(c *cobra.Command, question, phrase, flag string) error {
	if !canAsk(c.InOrStdin()) {
		return cli.Fail(cli.ExitUsage, fmt.Sprintf("%s says yes where nobody can be asked.", flag),
			"standard input is no terminal to ask on: nothing was changed")
	}
	if _, err := fmt.Fprintf(c.ErrOrStderr(), "%s\nType %q to go on: ", question, phrase); err != nil {
		return err
	}
	answer, err := readLine(c)
	if err != nil {
		return err
	}
	if answer != phrase {
		return cli.Fail(cli.ExitFailed, "", "not confirmed: nothing was changed")
	}
	return nil
}

// agree asks a question whose answer is yes or no, and fails unless it is yes; see confirm.
func agree(c *cobra.Command, question, flag string) error {
	if !canAsk(c.InOrStdin()) {
		return cli.Fail(cli.ExitUsage, fmt.Sprintf("%s says yes where nobody can be asked.", flag),
			"standard input is no terminal to ask on: nothing was changed")
	}
	if _, err := fmt.Fprintf(c.ErrOrStderr(), "%s [y/N] ", question); err != nil {
		return err
	}
	answer, err := readLine(c)
	if err != nil {
		return err
	}
	switch strings.ToLower(answer) {
	case "y", "yes":
		return nil
	}
	return cli.Fail(cli.ExitFailed, "", "not confirmed: nothing was changed")
}

// readLine reads an answer. Ctrl-C ends the waiting for one; the reading is left behind, as the process ends then.
func readLine(c *cobra.Command) (string, error) {
	type answer struct {
		text string
		err  error
	}
	read := make(chan answer, 1)
	go func() {
		text, err := bufio.NewReader(c.InOrStdin()).ReadString('\n')
		read <- answer{text, err}
	}()
	select {
	case <-c.Context().Done():
		return "", cli.Fail(cli.ExitInterrupted, "", "not confirmed: nothing was changed")
	case a := <-read:
		if a.err != nil && !errors.Is(a.err, io.EOF) {
			return "", fmt.Errorf("read the answer: %w", a.err)
		}
		return strings.TrimSpace(a.text), nil
	}
}

// canAsk reports whether a person is at the other end of standard input.
func canAsk(in io.Reader) bool {
	f, ok := in.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	return err == nil
}
