package placement

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/shardd/shardd/internal/base"
)

func sampleBalance() Balance {
	return Balance{
		Paused: PartMerge | PartHot,
		BalanceLimits: BalanceLimits{
			Operators: 16, NodeSnapshots: 2, NodeTransfers: 3, DownAfter: 5 * time.Minute, SplitBytes: 256 << 20,
			MergeBytes: 16 << 20, MergeAge: time.Hour, SplitRequests: 2500.5,
		},
	}
}

func sampleLife() []LifeEvent {
	return []LifeEvent{
		{UnixMS: 1700000000123, Kind: LifeSplitFrom, Other: 2, Detail: "at \"k\""},
		{UnixMS: 1700000000456, Kind: LifeLeader, Detail: "n3 leads at term 7"},
	}
}

func TestRecordsOfTheDriverMatchTheGoldenFile(t *testing.T) {
	bal := sampleBalance()
	var b strings.Builder
	fmt.Fprintf(&b, "balance %x %x\n", balanceKey(), bal.Append(nil))
	fmt.Fprintf(&b, "rules %x %x\n", rulesKey(), (&Rules{Revision: 3, YAML: "rules: []\n"}).Append(nil))
	sub := commissionSub(258, Decommissioned)
	fmt.Fprintf(&b, "commission %x %x\n", sub.Key, sub.Value)
	fmt.Fprintf(&b, "term %x %x\n", driverKey(), appendNumber(nil, 9))
	fmt.Fprintf(&b, "life %x %x\n", lifeKey(258), appendLife(nil, sampleLife()))
	checkGolden(t, "driver.golden", b.String())
}

func TestRecordsOfTheDriverReadBackAsTheyWereWritten(t *testing.T) {
	bal := sampleBalance()
	for name, c := range map[string]struct {
		enc    []byte
		again  func([]byte) ([]byte, error)
		refuse []byte
	}{
		"balance": {bal.Append(nil), func(b []byte) ([]byte, error) {
			got, err := DecodeBalance(b)
			return got.Append(nil), err
		}, []byte{1, 0x80, 0, 47: 0}},
		"rules": {(&Rules{Revision: 3, YAML: "rules: []\n"}).Append(nil), func(b []byte) ([]byte, error) {
			got, err := DecodeRules(b)
			return got.Append(nil), err
		}, []byte{1, 12: 0}},
		"commission": {commissionSub(2, Removed).Value, func(b []byte) ([]byte, error) {
			got, err := decodeCommission(b)
			return commissionSub(2, got).Value, err
		}, []byte{1, 4}},
		"life": {appendLife(nil, sampleLife()), func(b []byte) ([]byte, error) {
			got, err := decodeLife(b)
			return appendLife(nil, got), err
		}, appendLife(nil, []LifeEvent{{Kind: 99}})},
	} {
		got, err := c.again(c.enc)
		if err != nil || !bytes.Equal(got, c.enc) {
			t.Errorf("%s: %x, %v, want %x", name, got, err, c.enc)
		}
		newer := bytes.Clone(c.enc)
		newer[0]++
		bad := [][]byte{newer, append(bytes.Clone(c.enc), 0), c.refuse}
		for i := range c.enc {
			bad = append(bad, c.enc[:i])
		}
		for _, b := range bad {
			if _, err := c.again(b); !errors.Is(err, base.ErrCorrupt) {
				t.Errorf("%s: %x: %v", name, b, err)
			}
		}
	}
}

