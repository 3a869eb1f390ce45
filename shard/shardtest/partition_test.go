package shardtest

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
)

// link is one direction between two stores.
type link struct{ from, to base.StoreID }

// tikv#6254, cockroach#103769: a one-way or a bridge partition took the service away for good. Here every pattern of
// cuts between three stores is tried: as long as two stores hear each other, whatever the third hears, is heard by, or
// shouts, writes go through within three election time-outs; and without such a pair nobody claims a write. A vote that
// is split (a term without a leader) costs a time-out more, as chance has it.
func TestAnyPairThatHearsEachOtherServesWithinThreeElectionTimeouts(t *testing.T) {
	t.Run("without leases", func(t *testing.T) { everyPartition(t, false) })
	t.Run("with leases", func(t *testing.T) { everyPartition(t, true) })
}

func everyPartition(t *testing.T, leases bool) {
	// Raft draws each time-out from 10 to 19 ticks.
	const timeout, most, splits = 19, 3, 6
	links := []link{{1, 2}, {2, 1}, {1, 3}, {3, 1}, {2, 3}, {3, 2}}
	seed := rand.Int64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(uint64(seed), 8))
	worst, worstAt := 0, ""
	for pattern := range 1 << len(links) {
		cut := map[link]bool{}
		var names []string
		for i, l := range links {
			if pattern>>i&1 == 1 {
				cut[l] = true
				names = append(names, fmt.Sprintf("%s-/->%s", l.from, l.to))
			}
		}
		name := strings.Join(names, " ")
		pair := false
		for i := 0; i < len(links); i += 2 {
			pair = pair || !cut[links[i]] && !cut[links[i+1]]
		}
		simulateWith(t, seed+int64(pattern), 3, leases, nil, func(s *sim) {
			s.create(desc(7, "", "", 1, 2, 3), true)
			if s.leader(7) != s.nodes[0] {
				t.Fatal("the first store does not lead") // the others are equal: that makes the patterns all there are
			}
			s.mustPut(7, "a", "1")
			for range rng.IntN(timeout) {
				s.tick() // check-quorum looks back in periods of its own
			}
			for l := range cut {
				s.net.Cut(l.from, l.to)
			}
			term, limit := s.maxTerm(), most*timeout
			took := s.serve(func(ticks int) bool {
				split := max(1, s.maxTerm()-term) - 1
				return ticks < limit+timeout*int(min(split, splits))
			})
			if (took < 0) == pair {
				t.Errorf("%q: service after %d ticks (seed %d); two stores hear each other: %t", name, took, s.seed, pair)
			}
			if took > worst {
				worst, worstAt = took, name
			}
			// Nor may it be an interruption each time somebody's election clock runs out.
			if pair {
				terms := s.maxTerm()
				for range 10 * timeout {
					s.tick()
				}
				if again := s.serve(func(int) bool { return false }); again != 0 {
					t.Errorf("%q: no service a while later (seed %d)", name, s.seed)
				}
				if now := s.maxTerm(); now != terms {
					t.Errorf("%q: terms rise from %d to %d under a working leader (seed %d)", name, terms, now, s.seed)
				}
			}
			s.net.HealAll()
			s.mustPut(7, "a", "end")
		})
	}
	t.Logf("at worst %d ticks, with %s", worst, worstAt)
}

// serve ticks until some store acknowledges a write made since, as long as more says so, and returns how many ticks it
// took, -1 if none did. Clients try all stores all the time.
func (s *sim) serve(more func(ticks int) bool) int {
	s.t.Helper()
	var open []*request
	for ticks := 0; ; ticks++ {
		for _, n := range s.live() {
			open = append(open, s.put(n, 7, "a", fmt.Sprint(s.seed, ticks), time.Second))
		}
		s.settle()
		for _, r := range open {
			if r.done && r.answer.Code == wire.OK {
				return ticks
			}
		}
		if !more(ticks) {
			return -1
		}
		s.tick()
	}
}

func (s *sim) maxTerm() (term uint64) {
	for _, n := range s.live() {
		st, _ := n.store.Status(7)
		term = max(term, st.Term)
	}
	return term
}
