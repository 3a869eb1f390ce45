package plan

import "math/bits"

// Need is what the checks of a shard found, as a set of kinds. The view keeps the shards of each kind, the most urgent
// first, so that a round looks at those that need something and at no others.
type Need uint16

// Kinds of need, in the order in which a round serves them.
const (
	NeedLeaveJoint  Need = 1 << iota // between two configurations for too long
	NeedRepair                       // a voter is lost or faulted, or there are too few
	NeedPlace                        // a replica is where the rule does not want it, or on a store that must lose it
	NeedTrim                         // too many replicas, learners left over
	NeedLeader                       // the leader is on a store that should not lead it
	NeedSplit                        // above the size or load, or a rule begins inside
	NeedMerge                        // small and cold, beside one that is too
	NeedHotKey                       // one key carries the load; reported only
	NeedSpread                       // replicas could be spread better; served by the balance of replicas
	NeedUnavailable                  // fewer live voters than a quorum; nothing that the planner could do
	needEnd
)

const needKinds = 10

var needNames = [needKinds]string{
	"between two configurations", "short of voters", "misplaced", "too many replicas", "led from the wrong node",
	"to split", "to merge", "hot by one key", "badly spread", "without quorum",
}

// Names returns what is needed, in words.
func (n Need) Names() []string {
	var out []string
	for i, name := range needNames {
		if n&(1<<i) != 0 {
			out = append(out, name)
		}
	}
	return out
}

// urgencyLess puts shards with fewer spare voters first.
func urgencyLess(a, b *Shard) bool {
	if a.spare != b.spare {
		return a.spare < b.spare
	}
	return a.ID < b.ID
}

// setNeed moves a shard between the sets.
func (v *View) setNeed(sh *Shard, n Need) { v.setNeedSpare(sh, n, sh.spare) }

func (v *View) setNeedSpare(sh *Shard, n Need, spare int8) {
	if n == sh.need && spare == sh.spare {
		return
	}
	for m := uint(sh.need); m != 0; m &= m - 1 {
		v.needs[bits.TrailingZeros(m)].Delete(sh)
	}
	sh.need, sh.spare = n, spare
	for m := uint(n); m != 0; m &= m - 1 {
		v.needs[bits.TrailingZeros(m)].ReplaceOrInsert(sh)
	}
}

// Needs counts the shards of each kind of need as of the last round.
func (v *View) Needs() map[string]int {
	out := make(map[string]int)
	for i, set := range v.needs {
		if n := set.Len(); n > 0 {
			out[needNames[i]] = n
		}
	}
	return out
}
