package cli

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// Reference is the Markdown page of a command and everything below it, in the order of its help.
func Reference(root *cobra.Command, how string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "# %s\n\n<!-- Written by %q; do not edit. -->\n", root.Name(), how)
	section(&b, root)
	return b.String()
}

func section(b *strings.Builder, c *cobra.Command) {
	if c.Hidden || c.Name() == "help" {
		return
	}
	if c.HasParent() {
		fmt.Fprintf(b, "\n## %s\n", c.CommandPath())
	}
	text := strings.TrimSpace(c.Long)
	if text == "" {
		text = c.Short + "."
	}
	fmt.Fprintf(b, "\n```\n%s\n```\n", text)
	if c.Runnable() {
		fmt.Fprintf(b, "\nUsage: `%s`\n", c.UseLine())
	}
	if c.Example != "" {
		fmt.Fprintf(b, "\nExamples:\n\n```\n%s\n```\n", c.Example)
	}
	flags := c.LocalFlags()
	header := false
	flags.VisitAll(func(f *pflag.Flag) {
		if f.Hidden || f.Name == "help" {
			return
		}
		if !header {
			b.WriteString("\n| flag | default | what it does |\n| --- | --- | --- |\n")
			header = true
		}
		name := "--" + f.Name
		if f.Shorthand != "" {
			name = "-" + f.Shorthand + ", " + name
		}
		def := f.DefValue
		if def == "" || def == "[]" {
			def = "none"
		}
		fmt.Fprintf(b, "| `%s` | %s | %s |\n", name, def, strings.ReplaceAll(f.Usage, "|", "\\|"))
	})
	for _, sub := range c.Commands() {
		if c.Name() == "completion" {
			break // cobra's own pages, one for each shell
		}
		section(b, sub)
	}
}
