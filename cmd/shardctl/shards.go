package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	sharddv1 "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/client"
	"github.com/shardd/shardd/client/admin"
	"github.com/shardd/shardd/internal/cli"
)

func newShards(o *conn) *cobra.Command {
	c := &cobra.Command{Use: "shards", Short: "Show shards and move their leaders"}
	c.AddCommand(newShardsList(o), newShardsDescribe(o), newShardsLocate(o), newShardsTransfer(o))
	return c
}

// shardJSON is a shard in JSON output. Start and End are quoted user keys; the empty End is the end of the key space.
type shardJSON struct {
	ID       string        `json:"id"`
	System   bool          `json:"system,omitempty"`
	Start    string        `json:"start"`
	End      string        `json:"end"`
	Leader   string        `json:"leader"`
	Term     uint64        `json:"term"`
	ConfVer  uint64        `json:"conf_ver"`
	Version  uint64        `json:"version"`
	PutBytes uint64        `json:"put_bytes"`
	Creating bool          `json:"creating,omitempty"`
	Replicas []replicaJSON `json:"replicas"`
}

type replicaJSON struct {
	Replica uint64 `json:"replica"`
	Node    string `json:"node"`
	Role    string `json:"role"`
}

func toShardJSON(s *sharddv1.ShardInfo) shardJSON {
	j := shardJSON{ID: shardName(s.GetShardId()), System: system(s.GetStart()), Start: userKey(s.GetStart()),
		End: userEnd(s.GetEnd()), Leader: nodeName(s.GetLeader()), Term: s.GetTerm(), ConfVer: s.GetConfVer(),
		Version: s.GetVersion(), PutBytes: s.GetPutBytes(), Creating: s.GetCreating(), Replicas: []replicaJSON{}}
	for _, r := range s.GetReplicas() {
		j.Replicas = append(j.Replicas, replicaJSON{Replica: r.GetReplicaId(), Node: nodeName(r.GetNodeId()),
			Role: r.GetRole()})
	}
	return j
}

func shardName(id uint64) string { return fmt.Sprintf("s%d", id) }

// Routing keys begin with the key space; people see user keys.
const spaceUser, spaceSystem = 0x02, 0x03

func system(start []byte) bool { return len(start) > 0 && start[0] == spaceSystem }

func userKey(k []byte) string {
	if len(k) <= 1 {
		return ""
	}
	return cli.Quote(k[1:])
}

// userEnd is "" for the end of a key space, which is the next space's first byte alone.
func userEnd(k []byte) string { return userKey(k) }

// keyRange is [start, end) with the two ends of the key space named.
func keyRange(s *sharddv1.ShardInfo) string {
	if system(s.GetStart()) {
		return "system"
	}
	return fmt.Sprintf("%s .. %s", orElse(userKey(s.GetStart()), "first"), orElse(userEnd(s.GetEnd()), "last"))
}

func newShardsList(o *conn) *cobra.Command {
	var limit int
	c := &cobra.Command{
		Use:   "list",
		Short: "List shards in key order, the system's own first",
		RunE: func(c *cobra.Command, _ []string) error {
			asJSON, err := o.json()
			if err != nil {
				return err
			}
			return o.withAdmin(c, func(ctx context.Context, a *admin.Client) error {
				var rows [][]string
				out := []shardJSON{}
				for s, err := range a.ListShards(ctx) {
					if err != nil {
						return err
					}
					if limit > 0 && len(rows) == limit {
						break
					}
					rows = append(rows, shardRow(s))
					out = append(out, toShardJSON(s))
				}
				if asJSON {
					return cli.JSON(c.OutOrStdout(), out)
				}
				return cli.Table(c.OutOrStdout(), []string{"SHARD", "KEYS", "LEADER", "TERM", "EPOCH", "REPLICAS", "PUT"}, rows)
			})
		},
	}
	c.Flags().IntVar(&limit, "limit", 0, "list at most this many; 0: all")
	return c
}

func shardRow(s *sharddv1.ShardInfo) []string {
	var nodes []string
	for _, r := range s.GetReplicas() {
		n := nodeName(r.GetNodeId())
		if r.GetRole() != "voter" {
			n += ":" + r.GetRole()
		}
		nodes = append(nodes, n)
	}
	name := shardName(s.GetShardId())
	if s.GetCreating() {
		name += " (being made)"
	}
	return []string{name, keyRange(s), nodeName(s.GetLeader()), fmt.Sprint(s.GetTerm()),
		fmt.Sprintf("%d.%d", s.GetConfVer(), s.GetVersion()), strings.Join(nodes, " "), cli.Bytes(s.GetPutBytes())}
}

