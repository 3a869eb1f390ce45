package harness

import (
	"encoding/json"
	"fmt"
	"slices"
)

// store is what `shardd debug store -o json` says of one stopped node, as far as tests look at it.
type store struct {
	Ident struct {
		Store uint64 `json:"store"`
	} `json:"ident"`
	Replicas []struct {
		Shard   uint64 `json:"shard"`
		Replica uint64 `json:"replica"`
		Life    string `json:"life"`
		Desc    *desc  `json:"descriptor"`
	} `json:"replicas"`
	Problems []struct {
		Shard uint64 `json:"shard"`
		Text  string `json:"text"`
	} `json:"problems"`
}

type desc struct {
	ConfVer  uint64       `json:"conf_ver"`
	Version  uint64       `json:"version"`
	Replicas []descMember `json:"replicas"`
}

type descMember struct {
	Replica uint64 `json:"replica"`
	Store   uint64 `json:"store"`
}

func (d *desc) newer(than *desc) bool {
	return than == nil || d.Version > than.Version || d.Version == than.Version && d.ConfVer > than.ConfVer
}

// CheckStores looks into the directories of all nodes, which must have stopped: nothing is wrong with any of them, and
// every replica on disk is listed by the newest descriptor of its shard that any of them holds.
func (c *Cluster) CheckStores() error {
	var stores []store
	newest := map[uint64]*desc{}
	for i, n := range c.Nodes {
		if n.Proc == nil {
			continue
		}
		out, stderr, code := Run(c.t, "", c.bin.Shardd, "debug", "store", n.Dir, "-o", "json")
		var s store
		if err := json.Unmarshal([]byte(out), &s); err != nil {
			return fmt.Errorf("node %d: exit code %d, %s: %w", i, code, stderr, err)
		}
		if code != 0 {
			return fmt.Errorf("node %d: exit code %d, %s: %v", i, code, stderr, s.Problems)
		}
		for _, r := range s.Replicas {
			if r.Desc != nil && r.Desc.newer(newest[r.Shard]) {
				newest[r.Shard] = r.Desc
			}
		}
		stores = append(stores, s)
	}
	for _, s := range stores {
		for _, r := range s.Replicas {
			if r.Replica == 0 { // a mark alone: it keeps the id from coming back
				continue
			}
			d := newest[r.Shard]
			if d == nil || !slices.Contains(d.Replicas, descMember{Replica: r.Replica, Store: s.Ident.Store}) {
				return fmt.Errorf("n%d holds replica s%d/%d (%s), which its shard's newest descriptor does not list: %+v",
					s.Ident.Store, r.Shard, r.Replica, r.Life, d)
			}
		}
	}
	return nil
}

// StopAll ends every node that runs, gracefully; the test fails unless all exit with 0.
func (c *Cluster) StopAll() {
	c.t.Helper()
	for i, n := range c.Nodes {
		if n.Proc == nil || !n.Proc.Running() {
			continue
		}
		if code, err := n.Proc.Stop(Patience); code != 0 || err != nil {
			c.t.Errorf("graceful stop of node %d: exit code %d, %v", i, code, err)
		}
	}
}
