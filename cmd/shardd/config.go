package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/shardd/shardd/internal/cli"
	"github.com/shardd/shardd/internal/config"
)

func newConfig() *cobra.Command {
	c := &cobra.Command{
		Use:   "config",
		Short: "Check or print the settings that start would use",
	}
	check := &cobra.Command{
		Use:   "check",
		Short: "Say whether start would accept the settings; opens nothing",
		RunE: func(c *cobra.Command, _ []string) error {
			_, table, err := config.Load(c.Flags(), os.Environ())
			if err != nil {
				return badConfig(err)
			}
			n := map[config.Source]int{}
			for _, s := range table {
				n[s.From]++
			}
			_, err = fmt.Fprintf(c.OutOrStdout(), "settings are good: %d from flags, %d from the environment, "+
				"%d from the file, %d defaults\n", n[config.FromFlag], n[config.FromEnv], n[config.FromFile], n[config.FromDefault])
			return err
		},
	}
	dump := &cobra.Command{
		Use:   "dump",
		Short: "Print the settings as a file that --config reads, with what each does and where its value came from",
		RunE: func(c *cobra.Command, _ []string) error {
			_, table, err := config.Load(c.Flags(), os.Environ())
			if table == nil { // a value that start would refuse is still worth seeing
				return badConfig(err)
			}
			return config.Dump(c.OutOrStdout(), table)
		},
	}
	for _, sub := range []*cobra.Command{check, dump} {
		config.AddFlags(sub.Flags())
		sub.Flags().SortFlags = false
		c.AddCommand(sub)
	}
	return c
}

func badConfig(err error) error {
	return &cli.Error{Code: cli.ExitUsage, Err: err}
}
