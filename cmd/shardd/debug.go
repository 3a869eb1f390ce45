package main

import (
	"fmt"
	"io"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/shardd/shardd/engine"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/cli"
)

func newDebug() *cobra.Command {
	c := &cobra.Command{
		Use:   "debug",
		Short: "Look into the data directory of a stopped node",
	}
	c.AddCommand(newDebugStore())
	return c
}

func newDebugStore() *cobra.Command {
	var output string
	c := &cobra.Command{
		Use:   "store DIR",
		Short: "List what a stopped node has on disk, and what is wrong with it",
		Long: `List what a stopped node has on disk: who it is, and for each shard the mark, the descriptor, what is applied,
the hard state and the bounds of the raft log, those of replicas that were removed included. Every record is read and
compared with the others; what a healthy store does not have is listed as a problem: half states, logs with holes,
ranges that overlap, data that no replica owns. Nothing in the directory is changed, and one that a process has open is
refused.

Exit codes: 0 nothing found, 13 problems found or not readable as a store, 10 in use, 15 written by a newer version.`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if output != "text" && output != "json" {
				return cli.Usagef("-o %s: want text or json", output)
			}
			in, err := engine.Inspect(engine.Options{Dir: args[0]})
			if err != nil {
				return startError(err)
			}
			if output == "json" {
				err = cli.JSON(c.OutOrStdout(), storeJSON(in))
			} else {
				err = printStore(c.OutOrStdout(), in)
			}
			if err != nil {
				return err
			}
			if n := len(in.Problems); n > 0 {
				return cli.Fail(engine.ExitCorrupt, "Keep the directory for inspection and start the node on an empty one; "+
					"the other replicas of its shards feed it.", "%s has %d problems", in.Dir, n)
			}
			return nil
		},
	}
	c.Flags().StringVarP(&output, "output", "o", "text", "text or json")
	return c
}

func printStore(w io.Writer, in *engine.Inspection) error {
	pairs := []string{"directory", in.Dir}
	if id := in.Ident; id != nil {
		pairs = append(pairs, "cluster", id.Cluster.String(), "store", id.Store.String(),
			"incarnation", strconv.FormatUint(id.Incarnation, 10),
			"format", fmt.Sprintf("%d, pebble %d", id.Format, id.FormatMajor),
			"longest promise", id.LongestPromise.String())
		for _, p := range id.Peers {
			pairs = append(pairs, "peer "+p.Store.String(), fmt.Sprintf("%s, incarnation %d", p.Addr, p.Incarnation))
		}
		if id.Meta != nil {
			pairs = append(pairs, "meta shard", id.Meta.String())
		}
	} else {
		pairs = append(pairs, "store", "without ident: it has never joined a cluster, or the ident is unreadable")
	}
	pairs = append(pairs, "used", cli.Bytes(in.UsedBytes))
	if in.ReserveBytes > 0 {
		pairs = append(pairs, "reserve", cli.Bytes(in.ReserveBytes))
	}
	if in.FreeBytes > 0 {
		pairs = append(pairs, "free on disk", cli.Bytes(in.FreeBytes))
	}
	if err := cli.Fields(w, pairs...); err != nil {
		return err
	}
	if len(in.Replicas) > 0 {
		fmt.Fprintln(w)
		if err := cli.Table(w, storeHeader(), storeRows(in)); err != nil {
			return err
		}
	}
	if len(in.Problems) > 0 {
		fmt.Fprintln(w)
		var rows [][]string
		for _, p := range in.Problems {
			rows = append(rows, []string{ofShard(p.Shard), p.Text})
		}
		return cli.Table(w, []string{"SHARD", "PROBLEM"}, rows)
	}
	return nil
}

func storeHeader() []string {
	return []string{"SHARD", "REPLICA", "NEXT", "LIFE", "START", "END", "EPOCH", "MEMBERS", "TERM", "VOTE", "COMMIT",
		"APPLIED", "TRUNCATED", "LOG", "LOG BYTES", "DATA BYTES"}
}

