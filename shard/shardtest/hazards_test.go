package shardtest

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.etcd.io/etcd/raft/v3/raftpb"

	"github.com/shardd/shardd/engine"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
	"github.com/shardd/shardd/shard"
)

// What has broken systems of this kind, on whole stores; the name of each test's origin is a public tracker's. Some of
// them are scripts: etcd#7331 and #12762 in testdata/readindex, etcd#14370 in testdata/onevoter and testdata/learner.
// etcd#20418 is checked on every message (observer.contextLocked), etcd#13766 at each synced boundary (replayer.check).

// etcd#10167: clients that retry while there is no quorum grow the log without bound.
func TestRetriesWithoutAQuorumGrowNoLogWithoutBound(t *testing.T) {
	const limit = 4 << 10
	tune := func(c *shard.Config) {
		c.Limits.GroupUncommitted, c.Limits.GroupQueue = limit, limit
		c.RequestTimeout = 500 * time.Millisecond
	}
	simulate(t, rand.Int64(), 3, tune, func(s *sim) {
		s.create(desc(7, "", "", 1, 2, 3), true)
		s.mustPut(7, "a", "1")
		before, _ := s.leader(7).store.Status(7)
		// Nothing gets through but votes: leaders come and go, and none commits anything.
		for _, n := range s.nodes {
			n.filter = func(m *wire.RaftMessage) bool { return m.Msg.Type != raftpb.MsgAppResp }
		}
		value := strings.Repeat("x", 500)
		codes := map[wire.Code]int{}
		var last []*request
		for i := range 300 {
			for _, n := range s.live() {
				for range 3 {
					last = append(last, s.put(n, 7, "b", fmt.Sprint(value, i), 0))
				}
			}
			s.tick()
		}
		s.until("all answers", func() bool { return len(s.reqs) == 0 })
		for _, r := range last {
			codes[r.answer.Code]++
		}
		t.Logf("%v", codes)
		if codes[wire.OK] > 0 || codes[wire.Busy] == 0 || codes[wire.Ambiguous] == 0 {
			t.Errorf("%d retries without a quorum: %v", len(last), codes)
		}
		terms := uint64(0)
		for _, n := range s.live() {
			st, _ := n.store.Status(7)
			terms = max(terms, st.Term-before.Term)
			// What one leadership may hold uncommitted, and the empty entry that each begins with.
			if bound := 2 * limit / 500 * (terms + 1); st.LastIndex > before.LastIndex+bound {
				t.Errorf("log of %s grew from %d to %d entries in %d terms", n.id, before.LastIndex, st.LastIndex, terms)
			}
			if st.QueuedBytes != 0 || st.Reads != 0 {
				t.Errorf("%s still holds %d bytes and %d reads for nobody", n.id, st.QueuedBytes, st.Reads)
			}
		}
		for _, n := range s.nodes {
			n.filter = nil
		}
		s.mustPut(7, "c", "1")
	})
}

// etcd#12762: reads without a quorum are bounded, and end.
func TestReadsWithoutAQuorumAreBoundedAndEnd(t *testing.T) {
	const limit = 20
	simulate(t, rand.Int64(), 3, func(c *shard.Config) { c.Limits.GroupReads = limit }, func(s *sim) {
		s.create(desc(7, "", "", 1, 2, 3), true)
		s.mustPut(7, "a", "1")
		lead := s.leader(7)
		s.net.Isolate(lead.id)
		var all []*request
		for range 40 {
			for range limit {
				all = append(all, s.get(lead, 7, "a", time.Second))
			}
			s.tick()
			if st, _ := lead.store.Status(7); st.Reads > limit {
				t.Fatalf("%d reads wait, at most %d may", st.Reads, limit)
			}
		}
		for range 11 {
			s.tick()
		}
		codes := map[wire.Code]int{}
		for _, r := range all {
			if !r.done {
				t.Fatal("a read without a quorum has no answer after its time-out")
			}
			codes[r.answer.Code]++
		}
		if codes[wire.OK] > 0 || codes[wire.Busy] == 0 || codes[wire.NotLeader] == 0 {
			t.Errorf("%d reads without a quorum: %v", len(all), codes)
		}
		s.net.HealAll()
		if v, ok := s.mustGet(7, "a"); !ok || v != "1" {
			t.Errorf("a is %q, %t", v, ok)
		}
	})
}

