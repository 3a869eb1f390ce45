package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	sharddv1 "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/client/admin"
	"github.com/shardd/shardd/internal/cli"
)

func newShardsDescribe(o *conn) *cobra.Command {
	return &cobra.Command{
		Use:   "describe SHARD",
		Short: "Ask every replica of a shard for its state",
		Long: `Ask every replica of a shard for its state: its role (voter, learner, or incoming and outgoing while a joint
change is under way), whether it leads and holds a lease, whether it sleeps, what it has applied, the bounds and size of its log, the size of its data; and as the leader
sees them, how many entries each lacks and the snapshot that is on its way to it.`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			asJSON, err := o.json()
			if err != nil {
				return err
			}
			id, err := number("shard", "s", args[0])
			if err != nil {
				return err
			}
			return o.withAdmin(c, func(ctx context.Context, a *admin.Client) error {
				d, err := a.DescribeShard(ctx, id)
				if err != nil {
					return err
				}
				if asJSON {
					return cli.JSON(c.OutOrStdout(), map[string]any{"shard": toShardJSON(d.GetShard()), "replicas": d.GetReplicas()})
				}
				return describe(c, d)
			})
		},
	}
}

func describe(c *cobra.Command, d *sharddv1.DescribeShardResponse) error {
	s := d.GetShard()
	joint := ""
	for _, r := range s.GetReplicas() {
		if r.GetRole() == "incoming" || r.GetRole() == "outgoing" {
			joint = "yes: between two configurations, left as soon as the leader can"
		}
	}
	merging, hot, changed := "", "", ""
	if s.GetMergingInto() != 0 {
		merging = "into " + shardName(s.GetMergingInto()) + ", refuses reads and writes until that is decided"
	}
	if k := userKey(s.GetHotKey()); k != "" {
		hot = k + ", has most of the load: no split would help"
	}
	if s.GetChangedMsAgo() > 0 {
		changed = span(millis(s.GetChangedMsAgo())) + " ago"
	}
	if err := cli.Fields(c.OutOrStdout(),
		"shard", shardName(s.GetShardId()),
		"keys", keyRange(s),
		"leader", fmt.Sprintf("%s in term %d", nodeName(s.GetLeader()), s.GetTerm()),
		"epoch", fmt.Sprintf("%d.%d", s.GetConfVer(), s.GetVersion()),
		"rule", s.GetRule(),
		"joint", joint,
		"merging", merging,
		"size", cli.Bytes(s.GetSizeBytes()),
		"put", cli.Bytes(s.GetPutBytes()),
		"load", loadLine(s.GetLoad()),
		"hot key", hot,
		"split or merged", changed); err != nil {
		return err
	}
	fmt.Fprintln(c.OutOrStdout())
	var rows [][]string
	for _, r := range d.GetReplicas() {
		row := []string{replicaName(s, r.GetReplicaId()), nodeName(r.GetNodeId()), r.GetRole()}
		switch {
		case r.GetError() != "":
			row = append(row, "no answer: "+r.GetError())
		case r.GetFaulted() != "":
			row = append(row, "FAULTED: "+r.GetFaulted())
		case r.GetUninitialised():
			row = append(row, "empty, waits for a snapshot", fmt.Sprint(r.GetTerm()))
		default:
			row = append(row, stateOf(r), fmt.Sprint(r.GetTerm()), fmt.Sprint(r.GetCommit()), fmt.Sprint(r.GetApplied()),
				logBounds(r), cli.Bytes(r.GetLogBytes()), cli.Bytes(r.GetDataBytes()))
		}
		rows = append(rows, row)
	}
	header := []string{"REPLICA", "NODE", "ROLE", "STATE", "TERM", "COMMIT", "APPLIED", "LOG", "LOG SIZE", "DATA"}
	if err := cli.Table(c.OutOrStdout(), header, rows); err != nil {
		return err
	}
	for _, r := range d.GetReplicas() {
		if len(r.GetProgress()) == 0 {
			continue
		}
		fmt.Fprintf(c.OutOrStdout(), "\nas the leader on %s sees them\n", nodeName(r.GetNodeId()))
		var rows [][]string
		for _, p := range r.GetProgress() {
			rows = append(rows, progressRow(s, r, p))
		}
		header := []string{"REPLICA", "STATE", "MATCH", "NEXT", "LAG", "SNAPSHOT", "ACTIVE"}
		if err := cli.Table(c.OutOrStdout(), header, rows); err != nil {
			return err
		}
	}
	return nil
}

// stateOf is what a replica does: whether it leads, by a lease or without, and whether it sleeps.
func stateOf(r *sharddv1.ReplicaStatus) string {
	state := r.GetRaftState()
	if r.GetLease() {
		state += ", leased"
	}
	if r.GetAsleep() {
		state += ", asleep"
	}
	return state
}

func replicaName(s *sharddv1.ShardInfo, id uint64) string {
	return fmt.Sprintf("%s/%d", shardName(s.GetShardId()), id)
}

// logBounds is the first and last index of a log, or that it holds nothing.
func logBounds(r *sharddv1.ReplicaStatus) string {
	if r.GetFirstIndex() > r.GetLastIndex() {
		return fmt.Sprintf("empty at %d", r.GetLastIndex())
	}
	return fmt.Sprintf("%d-%d", r.GetFirstIndex(), r.GetLastIndex())
}

// progressRow is one member as the leader sees it; its lag is in entries.
func progressRow(s *sharddv1.ShardInfo, leader *sharddv1.ReplicaStatus, p *sharddv1.FollowerProgress) []string {
	active, snapshot := "yes", "-"
	if !p.GetRecentActive() {
		active = "no"
	}
	if i := p.GetPendingSnapshot(); i > 0 {
		snapshot = fmt.Sprintf("at %d", i)
	}
	lag := leader.GetLastIndex() - min(p.GetMatch(), leader.GetLastIndex())
	return []string{replicaName(s, p.GetReplicaId()), p.GetState(), fmt.Sprint(p.GetMatch()), fmt.Sprint(p.GetNext()),
		fmt.Sprint(lag), snapshot, active}
}
