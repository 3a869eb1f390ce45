package node

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/placement"
	"github.com/shardd/shardd/placement/plan"
)

// driverState is what the driver makes of the view during one leadership of the meta shard. It is guarded by the lock of
// the view, and nothing of it outlives the leadership: what must is in the meta shard.
type driverState struct {
	planner *plan.Planner // nil before the first round
	fence   placement.Fence
	fenced  bool

	// running are the operators of this driver, by id: from when they are proposed until their job or transfer has ended.
	// A new leader takes the jobs of the one before over.
	running map[uint64]*flight
	// starting are those whose job has no id yet.
	starting map[*flight]bool
	early    map[uint64]*placement.Job       // jobs that ended while operators were starting
	recent   []endedOp                       // the newest last
	settled  []settling                      // ended, and not yet seen in the view
	flying   map[base.ShardID]*plan.Operator // in flight in the last round
	nextID   uint64                          // of transfers

	rounds, quiet uint64
	looked        time.Duration // Boot time of the last round, planned or not
	active        time.Duration // Boot time of the last operator that was proposed or ran
	took          time.Duration // of the last round
	last          plan.Round    // without its operators
	trouble       string        // why rounds are not planned

	// events are what happened to shards and is not written yet.
	events  map[base.ShardID][]placement.LifeEvent
	changed map[base.ShardID]time.Duration // Boot time of the last split or merge
	heat    plan.HotHistory
}

// flight is an operator on its way.
type flight struct {
	plan.Operator
	step string // of a transfer, or while it starts
	late bool   // its deadline has passed: it is being cancelled
}

// endedOp is an operator that has come to its end.
type endedOp struct {
	plan.Operator
	state, err string
	at         time.Duration
}

const (
	// transferIDs is where the ids of transfers begin, which live in memory and must not be those of jobs.
	transferIDs = 1 << 40
	// recentOps is how many ended operators are shown.
	recentOps = 64
	// maxEvents bounds the events that wait to be written.
	maxEvents = 10_000
)

func newDriverState() *driverState {
	return &driverState{
		running: make(map[uint64]*flight), starting: make(map[*flight]bool),
		early: make(map[uint64]*placement.Job), nextID: transferIDs,
		events: make(map[base.ShardID][]placement.LifeEvent), changed: make(map[base.ShardID]time.Duration),
	}
}

// operators returns all operators in flight: those of this driver, and what the jobs of people, and those of an earlier
// driver, do to shards.
func (d *driverState) operators(jobs []*placement.Job, now time.Duration) []*plan.Operator {
	var out []*plan.Operator
	for _, f := range d.running {
		out = append(out, &f.Operator)
	}
	for f := range d.starting {
		out = append(out, &f.Operator)
	}
	for _, j := range jobs {
		if _, mine := d.running[uint64(j.ID)]; mine {
			continue
		}
		for _, op := range operatorsOf(j, now) {
			out = append(out, &op)
		}
	}
	slices.SortFunc(out, func(a, b *plan.Operator) int {
		return cmp.Or(cmp.Compare(a.ID, b.ID), cmp.Compare(a.Shard, b.Shard))
	})
	return out
}

// adopt counts the jobs of an earlier driver as operators of this one: they are shown, and have a deadline from now on.
// One that is on the shard of an operator that is being started may be that.
func (d *driverState) adopt(jobs []*placement.Job, cfg *plan.Config, now time.Duration, wall time.Time) {
	if len(d.starting) == 0 {
		clear(d.early) // of nobody that is known here
	}
	starts := make(map[base.ShardID]bool, len(d.starting))
	for f := range d.starting {
		starts[f.Shard] = true
	}
	for _, j := range jobs {
		if j.Spec.Origin != placement.OriginDriver || j.State.Ended() || d.running[uint64(j.ID)] != nil || starts[j.Spec.Shard] {
			continue
		}
		ops := operatorsOf(j, now)
		if len(ops) == 0 {
			continue
		}
		f := &flight{Operator: ops[len(ops)-1]}
		age := wall.Sub(time.UnixMilli(int64(j.Started)))
		f.Created = now - max(age, 0)
		f.Deadline += 2 * time.Duration(float64(f.Bytes)/float64(max(cfg.SnapshotRate, 1))*float64(time.Second))
		d.running[f.ID] = f
	}
}

