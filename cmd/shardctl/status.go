package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	sharddv1 "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/client/admin"
	"github.com/shardd/shardd/internal/cli"
)

func newStatus(o *conn) *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Sum the cluster up: nodes, shards, running jobs",
		RunE: func(c *cobra.Command, _ []string) error {
			asJSON, err := o.json()
			if err != nil {
				return err
			}
			return o.withAdmin(c, func(ctx context.Context, a *admin.Client) error {
				if err := o.refuseWaiting(ctx, a); err != nil {
					return err
				}
				st, err := a.ClusterStatus(ctx)
				if err != nil {
					return err
				}
				alive, members := nodesUp(st.GetNodes())
				nodes := []nodeJSON{}
				for _, n := range st.GetNodes() {
					nodes = append(nodes, toNodeJSON(n))
				}
				ill, err := illShards(ctx, a, st.GetNodes())
				if err != nil {
					return err
				}
				jobs, err := a.ListJobs(ctx, true, 0)
				if err != nil {
					return err
				}
				driver, err := askDriver(ctx, a)
				if err != nil {
					return err
				}
				if asJSON {
					running := []jobJSON{}
					for _, j := range jobs {
						running = append(running, toJobJSON(j))
					}
					out := map[string]any{"cluster_id": st.GetClusterId(), "shards": st.GetShards(),
						"shards_without_leader": st.GetShardsWithoutLeader(), "shards_creating": st.GetShardsCreating(),
						"shards_under_replicated": st.GetShardsUnderReplicated(), "meta_leader": nodeName(st.GetMetaLeader()),
						"nodes": nodes, "joint": ill.names(ill.joint, 0), "replica_down": ill.names(ill.down, 0), "jobs": running}
					if driver != nil {
						out["driver"] = driverJSON(driver)
					}
					return cli.JSON(c.OutOrStdout(), out)
				}
				if err := cli.Fields(c.OutOrStdout(),
					"cluster", st.GetClusterId(),
					"nodes", fmt.Sprintf("%d of %d up", alive, members),
					"shards", shardLine(st),
					"replica down", strings.Join(ill.names(ill.down, mostNames), " "),
					"joint", strings.Join(ill.names(ill.joint, mostNames), " "),
					"driver", driverLine(driver)); err != nil {
					return err
				}
				fmt.Fprintln(c.OutOrStdout())
				left := slices.DeleteFunc(slices.Clone(st.GetNodes()), removed)
				if err := nodeTable(c, left); err != nil || len(jobs) == 0 {
					return err
				}
				fmt.Fprintln(c.OutOrStdout())
				return jobTable(c, jobs)
			})
		},
	}
}

// askDriver asks what the placement driver does; nil: the nodes are older than it, or it has no answer at the moment.
func askDriver(ctx context.Context, a *admin.Client) (*sharddv1.BalanceStatusResponse, error) {
	b, err := a.BalanceStatus(ctx)
	if errors.Is(err, admin.ErrUnsupported) || errors.Is(err, admin.ErrUnreachable) {
		return nil, nil
	}
	return b, err
}

// driverJSON is the driver in the status; "shardctl balance status" says more.
func driverJSON(b *sharddv1.BalanceStatusResponse) map[string]any {
	full := toBalanceJSON(b)
	return map[string]any{"state": full.State, "detail": full.Detail, "paused": full.Paused, "problems": full.Problems,
		"running": len(full.Running)}
}

// driverLine is "running, 2 operators; 1 short of voters".
func driverLine(b *sharddv1.BalanceStatusResponse) string {
	if b == nil {
		return ""
	}
	line := driverState(b)
	if n := len(b.GetRunning()); n == 1 {
		line += ", 1 operator"
	} else if n > 1 {
		line += fmt.Sprintf(", %d operators", n)
	}
	if p := b.GetPaused(); len(p) > 0 {
		line += "; paused: " + strings.Join(p, " ")
	}
	if p := problemLine(b); p != "" {
		line += "; " + p
	}
	return line
}

// shardLine is "64 and the system's own", and what is wrong with some.
func shardLine(st *sharddv1.ClusterStatusResponse) string {
	s := fmt.Sprintf("%d and the system's own", max(st.GetShards(), 1)-1)
	for _, p := range []struct {
		n    uint32
		what string
	}{{st.GetShardsWithoutLeader(), "without leader"}, {st.GetShardsUnderReplicated(), "with a replica down"},
		{st.GetShardsCreating(), "being made"}} {
		if p.n > 0 {
			s += fmt.Sprintf("; %d %s", p.n, p.what)
		}
	}
	return s
}

// refuseWaiting fails with advice if the node that answers belongs to no cluster yet.
func (o *conn) refuseWaiting(ctx context.Context, a *admin.Client) error {
	st, err := a.NodeStatus(ctx)
	if err != nil {
		return err
	}
	if st.GetClusterId() == "" {
		return cli.Fail(cli.ExitUnhealthy,
			"`shardctl init "+st.GetAddress()+"` makes a cluster of it; `shardd start --join` takes it into one.",
			"the node at %s belongs to no cluster: %s", st.GetAddress(), orElse(st.GetWaiting(), "it waits"))
	}
	return nil
}

func orElse(s, other string) string {
	if s == "" {
		return other
	}
	return s
}