func FuzzRecordsOfTheDriverDecodeToWhatEncodesTheSame(f *testing.F) {
	bal := sampleBalance()
	f.Add(bal.Append(nil))
	f.Add((&Rules{Revision: 3, YAML: "rules: []\n"}).Append(nil))
	f.Add(commissionSub(2, Removed).Value)
	f.Add(appendLife(nil, sampleLife()))
	f.Fuzz(func(t *testing.T, b []byte) {
		if got, err := DecodeRules(b); err == nil && !bytes.Equal(got.Append(nil), b) {
			t.Errorf("rules %x", b)
		}
		if got, err := decodeCommission(b); err == nil && !bytes.Equal(commissionSub(1, got).Value, b) {
			t.Errorf("commission %x", b)
		}
		if got, err := DecodeBalance(b); err == nil {
			if again, err := DecodeBalance(got.Append(nil)); err != nil || again.Paused != got.Paused {
				t.Errorf("balance %x: %+v, again %+v %v", b, got, again, err)
			}
		}
		if got, err := decodeLife(b); err == nil {
			if again, err := decodeLife(appendLife(nil, got)); err != nil || len(again) != len(got) {
				t.Errorf("life %x: %v", b, err)
			}
		}
	})
}

func TestJobsOfTheFirstLayoutAreStillRead(t *testing.T) {
	old, err := os.ReadFile("testdata/jobs.v1.golden")
	if err != nil {
		t.Fatal(err)
	}
	for i, line := range strings.Split(strings.TrimSpace(string(old)), "\n") {
		enc, err := hex.DecodeString(line[strings.LastIndexByte(line, ' ')+1:])
		if err != nil {
			t.Fatal(err)
		}
		got, err := DecodeJob(enc)
		if err != nil {
			t.Fatal(err)
		}
		if want := sampleJobs()[i]; !reflect.DeepEqual(got, want) {
			t.Errorf("got  %+v\nwant %+v", got, want)
		}
	}
}

