package plan

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/shardd/shardd/internal/base"
)

// OpKind is what an operator does. Those that have a job kind of the same meaning carry its word.
type OpKind uint8

// Kinds.
const (
	OpMove     OpKind = 1 + iota // From -> To
	OpAdd                        // a replica on To, a learner if Learner
	OpRemove                     // the replica on From
	OpPromote                    // the learner on To
	OpSplit                      // at Keys, else By size or load
	OpMerge                      // Other, the right neighbour, into Shard
	OpTransfer                   // leadership to To; runs in memory
)

var opKinds = [...]string{
	OpMove: "move", OpAdd: "add-replica", OpRemove: "remove-replica", OpPromote: "promote", OpSplit: "split",
	OpMerge: "merge", OpTransfer: "transfer",
}

// String returns the word of the job kind, and transfer.
func (k OpKind) String() string {
	if int(k) < len(opKinds) && k > 0 {
		return opKinds[k]
	}
	return fmt.Sprintf("op(%d)", uint8(k))
}

// Job reports whether it runs as a job of the meta shard.
func (k OpKind) Job() bool { return k != OpTransfer }

// Priority orders operators: those of a higher one go first.
type Priority uint8

// Priorities.
const (
	Balance Priority = iota
	Shape            // splits and merges
	Comply           // rules and drains
	Repair           // lost replicas
	Urgent           // at or below the quorum
)

var priorities = [...]string{"balance", "shape", "comply", "repair", "urgent"}

// String returns the word for logs.
func (p Priority) String() string { return priorities[min(int(p), len(priorities)-1)] }

// Operator is one thing to do to one shard. It is a wish: who carries it out decides each change from what the shard is
// then. Its ID is 0 until the owner gives it one.
type Operator struct {
	ID    uint64
	Kind  OpKind
	Shard base.ShardID
	// Epoch is that of the shard when it was planned.
	Epoch base.Epoch
	From  base.StoreID // move, remove; transfer: the old leader
	To    base.StoreID // move, add, promote, transfer
	// Replica is the one on From when it was planned.
	Replica base.ReplicaID
	Learner bool // add, move: the replica is and stays a learner
	// Keys are routing keys to split at; without them the leader chooses by By: size or load, into Parts.
	Keys  []string
	By    string
	Parts int
	Other base.ShardID // merge

	Priority Priority
	// Maker is the checker or scheduler, Part the part of the planner that can be paused.
	Maker  string
	Part   Parts
	Reason string
	// Bytes is what has to be copied.
	Bytes   uint64
	Created time.Duration
	// Deadline is when it has failed if it is not done.
	Deadline time.Duration

	decision uint64 // in the journal
}

// StepKind is one kind of step.
type StepKind uint8

// Step kinds.
const (
	StepAddLearner StepKind = 1 + iota
	StepTransfer
	StepSwap // one joint change: promote the replica on Store, demote that on From
	StepPromote
	StepLeaveJoint
	StepRemove
	StepSplit
	StepMerge
)

// Step is one idempotent part of an operator. Whether it is done is read off the view; nobody remembers it.
type Step struct {
	Kind    StepKind
	Store   base.StoreID
	From    base.StoreID
	Replica base.ReplicaID // remove: the one that must be gone
	Version uint64         // split, merge: the range version that must be passed
	Other   base.ShardID
}

// Steps returns the parts of the operator in their order.
func (o *Operator) Steps() []Step {
	switch o.Kind {
	case OpMove:
		add := Step{Kind: StepAddLearner, Store: o.To}
		rm := Step{Kind: StepRemove, From: o.From, Replica: o.Replica}
		if o.Learner {
			return []Step{add, rm}
		}
		return []Step{add, {Kind: StepSwap, Store: o.To, From: o.From}, {Kind: StepLeaveJoint}, rm}
	case OpAdd:
		if o.Learner {
			return []Step{{Kind: StepAddLearner, Store: o.To}}
		}
		return []Step{{Kind: StepAddLearner, Store: o.To}, {Kind: StepPromote, Store: o.To}}
	case OpPromote:
		return []Step{{Kind: StepPromote, Store: o.To}}
	case OpRemove:
		return []Step{{Kind: StepRemove, From: o.From, Replica: o.Replica}}
	case OpSplit:
		return []Step{{Kind: StepSplit, Version: o.Epoch.Version}}
	case OpMerge:
		return []Step{{Kind: StepMerge, Version: o.Epoch.Version, Other: o.Other}}
	case OpTransfer:
		return []Step{{Kind: StepTransfer, Store: o.To}}
	}
	return nil
}

