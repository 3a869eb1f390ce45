package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	sharddv1 "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/bench/ycsb"
	"github.com/shardd/shardd/client"
	"github.com/shardd/shardd/client/admin"
	"github.com/shardd/shardd/e2e/harness"
)

const (
	movesPerRound = 10
	maxJoint      = 30 * time.Second
)

// movesRound is a number of moves under load, judged at its end.
type movesRound struct {
	Round      int            `json:"round"`
	Seed       uint64         `json:"seed"`
	Moves      int            `json:"moves"`
	Failed     int            `json:"moves_failed"` // ended failed, the shard whole
	Refused    int            `json:"moves_refused"`
	Kills      int            `json:"kills"`
	Seconds    float64        `json:"seconds"`
	MedianMS   float64        `json:"move_median_ms"`
	SlowestMS  float64        `json:"move_slowest_ms"`
	JointMaxMS float64        `json:"joint_longest_ms"` // of any shard, as the index of shards showed it
	Operations int            `json:"operations"`
	Acked      int            `json:"acknowledged_writes"`
	Errors     map[string]int `json:"errors,omitempty"`
}

// movesFile is the result of a long run; one that was interrupted goes on after its last whole round.
type movesFile struct {
	Test    string       `json:"test"`
	Command string       `json:"command"`
	Machine ycsb.Machine `json:"machine"`
	Started time.Time    `json:"started"`
	Nodes   int          `json:"nodes"`
	Shards  int          `json:"shards"`
	Clients int          `json:"clients"`
	Rounds  []movesRound `json:"rounds"`

	path string // empty: nothing is written
}

func (f *movesFile) open(t *testing.T) {
	t.Helper()
	if os.Getenv("SHARDD_E2E") != "long" {
		return
	}
	root, err := harness.ModuleRoot()
	if err != nil {
		t.Fatal(err)
	}
	f.path = filepath.Join(root, "docs", "results", "moves", "moves.json")
	b, err := os.ReadFile(f.path + ".partial")
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	if err == nil {
		err = json.Unmarshal(b, f)
	}
	if err != nil {
		t.Fatalf("go on from %s.partial: %v (remove it to start over)", f.path, err)
	}
	t.Logf("going on after %d rounds", len(f.Rounds))
}

