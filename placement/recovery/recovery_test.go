package recovery

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/shardd/shardd/internal/base"
)

// desc is a descriptor over user keys [start, end) with voters of ids 1..n on the stores.
func desc(id base.ShardID, start, end string, version uint64, stores ...base.StoreID) *base.Descriptor {
	d := &base.Descriptor{
		Shard: id, Start: base.UserKey([]byte(start)), End: base.UserEnd(),
		Epoch: base.Epoch{ConfVer: 1, Version: version}, NextReplicaID: base.ReplicaID(len(stores) + 1),
	}
	if end != "" {
		d.End = base.UserKey([]byte(end))
	}
	if start == "" {
		d.Start = base.UserStart()
	}
	for i, s := range stores {
		d.Replicas = append(d.Replicas, base.ReplicaDesc{Replica: base.ReplicaID(i + 1), Store: s, Role: base.RoleVoter})
	}
	return d
}

func meta(stores ...base.StoreID) *base.Descriptor {
	d := desc(base.MetaShard, "", "", 1, stores...)
	d.Start, d.End = base.SystemStart(), base.SystemEnd()
	return d
}

// on is the replica that a descriptor lists on a store, with a log that ends at (term, index), all of it applied.
func on(d *base.Descriptor, store base.StoreID, term, index uint64) Replica {
	r, _ := d.ReplicaOn(store)
	return Replica{Store: store, Shard: d.Shard, Replica: r.Replica, Desc: d, Term: term, LastTerm: term, LastIndex: index,
		Commit: index, Applied: index}
}

func leading(r Replica) Replica { r.Leads = true; return r }

// short renders a plan in lines.
func short(p *Plan) string {
	var b strings.Builder
	for _, s := range p.Shards {
		fmt.Fprintf(&b, "%s [%x,%x) %s/%d on %s drop %v: %s\n", s.Shard, s.Start, s.End, s.Survivor, s.Replica, s.On, s.Dropped,
			s.Loss)
	}
	for _, g := range p.GiveUp {
		fmt.Fprintf(&b, "give up %s/%d on %s\n", g.Shard, g.Replica, g.Store)
	}
	for _, q := range p.Problems {
		fmt.Fprintf(&b, "problem: %s\n", q)
	}
	return b.String()
}

// whole checks that what is left and what is made anew are all keys, once.
func whole(t *testing.T, p *Plan) {
	t.Helper()
	var all []*base.Descriptor
	all = append(all, p.Known...)
	for _, s := range p.Shards {
		if s.Survivor == 0 {
			d := s.Desc.Clone()
			if d.Shard == 0 {
				d.Shard = 1 << 40
			}
			all = append(all, d)
		}
		d := s.Desc.Clone()
		d.Shard = max(d.Shard, 1)
		if err := d.Validate(); err != nil {
			t.Fatal(err)
		}
	}
	slices.SortFunc(all, func(a, b *base.Descriptor) int { return bytes.Compare(a.Start, b.Start) })
	at := base.UserStart()
	for _, d := range all {
		if !bytes.Equal(d.Start, at) {
			t.Fatalf("%s begins where nothing ends: %x\n%s", d, at, short(p))
		}
		at = d.End
	}
	if !bytes.Equal(at, base.SystemEnd()) {
		t.Fatalf("the keys end at %x\n%s", at, short(p))
	}
}