// cockroach#37102: an fsync failed once and the next one "succeeded"; what was acknowledged after it was gone.
func TestAfterOneFailedSyncAStoreAcknowledgesNothingAnyMore(t *testing.T) {
	for _, who := range []string{"leader", "follower"} {
		t.Run(who, func(t *testing.T) {
			simulate(t, rand.Int64(), 3, nil, func(s *sim) {
				s.create(desc(7, "", "", 1, 2, 3), true)
				s.mustPut(7, "a", "1")
				s.settle()
				lead := s.leader(7)
				sick := lead
				if who == "follower" {
					sick = s.nodes[lead.id%3]
				}
				said := 0
				sick.filter = func(m *wire.RaftMessage) bool {
					switch m.Msg.Type {
					case raftpb.MsgAppResp, raftpb.MsgVote, raftpb.MsgVoteResp:
						said++
					}
					return true
				}
				sick.fs.FailSyncs(errors.New("the disk lost a page"))
				r := s.put(lead, 7, "b", "2", time.Second)
				s.settle()
				sick.fs.FailSyncs(nil) // the next sync would succeed
				if sick.fatal.Load() == nil {
					t.Fatal("the store outlived a failed sync")
				}
				for range 60 {
					if l := s.leader(7); l == sick || r.node == sick {
						s.put(sick, 7, "c", "3", time.Second)
					}
					s.tick()
				}
				if said > 0 {
					t.Errorf("%d votes and acknowledgements left the store after its sync had failed", said)
				}
				if who == "leader" && r.done && r.answer.Code == wire.OK {
					t.Error("the leader answered a write that it never synced")
				}
				s.crash(sick, 0)
				s.mustPut(7, "d", "4") // the others go on
				s.start(sick)
				if who == "follower" {
					if v, ok := s.mustGet(7, "b"); !ok || v != "2" || r.answer.Code != wire.OK {
						t.Errorf("b is %q, %t; its write was answered %s", v, ok, r.answer.Code)
					}
				}
				s.until("the store is back", func() bool { return string(s.local(sick, 7, "d").Payload) == "4" })
				if v, _ := s.mustGet(7, "a"); v != "1" {
					t.Errorf("a is %q", v)
				}
			})
		})
	}
}

// cockroach#68319: a crash during open left a node that never starts again.
func TestCrashesWhileAStoreOpensLeaveAStoreThatOpens(t *testing.T) {
	seed := rand.Int64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(uint64(seed), 5))
	obs := newObserver(t)
	disks := []*engine.FS{engine.NewMemFS(), engine.NewMemFS(), engine.NewMemFS()}
	const rounds = 12
	// A bubble a round: the opens that are watched run in real time, between them.
	for round := range rounds {
		synctest.Test(t, func(t *testing.T) {
			s := newSim(t, seed+int64(round), obs, nil)
			defer s.stopAll()
			for _, fs := range disks {
				s.add(fs, uint64(round)) // checks every promise
			}
			if round == 0 {
				s.create(desc(7, "", "m", 1, 2, 3), true)
				s.create(desc(8, "m", "", 1, 2, 3), true)
			}
			for id, k := range map[base.ShardID]string{7: "a", 8: "z"} {
				s.mustPut(id, fmt.Sprint(k, round), fmt.Sprint(round))
				s.until("equal replicas", func() bool { return s.equal(id) })
				for i := range round + 1 {
					if a := s.local(s.nodes[1], id, fmt.Sprint(k, i)); string(a.Payload) != fmt.Sprint(i) {
						t.Errorf("%s%d is %s %q", k, i, a.Code, a.Payload)
					}
				}
			}
			s.lookAll()
			for i, n := range s.nodes {
				s.crash(n, []int{0, 50, 100}[rng.IntN(3)])
				disks[i] = n.fs
			}
		})
		for range 1 + rng.IntN(3) { // crashes on the way up, one after the other
			clones := crashesOfOpen(t, disks[1], seed+int64(round))
			if len(clones) < 3 {
				t.Fatalf("only %d moments of an open seen", len(clones))
			}
			disks[1] = clones[rng.IntN(len(clones))]
		}
	}
}

