package main

import (
	"github.com/spf13/cobra"
)

func newDebug(o *conn) *cobra.Command {
	c := &cobra.Command{
		Use:   "debug",
		Short: "Look into the workings of running nodes",
	}
	c.AddCommand(newDebugLatency(o))
	return c
}
