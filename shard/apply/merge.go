package apply

import (
	"errors"
	"fmt"

	"github.com/shardd/shardd/engine"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
)

// Decisions of a merge. Each is a pure function of the state at the entry and the entry, so that all replicas come to
// the same one: a new state, or why the command is refused. What a refused command leaves is its index.
//
// L's exact Epoch is in Freeze, CommitMerge and AbortMerge, and both of the latter change it. So its log takes at most
// one of them for one Freeze, and once its Epoch has moved on by anything else, neither.

// Frozen is the answer to what a frozen shard is asked for: nothing has happened, and soon it will be thawed or part of
// its left neighbour.
func Frozen() wire.Answer {
	return wire.Answer{Code: wire.Busy, Arg: frozenMs, Payload: []byte("frozen for a merge")}
}

// frozenMs is the back-off that it suggests: a merge that goes well takes a few syncs and round trips.
const frozenMs = 10

// DecideFreeze returns the state of R after a Freeze at index.
func DecideFreeze(
	d *base.Descriptor, st *engine.AppliedState, f *wire.Freeze, index uint64,
) (next engine.AppliedState, refused error) {
	switch {
	case f.ID == 0 || f.Into == 0 || f.Into == d.Shard || d.Shard == base.MetaShard || f.Into == base.MetaShard:
		return next, fmt.Errorf("merge %d of %s into %s makes no sense", f.ID, d.Shard, f.Into)
	case st.Freeze != nil:
		return next, fmt.Errorf("%s is frozen already, for merge %d into %s", d.Shard, st.Freeze.ID, st.Freeze.Into)
	case f.Epoch != d.Epoch:
		return next, fmt.Errorf("made for epoch %s, the shard is at %s", f.Epoch, d.Epoch)
	}
	if err := allVoters(d); err != nil {
		return next, err
	}
	next = *st
	next.Freeze = &engine.Freeze{ID: f.ID, Into: f.Into, IntoEpoch: f.IntoEpoch, Index: index}
	return next, nil
}

// DecideThaw returns the state of R after a Thaw.
func DecideThaw(st *engine.AppliedState, t *wire.Thaw) (next engine.AppliedState, refused error) {
	switch {
	case st.Freeze == nil:
		return next, errors.New("the shard is not frozen")
	case st.Freeze.ID != t.ID:
		return next, fmt.Errorf("the shard is frozen for merge %d, not %d", st.Freeze.ID, t.ID)
	}
	next = *st
	next.Freeze = nil
	return next, nil
}

// DecideCommitMerge returns L's descriptor after a CommitMerge. It looks at L alone: that R stands frozen at the index
// the command names is what every replica of it has confirmed before the command was proposed.
func DecideCommitMerge(
	d *base.Descriptor, st *engine.AppliedState, c *wire.CommitMerge,
) (next *base.Descriptor, refused error) {
	if err := decidable(d, st, c.ID, c.Epoch); err != nil {
		return nil, err
	}
	if err := Mergeable(d, c.Right); err != nil {
		return nil, err
	}
	next = d.Clone()
	next.End = append([]byte(nil), c.Right.End...)
	next.Epoch.Version = max(d.Epoch.Version, c.Right.Epoch.Version) + 1
	return next, nil
}

// MergeStates returns L's state after an accepted CommitMerge, of which ApplyBoundary fills in index and term. left is
// L's state before it, right that of R, which is the same on every replica while it is frozen. What R has decided itself
// comes along: who asks for that will ask L.
func MergeStates(
	d *base.Descriptor, left, right *engine.AppliedState, c *wire.CommitMerge,
) (next engine.AppliedState) {
	next = *left
	next.Stamp = max(left.Stamp, right.Stamp)
	next.Stats = engine.Stats{
		PutBytes:  left.Stats.PutBytes + right.Stats.PutBytes,
		PutOps:    left.Stats.PutOps + right.Stats.PutOps,
		DeleteOps: left.Stats.DeleteOps + right.Stats.DeleteOps,
	}
	next.MergesForgotten = max(left.MergesForgotten, right.MergesForgotten)
	more := append([]engine.MergeRecord(nil), right.Merges...)
	more = append(more, engine.MergeRecord{
		ID: c.ID, Shard: c.Right.Shard, Version: d.Epoch.Version, Committed: true,
	})
	next.Merges, next.MergesForgotten = next.Decided(more...)
	return next
}

