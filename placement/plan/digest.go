package plan

import "github.com/shardd/shardd/internal/base"

// digestSeed is the digest of a store without replicas; 0 stands for no digest.
const digestSeed = 0x9e3779b97f4a7c15

// Digest is a hash over all replicas of a store that does not depend on their order: the store keeps it up as its
// replicas change, the view does the same from the reports, and where they differ the view asks for a full report. The zero
// value is the digest of none. It is no protection against an adversary.
type Digest struct{ sum uint64 }

// Add takes a replica in, as it was or will be reported.
func (d *Digest) Add(r *ReplicaReport) { d.sum += r.hash() }

// Sub takes a replica out, as it was last reported.
func (d *Digest) Sub(r *ReplicaReport) { d.sum -= r.hash() }

// Sum returns what goes into the report; never 0.
func (d *Digest) Sum() uint64 { return digestSum(d.sum) }

func digestSum(sum uint64) uint64 {
	if s := sum + digestSeed; s != 0 {
		return s
	}
	return digestSeed
}

// hash covers what decisions hang on: identity, epoch, leadership and faults. Rates and sizes are left out, as they
// always differ a little.
func (r *ReplicaReport) hash() uint64 {
	h := mix(uint64(r.Shard)) ^ uint64(r.Replica)
	var epoch base.Epoch
	if r.Desc != nil {
		epoch = r.Desc.Epoch
	}
	h = mix(h) ^ epoch.ConfVer
	h = mix(h) ^ epoch.Version
	h = mix(h) ^ uint64(bit(r.Leads, 1)|bit(r.Faulted != "", 2)|bit(r.Uninitialised, 4)|bit(r.MergeID != 0, 8))
	if h = mix(h); h == 0 {
		return 1 // 0 stands for not reported
	}
	return h
}

// mix is the finaliser of splitmix64 (Steele, Lea, Flood 2014): every bit of x moves about half of the result's.
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

func bit(on bool, b uint8) uint8 {
	if on {
		return b
	}
	return 0
}
