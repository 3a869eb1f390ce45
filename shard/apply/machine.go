package apply

import (
	"fmt"

	"go.etcd.io/etcd/raft/v3/raftpb"

	"github.com/shardd/shardd/engine"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
)

// Machine is the command machine of one shard. It holds no data: only the descriptor and the AppliedState, which run
// ahead of the engine by at most the batch of the last call. It belongs to the worker that applies the shard and is not
// safe for concurrent use.
//
// INVARIANT(applied): state.Index is the index of the last entry whose effects went into a batch.
// INVARIANT(stamp): state.Stamp is at least the version of every value of the shard.
type Machine struct {
	engine *engine.Engine
	desc   *base.Descriptor
	state  engine.AppliedState
	broken error // first error; the state is not that of any index any more

	// Mismatch makes the payload of an EpochMismatch for an operation that somebody waits for; nil: the shard's descriptor.
	// It is asked for the answer alone, which is no part of the state.
	Mismatch func(op *wire.Op) []byte
}

// New returns the machine of a shard that stands at st under descriptor d, both as loaded from the engine.
func New(e *engine.Engine, d *base.Descriptor, st engine.AppliedState) *Machine {
	return &Machine{engine: e, desc: d, state: st}
}

// Applied returns the state after the last call. It is in the engine once that call's batch is committed. Its Conf must
// not be changed.
func (m *Machine) Applied() engine.AppliedState { return m.state }

// Descriptor returns the descriptor that operations are checked against. It must not be changed.
func (m *Machine) Descriptor() *base.Descriptor { return m.desc }

// ApplyConfState adds the outcome of the conf change entry at index to b: the configuration that raft's ApplyConfChange
// returned, the descriptor if it changed (nil: it did not), and the AppliedState. A conf change that was refused (R8)
// passes a nil conf and a nil d and only advances the index. d must keep the shard, its range and its Epoch.Version:
// changes of the range are boundary commands. An error means that the replica must be faulted; b must be dropped.
func (m *Machine) ApplyConfState(
	b *engine.Batch, index, term uint64, conf *raftpb.ConfState, d *base.Descriptor,
) error {
	if m.broken != nil {
		return m.broken
	}
	if err := m.checkNext(index, term); err != nil {
		return m.fault(err)
	}
	if d != nil {
		if err := m.checkDescriptor(d); err != nil {
			return m.fault(fmt.Errorf("conf change at %d: %w", index, err))
		}
		m.desc = d
		b.SetDescriptor(d)
	}
	if conf != nil {
		m.state.Conf = *conf
	}
	m.state.Index, m.state.Term = index, term
	b.SetApplied(m.desc.Shard, &m.state)
	return nil
}

// ApplyBoundary adds the outcome of the boundary entry at index to b: the descriptor and the AppliedState after it, of
// which Index and Term are filled in. A command that was refused passes nil for both and only advances the index. d must
// keep the shard and its start, as a shard does for life, and must not be older. An error means that the replica must be
// faulted; b must be dropped.
func (m *Machine) ApplyBoundary(
	b *engine.Batch, index, term uint64, st *engine.AppliedState, d *base.Descriptor,
) error {
	if m.broken != nil {
		return m.broken
	}
	if err := m.checkNext(index, term); err != nil {
		return m.fault(err)
	}
	if d != nil {
		old := m.desc
		if d.Shard != old.Shard || string(d.Start) != string(old.Start) || old.Epoch.Newer(d.Epoch) {
			return m.fault(fmt.Errorf("boundary entry %d: descriptor %s cannot follow %s", index, d, old))
		}
		m.desc = d
		b.SetDescriptor(d)
	}
	if st != nil {
		if st.Stamp < m.state.Stamp {
			return m.fault(fmt.Errorf("boundary entry %d: version stamp falls from %d to %d", index, m.state.Stamp, st.Stamp))
		}
		m.state = *st
	}
	m.state.Index, m.state.Term = index, term
	b.SetApplied(m.desc.Shard, &m.state)
	return nil
}

// checkDescriptor refuses a descriptor that changes more than the membership.
func (m *Machine) checkDescriptor(d *base.Descriptor) error {
	old := m.desc
	switch {
	case d.Shard != old.Shard || d.Epoch.Version != old.Epoch.Version,
		string(d.Start) != string(old.Start), string(d.End) != string(old.End):
		return fmt.Errorf("descriptor %s changes more than the membership of %s", d, old)
	case d.Epoch.ConfVer < old.Epoch.ConfVer || d.NextReplicaID < old.NextReplicaID:
		return fmt.Errorf("descriptor %s (next replica %d) is older than %s (next replica %d)",
			d, d.NextReplicaID, old, old.NextReplicaID)
	}
	return d.Validate()
}

// checkNext holds the log together: the next entry is the one after the applied one, and terms never fall.
func (m *Machine) checkNext(index, term uint64) error {
	if index != m.state.Index+1 || term < m.state.Term {
		return fmt.Errorf("entry %d of term %d does not follow applied entry %d of term %d",
			index, term, m.state.Index, m.state.Term)
	}
	return nil
}

// fault makes the first error permanent.
func (m *Machine) fault(err error) error {
	m.broken = fmt.Errorf("apply %s: %w", m.desc.Shard, err)
	return m.broken
}
