package placement

import (
	"errors"
	"testing"
	"time"

	"github.com/shardd/shardd/internal/base"
)

type manualClock struct{ now time.Duration }

func (c *manualClock) Boot() time.Duration { return c.now }
func (c *manualClock) Wall() time.Time     { return time.Unix(0, 0) }

func TestViewFollowsReportsAndForgetsSilentStores(t *testing.T) {
	clk := &manualClock{now: time.Hour}
	v := NewView(clk)
	_, shards := sampleFounding(t).Descriptors()
	d := shards[0]
	report := func(store base.StoreID, inc uint64, full bool, states ...ReplicaState) (bool, error) {
		return v.Add(&Report{Node: Node{ID: store, Incarnation: inc, Address: "x:1"}, Full: full, States: states})
	}
	if want, err := report(1, 2, false, ReplicaState{Desc: d, Leads: true, Term: 6}); err != nil || !want {
		t.Fatalf("delta to an empty view: want full %v, %v", want, err)
	}
	if st := v.Shard(d); st != (ShardState{}) {
		t.Errorf("a delta without its base counted: %+v", st)
	}
	if want, err := report(1, 2, true, ReplicaState{Desc: d, Leads: true, Term: 6, PutBytes: 10}); err != nil || want {
		t.Fatalf("full report: want full %v, %v", want, err)
	}
	report(2, 1, true, ReplicaState{Desc: d, Leads: true, Term: 7, PutBytes: 9})
	if st := v.Shard(d); st != (ShardState{Leader: 2, Term: 7, PutBytes: 9, Live: 2}) {
		t.Errorf("the higher term does not lead: %+v", st)
	}
	report(2, 1, false, ReplicaState{Desc: d, Term: 8, PutBytes: 9, Faulted: "disk"})
	if st := v.Shard(d); st != (ShardState{Leader: 1, Term: 6, PutBytes: 10, Live: 1}) {
		t.Errorf("a faulted replica counts: %+v", st)
	}
	if _, err := report(1, 1, true); !errors.Is(err, ErrStale) {
		t.Errorf("older incarnation: %v", err)
	}
	clk.now += AliveFor
	report(2, 2, true, ReplicaState{Desc: d, Term: 8})
	if !v.Stores()[1].Alive {
		t.Error("dead before its time")
	}
	clk.now++
	if st := v.Shard(d); v.Stores()[1].Alive || st.Leader != 0 || st.Live != 1 {
		t.Errorf("silent store still counts: %+v", st)
	}
	v.Reset()
	if len(v.Stores()) != 0 {
		t.Error("stores after reset")
	}
}

func TestViewRefusesAReportThatComesBehindALaterOne(t *testing.T) {
	v := NewView(&manualClock{now: time.Hour})
	_, shards := sampleFounding(t).Descriptors()
	d := shards[0]
	report := func(inc, number uint64, leads bool) error {
		_, err := v.Add(&Report{
			Node: Node{ID: 1, Incarnation: inc, Address: "x:1"}, Number: number, Full: true,
			States: []ReplicaState{{Desc: d, Leads: leads, Term: 6}},
		})
		return err
	}
	if err := report(2, 9, false); err != nil {
		t.Fatal(err)
	}
	if err := report(2, 8, true); !errors.Is(err, ErrStale) || v.Shard(d).Leader != 0 {
		t.Errorf("an earlier report: %v, and %+v", err, v.Shard(d))
	}
	if err := report(3, 1, true); err != nil || v.Shard(d).Leader != 1 {
		t.Errorf("the first of the next incarnation: %v, and %+v", err, v.Shard(d))
	}
}

// All members of a shard report its descriptor: of tens of thousands of shards that would be two copies too many.
func TestViewKeepsOneOfEachDescriptor(t *testing.T) {
	v := NewView(&manualClock{now: time.Hour})
	_, shards := sampleFounding(t).Descriptors()
	d := shards[0]
	for _, store := range []base.StoreID{1, 2, 3} {
		if _, err := v.Add(&Report{
			Node: Node{ID: store, Incarnation: 1, Address: "x:1"}, Full: true, States: []ReplicaState{{Desc: d.Clone()}},
		}); err != nil {
			t.Fatal(err)
		}
	}
	one := v.mu.stores[1].states[d.Shard].Desc
	for id, s := range v.mu.stores {
		if s.states[d.Shard].Desc != one {
			t.Errorf("%s has a copy of its own", id)
		}
	}
	next := d.Clone()
	next.Epoch.ConfVer++
	if _, err := v.Add(&Report{Node: Node{ID: 2, Incarnation: 1, Address: "x:1"}, States: []ReplicaState{{Desc: next}}}); err != nil {
		t.Fatal(err)
	}
	if got := v.mu.stores[2].states[d.Shard].Desc; got != next || !one.Equal(d) {
		t.Errorf("%s after a report of %s; the others have %s", got, next, one)
	}
}
