package main

import (
	"github.com/spf13/cobra"

	sharddv1 "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/client/admin"
	"github.com/shardd/shardd/internal/cli"
)

func newShardsMove(o *conn) *cobra.Command {
	var f jobFlags
	var from, to string
	c := &cobra.Command{
		Use:   "move SHARD --from NODE --to NODE",
		Short: "Move a replica of a shard from one node to another",
		Long: `Move a replica of a shard from one node to another: add a learner, send it a snapshot, let it catch up,
exchange the two in one joint step, remove the old one. The shard serves all the while and never has fewer voters than
before; a leader hands over first. If the new place is worse by the placement rules, or unsettles the balance, the
placement driver moves it again, unless that part of it is paused ("shardctl balance pause replicas repair").` + jobHelp,
		Example: `  shardctl shards move s12 --from n1 --to n4 --wait
  shardctl shards move s12 --from n1 --to n4 --dry-run`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			spec, err := replicaSpec(admin.KindMove, args[0], place{"from", from}, place{"to", to})
			if err != nil {
				return err
			}
			if spec.GetFromNode() == spec.GetToNode() {
				return cli.Usagef("--from and --to are both %s: name two nodes", nodeName(spec.GetToNode()))
			}
			return o.startJob(c, spec, &f)
		},
	}
	c.Flags().StringVar(&from, "from", "", "node that gives its replica up, such as n1")
	c.Flags().StringVar(&to, "to", "", "node that gets one, such as n4")
	f.add(c)
	return c
}

// place is a flag that names a node.
type place struct{ flag, arg string }

// replicaSpec reads the shard and the nodes of a job about one replica. The flags from and to, or on, give the nodes.
func replicaSpec(kind, shard string, places ...place) (*sharddv1.JobSpec, error) {
	id, err := number("shard", "s", shard)
	if err != nil {
		return nil, err
	}
	spec := &sharddv1.JobSpec{Kind: kind, ShardId: id}
	for _, p := range places {
		if p.arg == "" {
			return nil, cli.Usagef("--%s is not set: name a node (`shardctl nodes list` shows them, `shardctl shards describe "+
				"%s` where the shard is)", p.flag, shardName(id))
		}
		node, err := number("node", "n", p.arg)
		if err != nil {
			return nil, err
		}
		if p.flag == "from" {
			spec.FromNode = node
		} else {
			spec.ToNode = node
		}
	}
	return spec, nil
}
