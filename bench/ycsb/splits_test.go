package ycsb

import (
	"slices"
	"testing"
)

func TestSplitsDivideTheRecordsEvenly(t *testing.T) {
	for _, set := range [][]string{
		{"recordcount=1000"}, {"recordcount=300000"}, {"recordcount=5000", "insertorder=ordered"},
		{"recordcount=2000", "insertstart=500", "table=t"}, {"recordcount=16"},
	} {
		p := mustWorkload(t, "a", set...)
		splits, err := Splits(p, 16)
		if err != nil || len(splits) != 15 {
			t.Fatalf("%v: %d splits: %v", set, len(splits), err)
		}
		s, err := newSettings(p)
		if err != nil {
			t.Fatal(err)
		}
		var bounds []string
		for _, b := range splits {
			bounds = append(bounds, string(b))
		}
		if !slices.IsSorted(bounds) || len(slices.Compact(slices.Clone(bounds))) != 15 {
			t.Fatalf("%v: bounds %q", set, bounds)
		}
		counts := make([]int64, 16)
		for n := range s.insertCount {
			key := string(s.appendKey(nil, s.insertStart+n))
			at, found := slices.BinarySearch(bounds, key)
			if found {
				at++ // a bound belongs to the shard above it
			}
			counts[at]++
		}
		want := float64(s.insertCount) / 16
		for i, c := range counts {
			if float64(c) < want*0.9-1 || float64(c) > want*1.1+1 {
				t.Errorf("%v: shard %d holds %d of %d records", set, i, c, s.insertCount)
			}
		}
	}
}

func TestSplitsNeedARecordForEachShard(t *testing.T) {
	p := mustWorkload(t, "a", "recordcount=10")
	for _, shards := range []int{-1, 0, 11} {
		if _, err := Splits(p, shards); err == nil {
			t.Errorf("%d shards for 10 records", shards)
		}
	}
	if s, err := Splits(p, 1); err != nil || len(s) != 0 {
		t.Errorf("one shard: %q %v", s, err)
	}
}
