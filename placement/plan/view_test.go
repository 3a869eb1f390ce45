package plan

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/golden"
)

// desc makes a descriptor; replica i+1 is on the i-th store.
func desc(id base.ShardID, start, end string, conf, version uint64, stores ...base.StoreID) *base.Descriptor {
	d := &base.Descriptor{
		Shard: id, Start: []byte("\x02" + start), End: []byte("\x02" + end), Epoch: base.Epoch{ConfVer: conf, Version: version},
		NextReplicaID: base.ReplicaID(len(stores) + 1),
	}
	for i, s := range stores {
		d.Replicas = append(d.Replicas, base.ReplicaDesc{Replica: base.ReplicaID(i + 1), Store: s, Role: base.RoleVoter})
	}
	return d
}

// holds makes the report of a replica on a store.
func holds(d *base.Descriptor, on base.StoreID, leads bool) ReplicaReport {
	r, _ := d.ReplicaOn(on)
	return ReplicaReport{Shard: d.Shard, Replica: r.Replica, Desc: d, Leads: leads, Term: 5, Size: 100, Put: 200}
}

func mustReport(t interface {
	Helper()
	Fatal(...any)
}, v *View, r StoreReport) bool {
	t.Helper()
	want, err := v.Report(&r)
	if err != nil {
		t.Fatal(err)
	}
	if err := v.Check(); err != nil {
		t.Fatal(err)
	}
	return want
}

func TestAViewWantsAFullReportFirst(t *testing.T) {
	v := NewView()
	d := desc(7, "a", "z", 1, 1, 1, 2, 3)
	delta := StoreReport{Store: 1, Incarnation: 4, Replicas: []ReplicaReport{holds(d, 1, true)}}
	if !mustReport(t, v, delta) || v.Len() != 0 {
		t.Fatal("took in a delta with nothing to build on")
	}
	full := delta
	full.Full = true
	if mustReport(t, v, full) || v.Shard(7) == nil {
		t.Fatal("did not take in a full report")
	}
	if s := v.Store(1); s.Replicas != 1 || s.Leaders != 1 || s.Bytes != 100 {
		t.Fatalf("counts %d replicas, %d leaders, %d bytes", s.Replicas, s.Leaders, s.Bytes)
	}
	if s := v.Store(3); s == nil || s.Replicas != 1 || s.Known {
		t.Fatal("a store that only a descriptor lists does not count")
	}
	old := full
	old.Incarnation = 3
	if _, err := v.Report(&old); !errors.Is(err, ErrStale) {
		t.Fatalf("an older incarnation: %v", err)
	}
	again := delta
	again.Incarnation = 5
	if !mustReport(t, v, again) {
		t.Fatal("a new incarnation was not asked for everything")
	}
	if sh := v.Shard(7); sh.Leader != 0 {
		t.Fatal("a store that restarted still leads")
	}
}

func TestAReportThatComesBehindALaterOneIsRefused(t *testing.T) {
	v := NewView()
	r := holds(desc(7, "a", "m", 1, 1, 1, 2), 1, true)
	r.Behind = []base.ReplicaID{2}
	early := StoreReport{Store: 1, Incarnation: 4, Number: 8, Full: true, Replicas: []ReplicaReport{r}}
	late := early
	r.Behind = nil
	late.Number, late.Replicas = 9, []ReplicaReport{r}
	mustReport(t, v, late)
	if _, err := v.Report(&early); !errors.Is(err, ErrStale) {
		t.Fatalf("an earlier report: %v", err)
	}
	for _, p := range v.Shard(7).Peers {
		if p.Flags&PeerBehind != 0 {
			t.Fatalf("%+v is behind again", p)
		}
	}
	early.Incarnation, early.Number = 5, 1
	mustReport(t, v, early)
}

