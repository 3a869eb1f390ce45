package wire

import (
	"bytes"
	"errors"
	"reflect"
	"testing"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/golden"
)

// mergeBodies is one of each command of a merge, with its decoder.
func mergeBodies() []mergeBody {
	right := &base.Descriptor{
		Shard: 8, Start: []byte("\x02m"), End: []byte("\x02z"), Epoch: base.Epoch{ConfVer: 3, Version: 4},
		Replicas:      []base.ReplicaDesc{{Replica: 1, Store: 1, Role: base.RoleVoter}},
		NextReplicaID: 2,
	}
	epoch := base.Epoch{ConfVer: 0x11, Version: 0x12}
	freeze := Freeze{ID: 0x0102030405060708, Into: 7, IntoEpoch: epoch, Epoch: right.Epoch}
	thaw := Thaw{ID: freeze.ID}
	commit := CommitMerge{ID: freeze.ID, Epoch: epoch, Frozen: 0x21, Right: right}
	abort := AbortMerge{ID: freeze.ID, Right: 8, Epoch: epoch}
	return []mergeBody{
		{"freeze", EntryFreeze, &freeze, func(b []byte) (mergeCommand, error) { v, err := DecodeFreeze(b); return &v, err }},
		{"thaw", EntryThaw, &thaw, func(b []byte) (mergeCommand, error) { v, err := DecodeThaw(b); return &v, err }},
		{"commit merge", EntryCommitMerge, &commit,
			func(b []byte) (mergeCommand, error) { v, err := DecodeCommitMerge(b); return v, err }},
		{"abort merge", EntryAbortMerge, &abort,
			func(b []byte) (mergeCommand, error) { v, err := DecodeAbortMerge(b); return &v, err }},
	}
}

type mergeCommand interface{ Append(buf []byte) []byte }

type mergeBody struct {
	name   string
	kind   EntryKind
	cmd    mergeCommand
	decode func(b []byte) (mergeCommand, error)
}

func TestBodiesOfAMergeAreGolden(t *testing.T) {
	var f golden.File
	for _, m := range mergeBodies() {
		h := EntryHeader{Kind: m.kind, Proposal: 0x8182838485868788}
		f.Add(m.name, m.cmd.Append(h.Append(nil)))
	}
	f.Check(t, "merge.golden")
}

func TestBodiesOfAMergeRoundTripAndRefuse(t *testing.T) {
	for _, m := range mergeBodies() {
		good := m.cmd.Append(nil)
		if got, err := m.decode(good); err != nil || !reflect.DeepEqual(got, m.cmd) {
			t.Errorf("%s: got %+v, %v, want %+v", m.name, got, err, m.cmd)
		}
		for cut := range good {
			if _, err := m.decode(good[:cut]); !errors.Is(err, base.ErrCorrupt) {
				t.Errorf("%s cut at %d: %v", m.name, cut, err)
			}
		}
		if _, err := m.decode(append(bytes.Clone(good), 0)); !errors.Is(err, base.ErrCorrupt) {
			t.Errorf("%s with a byte behind it: %v", m.name, err)
		}
		other := bytes.Clone(good)
		other[0]++
		if _, err := m.decode(other); !errors.Is(err, base.ErrCorrupt) {
			t.Errorf("%s of another layout: %v", m.name, err)
		}
	}
}

func FuzzDecodeMerge(f *testing.F) {
	all := mergeBodies()
	for i, m := range all {
		f.Add(i, m.cmd.Append(nil))
	}
	f.Fuzz(func(t *testing.T, which int, b []byte) {
		m := all[uint(which)%uint(len(all))]
		got, err := m.decode(b)
		if err != nil {
			if !errors.Is(err, base.ErrCorrupt) {
				t.Fatalf("%v does not wrap ErrCorrupt", err)
			}
			return
		}
		if enc := got.Append(nil); !bytes.Equal(enc, b) {
			t.Fatalf("%s encodes as %x", m.name, enc)
		}
	})
}
