package plan

import (
	"time"

	"github.com/shardd/shardd/internal/base"
)

// Decision is one entry of the journal.
type Decision struct {
	At time.Duration
	// By is the checker or scheduler.
	By    string
	Shard base.ShardID // 0: about stores only
	// Stores are those that it is about.
	Stores  [2]base.StoreID
	Outcome string
	// Operator is the one that came of it, once it was started.
	Operator   uint64
	Candidates []Candidate

	seq uint64
	op  int // index+1 in the round's operators
}

// bytes estimates what the entry takes.
func (d *Decision) bytes() int {
	n := 160 + len(d.Outcome) + len(d.By)
	for _, c := range d.Candidates {
		n += 64 + len(c.What) + len(c.Detail)
	}
	return n
}

// journal is a ring of decisions, bounded by bytes: the oldest go.
type journal struct {
	ring  []Decision // in order of seq, without gaps
	first uint64
	size  int
}

func (j *journal) add(d Decision, limit int) uint64 {
	if j.first == 0 {
		j.first = 1 // 0 stands for none
	}
	d.seq = j.first + uint64(len(j.ring))
	j.ring = append(j.ring, d)
	j.size += d.bytes()
	drop := 0
	for j.size > limit && drop < len(j.ring)-1 {
		j.size -= j.ring[drop].bytes()
		j.ring[drop] = Decision{}
		drop++
	}
	j.ring, j.first = j.ring[drop:], j.first+uint64(drop)
	return d.seq
}

func (j *journal) name(seq, op uint64) {
	if i := seq - j.first; seq >= j.first && i < uint64(len(j.ring)) {
		j.ring[i].Operator = op
	}
}

// newest returns up to limit decisions that match, the newest first.
func (j *journal) newest(limit int, match func(*Decision) bool) []Decision {
	var out []Decision
	for i := len(j.ring) - 1; i >= 0 && len(out) < limit; i-- {
		if match(&j.ring[i]) {
			out = append(out, j.ring[i])
		}
	}
	return out
}