func TestPlans(t *testing.T) {
	m123 := meta(1, 2, 3)
	healthyMeta := []Replica{leading(on(meta(3, 4, 5), 3, 7, 90)), on(meta(3, 4, 5), 4, 7, 90), on(meta(3, 4, 5), 5, 7, 90)}
	all123 := desc(2, "", "", 1, 1, 2, 3)
	all12345 := desc(2, "", "", 1, 1, 2, 3, 4, 5)
	rest := desc(9, "m", "", 1, 3, 4, 5)
	healthyRest := []Replica{leading(on(rest, 3, 7, 50)), on(rest, 4, 7, 50), on(rest, 5, 7, 50)}
	tail := on(all123, 3, 7, 40)
	tail.Commit, tail.Applied, tail.Silent = 35, 35, 34*time.Second
	joint := desc(2, "", "m", 1, 1, 2, 3, 4)
	joint.Replicas[2].Role, joint.Replicas[3].Role = base.RoleOutgoing, base.RoleIncoming
	faulted := on(desc(2, "", "m", 1, 1, 2, 3), 3, 7, 40)
	faulted.Faulted = "bad disk"
	learner := desc(2, "", "m", 1, 1, 2, 3, 4)
	learner.Replicas[3].Role = base.RoleLearner
	four := desc(2, "", "m", 1, 1, 2, 3, 4)
	changing := on(four, 3, 7, 40)
	changing.Changes = true
	busy := on(desc(2, "", "m", 1, 1, 2, 3), 3, 7, 40)
	busy.Busy = true
	before, after := desc(2, "", "m", 1, 1, 2, 3, 4, 5), desc(2, "", "f", 2, 1, 2, 3, 4, 5)
	right := desc(3, "f", "m", 2, 1, 2, 3, 4, 5)
	stale, moved := desc(2, "", "m", 1, 1, 2, 3), desc(3, "f", "m", 2, 1, 2, 4)
	wide := desc(2, "", "m", 3, 1, 2, 3)
	merged := desc(3, "f", "m", 1, 1, 2, 4)
	for _, c := range []struct {
		name              string
		failed, survivors []base.StoreID
		replicas          []Replica
		want              string // each line must be in the plan
		not               string
	}{
		{"a quorum is left alone", []base.StoreID{1}, []base.StoreID{2, 3},
			[]Replica{leading(on(all123, 2, 7, 40)), on(all123, 3, 7, 40), leading(on(m123, 2, 7, 9)), on(m123, 3, 7, 9)},
			"", "s"},
		{"the last replica of three", []base.StoreID{1, 2}, []base.StoreID{3},
			[]Replica{tail, on(m123, 3, 7, 9)},
			"s2 [02,03) n3/3 on n0 drop []: writes that were acknowledged after index 40, which only the lost replicas had; how " +
				"many is not known (n3 last heard from a leader, or led, 34s ago); 5 entries that may or may not have been acknowledged are kept\n" +
				"s1 [03,04) n3/3", ""},
		{"the furthest log wins, by term before index", []base.StoreID{1, 2, 3}, []base.StoreID{4, 5},
			append([]Replica{on(all12345, 4, 6, 99), on(all12345, 5, 7, 40)}, healthyMeta[1:]...),
			"s2 [02,03) n5/5 on n0 drop [{n4 s2 4}]", ""},
		{"equal logs: the lower store", []base.StoreID{1, 2, 3}, []base.StoreID{4, 5},
			append([]Replica{on(all12345, 5, 7, 40), on(all12345, 4, 7, 40)}, healthyMeta[1:]...),
			"s2 [02,03) n4/4 on n0 drop [{n5 s2 5}]", ""},
		{"two of four: a quorum has had one of them", []base.StoreID{1, 2}, []base.StoreID{3, 4, 5},
			append(append([]Replica{on(four, 3, 7, 40), on(four, 4, 7, 39)}, healthyMeta...), healthyRest...),
			"s2 [02,026d) n3/3 on n0 drop [{n4 s2 4}]: nothing that was acknowledged", "after index"},
		{"not if the log changes the replicas", []base.StoreID{1, 2}, []base.StoreID{3, 4, 5},
			append(append([]Replica{changing, on(four, 4, 7, 39)}, healthyMeta...), healthyRest...),
			"after index 40", "nothing that"},
		{"a joint shard needs both quorums", []base.StoreID{1, 4}, []base.StoreID{2, 3, 5},
			append(append([]Replica{on(joint, 2, 7, 40), on(joint, 3, 7, 41)}, healthyMeta...), healthyRest...),
			"s2 [02,026d) n3/3", ""},
		{"a learner that is further than the voter", []base.StoreID{1, 2}, []base.StoreID{3, 4, 5},
			append(append([]Replica{on(learner, 3, 7, 40), on(learner, 4, 7, 41)}, healthyMeta...), healthyRest...),
			"s2 [02,026d) n4/4 on n0 drop [{n3 s2 3}]: writes that were acknowledged after index 41, which only the lost replicas " +
				"had; how many is not known; the replica that is left was no voter", ""},
		{"a stale leader has to notice first", []base.StoreID{1, 2}, []base.StoreID{3, 4, 5},
			append(append([]Replica{leading(on(desc(2, "", "m", 1, 1, 2, 3), 3, 7, 40))}, healthyMeta...), healthyRest...),
			"problem: the replica of s2 on n3 still takes itself for its leader", ""},
		{"a quorum without a leader has to elect first", []base.StoreID{1}, []base.StoreID{2, 3},
			[]Replica{on(all123, 2, 7, 40), on(all123, 3, 7, 40), leading(on(m123, 2, 7, 9)), on(m123, 3, 7, 9)},
			"problem: s2 has a quorum but no leader yet", ""},
		{"a busy replica has to answer first", []base.StoreID{1, 2}, []base.StoreID{3, 4, 5},
			append(append([]Replica{busy}, healthyMeta...), healthyRest...), "problem: the replica of s2 on n3 could not be asked", ""},
		{"a split that one survivor has applied", []base.StoreID{1, 2, 3}, []base.StoreID{4, 5},
			append(append([]Replica{on(before, 4, 7, 44), on(after, 5, 7, 40), on(right, 5, 7, 12)}, healthyMeta[1:]...), healthyRest[1:]...),
			"s2 [02,0266) n4/4 on n0 drop [{n5 s2 5}]\ns3 [0266,026d) n5/5", ""},
		{"a stale replica of what was split since", []base.StoreID{1, 2}, []base.StoreID{3, 4, 5},
			append(append([]Replica{on(stale, 3, 7, 40), on(moved, 4, 7, 12)}, healthyMeta...), healthyRest...),
			"s2 [02,0266) n3/3\nit ends where s3 begins, which is newer\ns3 [0266,026d) n4/3", ""},
		{"a replica of what was merged away", []base.StoreID{1, 2}, []base.StoreID{3, 4, 5},
			append(append([]Replica{on(wide, 3, 7, 40), on(merged, 4, 7, 12)}, healthyMeta...), healthyRest...),
			"s2 [02,026d) n3/3\ngive up s3/3 on n4", ""},
		{"no replica is left", []base.StoreID{1, 2}, []base.StoreID{3, 4, 5}, append(healthyMeta, healthyRest...),
			"s0 [02,026d) n0/0 on n3 drop []: everything", ""},
		{"one that waits for its first state is none", []base.StoreID{1, 2}, []base.StoreID{3, 4, 5},
			append(append([]Replica{{Store: 4, Shard: 2, Replica: 4, Term: 7}}, healthyMeta...), healthyRest...),
			"s0 [02,026d) n0/0 on n3 drop []: everything\ngive up s2/4 on n4", ""},
		{"one that is faulted neither", []base.StoreID{1, 2}, []base.StoreID{3, 4, 5},
			append(append([]Replica{faulted}, healthyMeta...), healthyRest...),
			"everything: no replica is left, the range begins anew, empty; the replica of s2 on n3 is faulted (bad disk)\n" +
				"give up s2/3 on n3", ""},
		{"the meta shard is gone", []base.StoreID{1, 2}, []base.StoreID{3, 4, 5},
			append([]Replica{on(desc(2, "", "m", 1, 1, 2, 3), 3, 7, 40)}, healthyRest...),
			"s1 [03,04) n0/0 on n4 drop []: all records of the cluster", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			in := Input{Failed: c.failed, Survivors: c.survivors, Replicas: c.replicas}
			p := Make(in)
			got := short(p)
			for line := range strings.SplitSeq(c.want, "\n") {
				if !strings.Contains(got, line) {
					t.Errorf("%q is not in the plan:\n%s", line, got)
				}
			}
			if c.not != "" && strings.Contains(got, c.not) {
				t.Errorf("%q is in the plan:\n%s", c.not, got)
			}
			if len(p.Problems) == 0 {
				whole(t, p)
			}
			for _, s := range p.Shards {
				if s.Survivor == 0 {
					continue
				}
				d := s.Desc
				if d.Replicas[0].Store != s.Survivor || d.Epoch.ConfVer <= Jump || d.Epoch.Version <= Jump || d.NextReplicaID <= Jump ||
					s.Term <= Jump || len(d.Replicas) != 1 {
					t.Errorf("%s at term %d", d, s.Term)
				}
			}
			shuffled := in
			shuffled.Replicas = slices.Clone(in.Replicas)
			rand.Shuffle(len(shuffled.Replicas), func(i, j int) {
				shuffled.Replicas[i], shuffled.Replicas[j] = shuffled.Replicas[j], shuffled.Replicas[i]
			})
			if again := Make(shuffled); short(again) != got || again.Token(in) != p.Token(in) {
				t.Errorf("in another order:\n%s", short(again))
			}
		})
	}
}

