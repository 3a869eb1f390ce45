package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/shardd/shardd/internal/cli"
)

func newVersion() *cobra.Command {
	var output string
	c := &cobra.Command{
		Use:   "version",
		Short: "Print version, commit, Go version and platform",
		RunE: func(c *cobra.Command, _ []string) error {
			v := cli.ReadVersion()
			switch output {
			case "json":
				return cli.JSON(c.OutOrStdout(), v)
			case "text":
				_, err := fmt.Fprintln(c.OutOrStdout(), "shardd", v)
				return err
			}
			return cli.Usagef("-o %s: want text or json", output)
		},
	}
	c.Flags().StringVarP(&output, "output", "o", "text", "text or json")
	return c
}
