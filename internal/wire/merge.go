package wire

import (
	"encoding/binary"
	"fmt"

	"github.com/shardd/shardd/internal/base"
)

// Kinds of the entries of a merge of R, the right-hand shard, into L. Freeze and Thaw stand in R's log, CommitMerge and
// AbortMerge in L's, which decides.
const (
	EntryFreeze      EntryKind = 4 // boundary; the body is a Freeze
	EntryThaw        EntryKind = 5 // boundary; the body is a Thaw
	EntryCommitMerge EntryKind = 6 // boundary; the body is a CommitMerge
	EntryAbortMerge  EntryKind = 7 // boundary; the body is an AbortMerge
)

const (
	mergeVersion = 1 // of all four bodies

	freezeSize     = 1 + 8 + 8 + 16 + 16
	thawSize       = 1 + 8
	commitFixed    = 1 + 8 + 16 + 8 // in front of the descriptor
	abortMergeSize = 1 + 8 + 8 + 16
)

// Freeze is the body of an EntryFreeze: from here on R takes no reads, writes, changes of replicas or splits, until it
// is thawed or merged away.
type Freeze struct {
	ID        uint64       // of the merge
	Into      base.ShardID // L
	IntoEpoch base.Epoch   // L's, at which alone the merge can be decided
	Epoch     base.Epoch   // R's
}

// Append encodes the body at the end of buf: u8 version | u64 merge | u64 L | L's epoch | R's epoch. An epoch is u64
// conf | u64 version.
func (f *Freeze) Append(buf []byte) []byte {
	buf = append(buf, mergeVersion)
	buf = binary.BigEndian.AppendUint64(buf, f.ID)
	buf = binary.BigEndian.AppendUint64(buf, uint64(f.Into))
	return appendEpoch(appendEpoch(buf, f.IntoEpoch), f.Epoch)
}

// DecodeFreeze reads the whole body of an EntryFreeze. Errors wrap base.ErrCorrupt: the replica is faulted.
func DecodeFreeze(body []byte) (Freeze, error) {
	if err := checkMerge("freeze", body, freezeSize, true); err != nil {
		return Freeze{}, err
	}
	return Freeze{
		ID: binary.BigEndian.Uint64(body[1:]), Into: base.ShardID(binary.BigEndian.Uint64(body[9:])),
		IntoEpoch: epochAt(body[17:]), Epoch: epochAt(body[33:]),
	}, nil
}

// Thaw is the body of an EntryThaw: the merge did not come about, R goes on.
type Thaw struct {
	ID uint64 // of the merge
}

// Append encodes the body at the end of buf: u8 version | u64 merge.
func (t *Thaw) Append(buf []byte) []byte {
	return binary.BigEndian.AppendUint64(append(buf, mergeVersion), t.ID)
}

// DecodeThaw reads the whole body of an EntryThaw. Errors wrap base.ErrCorrupt: the replica is faulted.
func DecodeThaw(body []byte) (Thaw, error) {
	if err := checkMerge("thaw", body, thawSize, true); err != nil {
		return Thaw{}, err
	}
	return Thaw{ID: binary.BigEndian.Uint64(body[1:])}, nil
}

// CommitMerge is the body of an EntryCommitMerge: L takes over R's range, with what R holds at Frozen.
type CommitMerge struct {
	ID     uint64           // of the merge
	Epoch  base.Epoch       // L's, exact, and the one that R was frozen for
	Frozen uint64           // index of the Freeze in R's log, confirmed by every replica of R
	Right  *base.Descriptor // R's, as it was frozen
}

// Append encodes the body at the end of buf: u8 version | u64 merge | L's epoch | u64 frozen | descriptor.
func (c *CommitMerge) Append(buf []byte) []byte {
	buf = binary.BigEndian.AppendUint64(append(buf, mergeVersion), c.ID)
	buf = binary.BigEndian.AppendUint64(appendEpoch(buf, c.Epoch), c.Frozen)
	return c.Right.Append(buf)
}

// DecodeCommitMerge reads the whole body of an EntryCommitMerge. The result shares no memory with it. Errors wrap
// base.ErrCorrupt: the replica is faulted.
func DecodeCommitMerge(body []byte) (*CommitMerge, error) {
	const what = "commit of a merge"
	if err := checkMerge(what, body, commitFixed, false); err != nil {
		return nil, err
	}
	c := &CommitMerge{
		ID: binary.BigEndian.Uint64(body[1:]), Epoch: epochAt(body[9:]), Frozen: binary.BigEndian.Uint64(body[25:]),
	}
	d, rest, err := base.DecodeDescriptor(body[commitFixed:])
	if err == nil && len(rest) > 0 {
		err = fmt.Errorf("%d bytes behind the descriptor: %w", len(rest), base.ErrCorrupt)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	c.Right = d
	return c, nil
}

// AbortMerge is the body of an EntryAbortMerge: L's Version rises, so that the merge cannot be committed any more.
type AbortMerge struct {
	ID    uint64       // of the merge
	Right base.ShardID // R
	Epoch base.Epoch   // L's, exact
}

// Append encodes the body at the end of buf: u8 version | u64 merge | u64 R | L's epoch.
func (a *AbortMerge) Append(buf []byte) []byte {
	buf = binary.BigEndian.AppendUint64(append(buf, mergeVersion), a.ID)
	return appendEpoch(binary.BigEndian.AppendUint64(buf, uint64(a.Right)), a.Epoch)
}

// DecodeAbortMerge reads the whole body of an EntryAbortMerge. Errors wrap base.ErrCorrupt: the replica is faulted.
func DecodeAbortMerge(body []byte) (AbortMerge, error) {
	if err := checkMerge("abort of a merge", body, abortMergeSize, true); err != nil {
		return AbortMerge{}, err
	}
	return AbortMerge{
		ID: binary.BigEndian.Uint64(body[1:]), Right: base.ShardID(binary.BigEndian.Uint64(body[9:])),
		Epoch: epochAt(body[17:]),
	}, nil
}

// checkMerge checks version and length; exact false allows more bytes than want.
func checkMerge(what string, body []byte, want int, exact bool) error {
	if len(body) < want || exact && len(body) != want {
		return fmt.Errorf("%s entry with a body of %d bytes, want %d: %w", what, len(body), want, base.ErrCorrupt)
	}
	if body[0] != mergeVersion {
		return fmt.Errorf("%s entry: layout version %d, this binary knows %d: %w", what, body[0], mergeVersion,
			base.ErrCorrupt)
	}
	return nil
}

func appendEpoch(buf []byte, e base.Epoch) []byte {
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(buf, e.ConfVer), e.Version)
}

func epochAt(b []byte) base.Epoch {
	return base.Epoch{ConfVer: binary.BigEndian.Uint64(b), Version: binary.BigEndian.Uint64(b[8:])}
}
