package ycsb

import (
	"fmt"
	"slices"
)

// splitSample is how many key names are looked at to divide more records than that.
const splitSample = 100_000

// Splits returns the shards-1 keys at which to divide the key space so that every shard holds as many of the records
// that p loads: quantiles of their key names, in ascending order. shards must not exceed the number of records.
func Splits(p Properties, shards int) ([][]byte, error) {
	set, err := newSettings(p)
	if err != nil {
		return nil, err
	}
	if shards < 1 || int64(shards) > min(set.insertCount, splitSample) {
		return nil, fmt.Errorf("divide %d records among %d shards: there must be 1 to %d",
			set.insertCount, shards, min(set.insertCount, splitSample))
	}
	n := min(set.insertCount, splitSample)
	names := make([]string, n)
	for i := range n {
		// Spread over all records: in ordered inserts the first ones are the lowest.
		number := set.insertStart + int64(float64(i)/float64(n)*float64(set.insertCount))
		names[i] = string(set.appendKey(nil, number))
	}
	slices.Sort(names)
	out := make([][]byte, 0, shards-1)
	for i := 1; i < shards; i++ {
		out = append(out, []byte(names[int64(i)*n/int64(shards)]))
	}
	return out, nil
}
