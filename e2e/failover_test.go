package e2e

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"testing"
	"time"

	sharddv1 "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/bench/ycsb"
	"github.com/shardd/shardd/client"
	"github.com/shardd/shardd/e2e/harness"
)

// failover is what writers see when leaderships move: because a node is killed, because they are handed over, and
// because a node is stopped and started in order. Gaps are the longest times between two acknowledged writes of one
// shard. All settings are the defaults.
type failover struct {
	Command string       `json:"command"`
	Machine ycsb.Machine `json:"machine"`
	Nodes   int          `json:"nodes"`
	Shards  int          `json:"shards"`
	Writers int          `json:"writers"` // one for each shard
	Times   int          `json:"kills_wanted"`

	// Nothing happens, in windows of a second: what the load itself costs on this machine.
	Idle gapsMS `json:"idle"`
	// The node that leads most is killed with kill -9 under load. Of the shards that it led, and of all, since the load
	// of all shards shares what is left of the machine.
	Kills []killGaps `json:"kills"`
	Kill  gapsMS     `json:"kill_shards_led"`
	Other gapsMS     `json:"kill_other_shards"`
	// The leadership of one shard is handed to another node.
	Transfer  gapsMS    `json:"transfer"`
	Transfers []float64 `json:"transfers_ms"` // in their order
	// A node is stopped with SIGTERM, with its leaderships, and started again; all three in turn.
	Restart gapsMS         `json:"graceful_restart"`
	Errors  map[string]int `json:"errors"`
}

// gapsMS sums up the longest pauses of many writers, each over one event.
type gapsMS struct {
	Count int     `json:"count"`
	P50   float64 `json:"p50_ms"`
	P90   float64 `json:"p90_ms"`
	Max   float64 `json:"max_ms"`
}

// killGaps is one kill.
type killGaps struct {
	Victim  int       `json:"victim"`
	Leaders int       `json:"leaders_of_victim"`
	Led     []float64 `json:"gaps_of_shards_led_ms"`
	Other   []float64 `json:"gaps_of_other_shards_ms"`
}

func sumGaps(ms []float64) gapsMS {
	slices.Sort(ms)
	if len(ms) == 0 {
		return gapsMS{}
	}
	at := func(q float64) float64 { return ms[min(len(ms)-1, int(q*float64(len(ms))))] }
	return gapsMS{Count: len(ms), P50: at(0.5), P90: at(0.9), Max: at(1)}
}

func inMS(ds []time.Duration) (ms []float64) {
	for _, d := range ds {
		ms = append(ms, float64(d.Microseconds())/1000)
	}
	return ms
}

// How long writers of a shard wait when its leader is killed, hands over, or is stopped and started.
func TestFiguresOfFailover(t *testing.T) {
	const shards, nodes = 16, 3
	dir, full := figures(t, "failover")
	path := filepath.Join(dir, "failover.json")
	f := &failover{Machine: ycsb.DescribeMachine(), Command: figuresCommand(t), Nodes: nodes, Shards: shards,
		Writers: shards, Times: 2, Errors: map[string]int{}}
	transfers, restarts := 3, 1
	if full {
		f.Times, transfers, restarts = 50, 100, 4
	}
	if readResult(t, path, f) {
		t.Logf("going on after %d kills", len(f.Kills))
	}
	if f.Restart.Count > 0 {
		t.Logf("%s is there: not measured again", path)
		return
	}
	c := harness.New(t, binaries(t), nodes)
	c.StartAll()
	c.Init(splitsOf(shards))
	c.WaitHealthy()
	db := c.DB(client.WithTimeout(20 * time.Second))
	var keys [][]byte
	for i := range shards {
		keys = append(keys, fmt.Appendf(nil, "%02d/w", i))
	}
	var w gapWriters
	stop := w.run(t, db, keys)
	defer stop()
	w.take(t)
	save := func() {
		w.mu.Lock()
		for class, n := range w.errors {
			f.Errors[class] += n
		}
		clear(w.errors)
		w.mu.Unlock()
		if !t.Failed() {
			putResult(t, path, f)
		}
	}

	for len(f.Kills) < f.Times {
		c.WaitHealthy()
		victim, leaders := c.Busiest()
		led := ledBy(c, victim, keys)
		w.take(t)
		c.Kill(victim)
		gaps := inMS(w.take(t))
		k := killGaps{Victim: victim, Leaders: leaders}
		for i, g := range gaps {
			if led[i] {
				k.Led = append(k.Led, g)
			} else {
				k.Other = append(k.Other, g)
			}
		}
		t.Logf("kill %d of node %d with %d leaders: %+v", len(f.Kills)+1, victim, leaders, sumGaps(slices.Clone(k.Led)))
		f.Kills = append(f.Kills, k)
		c.Start(victim)
		save()
	}
	var of, other []float64
	for _, k := range f.Kills {
		of, other = append(of, k.Led...), append(other, k.Other...)
	}
	f.Kill, f.Other = sumGaps(of), sumGaps(other)
	c.WaitHealthy()

	var idle, moved, restarted []float64
	for i := range transfers {
		w.take(t)
		timer := time.NewTimer(200 * time.Millisecond) // not a wait for a condition: as long as a hand-over is watched
		<-timer.C
		idle = append(idle, inMS(w.take(t))...)
		at := i % shards
		s := c.ShardOf(keys[at])
		to := s.GetReplicas()[slices.IndexFunc(s.GetReplicas(), func(r *sharddv1.ReplicaInfo) bool {
			return r.GetNodeId() != s.GetLeader()
		})]
		w.take(t)
		ctx, cancel := context.WithTimeout(t.Context(), harness.Patience)
		if _, err := c.Admin.TransferLeader(ctx, s.GetShardId(), to.GetNodeId()); err != nil {
			t.Logf("transfer of s%d: %v", s.GetShardId(), err)
		} else {
			moved = append(moved, inMS(w.take(t))[at])
			if g := moved[len(moved)-1]; g > 200 {
				t.Logf("transfer %d, of s%d from n%d to n%d, took %.0f ms", i, s.GetShardId(), s.GetLeader(), to.GetNodeId(), g)
			}
		}
		cancel()
	}
	for range restarts {
		for i := range nodes {
			c.WaitHealthy()
			w.take(t)
			if code, err := c.Nodes[i].Proc.Stop(harness.Patience); err != nil || code != 0 {
				t.Fatalf("graceful stop of node %d: exit code %d, %v", i, code, err)
			}
			gaps := w.take(t)
			c.Start(i)
			c.WaitHealthy()
			started := w.take(t)
			t.Logf("restart of node %d: %+v while it stopped, %+v from then on", i, sumGaps(inMS(gaps)), sumGaps(inMS(started)))
			for j, g := range started {
				restarted = append(restarted, inMS([]time.Duration{max(g, gaps[j])})...)
			}
		}
	}
	f.Transfers = slices.Clone(moved)
	f.Idle, f.Transfer, f.Restart = sumGaps(idle), sumGaps(moved), sumGaps(restarted)
	save()
	t.Logf("idle %+v, shards led by a killed node %+v, others %+v, transfer %+v, graceful restart %+v, errors %v",
		f.Idle, f.Kill, f.Other, f.Transfer, f.Restart, f.Errors)
}

// ledBy says which keys are in shards that a node leads.
func ledBy(c *harness.Cluster, node int, keys [][]byte) []bool {
	id := c.ID(node)
	out := make([]bool, len(keys))
	for i, key := range keys {
		out[i] = c.ShardOf(key).GetLeader() == id
	}
	return out
}
