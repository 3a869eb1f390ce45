// Package cli is what the two commands share: exit codes, errors that say what to do next, aligned text and JSON
// output, keys and values on the command line, and the logger of a process. It knows nothing of clusters.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
)

// Exit codes of both commands. The codes 10 to 15 of shardd are the engine's.
const (
	ExitOK          = 0
	ExitFailed      = 1
	ExitUsage       = 2
	ExitNotFound    = 3
	ExitUnhealthy   = 4
	ExitTimeout     = 5
	ExitConflict    = 6
	ExitUnreachable = 7
	ExitCancelled   = 8   // a job was cancelled
	ExitInterrupted = 130 // Ctrl-C ended the watching of something that goes on
)

// Error is an error with the exit code that it means and what the user can do about it.
type Error struct {
	Code int
	Err  error
	Next string // one sentence; may be empty
}

// Error returns what went wrong, without the advice.
func (e *Error) Error() string { return e.Err.Error() }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Usagef is a mistake in how the command was called.
func Usagef(format string, args ...any) error {
	return &Error{Code: ExitUsage, Err: fmt.Errorf(format, args...)}
}

// Fail gives an error an exit code and advice.
func Fail(code int, next string, format string, args ...any) error {
	return &Error{Code: code, Err: fmt.Errorf(format, args...), Next: next}
}

// ExitCode is the code that an error ends the process with; 0 for nil, 1 for an error that names none.
func ExitCode(err error) int {
	var e *Error
	switch {
	case err == nil:
		return ExitOK
	case errors.As(err, &e):
		return e.Code
	}
	return ExitFailed
}

// Execute runs a command, writes its error and advice to stderr and returns the exit code.
func Execute(ctx context.Context, root *cobra.Command, args []string, in io.Reader, out, errOut io.Writer) int {
	root.SetArgs(args)
	root.SetIn(in)
	root.SetOut(out)
	root.SetErr(errOut)
	root.SilenceErrors, root.SilenceUsage = true, true
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return &Error{Code: ExitUsage, Err: err, Next: fmt.Sprintf("`%s --help` lists the flags.", c.CommandPath())}
	})
	usageOnBadArgs(root)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return ExitOK
	}
	// cobra has no typed error for this one.
	if strings.HasPrefix(err.Error(), "unknown command") {
		err = &Error{Code: ExitUsage, Err: errors.New(strings.TrimSpace(strings.ReplaceAll(err.Error(), "\n\n", "\n"))),
			Next: fmt.Sprintf("`%s --help` lists the commands.", cmd.CommandPath())}
	}
	if strings.HasPrefix(err.Error(), "if any flags in the group") { // nor for this one
		err = &Error{Code: ExitUsage, Err: err, Next: fmt.Sprintf("`%s --help` lists the flags.", cmd.CommandPath())}
	}
	fmt.Fprintf(errOut, "%s: %s\n", root.Name(), err)
	var e *Error
	if errors.As(err, &e) && e.Next != "" {
		fmt.Fprintf(errOut, "%s\n", e.Next)
	}
	return ExitCode(err)
}

// usageOnBadArgs turns a wrong number of arguments into a usage error that shows the call, for every command; a group
// of commands called with a word that is none of them is refused too.
func usageOnBadArgs(c *cobra.Command) {
	for _, sub := range c.Commands() {
		usageOnBadArgs(sub)
	}
	if c.HasSubCommands() && !c.Runnable() {
		c.DisableFlagsInUseLine = true
		c.Args = func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return nil
			}
			return &Error{Code: ExitUsage, Err: fmt.Errorf("unknown command %q for %q", args[0], cmd.CommandPath()),
				Next: fmt.Sprintf("`%s --help` lists the commands.", cmd.CommandPath())}
		}
		c.RunE = func(cmd *cobra.Command, _ []string) error {
			if err := cmd.Help(); err != nil {
				return err
			}
			return nil
		}
		return
	}
	check := c.Args
	if check == nil {
		check = cobra.NoArgs
	}
	c.Args = func(cmd *cobra.Command, args []string) error {
		if err := check(cmd, args); err != nil {
			return &Error{Code: ExitUsage, Err: err, Next: "Usage: " + cmd.UseLine()}
		}
		return nil
	}
}