func TestALostReportIsFoundByItsDigest(t *testing.T) {
	v := NewView()
	a, b := desc(7, "a", "m", 1, 1, 1), desc(8, "m", "z", 1, 1, 1)
	var d Digest
	ra, rb := holds(a, 1, true), holds(b, 1, false)
	d.Add(&ra)
	if mustReport(t, v, StoreReport{Store: 1, Full: true, Replicas: []ReplicaReport{ra}, Digest: d.Sum()}) {
		t.Fatal("the digests differ")
	}
	d.Add(&rb) // the report that says so is lost
	if !mustReport(t, v, StoreReport{Store: 1, Digest: d.Sum()}) {
		t.Fatal("what was lost went unseen")
	}
	mustReport(t, v, StoreReport{Store: 1, Full: true, Replicas: []ReplicaReport{ra, rb}, Digest: d.Sum()})
	d.Sub(&ra)
	if mustReport(t, v, StoreReport{Store: 1, Removed: []base.ShardID{7}, Digest: d.Sum()}) {
		t.Fatal("the digests differ after a removal")
	}
	if v.Mismatches != 0 {
		t.Fatalf("%d mismatches", v.Mismatches)
	}
}

func TestSplitsAndMergesShowInTheLifeOfShards(t *testing.T) {
	v := NewView()
	var log []string
	v.Events = func(e Event) { log = append(log, e.Shard.String()+" "+e.Kind.String()+": "+e.Detail()) }
	expect := func(want ...string) {
		t.Helper()
		if !slices.Equal(log, want) {
			t.Fatalf("got\n  %s\nwant\n  %s", strings.Join(log, "\n  "), strings.Join(want, "\n  "))
		}
		log = nil
	}
	full := func(on base.StoreID, rs ...ReplicaReport) {
		mustReport(t, v, StoreReport{Store: on, Full: true, Replicas: rs})
	}
	whole := desc(2, "a", "z", 1, 1, 1, 2)
	full(1, holds(whole, 1, true))
	full(2, holds(whole, 2, false))
	expect("s2 created: first reported at epoch 1.1", "s2 leader: n1 leads in term 5")
	left, mid, right := desc(2, "a", "f", 1, 2, 1, 2), desc(3, "f", "m", 1, 2, 1, 2), desc(4, "m", "z", 1, 2, 1, 2)
	full(2, holds(left, 2, false), holds(mid, 2, true), holds(right, 2, false))
	expect("s2 split: s3 was split off", "s3 split-from: split off s2", "s3 leader: n2 leads in term 5",
		"s2 split: s4 was split off", "s4 split-from: split off s2")
	if got := v.Right(v.Right(v.Shard(2))); got.ID != 4 || v.Left(got).ID != 3 {
		t.Fatal("the neighbours are wrong")
	}
	wide := desc(3, "f", "z", 1, 3, 1, 2)
	full(2, holds(left, 2, false), holds(wide, 2, true))
	expect("s3 merged: took in s4", "s4 merged-into: taken in by s3")
	if v.Shard(4) != nil {
		t.Fatal("the merged shard is still known") // n1 has never told of it
	}
	full(1, holds(left, 1, true), holds(right, 1, false)) // it lags, or did until now
	if v.Find("\x02q").ID != 3 {
		t.Fatal("a lagging store's range won")
	}
	log = nil
	mustReport(t, v, StoreReport{Store: 1, Replicas: []ReplicaReport{holds(wide, 1, false)}, Removed: []base.ShardID{4}})
	expect()
	if v.Len() != 2 {
		t.Fatalf("%d shards", v.Len())
	}
}

func TestEventBytesAreGolden(t *testing.T) {
	var f golden.File
	e := Event{
		At: 3 * time.Second, Shard: 7, Kind: EventLeader, Other: 8, Store: 1, From: 2, Replica: 3, Role: base.RoleVoter, Term: 9,
		Epoch: base.Epoch{ConfVer: 4, Version: 5},
	}
	f.Add("leader", e.Append(nil))
	f.Check(t, "event.golden")
	got, err := DecodeEvent(e.Append(nil))
	if err != nil || got != e {
		t.Fatalf("%+v, %v", got, err)
	}
	if _, err := DecodeEvent(e.Append(nil)[1:]); !errors.Is(err, base.ErrCorrupt) {
		t.Fatal(err)
	}
}

