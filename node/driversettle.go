package node

import (
	"slices"
	"time"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/placement/plan"
)

// settleFor bounds how long the view may take to show what an operator did. Reports come every second; a leader that has
// just changed may be later.
const settleFor = 10 * time.Second

// settling is an operator that has ended and that the view does not show as done yet. Jobs and transfers end before the
// report that tells of them: a planner that looks at the view in between takes the learner of a finished move for one
// too many and removes what is a voter by now, or transfers what has been transferred. To the planner it is in flight.
type settling struct {
	plan.Operator
	until time.Duration
}

// settle has an operator that has ended well count as in flight until the view shows it. The caller holds the lock of
// the view.
func (d *driverState) settle(op *plan.Operator, now time.Duration) {
	d.settled = append(d.settled, settling{*op, now + settleFor})
}

// settleRest drops what the view shows by now, or has had its time to show, and takes in what the jobs of people, drains
// and earlier drivers did to shards in the last round and do no more: nobody tells of their ends.
func (d *driverState) settleRest(v *plan.View, inFlight []*plan.Operator, now time.Duration) {
	flying := make(map[base.ShardID]*plan.Operator, len(inFlight))
	for _, op := range inFlight {
		flying[op.Shard] = op // one for each shard, by its lock
	}
	for _, s := range d.settled {
		delete(d.flying, s.Shard)
	}
	for id, op := range d.flying {
		if flying[id] == nil {
			d.settle(op, now)
		}
	}
	d.flying = flying
	d.settled = slices.DeleteFunc(d.settled, func(s settling) bool { return now >= s.until || s.Done(v) })
}

// unsettled appends what is still settling to what is in flight.
func (d *driverState) unsettled(inFlight []*plan.Operator) []*plan.Operator {
	for i := range d.settled {
		inFlight = append(inFlight, &d.settled[i].Operator)
	}
	return inFlight
}