func newShardsDescribe(o *conn) *cobra.Command {
	return &cobra.Command{
		Use:   "describe SHARD",
		Short: "Ask every replica of a shard for its state",
		Args:  cobra.ExactArgs(1),
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
	if err := cli.Fields(c.OutOrStdout(),
		"shard", shardName(s.GetShardId()),
		"keys", keyRange(s),
		"leader", fmt.Sprintf("%s in term %d", nodeName(s.GetLeader()), s.GetTerm()),
		"epoch", fmt.Sprintf("%d.%d", s.GetConfVer(), s.GetVersion()),
		"put", cli.Bytes(s.GetPutBytes())); err != nil {
		return err
	}
	fmt.Fprintln(c.OutOrStdout())
	var rows [][]string
	for _, r := range d.GetReplicas() {
		name := fmt.Sprintf("%s/%d", shardName(s.GetShardId()), r.GetReplicaId())
		switch {
		case r.GetError() != "":
			rows = append(rows, []string{name, nodeName(r.GetNodeId()), r.GetRole(), "no answer: " + r.GetError()})
			continue
		case r.GetFaulted() != "":
			rows = append(rows, []string{name, nodeName(r.GetNodeId()), r.GetRole(), "FAULTED: " + r.GetFaulted()})
			continue
		}
		rows = append(rows, []string{name, nodeName(r.GetNodeId()), r.GetRole(), r.GetRaftState(), fmt.Sprint(r.GetTerm()),
			fmt.Sprint(r.GetCommit()), fmt.Sprint(r.GetApplied()), fmt.Sprintf("%d-%d", r.GetFirstIndex(), r.GetLastIndex()),
			cli.Bytes(r.GetLogBytes())})
	}
	header := []string{"REPLICA", "NODE", "ROLE", "STATE", "TERM", "COMMIT", "APPLIED", "LOG", "SIZE"}
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
			active := "yes"
			if !p.GetRecentActive() {
				active = "no"
			}
			rows = append(rows, []string{fmt.Sprintf("%s/%d", shardName(s.GetShardId()), p.GetReplicaId()), p.GetState(),
				fmt.Sprint(p.GetMatch()), fmt.Sprint(p.GetNext()), active})
		}
		if err := cli.Table(c.OutOrStdout(), []string{"REPLICA", "STATE", "MATCH", "NEXT", "ACTIVE"}, rows); err != nil {
			return err
		}
	}
	return nil
}

func newShardsLocate(o *conn) *cobra.Command {
	var isHex bool
	c := &cobra.Command{
		Use:   "locate KEY",
		Short: "Say which shard holds a key and which node leads it",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			asJSON, err := o.json()
			if err != nil {
				return err
			}
			key, err := cli.Key(args[0], isHex)
			if err != nil {
				return err
			}
			return o.withDB(c, func(ctx context.Context, db *client.DB) error {
				r, err := db.Range(key, append(key[:len(key):len(key)], 0)) // the range of this key alone
				if err != nil {
					return err
				}
				shards, err := r.Shards(ctx)
				if err != nil {
					return err
				}
				if len(shards) == 0 {
					return cli.Fail(cli.ExitNotFound, "", "no shard holds %s", cli.Quote(key))
				}
				s := shards[0]
				var nodes []string
				for _, n := range s.Nodes {
					nodes = append(nodes, nodeName(n))
				}
				start, end := boundName(s.Start), boundName(s.End)
				if asJSON {
					return cli.JSON(c.OutOrStdout(), map[string]any{"key": cli.Quote(key), "shard": shardName(s.ID), "start": start,
						"end": end, "leader": nodeName(s.Leader), "nodes": nodes, "conf_ver": s.ConfVer, "version": s.Version})
				}
				return cli.Fields(c.OutOrStdout(), "key", cli.Quote(key), "shard", shardName(s.ID),
					"keys", orElse(start, "first")+" .. "+orElse(end, "last"), "leader", nodeName(s.Leader),
					"nodes", strings.Join(nodes, " "))
			})
		},
	}
	c.Flags().BoolVar(&isHex, "hex", false, "the key is given as hex digits")
	return c
}

func boundName(k []byte) string {
	if len(k) == 0 {
		return ""
	}
	return cli.Quote(k)
}

func newShardsTransfer(o *conn) *cobra.Command {
	var to string
	c := &cobra.Command{
		Use:     "transfer-leader SHARD --to NODE",
		Short:   "Move the leadership of a shard to a node",
		Example: "  shardctl shards transfer-leader s7 --to n2",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			asJSON, err := o.json()
			if err != nil {
				return err
			}
			shard, err := number("shard", "s", args[0])
			if err != nil {
				return err
			}
			if to == "" {
				return cli.Usagef("--to is not set: name a node that holds a replica (`shardctl shards describe %s`)", args[0])
			}
			node, err := number("node", "n", to)
			if err != nil {
				return err
			}
			return o.withAdmin(c, func(ctx context.Context, a *admin.Client) error {
				r, err := a.TransferLeader(ctx, shard, node)
				if err != nil {
					return err
				}
				if asJSON {
					return cli.JSON(c.OutOrStdout(), map[string]any{"shard": shardName(shard), "from": nodeName(r.GetFromNode()),
						"to": nodeName(r.GetToNode()), "term": r.GetTerm()})
				}
				if r.GetFromNode() == r.GetToNode() {
					_, err = fmt.Fprintf(c.OutOrStdout(), "%s: already led by %s\n", shardName(shard), nodeName(r.GetToNode()))
					return err
				}
				_, err = fmt.Fprintf(c.OutOrStdout(), "%s: led by %s, before by %s\n", shardName(shard), nodeName(r.GetToNode()),
					nodeName(r.GetFromNode()))
				return err
			})
		},
	}
	c.Flags().StringVar(&to, "to", "", "node that is to lead, such as n2")
	return c
}
