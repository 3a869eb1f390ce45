package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/shardd/shardd/client/admin"
	"github.com/shardd/shardd/internal/cli"
)

// check is one line of a health report.
type check struct {
	Where  string `json:"where"` // a node or "cluster"
	Name   string `json:"name"`
	OK     bool   `json:"ok"`
	Detail string `json:"detail,omitempty"`
}

func newHealth(o *conn) *cobra.Command {
	var wait time.Duration
	c := &cobra.Command{
		Use:   "health",
		Short: "Check every node and shard; exit 4 if something is wrong",
		Long: `Check every node of the cluster and every shard: each node answers and passes its own checks, each shard has a
leader and all its replicas up. Exits with 0 if all is well, 4 if not, 7 if no endpoint answers.

With --wait it asks again until all is well or the time is over.`,
		Example: "  shardctl health --wait 30s",
		RunE: func(c *cobra.Command, _ []string) error {
			asJSON, err := o.json()
			if err != nil {
				return err
			}
			asked := *o
			asked.timeout = max(o.timeout, wait+o.timeout)
			return asked.withAdmin(c, func(ctx context.Context, a *admin.Client) error {
				checks, err := waitHealthy(ctx, a, o, wait)
				if len(checks) > 0 {
					if perr := printHealth(c, checks, asJSON); perr != nil {
						return perr
					}
				}
				return err
			})
		},
	}
	c.Flags().DurationVar(&wait, "wait", 0, "ask again for up to this long, until all is well")
	return c
}

func waitHealthy(ctx context.Context, a *admin.Client, o *conn, wait time.Duration) ([]check, error) {
	deadline := time.Now().Add(wait)
	for {
		one, cancel := context.WithTimeout(ctx, o.timeout)
		checks, err := health(one, a, o)
		cancel()
		if err == nil {
			return checks, nil
		}
		if time.Now().After(deadline) || ctx.Err() != nil {
			return checks, err
		}
		timer := time.NewTimer(200 * time.Millisecond)
		select {
		case <-ctx.Done():
		case <-timer.C:
		}
		timer.Stop()
	}
}

// health asks every node and the cluster. The error, if any, sums up what is wrong.
func health(ctx context.Context, a *admin.Client, o *conn) ([]check, error) {
	if err := o.refuseWaiting(ctx, a); err != nil {
		return nil, err
	}
	st, err := a.ClusterStatus(ctx)
	var checks []check
	add := func(where, name string, ok bool, detail string) {
		checks = append(checks, check{Where: where, Name: name, OK: ok, Detail: detail})
	}
	node := func(where, address string) {
		h, err := a.At(address).Health(ctx)
		if err != nil {
			add(where, "answers", false, dialReason(err.Error()))
			return
		}
		add(where, "answers", true, address)
		for _, hc := range h.GetChecks() {
			add(where, hc.GetName(), hc.GetOk(), hc.GetDetail())
		}
	}
	if err != nil {
		for _, e := range o.endpoints { // which nodes there are only the cluster knows
			node(e, e)
		}
		add("cluster", "answers", false, "the shard that holds the cluster's own data (s1) has no leader")
		return checks, cli.Fail(cli.ExitUnhealthy, "Are most nodes running? If they are lost for ever, "+
			"docs/runbooks/quorum-loss.md says what to do.", "the cluster does not answer: most nodes must run")
	}
	for _, n := range st.GetNodes() {
		if removed(n) {
			continue
		}
		node(nodeName(n.GetNodeId()), n.GetAddress())
	}
	count := func(name string, n uint32, what string) {
		detail := fmt.Sprintf("%d shards", st.GetShards())
		if n > 0 {
			detail = fmt.Sprintf("%d of %d shards %s", n, st.GetShards(), what)
		}
		add("cluster", name, n == 0, detail)
	}
	count("shards made", st.GetShardsCreating(), "are still being made")
	count("leaders", st.GetShardsWithoutLeader(), "have no leader")
	count("replicas", st.GetShardsUnderReplicated(), "have a replica down")
	bad := 0
	for _, c := range checks {
		if !c.OK {
			bad++
		}
	}
	if bad > 0 {
		return checks, cli.Fail(cli.ExitUnhealthy, "", "unhealthy: %d of %d checks are bad", bad, len(checks))
	}
	return checks, nil
}

func printHealth(c *cobra.Command, checks []check, asJSON bool) error {
	if asJSON {
		ok := true
		for _, k := range checks {
			ok = ok && k.OK
		}
		return cli.JSON(c.OutOrStdout(), map[string]any{"ok": ok, "checks": checks})
	}
	var rows [][]string
	for _, k := range checks {
		state := "ok"
		if !k.OK {
			state = "BAD"
		}
		rows = append(rows, []string{k.Where, k.Name, state, strings.ReplaceAll(k.Detail, "\n", " ")})
	}
	return cli.Table(c.OutOrStdout(), []string{"WHERE", "CHECK", "STATE", "DETAIL"}, rows)
}