func TestKeysOfASplitAreBoundedAndInOrder(t *testing.T) {
	many := make([][]byte, MaxJobKeys+1)
	large := make([][]byte, 200)
	for i := range many {
		many[i] = fmt.Appendf(nil, "\x02%06d", i)
	}
	for i := range large {
		large[i] = append(fmt.Appendf(nil, "\x02%06d", i), make([]byte, 4000)...)
	}
	for name, keys := range map[string][][]byte{
		"too many": many, "too large": large, "empty": {{}}, "out of order": {[]byte("\x02b"), []byte("\x02a")},
		"twice": {[]byte("\x02b"), []byte("\x02b")}, "too long": {make([]byte, base.MaxKeySize+1)},
	} {
		j := &Job{ID: 1, State: JobRunning, Spec: JobSpec{Kind: JobSplit, Keys: keys}}
		if err := j.Validate(); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	j := &Job{ID: 1, State: JobRunning, Spec: JobSpec{Kind: JobSplit, Keys: many[1:]}}
	if err := j.Validate(); err != nil {
		t.Error(err)
	}
	if n := len(j.Append(nil)); n > base.MaxValueSize {
		t.Errorf("record of %d bytes", n)
	}
}

func TestOnlyTheDriverOfTheLatestTermStartsOperators(t *testing.T) {
	ctx := context.Background()
	d, kv := jobDirectory(t)
	old, err := d.TakeFence(ctx, 7)
	if err != nil {
		t.Fatal(err)
	}
	again, err := d.TakeFence(ctx, 7)
	if err != nil || again != old {
		t.Errorf("the same term again: %+v %v, first %+v", again, err, old)
	}
	if err := d.CreateDriverJob(ctx, old, moveJob(2)); err != nil {
		t.Fatal(err)
	}
	now, err := NewDirectory(kv).TakeFence(ctx, 9)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.CreateDriverJob(ctx, old, moveJob(3)); !errors.Is(err, ErrStale) {
		t.Errorf("an operator of the earlier driver: %v", err)
	}
	life := map[base.ShardID][]LifeEvent{2: sampleLife()}
	if err := d.AddLife(ctx, old, life); !errors.Is(err, ErrStale) {
		t.Errorf("a life of the earlier driver: %v", err)
	}
	if _, err := d.TakeFence(ctx, 8); !errors.Is(err, ErrStale) {
		t.Errorf("a fence of an earlier term: %v", err)
	}
	j := moveJob(3)
	if err := d.CreateDriverJob(ctx, now, j); err != nil || j.Spec.Origin != OriginDriver || j.Owner != 9 {
		t.Errorf("an operator of the driver: %+v %v", j, err)
	}
}

func TestAFenceWhoseAnswerWasLostIsTakenAllTheSame(t *testing.T) {
	rng := seeded(t)
	kv := newMemKV(sampleFounding(t).Contents()...)
	kv.chaos = rng
	d := NewDirectory(kv)
	for term := uint64(1); term < 200; term++ {
		f, err := d.TakeFence(context.Background(), term)
		if err != nil || f.Term != term {
			t.Fatalf("term %d: %+v %v", term, f, err)
		}
	}
}

func TestTheLifeOfAShardKeepsItsBeginningAndItsLatest(t *testing.T) {
	ctx := context.Background()
	d, _ := jobDirectory(t)
	f, err := d.TakeFence(ctx, 1)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 5 {
		events := make(map[base.ShardID][]LifeEvent)
		for shard := base.ShardID(2); shard < 100; shard++ {
			for k := range 40 {
				events[shard] = append(events[shard], LifeEvent{UnixMS: uint64(100*i + k), Kind: LifeLeader, Detail: "x"})
			}
		}
		if err := d.AddLife(ctx, f, events); err != nil {
			t.Fatal(err)
		}
	}
	life, err := d.Life(ctx, 99, 1000)
	if err != nil || len(life) != maxLife || life[0].UnixMS != 0 || life[maxLife-1].UnixMS != 439 {
		t.Fatalf("%d events, %v", len(life), err)
	}
	if some, err := d.Life(ctx, 99, 2); err != nil || len(some) != 2 || some[1].UnixMS != 439 {
		t.Errorf("the last two: %v %v", some, err)
	}
	if none, err := d.Life(ctx, 1000, 2); err != nil || len(none) != 0 {
		t.Errorf("a shard without a life: %v %v", none, err)
	}
	merged := map[base.ShardID][]LifeEvent{5: {{UnixMS: 1000, Kind: LifeMergedInto, Other: 4}}}
	if err := d.AddLife(ctx, f, merged); err != nil {
		t.Fatal(err)
	}
	for i, want := range []int{maxLife, 0} {
		before := uint64(1000 + i)
		if _, err := d.TrimLives(ctx, f, before, 0); err != nil {
			t.Fatal(err)
		}
		if life, _ = d.Life(ctx, 5, 1000); len(life) != want {
			t.Errorf("before %d: %d events, want %d", before, len(life), want)
		}
	}
	if life, _ = d.Life(ctx, 4, 1000); len(life) != maxLife {
		t.Errorf("a living shard keeps %d events", len(life))
	}
}

func TestACommissionEndsWithTheDecommissionAndARemovedNodeStaysRemoved(t *testing.T) {
	ctx := context.Background()
	d, _ := jobDirectory(t)
	have := func() Commission {
		all, err := d.Commissions(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return all[3]
	}
	j := create(t, d, &Job{Spec: JobSpec{Kind: JobDecommission, From: 3}, State: JobRunning})
	if have() != Decommissioning {
		t.Errorf("while it runs: %q", have())
	}
	var busy *BusyError
	other := &Job{Spec: JobSpec{Kind: JobDrain, From: 3}, State: JobRunning}
	if err := d.CreateJob(ctx, other); !errors.As(err, &busy) {
		t.Errorf("a drain beside it: %v", err)
	}
	end(t, d, j, JobDone)
	if have() != Decommissioned {
		t.Errorf("once it is done: %q", have())
	}
	for _, c := range []Commission{InCommission, InCommission, Removed, Removed} {
		if err := d.SetCommission(ctx, 3, c); err != nil || have() != c {
			t.Errorf("set %q: %v, is %q", c, err, have())
		}
	}
	if err := d.SetCommission(ctx, 3, InCommission); !errors.Is(err, ErrStale) {
		t.Errorf("back from the dead: %v", err)
	}
	if err := d.SetCommission(ctx, 99, Decommissioning); !errors.Is(err, ErrNotFound) {
		t.Errorf("an unknown node: %v", err)
	}
}

func TestADecommissionThatEndsTakesNoRemovalAndNoRecommissionBack(t *testing.T) {
	ctx := context.Background()
	for _, c := range []Commission{Removed, InCommission} {
		d, _ := jobDirectory(t)
		j := create(t, d, &Job{Spec: JobSpec{Kind: JobDecommission, From: 3}, State: JobRunning})
		if err := d.SetCommission(ctx, 3, c); err != nil {
			t.Fatal(err)
		}
		end(t, d, j, JobDone)
		all, err := d.Commissions(ctx)
		if err != nil || all[3] != c {
			t.Errorf("a node that was made %q while its decommission ended: %q %v", c, all[3], err)
		}
		err = d.CreateJob(ctx, &Job{Spec: JobSpec{Kind: JobDecommission, From: 3}, State: JobRunning})
		if c == Removed && !errors.Is(err, ErrInvalid) || c == InCommission && err != nil {
			t.Errorf("a decommission of a node that is %q: %v", c, err)
		}
	}
}

func TestSettingsOfTheDriverAreCheckedAndKept(t *testing.T) {
	ctx := context.Background()
	d, _ := jobDirectory(t)
	if b, err := d.Balance(ctx); err != nil || b != (Balance{}) {
		t.Errorf("at first: %+v %v", b, err)
	}
	want := sampleBalance()
	if got, err := d.UpdateBalance(ctx, func(b *Balance) error { *b = want; return nil }); err != nil || got != want {
		t.Errorf("set: %+v %v", got, err)
	}
	for name, change := range map[string]func(*Balance){
		"down at once":      func(b *Balance) { b.DownAfter = time.Second },
		"crumbs":            func(b *Balance) { b.SplitBytes = 1000 },
		"split what merged": func(b *Balance) { b.MergeBytes = b.SplitBytes },
		"negative load":     func(b *Balance) { b.SplitRequests = -1 },
	} {
		_, err := d.UpdateBalance(ctx, func(b *Balance) error { change(b); return nil })
		if !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if b, err := d.Balance(ctx); err != nil || b != want {
		t.Errorf("after refusals: %+v %v", b, err)
	}
	filled := BalanceLimits{Operators: 3}.Or(want.BalanceLimits)
	want.Operators = 3
	if filled != want.BalanceLimits {
		t.Errorf("filled up: %+v", filled)
	}
	if got := strings.Join(allParts.Names(), " "); got != strings.Join(partNames, " ") {
		t.Errorf("parts %q", got)
	}
	for _, name := range partNames {
		if p, err := ParsePart(name); err != nil || p.Names()[0] != name {
			t.Errorf("%s: %v %v", name, p, err)
		}
	}
	if _, err := ParsePart("everything"); !errors.Is(err, ErrInvalid) {
		t.Errorf("unknown part: %v", err)
	}
}

func TestRulesHaveARevisionThatKeepsWritersApart(t *testing.T) {
	ctx := context.Background()
	d, _ := jobDirectory(t)
	if r, err := d.Rules(ctx); err != nil || r.Revision != 0 {
		t.Errorf("at first: %+v %v", r, err)
	}
	for i, c := range []struct {
		yaml     string
		revision uint64
		want     uint64
		err      error
	}{
		{"a", 0, 1, nil},
		{"a", 7, 1, nil}, // nothing to change
		{"b", 7, 0, ErrStale},
		{"b", 1, 2, nil},
		{strings.Repeat("x", MaxRules+1), 0, 0, ErrInvalid},
	} {
		r, err := d.SetRules(ctx, c.yaml, c.revision)
		if !errors.Is(err, c.err) || err == nil && r.Revision != c.want {
			t.Errorf("%d: revision %d, %v", i, r.Revision, err)
		}
	}
	if r, err := d.Rules(ctx); err != nil || r.YAML != "b" || r.Revision != 2 {
		t.Errorf("at the end: %+v %v", r, err)
	}
}
