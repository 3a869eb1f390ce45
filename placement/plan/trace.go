package plan

import (
	"fmt"
)

// Line is one thing that a check found.
type Line struct{ What, Detail string }

// Candidate is a store or a shard that was considered.
type Candidate struct {
	What    string
	Verdict string // chosen, or the filter that rejected it
	Detail  string
	Score   float64
}

// verdicts of candidates; all others are filters.
const (
	chosen  = "chosen"
	outdone = "outdone" // passed all filters, another one is better
)

// trace takes down what the code of the planner considers. A nil trace takes nothing, so planning pays for none: the
// explanation of a shard is the same code run again with one.
type trace struct {
	lines      []Line
	candidates []Candidate
}

func (t *trace) on() bool { return t != nil }

func (t *trace) note(what, detail string) {
	if t != nil {
		t.lines = append(t.lines, Line{what, detail})
	}
}

func (t *trace) notef(what, format string, args ...any) {
	if t != nil {
		t.lines = append(t.lines, Line{what, fmt.Sprintf(format, args...)})
	}
}

func (t *trace) candidate(what fmt.Stringer, verdict, detail string, score float64) {
	if t != nil {
		t.candidates = append(t.candidates, Candidate{what.String(), verdict, detail, score})
	}
}

// tally is the short form of a choice that goes into the journal: how many each filter rejected, and the best few.
type tally struct {
	rejected [filters]uint16
	passed   int
}

// filter is why a store does not get a replica or a leadership.
type filter uint8

const (
	filterHolds filter = iota
	filterDead
	filterLeaving
	filterUnhealthy
	filterSpace
	filterRule
	filterLimit
	filterFailed
	filterFit
	filterFuller
	filters = iota
)

var filterNames = [filters]string{
	"holds", "dead", "leaving", "unhealthy", "space", "rule", "limit", "failed", "fit", "fuller",
}

var filterWhy = [filters]string{
	"has a replica of the shard already", "does not report", "is drained or leaves the cluster",
	"is unhealthy, slow, or was a minute ago", "is short of disk space", "is not allowed by the rule",
	"has as many snapshots or transfers in flight as it may", "was tried for this shard and failed",
	"would make the placement worse", "has more already",
}

func (f filter) String() string { return filterNames[f] }

// candidates writes the tally as lines.
func (t *tally) candidates(pick *Store, why string) []Candidate {
	var out []Candidate
	if pick != nil {
		out = append(out, Candidate{What: pick.ID.String(), Verdict: chosen, Detail: why})
	}
	if n := t.passed - len(out); n > 0 {
		out = append(out, Candidate{What: fmt.Sprintf("%d others", n), Verdict: outdone})
	}
	for f, n := range t.rejected {
		if n > 0 {
			out = append(out, Candidate{What: fmt.Sprintf("%d nodes", n), Verdict: filterNames[f], Detail: filterWhy[f]})
		}
	}
	return out
}