// DecideAbortMerge returns L's descriptor and state after an AbortMerge.
func DecideAbortMerge(
	d *base.Descriptor, st *engine.AppliedState, a *wire.AbortMerge,
) (desc *base.Descriptor, next engine.AppliedState, refused error) {
	if err := decidable(d, st, a.ID, a.Epoch); err != nil {
		return nil, next, err
	}
	desc = d.Clone()
	desc.Epoch.Version++
	next = *st
	next.Merges, next.MergesForgotten = st.Decided(engine.MergeRecord{
		ID: a.ID, Shard: a.Right, Version: d.Epoch.Version,
	})
	return desc, next, nil
}

// decidable reports whether L can decide a merge that was asked for at an epoch.
func decidable(d *base.Descriptor, st *engine.AppliedState, id uint64, epoch base.Epoch) error {
	switch {
	case id == 0:
		return errors.New("merge 0 makes no sense")
	case epoch != d.Epoch:
		return fmt.Errorf("made for epoch %s, the shard is at %s", epoch, d.Epoch)
	case st.Freeze != nil:
		return fmt.Errorf("%s is frozen itself, for merge %d into %s", d.Shard, st.Freeze.ID, st.Freeze.Into)
	}
	return nil
}

// Mergeable says why two shards cannot be merged as they are: they must be neighbours, in one key space, on the same
// stores, and have voters only.
func Mergeable(left, right *base.Descriptor) error {
	switch {
	case left.Shard == right.Shard || left.Shard == base.MetaShard || right.Shard == base.MetaShard:
		return fmt.Errorf("merge %s into %s makes no sense", right.Shard, left.Shard)
	case string(left.End) != string(right.Start) || left.Start[0] != right.Start[0]:
		return fmt.Errorf("%s is not the right-hand neighbour of %s", right, left)
	case len(left.Replicas) != len(right.Replicas):
		return fmt.Errorf("%s and %s are not on the same stores", left, right)
	}
	if err := errors.Join(allVoters(left), allVoters(right)); err != nil {
		return err
	}
	for _, rep := range left.Replicas {
		if _, ok := right.ReplicaOn(rep.Store); !ok {
			return fmt.Errorf("%s has no replica on %s, where %s has one", right.Shard, rep.Store, left.Shard)
		}
	}
	return nil
}

func allVoters(d *base.Descriptor) error {
	for _, rep := range d.Replicas {
		if rep.Role != base.RoleVoter {
			return fmt.Errorf("%s: replica %s is %s, a merge needs voters only", d.Shard, rep.Replica, rep.Role)
		}
	}
	return nil
}

// MergeOutcome is what became of a merge.
type MergeOutcome uint8

// Outcomes. Committed and Aborted are for ever, whoever answers and however old his state is; Pending and Unknown are
// what he knows now.
const (
	MergeUnknown   MergeOutcome = 0 // this state does not tell
	MergePending   MergeOutcome = 1 // not decided at this state
	MergeCommitted MergeOutcome = 2
	MergeAborted   MergeOutcome = 3 // by AbortMerge, or L's epoch has moved on without the merge
)

// Final reports whether the merge is decided.
func (o MergeOutcome) Final() bool { return o == MergeCommitted || o == MergeAborted }

// String returns the lower-case word.
func (o MergeOutcome) String() string {
	names := [...]string{"unknown", "pending", "committed", "aborted"}
	if int(o) < len(names) {
		return names[o]
	}
	return fmt.Sprintf("outcome(%d)", uint8(o))
}

// Outcome says what became of the merge for which a shard was frozen, by one applied state of L, or of the shard that L
// has been merged into, since that takes L's decisions along. An applied state is a prefix of the log: what it has
// decided stays so. It never takes an unknown for an abort:
//
//	the merge is in the list                      committed or aborted, as it says
//	a merge that old may have left the list       unknown
//	L at the epoch of the Freeze                  pending
//	L beyond it                                   aborted: neither command can be accepted any more
//	L before it                                   unknown: an old replica
//	L was merged away                             aborted: its log has ended
func Outcome(d *base.Descriptor, st *engine.AppliedState, f *engine.Freeze) MergeOutcome {
	ended := false
	for _, m := range st.Merges {
		switch {
		case m.ID == f.ID && m.Committed:
			return MergeCommitted
		case m.ID == f.ID:
			return MergeAborted
		case m.Shard == f.Into && m.Committed:
			ended = true
		}
	}
	switch {
	case f.IntoEpoch.Version <= st.MergesForgotten:
		return MergeUnknown
	case ended:
		return MergeAborted
	case d.Shard != f.Into || f.IntoEpoch.Newer(d.Epoch):
		return MergeUnknown
	case d.Epoch == f.IntoEpoch:
		return MergePending
	}
	return MergeAborted
}
