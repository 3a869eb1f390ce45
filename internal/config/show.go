package config

import (
	"fmt"
	"io"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Dump writes the settings as a YAML file that Load reads back: each with its reason and where the value came from.
func Dump(w io.Writer, table []*Setting) error {
	var b strings.Builder
	for i, s := range table {
		if i > 0 {
			b.WriteByte('\n')
		}
		for _, line := range wrap(s.Doc, 100) {
			b.WriteString("# " + line + "\n")
		}
		text, err := yaml.Marshal(map[string]string{s.Name: s.Value.String()})
		if err != nil {
			return err
		}
		line := strings.TrimSpace(string(text))
		if s.From != FromDefault {
			line += " # " + string(s.From)
		}
		b.WriteString(line + "\n")
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// Markdown writes the reference page of all settings.
func Markdown(w io.Writer) error {
	var b strings.Builder
	b.WriteString(`# Settings of shardd

<!-- Written by "go test ./internal/config -update" from the table in internal/config; do not edit. -->

Each setting has one name, used in three places. A later place wins over an earlier one:

1. the default,
2. the YAML file given by ` + "`--config FILE` or `SHARDD_CONFIG`" + `, as ` + "`name: value`" + `,
3. the environment variable,
4. the flag ` + "`--name`" + `.

A name that is not in this table is refused, with the nearest one that is. ` + "`shardd config check`" + ` checks what
would be used, ` + "`shardd config dump`" + ` prints it as a file with these comments and says where each value came
from. Sizes take KiB, MiB and GiB; durations take ms, s and m.

| setting | variable | value | default | what it does |
| --- | --- | --- | --- | --- |
`)
	for _, s := range Table(&Config{}) {
		def := s.Value.String()
		if def == "" {
			def = "none"
		}
		fmt.Fprintf(&b, "| `%s` | `%s` | %s | %s | %s |\n", s.Name, s.Env(),
			strings.ReplaceAll(s.Value.Type(), "|", " or "), def, s.Doc)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func wrap(text string, width int) []string {
	var lines []string
	line := ""
	for _, word := range strings.Fields(text) {
		if line != "" && len(line)+1+len(word) > width {
			lines = append(lines, line)
			line = ""
		}
		if line != "" {
			line += " "
		}
		line += word
	}
	return append(lines, line)
}
