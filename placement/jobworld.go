package placement

import (
	"time"

	"github.com/shardd/shardd/internal/base"
)

// ChangeOp is one change of one replica.
type ChangeOp uint8

// Changes. Promote and Demote of one call are one joint change.
const (
	ChangeAddLearner ChangeOp = iota + 1
	ChangePromote
	ChangeDemote
	ChangeRemove
)

// String returns the word that the internal API uses.
func (o ChangeOp) String() string {
	return word([]string{"", "add-learner", "promote", "demote", "remove"}, int(o))
}

// Change is one change of one replica. Replica 0: whichever is on the store.
type Change struct {
	Op      ChangeOp
	Store   base.StoreID
	Replica base.ReplicaID
}

// ActionKind is what an Action asks for.
type ActionKind uint8

// Actions.
const (
	ActWait     ActionKind = iota + 1
	ActChange              // have the shard's members changed
	ActTransfer            // have the leadership of the shard moved
	ActUndo                // save the job as cancelling, for Reason
	ActEnd                 // save the job as State, for Reason
)

// Action is what is to be done next. Steps is the job's progress as it stands, for people.
type Action struct {
	Do      ActionKind
	Changes []Change     // ActChange, refused by the shard unless its ConfVer is this
	ConfVer uint64       //
	To      base.StoreID // ActTransfer
	State   JobState     // ActEnd
	Reason  string
	// At says how far the job is: a higher value is closer to its end. It may fall back.
	At    Progress
	Steps []Step
}

// Progress orders how far a job has come: by phase, in it by amount.
type Progress struct {
	Phase  int
	Amount uint64
}

// after reports whether p is further than o. One that goes back is not compared with one that goes forward.
func (p Progress) after(o Progress) bool {
	switch {
	case p.Phase == phaseAsk:
		return false
	case o.Phase != phaseAsk && (p.Phase >= undone) != (o.Phase >= undone):
		return true
	}
	return p.Phase > o.Phase || p.Phase == o.Phase && p.Amount > o.Amount
}

// Watch knows since when a job came no closer to its end. The zero value has seen nothing. A snapshot that starts over
// is no progress until it is further than the one before.
type Watch struct {
	Far   Progress
	Since time.Duration // boot time
	Seen  bool
}

// See returns the watch after the job was seen at some point.
func (w Watch) See(at Progress, now time.Duration) Watch {
	if !w.Seen || at.after(w.Far) {
		return Watch{at, now, true}
	}
	return w
}

// DiskState is whether a node still holds data of a replica that its shard does not list.
type DiskState uint8

// Disk states.
const (
	DiskUnknown DiskState = iota // not asked yet
	DiskHolds
	DiskGone
	DiskSilent // the node does not answer
	DiskDown   // nor has it reported for AliveFor
)

// World is what a step is decided from.
type World struct {
	// Shard is nil if its leader could not be asked; Why says why.
	Shard *ShardNow
	Why   string
	// Disk answers the question that AskDisk poses.
	Disk DiskState
	// Watch is what this runner has seen of the job so far; Now is the boot time.
	Watch Watch
	Now   time.Duration
	// Refused is why the shard refused the last change for good, empty if it did not. That change was made for the
	// ConfVer RefusedAt: once the shard has another, the refusal says nothing any more.
	Refused   string
	RefusedAt uint64
	// Trouble is why the last try of what is to be done now was not done, for people.
	Trouble string
	Limits  Limits
}

// Limits are the times of a job. The zero value is the default.
type Limits struct {
	// Stall is how long a step may make no progress, to which comes the time that the shard's bytes take at StallRate.
	// Default 10 min and 1 MiB/s.
	Stall     time.Duration
	StallRate uint64 // bytes per second
	// Joint is how long a shard may take to leave Joint before the job helps by moving its leadership. Default 5 s.
	Joint time.Duration
	// Disk is how long a job waits for a node that does not answer to drop its replica. Default 30 s.
	Disk time.Duration
	// Settle is how long a job that is undone waits for a change that it may have begun. Default 3 s.
	Settle time.Duration
	// Lag is how many entries a learner may lack to be made a voter. Default 512.
	Lag uint64
}

func (l Limits) withDefaults() Limits {
	if l.Stall <= 0 {
		l.Stall = 10 * time.Minute
	}
	if l.StallRate == 0 {
		l.StallRate = 1 << 20
	}
	if l.Joint <= 0 {
		l.Joint = 5 * time.Second
	}
	if l.Disk <= 0 {
		l.Disk = 30 * time.Second
	}
	if l.Settle <= 0 {
		l.Settle = 3 * time.Second
	}
	if l.Lag == 0 {
		l.Lag = 512
	}
	return l
}

// stuck is how long a job that is at a point now came no closer to its end.
func (w *World) stuck(at Progress) time.Duration { return w.Now - w.Watch.See(at, w.Now).Since }

// stall is how long a step on this shard may make no progress.
func (w *World) stall() time.Duration {
	var bytes uint64
	if w.Shard != nil {
		bytes = w.Shard.Bytes()
		if s := w.Shard.Snapshot; s != nil {
			bytes = max(bytes, s.Total)
		}
	}
	return w.Limits.Stall + time.Duration(bytes/w.Limits.StallRate)*time.Second
}