// TestIndexesFollowRandomReports lets stores report random splits, merges and moves in any order, and compares the
// indexes with a walk over everything after each.
func TestIndexesFollowRandomReports(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v := NewView()
		cfg := Config{}.WithDefaults()
		type store struct {
			held map[base.ShardID]ReplicaReport
		}
		stores := map[base.StoreID]*store{}
		for id := base.StoreID(1); id <= 4; id++ {
			stores[id] = &store{held: map[base.ShardID]ReplicaReport{}}
		}
		truth := []*base.Descriptor{desc(2, "\x00", "\xff", 1, 1, 1, 2, 3)}
		next := base.ShardID(3)
		apply := func(d *base.Descriptor) {
			for id, s := range stores {
				if r, ok := d.ReplicaOn(id); ok {
					s.held[d.Shard] = ReplicaReport{Shard: d.Shard, Replica: r.Replica, Desc: d, Size: uint64(d.Epoch.ConfVer)}
				} else {
					delete(s.held, d.Shard)
				}
			}
		}
		apply(truth[0])
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			i := rapid.IntRange(0, len(truth)-1).Draw(t, "shard")
			d := truth[i].Clone()
			switch rapid.IntRange(0, 4).Draw(t, "what") {
			case 0: // split
				at := []byte(fmt.Sprintf("%s%c", d.Start, rapid.IntRange('a', 'z').Draw(t, "at")))
				if !d.Contains(at) {
					continue
				}
				r := d.Clone()
				d.Epoch.Version++
				d.End, r.Start = at, at
				r.Shard, r.Epoch = next, base.Epoch{ConfVer: 1, Version: d.Epoch.Version}
				next++
				truth = slices.Insert(truth, i+1, r)
				apply(r)
			case 1: // merge
				if i+1 == len(truth) {
					continue
				}
				r := truth[i+1]
				d.End, d.Epoch.Version = r.End, max(d.Epoch.Version, r.Epoch.Version)+1
				for _, s := range stores {
					delete(s.held, r.Shard)
				}
				truth = slices.Delete(truth, i+1, i+2)
			case 2: // move
				to := base.StoreID(rapid.IntRange(1, 4).Draw(t, "to"))
				if _, on := d.ReplicaOn(to); on {
					continue
				}
				d.Replicas[0] = base.ReplicaDesc{Replica: d.NextReplicaID, Store: to, Role: base.RoleVoter}
				d.NextReplicaID++
				d.Epoch.ConfVer++
			case 3: // a leader
				s := stores[d.Replicas[0].Store]
				r := s.held[d.Shard]
				r.Leads, r.Term = !r.Leads, r.Term+1
				s.held[d.Shard] = r
				continue
			case 4: // a report
				id := base.StoreID(rapid.IntRange(1, 4).Draw(t, "reporter"))
				r := StoreReport{Store: id, Full: true}
				var dig Digest
				for _, h := range stores[id].held {
					r.Replicas = append(r.Replicas, h)
					dig.Add(&h)
				}
				r.Digest = dig.Sum()
				mustReport(t, v, r)
				v.Tick(&cfg, v.Now()+time.Second)
				if rapid.Bool().Draw(t, "clone") {
					v = v.Clone()
				}
				continue
			}
			truth[i] = d
			apply(d)
		}
		for id, s := range stores {
			r := StoreReport{Store: id, Full: true}
			for _, h := range s.held {
				r.Replicas = append(r.Replicas, h)
			}
			mustReport(t, v, r)
		}
		var got []string
		for sh := range v.Shards("") {
			got = append(got, sh.Desc().String())
		}
		var want []string
		for _, d := range truth {
			want = append(want, d.String())
		}
		if !slices.Equal(got, want) || v.Mismatches > 0 || v.Len() != len(truth) {
			t.Fatalf("got\n%s\nwant\n%s\n%d mismatches", strings.Join(got, "\n"), strings.Join(want, "\n"), v.Mismatches)
		}
	})
}