// crashesOfOpen opens a store's directory and returns what a power loss could leave at each sync on the way. It must
// not run in a bubble: Pebble waits with locks held, which synctest does not see, and time would stand still.
func crashesOfOpen(t *testing.T, fs *engine.FS, seed int64) (clones []*engine.FS) {
	t.Helper()
	release := fs.HoldSyncs()
	var eng *engine.Engine
	var err error
	var opened atomic.Bool
	go func() {
		eng, err = engine.Open(engine.Options{Dir: "data", FS: fs, ProbeInterval: -1})
		opened.Store(true)
	}()
	for !opened.Load() {
		if fs.HeldSyncs() == 0 {
			runtime.Gosched()
			continue
		}
		for _, keep := range []int{0, 50, 100} {
			clones = append(clones, fs.CrashClone(keep, seed+int64(len(clones))))
		}
		next := fs.HoldSyncs() // before the last one goes on, so that the one after it waits
		release()
		release = next
	}
	release()
	if err != nil {
		t.Fatal(err)
	}
	if err := eng.Close(); err != nil {
		t.Fatal(err)
	}
	return clones
}

// etcd#13766 and the promise of a leader to its clients: a power loss of everybody while writes are under way, many
// times over, with what was acknowledged counted outside.
func TestRepeatedPowerLossOfAllStoresKeepsEveryAcknowledgedWrite(t *testing.T) {
	withAndWithoutLeases(t, powerLosses)
}

func powerLosses(t *testing.T, leases bool) {
	seed := rand.Int64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(uint64(seed), 6))
	simulateWith(t, seed, 3, leases, nil, func(s *sim) {
		replay := newReplayer(t)
		defer replay.close()
		s.create(desc(7, "", "", 1, 2, 3), true)
		acked := map[string]string{}
		for round := range 30 {
			var open []*request
			lead := s.leader(7)
			for i := range 10 {
				open = append(open, s.put(lead, 7, fmt.Sprintf("k%d", rng.IntN(8)), fmt.Sprintf("%d.%d", round, i), 0))
			}
			for range rng.IntN(12) {
				s.poll(s.nodes[rng.IntN(3)])
				s.net.Step()
			}
			for _, n := range s.nodes {
				s.crash(n, []int{0, 50, 100}[rng.IntN(3)])
			}
			for _, n := range s.nodes {
				s.start(n)
				replay.check(fmt.Sprintf("round %d, %s", round, n.id), n.eng)
			}
			s.until("a leader", func() bool { return s.leader(7) != nil })
			later := map[string][]string{} // of one key, what may stand instead of the last acknowledged value
			for _, r := range open {
				switch r.answer.Code {
				case wire.OK:
					acked[r.key], later[r.key] = r.value, nil
				case wire.Ambiguous:
					later[r.key] = append(later[r.key], r.value)
				}
			}
			for key, want := range acked {
				got, _ := s.mustGet(7, key)
				ok := got == want
				for _, v := range later[key] {
					ok = ok || got == v
				}
				if !ok {
					t.Fatalf("round %d: %s is %q; %q was acknowledged, %v may have happened since", round, key, got, want, later[key])
				}
				acked[key] = got
			}
			for key := range later {
				if v, ok := s.mustGet(7, key); ok {
					acked[key] = v // read, so it stays
				}
			}
		}
		if len(acked) == 0 {
			t.Error("nothing was acknowledged")
		}
	})
}