func TestTheTokenIsThatOfWhatWasConfirmed(t *testing.T) {
	d := desc(2, "", "", 1, 1, 2, 3)
	in := Input{Failed: []base.StoreID{1, 2}, Survivors: []base.StoreID{3}, Replicas: []Replica{on(d, 3, 7, 40), on(meta(1, 2, 3), 3, 7, 9)}}
	want := Make(in).Token(in)
	same := in
	same.Replicas = slices.Clone(in.Replicas)
	same.Replicas[0].Applied, same.Replicas[0].Commit, same.Replicas[0].Term, same.Replicas[0].Silent = 30, 33, 99, time.Hour
	if Make(same).Token(same) != want {
		t.Error("what only moves on has changed it")
	}
	for name, tune := range map[string]func(in *Input){
		"a longer log":      func(in *Input) { in.Replicas[0].LastIndex++ },
		"another term":      func(in *Input) { in.Replicas[0].LastTerm++ },
		"another failed":    func(in *Input) { in.Failed = []base.StoreID{1, 2, 4} },
		"another survivor":  func(in *Input) { in.Survivors = []base.StoreID{3, 5} },
		"one shard more":    func(in *Input) { in.Replicas[0].Desc = desc(2, "", "m", 1, 1, 2, 3) },
		"a replica to drop": func(in *Input) { in.Replicas = append(in.Replicas, Replica{Store: 4, Shard: 2, Replica: 9}) },
	} {
		other := in
		other.Replicas = slices.Clone(in.Replicas)
		tune(&other)
		if Make(other).Token(other) == want {
			t.Errorf("%s does not change it", name)
		}
	}
}