func (f *movesFile) write(t *testing.T, suffix string) {
	t.Helper()
	if f.path == "" || t.Failed() {
		return
	}
	b, err := json.MarshalIndent(f, "", "  ")
	if err == nil {
		err = os.MkdirAll(filepath.Dir(f.path), 0o755)
	}
	if err == nil {
		err = os.WriteFile(f.path+suffix, append(b, '\n'), 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// Replicas of all shards, the system's own included, move among five nodes at random while 64 clients read and write
// (half and half, as YCSB A, with deletes and conditional writes among them) and nodes are killed and started again.
func TestRandomMovesWithKillsLoseNothing(t *testing.T) {
	moves := scale(10, 20, 200)
	const shards, roamers = 8, 56
	f := &movesFile{Test: t.Name(), Machine: ycsb.DescribeMachine(), Nodes: 5, Shards: shards, Clients: shards + roamers,
		Started: time.Now().UTC().Truncate(time.Second),
		Command: "SHARDD_E2E=long go test -timeout 4h -run " + t.Name() + " ./e2e"}
	f.open(t)
	c := harness.New(t, binaries(t), f.Nodes)
	for _, n := range c.Nodes {
		n.Args = append(n.Args, "--memtable", "16MiB", "--cache", "32MiB", "--entry-cache", "32MiB")
	}
	for i := range 3 {
		c.Start(i)
	}
	c.InitOn(splitsOf(shards), 0, 1, 2)
	c.Join(3)
	c.Join(4)
	db := c.DB(client.WithTimeout(20 * time.Second))
	for i := range shards {
		fill(t, db, i, 1*mib)
	}
	l := newLoadOf(t, db, shards, roamers)
	joint := watchJoint(t, c)
	for round := len(f.Rounds) + 1; round <= moves/movesPerRound && !t.Failed(); round++ {
		r := movesUnderLoad(c, l, round)
		r.JointMaxMS = float64(joint.longest().Milliseconds())
		t.Logf("round %d: %+v", round, r)
		f.Rounds = append(f.Rounds, r)
		f.write(t, ".partial")
	}
	joint.stop()
	if d := joint.longest(); d > maxJoint {
		t.Errorf("a shard was Joint for %s", d)
	}
	c.WaitHealthy()
	c.Verify()
	l.compareLedger()
	c.StopAll()
	if err := c.CheckStores(); err != nil {
		t.Error(err)
	}
	if f.path != "" && !t.Failed() {
		f.write(t, "")
		if err := os.Remove(f.path + ".partial"); err != nil {
			t.Error(err)
		}
	}
}

// movesUnderLoad makes movesPerRound moves; in two of them a node is killed while the job runs.
func movesUnderLoad(c *harness.Cluster, l *load, round int) movesRound {
	t := l.t
	t.Helper()
	r := movesRound{Round: round, Seed: rand.Uint64(), Errors: map[string]int{}}
	t.Logf("round %d with seed %d", round, r.Seed)
	rnd := rand.New(rand.NewPCG(r.Seed, 0))
	before, from := l.counts(), time.Now()
	stop := l.run(round)
	var took []time.Duration
	for r.Moves < movesPerRound {
		shard, source, target, ok := pickMove(c, rnd)
		if !ok {
			t.Fatalf("round %d: no move is possible", round)
		}
		began := time.Now()
		id, err := c.Begin(t.Context(), harness.Move(shard, source, target))
		if err != nil {
			t.Logf("move s%d n%d -> n%d: %v", shard, source, target, err)
			if r.Refused++; r.Refused > 5*movesPerRound {
				t.Fatalf("round %d: %d moves refused, the last: %v", round, r.Refused, err)
			}
			continue
		}
		if r.Moves%5 == 2 {
			r.Kills++
			victim := rnd.IntN(len(c.Nodes))
			c.Kill(victim)
			l.waitWrites("with a node killed in a move")
			c.Start(victim)
		}
		j, err := c.Await(t.Context(), id, 2*harness.Patience)
		if err != nil {
			t.Fatalf("round %d: move s%d n%d -> n%d has not ended: %v", round, shard, source, target, err)
		}
		if j.GetState() != admin.JobDone {
			t.Logf("move s%d n%d -> n%d: %s", shard, source, target, harness.Steps(j))
			if r.Failed++; r.Failed > movesPerRound/2 {
				t.Fatalf("round %d: %d moves failed", round, r.Failed)
			}
			continue
		}
		took = append(took, time.Since(began))
		r.Moves++
	}
	stop()
	r.Seconds = time.Since(from).Seconds()
	r.Operations = l.judge(round)
	after := l.counts()
	r.Acked = after.acked - before.acked
	for class, n := range after.classes {
		if d := n - before.classes[class]; d > 0 {
			r.Errors[class] = d
		}
	}
	r.MedianMS = float64(quantile(took, 0.5).Milliseconds())
	r.SlowestMS = float64(quantile(took, 1).Milliseconds())
	return r
}

// pickMove chooses a shard, one of its nodes and a node that it is not on. All nodes run.
func pickMove(c *harness.Cluster, rnd *rand.Rand) (shard, source, target uint64, ok bool) {
	shards := c.Shards()
	var nodes []uint64
	for i := range c.Nodes {
		nodes = append(nodes, c.ID(i))
	}
	for _, at := range rnd.Perm(len(shards)) {
		on := map[uint64]bool{}
		var members []uint64
		for _, m := range shards[at].GetReplicas() {
			on[m.GetNodeId()] = true
			members = append(members, m.GetNodeId())
		}
		var free []uint64
		for _, n := range nodes {
			if !on[n] {
				free = append(free, n)
			}
		}
		if len(members) > 0 && len(free) > 0 {
			return shards[at].GetShardId(), members[rnd.IntN(len(members))], free[rnd.IntN(len(free))], true
		}
	}
	return 0, 0, 0, false
}

// jointWatch remembers how long shards have been between two configurations.
type jointWatch struct {
	stop func()
	mu   sync.Mutex
	max  time.Duration
}

func (w *jointWatch) longest() time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.max
}

// watchJoint looks at all shards a few times a second until stopped.
func watchJoint(t *testing.T, c *harness.Cluster) *jointWatch {
	ctx, cancel := context.WithCancel(t.Context())
	w := &jointWatch{}
	var wg sync.WaitGroup
	w.stop = func() {
		cancel()
		wg.Wait()
	}
	wg.Go(func() {
		since := map[uint64]time.Time{}
		tick := time.NewTicker(300 * time.Millisecond)
		defer tick.Stop()
		for ctx.Err() == nil {
			now := time.Now()
			for s, err := range c.Admin.ListShards(ctx) {
				if err != nil {
					break // the next look sees more; what was Joint is taken to have stayed so
				}
				id := s.GetShardId()
				if !isJoint(s) {
					delete(since, id)
					continue
				}
				if since[id].IsZero() {
					since[id] = now
				}
				w.mu.Lock()
				w.max = max(w.max, now.Sub(since[id]))
				w.mu.Unlock()
			}
			select {
			case <-ctx.Done():
			case <-tick.C:
			}
		}
	})
	return w
}

func isJoint(s *sharddv1.ShardInfo) bool {
	for _, r := range s.GetReplicas() {
		if r.GetRole() == "incoming" || r.GetRole() == "outgoing" {
			return true
		}
	}
	return false
}