// operatorsOf is what a job does to shards, as the planner counts it.
func operatorsOf(j *placement.Job, now time.Duration) []plan.Operator {
	s := &j.Spec
	op := plan.Operator{
		ID: uint64(j.ID), Shard: s.Shard, From: s.From, To: s.To, Replica: j.Replica, Learner: s.Learner,
		Maker: s.Origin.String(), Reason: s.Reason, Created: now, Deadline: now + adoptedFor,
	}
	if n := len(j.Steps); n > 0 {
		for _, st := range j.Steps {
			op.Bytes = max(op.Bytes, st.Bytes)
		}
	}
	var out []plan.Operator
	for _, m := range j.Moves {
		from := placement.MoveJob(j, &m).Spec.From
		out = append(out, plan.Operator{
			ID: uint64(j.ID), Kind: plan.OpMove, Shard: m.Shard, From: from, To: m.To, Replica: m.Replica,
			Learner: m.Learner, Maker: op.Maker, Reason: s.Kind.String(), Created: now, Deadline: op.Deadline,
		})
	}
	switch s.Kind {
	case placement.JobMove:
		op.Kind = plan.OpMove
	case placement.JobAddReplica:
		op.Kind = plan.OpAdd
	case placement.JobRemoveReplica:
		op.Kind = plan.OpRemove
	case placement.JobPromote:
		op.Kind = plan.OpPromote
	case placement.JobSplit:
		op.Kind = plan.OpSplit
		if s.Shard == 0 {
			return out
		}
	case placement.JobMerge:
		op.Kind, op.Other = plan.OpMerge, s.Right
	default: // drains and the like: only what they move
		return out
	}
	return append(out, op)
}

// adoptedFor is how long a job of an earlier driver may still take, the copying of its bytes aside.
const adoptedFor = 10 * time.Minute

// specOf is the job of an operator.
func specOf(op *plan.Operator) (placement.JobSpec, error) {
	s := placement.JobSpec{
		Shard: op.Shard, From: op.From, To: op.To, Learner: op.Learner, Origin: placement.OriginDriver,
		Reason: op.Maker + ": " + op.Reason,
	}
	switch op.Kind {
	case plan.OpMove:
		s.Kind = placement.JobMove
	case plan.OpAdd:
		s.Kind = placement.JobAddReplica
	case plan.OpRemove:
		s.Kind = placement.JobRemoveReplica
	case plan.OpPromote:
		s.Kind = placement.JobPromote
	case plan.OpSplit:
		s.Kind = placement.JobSplit
		for _, k := range op.Keys {
			s.Keys = append(s.Keys, []byte(k))
		}
		by, err := placement.ParseSplitBy(op.By)
		if err != nil {
			return s, err
		}
		if s.By = by; len(s.Keys) == 0 {
			s.Parts = uint32(op.Parts)
		}
	case plan.OpMerge:
		s.Kind, s.Right = placement.JobMerge, op.Other
	default:
		return s, fmt.Errorf("operator %s has no job", op)
	}
	return s, nil
}

// end takes an operator out of those that run.
func (d *driverState) end(f *flight, failed, state string, now time.Duration, cfg plan.Config) {
	delete(d.running, f.ID)
	delete(d.starting, f)
	d.active = now
	if f.late && failed != "" {
		failed = "it took too long: " + failed
	}
	delete(d.flying, f.Shard)
	if failed == "" {
		d.settle(&f.Operator, now)
	}
	if d.planner != nil {
		d.planner.Ended(&f.Operator, failed, now, cfg)
	}
	d.recent = append(d.recent, endedOp{f.Operator, state, failed, now})
	if over := len(d.recent) - recentOps; over > 0 {
		d.recent = slices.Delete(d.recent, 0, over)
	}
}

// event takes an event of the view in; the caller holds the lock of the view.
func (d *driverState) event(e plan.Event, wall time.Time, boot time.Duration) {
	kinds := map[plan.EventKind]placement.LifeKind{
		plan.EventSeen: placement.LifeCreated, plan.EventSplit: placement.LifeSplit,
		plan.EventSplitFrom: placement.LifeSplitFrom, plan.EventMerged: placement.LifeMerged,
		plan.EventMergedInto: placement.LifeMergedInto, plan.EventAdded: placement.LifeReplica,
		plan.EventRemoved: placement.LifeReplica, plan.EventRole: placement.LifeReplica,
		plan.EventLeader: placement.LifeLeader, plan.EventRecovered: placement.LifeRecovered,
	}
	switch e.Kind {
	case plan.EventSplit, plan.EventSplitFrom, plan.EventMerged:
		d.changed[e.Shard] = boot
	case plan.EventMergedInto:
		delete(d.changed, e.Shard)
	}
	if len(d.events) >= maxEvents {
		return
	}
	d.events[e.Shard] = append(d.events[e.Shard], placement.LifeEvent{
		UnixMS: uint64(wall.UnixMilli()), Kind: kinds[e.Kind], Other: e.Other, Detail: e.Detail(),
	})
}
