package node

import (
	"slices"
	"testing"
	"time"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/placement/plan"
	"github.com/shardd/shardd/shard"
)

func TestOnlyWhatIsWorthTellingIsReportedAgain(t *testing.T) {
	told := reported{
		said: said{replica: 3, leads: true, term: 7}, put: 100 << 20, size: 64 << 20, at: time.Hour,
		load: shard.Load{Reads: 1000, Writes: 500, ReadBytes: 1 << 20, WriteBytes: 1 << 19, CPUMicros: 9000},
	}
	for name, c := range map[string]struct {
		change func(*reported)
		want   bool
	}{
		"nothing":                 {func(*reported) {}, false},
		"time":                    {func(r *reported) { r.at += time.Hour }, false},
		"a little more data":      {func(r *reported) { r.size += 1 << 20; r.put += 1 << 20; r.at += time.Second }, false},
		"a little, a while ago":   {func(r *reported) { r.put += 1; r.at += sizeRest }, true},
		"a good part more data":   {func(r *reported) { r.size += 5 << 20 }, true},
		"no data":                 {func(r *reported) { r.size = 0 }, true},
		"a rate that wavers":      {func(r *reported) { r.load.Reads *= 1.2 }, false},
		"a rate that has doubled": {func(r *reported) { r.load.Reads *= 2 }, true},
		"no requests any more":    {func(r *reported) { r.load = shard.Load{} }, true},
		"more processor":          {func(r *reported) { r.load.CPUMicros *= 1.5 }, true},
		"another term":            {func(r *reported) { r.term++ }, true},
		"a fault":                 {func(r *reported) { r.faulted = "disk" }, true},
		"a hot key":               {func(r *reported) { r.hot = "k" }, true},
		"a key to split at":       {func(r *reported) { r.split = "k" }, true},
		"a freeze":                {func(r *reported) { r.merge = 5 }, true},
		"a silent follower":       {func(r *reported) { r.silent = packIDs([]base.ReplicaID{4}) }, true},
	} {
		r := told
		c.change(&r)
		if got := r.worth(&told); got != c.want {
			t.Errorf("%s: told %v, want %v", name, got, c.want)
		}
	}
	quiet := quietLoad(shard.Load{Reads: 0.4, ReadBytes: 900, CPUMicros: 7})
	if quiet != (shard.Load{}) {
		t.Errorf("next to nothing is told as %+v", quiet)
	}
}

func TestTheDigestOfAStoreIsThatOfWhatItReports(t *testing.T) {
	var digest plan.Digest
	r := &plan.StoreReport{Store: 2, Incarnation: 1, Full: true}
	for id, s := range map[base.ShardID]shard.Summary{
		5: {Replica: 3, Leads: true, Term: 4, Desc: descOn(5, 2)},
		6: {Replica: 3, Faulted: "damaged", Desc: descOn(6, 2)},
		7: {Replica: 9},
	} {
		s.Shard = id
		rep := (&member{}).reportedOf(&s, 0)
		digest.Add(rep.digested(id))
		p := rep.proto(id, s.Desc)
		r.Replicas = append(r.Replicas, plan.ReplicaReport{
			Shard: base.ShardID(p.ShardId), Replica: base.ReplicaID(p.ReplicaId), Desc: s.Desc, Leads: p.Leads, Term: p.Term,
			Faulted: p.Faulted, Uninitialised: p.Uninitialised, MergeID: p.MergeId,
		})
	}
	r.Digest = digest.Sum()
	v := plan.NewView()
	if lost, err := v.Report(r); lost || err != nil || v.Mismatches != 0 {
		t.Errorf("a whole report: lost %v, %v, %d mismatches", lost, err, v.Mismatches)
	}
	r.Full, r.Replicas = false, nil
	if lost, err := v.Report(r); lost || err != nil {
		t.Errorf("nothing new: lost %v, %v", lost, err)
	}
	r.Digest++
	if lost, err := v.Report(r); !lost || err != nil {
		t.Errorf("another digest: lost %v, %v", lost, err)
	}
}

func descOn(id base.ShardID, stores ...base.StoreID) *base.Descriptor {
	d := &base.Descriptor{
		Shard: id, Start: []byte{base.SpaceUser, byte(id)}, End: []byte{base.SpaceUser, byte(id) + 1},
		Epoch: base.Epoch{ConfVer: 3, Version: 1}, NextReplicaID: 10,
	}
	for i, s := range stores {
		d.Replicas = append(d.Replicas, base.ReplicaDesc{Replica: base.ReplicaID(3 + i), Store: s, Role: base.RoleVoter})
	}
	return d
}

func TestAFollowerIsSilentAfterSeveralLooksAndNotAfterOne(t *testing.T) {
	var f followers
	f.known = make(map[base.ShardID]*follow)
	look := func(active bool, pending uint64) (silent, behind []uint64) {
		f.take(4, []shard.Progress{{Replica: 1, Active: true}, {Replica: 2, Active: active, PendingSnapshot: pending}})
		s, b := f.of(4)
		return unpackIDs(s), unpackIDs(b)
	}
	for i := range followMissed - 1 {
		if silent, _ := look(false, 0); len(silent) > 0 {
			t.Fatalf("silent after %d looks", i+1)
		}
	}
	if silent, behind := look(false, 9); !slices.Equal(silent, []uint64{2}) || !slices.Equal(behind, []uint64{2}) {
		t.Errorf("silent %v, behind %v", silent, behind)
	}
	if silent, behind := look(true, 0); len(silent)+len(behind) > 0 || len(f.known) > 0 {
		t.Errorf("after an answer: silent %v, behind %v", silent, behind)
	}
}