// TestWhateverIsLeftTilesTheKeys: a random history of splits and merges of which each store has seen its own part.
func TestWhateverIsLeftTilesTheKeys(t *testing.T) {
	for range 2000 {
		seed := rand.Uint64()
		rnd := rand.New(rand.NewPCG(seed, 1))
		next := base.ShardID(3)
		shards := []*base.Descriptor{desc(2, "", "", 1, 1, 2, 3, 4, 5)}
		history := map[base.ShardID][]*base.Descriptor{2: {shards[0]}}
		note := func(d *base.Descriptor) { history[d.Shard] = append(history[d.Shard], d) }
		for range rnd.IntN(12) {
			i := rnd.IntN(len(shards))
			l := shards[i].Clone()
			if rnd.IntN(3) > 0 { // split
				key := base.UserKey(fmt.Appendf(nil, "%04d", rnd.IntN(10_000)))
				if !l.Contains(key) || bytes.Equal(key, l.Start) {
					continue
				}
				r := desc(next, "", "", l.Epoch.Version+1, 1, 2, 3, 4, 5)
				r.Start, r.End = key, l.End
				next++
				l.End = key
				l.Epoch.Version++
				shards[i] = l
				shards = slices.Insert(shards, i+1, r)
				note(l)
				note(r)
			} else if i+1 < len(shards) { // merge
				r := shards[i+1]
				l.End = r.End
				l.Epoch.Version = max(l.Epoch.Version, r.Epoch.Version) + 1
				shards[i] = l
				shards = slices.Delete(shards, i+1, i+2)
				note(l)
			}
		}
		in := Input{Failed: []base.StoreID{1, 2, 3}, Survivors: []base.StoreID{4, 5}}
		for id := base.ShardID(2); id < next; id++ {
			all := history[id]
			for _, s := range in.Survivors {
				if len(all) > 0 && rnd.IntN(4) > 0 {
					n := rnd.IntN(len(all))
					in.Replicas = append(in.Replicas, on(all[n], s, 7, 10+uint64(n)))
				}
			}
		}
		p := Make(in)
		if len(p.Problems) > 0 {
			t.Fatalf("seed %d: %s", seed, short(p))
		}
		whole(t, p)
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}