func storeRows(in *engine.Inspection) [][]string {
	var rows [][]string
	for i := range in.Replicas {
		r := &in.Replicas[i]
		next := r.Mark.NextReplicaID.String()
		if r.Mark.NextReplicaID == base.ReplicaID(^uint64(0)) {
			next = "merged"
		}
		row := []string{r.Shard.String(), r.Mark.ReplicaID.String(), next, r.Life.String()}
		if d := r.Desc; d != nil {
			row = append(row, cli.Quote(d.Start), cli.Quote(d.End), d.Epoch.String(), members(d))
		} else {
			row = append(row, "-", "-", "-", "-")
		}
		if h := r.Hard; h != nil {
			row = append(row, number(h.Term), number(h.Vote), number(h.Commit))
		} else {
			row = append(row, "-", "-", "-")
		}
		row = append(row, position(r.Applied != nil, func() (uint64, uint64) { return r.Applied.Index, r.Applied.Term }),
			position(r.Truncated != nil, func() (uint64, uint64) { return r.Truncated.Index, r.Truncated.Term }))
		log := "-"
		if r.Entries > 0 {
			log = fmt.Sprintf("%d-%d", r.LogFirst, r.LogLast)
		}
		rows = append(rows, append(row, log, cli.Bytes(r.LogBytes), cli.Bytes(r.DataBytes)))
	}
	return rows
}

func number(n uint64) string { return strconv.FormatUint(n, 10) }

// position shows an index and its term, or that there is none.
func position(have bool, at func() (index, term uint64)) string {
	if !have {
		return "-"
	}
	index, term := at()
	return fmt.Sprintf("%d@%d", index, term)
}

func ofShard(s base.ShardID) string {
	if s == 0 {
		return "-"
	}
	return s.String()
}

// members shows who is in a shard: n1/2, and the role of those that are not voters.
func members(d *base.Descriptor) string {
	var out string
	for i, r := range d.Replicas {
		if i > 0 {
			out += " "
		}
		out += r.Store.String() + "/" + r.Replica.String()
		if r.Role != base.RoleVoter {
			out += ":" + r.Role.String()
		}
	}
	return out
}

// The JSON of `debug store`: ids are numbers, keys are quoted as in the table, absent records are absent.
type (
	storeView struct {
		Dir          string        `json:"dir"`
		Ident        *identView    `json:"ident,omitempty"`
		UsedBytes    uint64        `json:"used_bytes"`
		ReserveBytes uint64        `json:"reserve_bytes"`
		FreeBytes    uint64        `json:"free_bytes"`
		Replicas     []replicaView `json:"replicas"`
		Problems     []problemView `json:"problems"`
	}
	identView struct {
		Cluster        string     `json:"cluster"`
		Store          uint64     `json:"store"`
		Incarnation    uint64     `json:"incarnation"`
		Format         uint32     `json:"format"`
		PebbleFormat   uint32     `json:"pebble_format"`
		LongestPromise string     `json:"longest_promise"`
		Peers          []peerView `json:"peers"`
		Meta           *descView  `json:"meta,omitempty"`
	}
	peerView struct {
		Store       uint64 `json:"store"`
		Address     string `json:"address"`
		Incarnation uint64 `json:"incarnation"`
	}
	replicaView struct {
		Shard     uint64         `json:"shard"`
		Replica   uint64         `json:"replica"`
		Next      uint64         `json:"next_replica"`
		Life      string         `json:"life"`
		Desc      *descView      `json:"descriptor,omitempty"`
		Hard      *hardView      `json:"hard_state,omitempty"`
		Applied   *positionView  `json:"applied,omitempty"`
		Truncated *positionView  `json:"truncated,omitempty"`
		Log       *logBoundsView `json:"log,omitempty"`
		Sessions  uint64         `json:"sessions"`
		DataBytes uint64         `json:"data_bytes"`
	}
	descView struct {
		Start    string       `json:"start"`
		End      string       `json:"end"`
		ConfVer  uint64       `json:"conf_ver"`
		Version  uint64       `json:"version"`
		Next     uint64       `json:"next_replica"`
		Replicas []memberView `json:"replicas"`
	}
	memberView struct {
		Replica uint64 `json:"replica"`
		Store   uint64 `json:"store"`
		Role    string `json:"role"`
	}
	hardView struct {
		Term   uint64 `json:"term"`
		Vote   uint64 `json:"vote"`
		Commit uint64 `json:"commit"`
	}
	positionView struct {
		Index uint64    `json:"index"`
		Term  uint64    `json:"term"`
		Conf  *confView `json:"conf,omitempty"`
	}
	confView struct {
		Voters         []uint64 `json:"voters"`
		Learners       []uint64 `json:"learners,omitempty"`
		VotersOutgoing []uint64 `json:"voters_outgoing,omitempty"`
		LearnersNext   []uint64 `json:"learners_next,omitempty"`
	}
	logBoundsView struct {
		First   uint64 `json:"first"`
		Last    uint64 `json:"last"`
		Entries uint64 `json:"entries"`
		Bytes   uint64 `json:"bytes"`
	}
	problemView struct {
		Shard uint64 `json:"shard,omitempty"`
		Text  string `json:"text"`
	}
)

