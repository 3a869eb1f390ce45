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
	c := &cobra.Command{Use: "shards", Short: "Show shards, split and merge them, move their leaders and replicas"}
	c.AddCommand(newShardsList(o), newShardsDescribe(o), newShardsLocate(o), newShardsTransfer(o), newShardsMove(o),
		newShardsAddReplica(o), newShardsRemoveReplica(o), newShardsPromote(o), newShardsSplit(o), newShardsMerge(o),
		newShardsScatter(o), newShardsLog(o))
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
	Size     uint64        `json:"size_bytes"` // on disk, as the leader last measured it
	Load     *loadJSON     `json:"load,omitempty"`
	Rule     string        `json:"rule,omitempty"`
	Creating bool          `json:"creating,omitempty"`
	Merging  string        `json:"merging_into,omitempty"`
	HotKey   string        `json:"hot_key,omitempty"`        // no split would help
	Changed  uint64        `json:"changed_ms_ago,omitempty"` // last split or merge
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
		Version: s.GetVersion(), PutBytes: s.GetPutBytes(), Creating: s.GetCreating(), Replicas: []replicaJSON{},
		Size: s.GetSizeBytes(), Load: toLoadJSON(s.GetLoad()), Rule: s.GetRule(), HotKey: userKey(s.GetHotKey()),
		Changed: s.GetChangedMsAgo()}
	if s.GetMergingInto() != 0 {
		j.Merging = shardName(s.GetMergingInto())
	}
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
				return cli.Table(c.OutOrStdout(), []string{"SHARD", "KEYS", "LEADER", "EPOCH", "REPLICAS", "SIZE", "REQ/S",
					"RULE"}, rows)
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
	if s.GetMergingInto() != 0 {
		name += " (merging into " + shardName(s.GetMergingInto()) + ")"
	}
	return []string{name, keyRange(s), nodeName(s.GetLeader()), fmt.Sprintf("%d.%d", s.GetConfVer(), s.GetVersion()),
		strings.Join(nodes, " "), cli.Bytes(s.GetSizeBytes()), requests(s.GetLoad()), orElse(s.GetRule(), "-")}
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
