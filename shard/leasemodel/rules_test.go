package leasemodel

import "strings"

// rule names what a run goes without. The zero value is the whole set of rules.
type rule uint32

const (
	// V1: ticks, campaigns and votes go by raft's own check-quorum rule.
	V1 rule = 1 << iota
	// V1Lead: a promise binds only while raft still names the leader that it was given to.
	V1Lead
	// V2: a leader counts every voter on a store that supports its own.
	V2
	// V2Epoch: any stamp of the term counts while its store supports the leader's, of whatever epoch.
	V2Epoch
	// V3: a leader counts itself before it has applied an entry of its own term.
	V3
	// V4: a transfer keeps the lease.
	V4
	// V4Late: a lease is withdrawn only a while after a vote or a higher term has left.
	V4Late
	// V5: a read does not wait until what was committed at its arrival is applied.
	V5
	// V6: a read's view may be older than the lease that it is answered under.
	V6
	// V7: a started store votes and campaigns at once.
	V7
	// Margin: who is supported does not shorten the promise by the clock margin.
	Margin
)

var ruleNames = []string{"V1", "V1Lead", "V2", "V2Epoch", "V3", "V4", "V4Late", "V5", "V6", "V7", "Margin"}

func (r rule) String() string {
	if r == 0 {
		return "all"
	}
	var names []string
	for i, n := range ruleNames {
		if r&(1<<i) != 0 {
			names = append(names, n)
		}
	}
	return strings.Join(names, "+")
}