func storeJSON(in *engine.Inspection) storeView {
	v := storeView{
		Dir: in.Dir, UsedBytes: in.UsedBytes, ReserveBytes: in.ReserveBytes, FreeBytes: in.FreeBytes,
		Replicas: []replicaView{}, Problems: []problemView{},
	}
	if id := in.Ident; id != nil {
		v.Ident = &identView{
			Cluster: id.Cluster.String(), Store: uint64(id.Store), Incarnation: id.Incarnation, Format: id.Format,
			PebbleFormat: id.FormatMajor, LongestPromise: id.LongestPromise.String(), Peers: []peerView{},
			Meta: descJSON(id.Meta),
		}
		for _, p := range id.Peers {
			v.Ident.Peers = append(v.Ident.Peers, peerView{uint64(p.Store), p.Addr, p.Incarnation})
		}
	}
	for i := range in.Replicas {
		r := &in.Replicas[i]
		row := replicaView{
			Shard: uint64(r.Shard), Replica: uint64(r.Mark.ReplicaID), Next: uint64(r.Mark.NextReplicaID),
			Life: r.Life.String(), Desc: descJSON(r.Desc), Sessions: r.Sessions, DataBytes: r.DataBytes,
		}
		if h := r.Hard; h != nil {
			row.Hard = &hardView{h.Term, h.Vote, h.Commit}
		}
		if a := r.Applied; a != nil {
			row.Applied = &positionView{a.Index, a.Term, confJSON(engine.TruncatedState{Conf: a.Conf})}
		}
		if t := r.Truncated; t != nil {
			row.Truncated = &positionView{t.Index, t.Term, confJSON(*t)}
		}
		if r.Entries > 0 {
			row.Log = &logBoundsView{r.LogFirst, r.LogLast, r.Entries, r.LogBytes}
		}
		v.Replicas = append(v.Replicas, row)
	}
	for _, p := range in.Problems {
		v.Problems = append(v.Problems, problemView{uint64(p.Shard), p.Text})
	}
	return v
}

func descJSON(d *base.Descriptor) *descView {
	if d == nil {
		return nil
	}
	v := &descView{
		Start: cli.Quote(d.Start), End: cli.Quote(d.End), ConfVer: d.Epoch.ConfVer, Version: d.Epoch.Version,
		Next: uint64(d.NextReplicaID), Replicas: []memberView{},
	}
	for _, r := range d.Replicas {
		v.Replicas = append(v.Replicas, memberView{uint64(r.Replica), uint64(r.Store), r.Role.String()})
	}
	return v
}

// confJSON takes a position for the configuration at it.
func confJSON(at engine.TruncatedState) *confView {
	c := &at.Conf
	if len(c.Voters) == 0 {
		return nil
	}
	return &confView{c.Voters, c.Learners, c.VotersOutgoing, c.LearnersNext}
}
