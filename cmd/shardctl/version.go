package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/shardd/shardd/client/admin"
	"github.com/shardd/shardd/internal/cli"
)

func newVersion(o *conn) *cobra.Command {
	var clientOnly bool
	c := &cobra.Command{
		Use:   "version",
		Short: "Print the version of shardctl and of the endpoints",
		RunE: func(c *cobra.Command, _ []string) error {
			asJSON, err := o.json()
			if err != nil {
				return err
			}
			v := cli.ReadVersion()
			servers := map[string]string{}
			if !clientOnly {
				err = o.withAdmin(c, func(ctx context.Context, a *admin.Client) error {
					var first error
					for _, e := range o.endpoints {
						st, err := a.At(e).NodeStatus(ctx)
						if err != nil {
							first = err
							continue
						}
						servers[e] = st.GetVersion()
					}
					if len(servers) == 0 {
						return first
					}
					return nil
				})
			}
			if asJSON {
				if jerr := cli.JSON(c.OutOrStdout(), map[string]any{"client": v, "servers": servers}); jerr != nil {
					return jerr
				}
				return err
			}
			pairs := []string{"shardctl", v.String()}
			for _, e := range o.endpoints {
				pairs = append(pairs, e, servers[e])
			}
			if perr := cli.Fields(c.OutOrStdout(), pairs...); perr != nil {
				return perr
			}
			return err
		},
	}
	c.Flags().BoolVar(&clientOnly, "client", false, "shardctl's own version only; asks no node")
	return c
}