// Done reports whether the view shows the step as done on a shard.
func (s Step) Done(v *View, id base.ShardID) bool {
	sh := v.Shard(id)
	if sh == nil {
		return false
	}
	switch s.Kind {
	case StepAddLearner:
		return sh.ListedOn(s.Store) != nil
	case StepPromote, StepSwap:
		p := sh.ListedOn(s.Store)
		return p != nil && (p.Role == base.RoleVoter || p.Role == base.RoleIncoming)
	case StepLeaveJoint:
		return !sh.Joint()
	case StepRemove:
		p := sh.ListedOn(s.From)
		return p == nil || p.Replica != s.Replica
	case StepSplit:
		return sh.Epoch.Version > s.Version
	case StepMerge:
		o := v.Shard(s.Other)
		return sh.Epoch.Version > s.Version && (o == nil || o.covered)
	case StepTransfer:
		return sh.Leader == s.Store
	}
	return false
}

// Done reports whether the view shows the operator as done.
func (o *Operator) Done(v *View) bool {
	for _, s := range o.Steps() {
		if !s.Done(v, o.Shard) {
			return false
		}
	}
	return true
}

// Effect is what an operator still changes on one store, over and above what the view shows already.
type Effect struct {
	Store             base.StoreID
	Replicas, Leaders int
	Bytes             int64
	Load              LoadSum
	// Arriving is what a snapshot on its way will still take of the store's disk. The view counts a replica from when it is
	// listed, the disk only fills when it is there.
	Arriving uint64
	// In and Out are snapshots that the store receives or sends, Transfers leaderships that come or go.
	In, Out, Transfers int
}

// Effects returns what is still to come of an operator in flight, so that a store that is about to get three replicas
// counts as having them.
func (o *Operator) Effects(v *View) []Effect {
	sh := v.Shard(o.Shard)
	if sh == nil {
		return nil
	}
	var out []Effect
	size := int64(sh.Size)
	comes := func(to base.StoreID) {
		e := Effect{Store: to, In: 1}
		p := sh.ListedOn(to)
		if p == nil {
			e.Replicas, e.Bytes = 1, size
		}
		if p == nil || !p.Reported() || p.Flags&PeerUninitialised != 0 {
			e.Arriving = sh.Size
		}
		out = append(out, e)
	}
	goes := func(from base.StoreID, snap int) {
		e := Effect{Store: from, Out: snap}
		if p := sh.ListedOn(from); p != nil && (o.Replica == 0 || p.Replica == o.Replica) {
			e.Replicas, e.Bytes = -1, -size
		}
		out = append(out, e)
	}
	leads := func(from, to base.StoreID) {
		if sh.Leader != from || from == 0 {
			return
		}
		less, more := Effect{Store: from, Leaders: -1, Transfers: 1}, Effect{Store: to, Leaders: 1, Transfers: 1}
		less.Load.add(sh.Load, -1)
		more.Load.add(sh.Load, 1)
		out = append(out, less, more)
	}
	switch o.Kind {
	case OpMove:
		comes(o.To)
		goes(o.From, 1)
		if sh.Leader == o.From {
			leads(o.From, o.To)
		}
	case OpAdd:
		comes(o.To)
	case OpRemove:
		goes(o.From, 0)
	case OpTransfer:
		if sh.Leader != o.To {
			leads(sh.Leader, o.To)
		}
	}
	return out
}

// String returns a short text: move s12 n1 -> n4 (replicas: n1 has 9, n4 has 3).
func (o *Operator) String() string {
	var b strings.Builder
	b.WriteString(o.Kind.String() + " " + o.Shard.String())
	switch o.Kind {
	case OpMove, OpTransfer:
		fmt.Fprintf(&b, " %s -> %s", o.From, o.To)
	case OpAdd, OpPromote:
		fmt.Fprintf(&b, " on %s", o.To)
	case OpRemove:
		fmt.Fprintf(&b, " from %s", o.From)
	case OpSplit:
		if len(o.Keys) > 0 {
			for _, k := range o.Keys {
				b.WriteString(" at " + strconv.QuoteToASCII(strings.TrimPrefix(k, string(base.UserStart())))) // as people see it
			}
		} else {
			fmt.Fprintf(&b, " by %s into %d", o.By, o.Parts)
		}
	case OpMerge:
		fmt.Fprintf(&b, " with %s", o.Other)
	}
	if o.Learner {
		b.WriteString(" as learner")
	}
	if o.Reason != "" {
		fmt.Fprintf(&b, " (%s: %s)", o.Maker, o.Reason)
	}
	return b.String()
}
