package shardtest

import (
	"math/rand"
	randv2 "math/rand/v2"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"
	_ "unsafe" // for linkname

	_ "go.etcd.io/etcd/raft/v3" // globalRand
)

// lockedRand has the layout of raft's type of that name.
type lockedRand struct {
	mu   sync.Mutex
	rand *rand.Rand
}

// raftRand is the hidden source of raft's election jitter.
//
//go:linkname raftRand go.etcd.io/etcd/raft/v3.globalRand
var raftRand *lockedRand

func seedRaft(seed int64) {
	raftRand.mu.Lock()
	defer raftRand.mu.Unlock()
	raftRand.rand = rand.New(rand.NewSource(seed))
}

// eachSeed calls f with seeds: SHARDD_SEED alone, or n fresh ones, half as many with -short, or as many as fit into
// SHARDD_TORTURE minutes.
func eachSeed(t *testing.T, n int, f func(t *testing.T, seed int64)) {
	t.Helper()
	if s := os.Getenv("SHARDD_SEED"); s != "" {
		seed, err := strconv.ParseInt(s, 10, 64)
		if err != nil {
			t.Fatalf("SHARDD_SEED: %v", err)
		}
		f(t, seed)
		return
	}
	if testing.Short() {
		n = (n + 1) / 2
	}
	var end time.Time
	if s := os.Getenv("SHARDD_TORTURE"); s != "" {
		minutes, err := strconv.ParseFloat(s, 64)
		if err != nil {
			t.Fatalf("SHARDD_TORTURE: %v", err)
		}
		end = time.Now().Add(time.Duration(minutes * float64(time.Minute)))
	}
	for i := 0; i < n || time.Now().Before(end); i++ {
		seed := randv2.Int64N(1<<40) + 1
		if !t.Run("seed "+strconv.FormatInt(seed, 10), func(t *testing.T) { f(t, seed) }) {
			return
		}
	}
}
