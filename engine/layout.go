package engine

import (
	"encoding/binary"
	"fmt"

	"github.com/shardd/shardd/internal/base"
	"go.etcd.io/etcd/raft/v3/raftpb"
)

// Stored layouts of replica state, all big-endian with the layout version first:
//
//	ReplicaMark     u8 version | u64 replica | u64 next replica
//	HardState       u8 version | u64 term | u64 vote | u64 commit
//	TruncatedState  u8 version 2 | u64 index | u64 term | conf      (version 1 had no conf)
//	AppliedState    u8 version 2 | u64 index | u64 term | u64 stamp | u64 put bytes | u64 put ops | u64 delete ops
//	                u8 parts | freeze iff parts & 1 | merges iff parts & 2 | conf   (version 1 had no parts, and no byte for them)
//	freeze          u64 merge | u64 into | u64 into conf | u64 into version | u64 index
//	merges          u64 forgotten | u8 count | count x { u64 merge | u64 shard | u64 version | u8 committed }
//	conf            u8 auto leave | u8 voters | u8 learners | u8 outgoing voters | u8 next learners | u64 ids ...
//	log entry       u8 version | u8 type | u64 term | data            (the index is in the key)
//	value           u8 version | u8 flags | u64 stamp | u64 expiry iff flags & 0x80 | user bytes
//
// Descriptors have their layout in package base, the ident in ident_layout.go. Decoders accept exactly what encoders
// write, or once wrote: one value has one encoding in each version.
const (
	layoutV1 = 1
	layoutV2 = 2

	markLen         = 1 + 8 + 8
	hardLen         = 1 + 8 + 8 + 8
	truncLenV1      = 1 + 8 + 8
	confFixedLen    = 5
	appliedFixedLen = 1 + 6*8
	freezeLen       = 5 * 8
	mergesFixedLen  = 8 + 1
	mergeLen        = 3*8 + 1
	entryHeaderLen  = 1 + 1 + 8
	valueHeaderLen  = 1 + 1 + 8
	valueExpiryLen  = 8

	flagExpiry uint8 = 0x80

	partFreeze byte = 1
	partMerges byte = 2
)

// checkLayout checks the version byte and the length; exact false allows more bytes than want.
func checkLayout(what string, b []byte, want int, exact bool) error {
	return checkVersion(what, b, layoutV1, want, exact)
}

// checkVersion is checkLayout for the newest version of a layout that has several.
func checkVersion(what string, b []byte, version byte, want int, exact bool) error {
	if len(b) == 0 {
		return fmt.Errorf("%s: empty: %w", what, ErrCorrupt)
	}
	if b[0] != version {
		return fmt.Errorf("%s: layout version %d, this binary knows %d: %w", what, b[0], version, ErrCorrupt)
	}
	if len(b) < want || (exact && len(b) != want) {
		return fmt.Errorf("%s: %d bytes, want %d: %w", what, len(b), want, ErrCorrupt)
	}
	return nil
}

func u64at(b []byte, at int) uint64 { return binary.BigEndian.Uint64(b[at:]) }

func putMark(dst []byte, m ReplicaMark) {
	_ = dst[markLen-1]
	dst[0] = layoutV1
	binary.BigEndian.PutUint64(dst[1:], uint64(m.ReplicaID))
	binary.BigEndian.PutUint64(dst[9:], uint64(m.NextReplicaID))
}

func decodeMark(b []byte) (ReplicaMark, error) {
	if err := checkLayout("replica mark", b, markLen, true); err != nil {
		return ReplicaMark{}, err
	}
	m := ReplicaMark{ReplicaID: base.ReplicaID(u64at(b, 1)), NextReplicaID: base.ReplicaID(u64at(b, 9))}
	if err := m.check(); err != nil {
		return ReplicaMark{}, fmt.Errorf("%w: %w", err, ErrCorrupt)
	}
	return m, nil
}

func putHard(dst []byte, h raftpb.HardState) {
	_ = dst[hardLen-1]
	dst[0] = layoutV1
	binary.BigEndian.PutUint64(dst[1:], h.Term)
	binary.BigEndian.PutUint64(dst[9:], h.Vote)
	binary.BigEndian.PutUint64(dst[17:], h.Commit)
}

func decodeHard(b []byte) (raftpb.HardState, error) {
	if err := checkLayout("hard state", b, hardLen, true); err != nil {
		return raftpb.HardState{}, err
	}
	return raftpb.HardState{Term: u64at(b, 1), Vote: u64at(b, 9), Commit: u64at(b, 17)}, nil
}

func truncLen(t *TruncatedState) int { return truncLenV1 + confLen(&t.Conf) }

// putTruncated fills dst, which has truncLen bytes.
func putTruncated(dst []byte, t *TruncatedState) {
	_ = dst[truncLenV1-1]
	dst[0] = layoutV2
	binary.BigEndian.PutUint64(dst[1:], t.Index)
	binary.BigEndian.PutUint64(dst[9:], t.Term)
	putConf(dst[truncLenV1:], &t.Conf)
}

func decodeTruncated(b []byte) (TruncatedState, error) {
	const what = "truncated state"
	v1 := len(b) > 0 && b[0] == layoutV1
	var err error
	if v1 {
		err = checkLayout(what, b, truncLenV1, true)
	} else {
		err = checkVersion(what, b, layoutV2, truncLenV1, false)
	}
	if err != nil {
		return TruncatedState{}, err
	}
	t := TruncatedState{Index: u64at(b, 1), Term: u64at(b, 9)}
	if !v1 {
		t.Conf, err = decodeConf(what, b[truncLenV1:])
	}
	if err != nil {
		return TruncatedState{}, err
	}
	return t, nil
}

// maxConfIDs bounds each list of a ConfState, so that a count fits its byte.
const maxConfIDs = 255

func checkConf(c *raftpb.ConfState) error {
	for _, ids := range [][]uint64{c.Voters, c.Learners, c.VotersOutgoing, c.LearnersNext} {
		if len(ids) > maxConfIDs {
			return fmt.Errorf("configuration with %d replicas in one list, at most %d", len(ids), maxConfIDs)
		}
	}
	return nil
}

func confLen(c *raftpb.ConfState) int {
	return confFixedLen + 8*(len(c.Voters)+len(c.Learners)+len(c.VotersOutgoing)+len(c.LearnersNext))
}

// putConf fills dst, which has confLen bytes.
func putConf(dst []byte, c *raftpb.ConfState) {
	_ = dst[confFixedLen-1]
	dst[0] = 0
	if c.AutoLeave {
		dst[0] = 1
	}
	at := 1
	lists := [...][]uint64{c.Voters, c.Learners, c.VotersOutgoing, c.LearnersNext}
	for _, ids := range lists {
		dst[at] = byte(len(ids))
		at++
	}
	for _, ids := range lists {
		for _, id := range ids {
			binary.BigEndian.PutUint64(dst[at:], id)
			at += 8
		}
	}
}

// decodeConf reads a configuration that takes all of b.
func decodeConf(what string, b []byte) (c raftpb.ConfState, err error) {
	if len(b) < confFixedLen {
		return c, fmt.Errorf("%s: %d bytes of configuration, want %d: %w", what, len(b), confFixedLen, ErrCorrupt)
	}
	if b[0] > 1 {
		return c, fmt.Errorf("%s: auto leave is %d: %w", what, b[0], ErrCorrupt)
	}
	counts := b[1:confFixedLen]
	total := int(counts[0]) + int(counts[1]) + int(counts[2]) + int(counts[3])
	if want := confFixedLen + 8*total; len(b) != want {
		return c, fmt.Errorf("%s: %d bytes of configuration, want %d: %w", what, len(b), want, ErrCorrupt)
	}
	c.AutoLeave = b[0] == 1
	at := confFixedLen
	lists := [...]*[]uint64{&c.Voters, &c.Learners, &c.VotersOutgoing, &c.LearnersNext}
	for i, ids := range lists {
		for range counts[i] {
			*ids = append(*ids, u64at(b, at))
			at += 8
		}
	}
	return c, nil
}

func appliedLen(a *AppliedState) int {
	n := appliedFixedLen + 1 + confLen(&a.Conf)
	if a.Freeze != nil {
		n += freezeLen
	}
	if hasMerges(a) {
		n += mergesFixedLen + len(a.Merges)*mergeLen
	}
	return n
}

func hasMerges(a *AppliedState) bool { return len(a.Merges) > 0 || a.MergesForgotten > 0 }

func checkApplied(a *AppliedState) error {
	if len(a.Merges) > MaxMerges {
		return fmt.Errorf("%d decided merges, at most %d", len(a.Merges), MaxMerges)
	}
	return checkConf(&a.Conf)
}

// putApplied fills dst, which has appliedLen bytes.
func putApplied(dst []byte, a *AppliedState) {
	_ = dst[appliedFixedLen]
	dst[0] = layoutV2
	at := 1
	put := func(vs ...uint64) {
		for _, v := range vs {
			binary.BigEndian.PutUint64(dst[at:], v)
			at += 8
		}
	}
	put(a.Index, a.Term, a.Stamp, a.Stats.PutBytes, a.Stats.PutOps, a.Stats.DeleteOps)
	parts := &dst[at]
	*parts = 0
	at++
	if f := a.Freeze; f != nil {
		*parts |= partFreeze
		put(f.ID, uint64(f.Into), f.IntoEpoch.ConfVer, f.IntoEpoch.Version, f.Index)
	}
	if hasMerges(a) {
		*parts |= partMerges
		put(a.MergesForgotten)
		dst[at] = byte(len(a.Merges))
		at++
		for _, m := range a.Merges {
			put(m.ID, uint64(m.Shard), m.Version)
			dst[at] = 0
			if m.Committed {
				dst[at] = 1
			}
			at++
		}
	}
	putConf(dst[at:], &a.Conf)
}

func decodeApplied(b []byte) (AppliedState, error) {
	const what = "applied state"
	v1 := len(b) > 0 && b[0] == layoutV1
	var err error
	if v1 {
		err = checkLayout(what, b, appliedFixedLen, false)
	} else {
		err = checkVersion(what, b, layoutV2, appliedFixedLen+1, false)
	}
	if err != nil {
		return AppliedState{}, err
	}
	a := AppliedState{
		Index: u64at(b, 1), Term: u64at(b, 9), Stamp: u64at(b, 17),
		Stats: Stats{PutBytes: u64at(b, 25), PutOps: u64at(b, 33), DeleteOps: u64at(b, 41)},
	}
	rest := b[appliedFixedLen:]
	if !v1 {
		if rest, err = decodeParts(what, &a, rest); err != nil {
			return AppliedState{}, err
		}
	}
	if a.Conf, err = decodeConf(what, rest); err != nil {
		return AppliedState{}, err
	}
	return a, nil
}

// decodeParts reads the parts that most shards do not have, and returns what follows them.
func decodeParts(what string, a *AppliedState, b []byte) (rest []byte, err error) {
	fail := func(why string) ([]byte, error) { return nil, fmt.Errorf("%s: %s: %w", what, why, ErrCorrupt) }
	parts, b := b[0], b[1:]
	if parts&^(partFreeze|partMerges) != 0 {
		return fail("unknown parts")
	}
	if parts&partFreeze != 0 {
		if len(b) < freezeLen {
			return fail("its freeze is cut off")
		}
		a.Freeze = &Freeze{
			ID: u64at(b, 0), Into: base.ShardID(u64at(b, 8)),
			IntoEpoch: base.Epoch{ConfVer: u64at(b, 16), Version: u64at(b, 24)}, Index: u64at(b, 32),
		}
		b = b[freezeLen:]
	}
	if parts&partMerges == 0 {
		return b, nil
	}
	if len(b) < mergesFixedLen || b[8] > MaxMerges || len(b) < mergesFixedLen+int(b[8])*mergeLen {
		return fail("its merges are cut off, or too many")
	}
	n := int(b[8])
	a.MergesForgotten = u64at(b, 0)
	if n == 0 && a.MergesForgotten == 0 {
		return fail("no merges in their part")
	}
	b = b[mergesFixedLen:]
	for ; n > 0; n-- {
		if b[24] > 1 {
			return fail("a merge is neither committed nor aborted")
		}
		a.Merges = append(a.Merges, MergeRecord{
			ID: u64at(b, 0), Shard: base.ShardID(u64at(b, 8)), Version: u64at(b, 16), Committed: b[24] == 1,
		})
		b = b[mergeLen:]
	}
	return b, nil
}

func putEntryHeader(dst []byte, typ raftpb.EntryType, term uint64) {
	_ = dst[entryHeaderLen-1]
	dst[0], dst[1] = layoutV1, byte(typ)
	binary.BigEndian.PutUint64(dst[2:], term)
}

// decodeEntry reads a log entry; its Data points into b.
func decodeEntry(index uint64, b []byte) (raftpb.Entry, error) {
	if err := checkLayout("log entry", b, entryHeaderLen, false); err != nil {
		return raftpb.Entry{}, err
	}
	if b[1] > byte(raftpb.EntryConfChangeV2) {
		return raftpb.Entry{}, fmt.Errorf("log entry %d: type %d: %w", index, b[1], ErrCorrupt)
	}
	e := raftpb.Entry{Index: index, Type: raftpb.EntryType(b[1]), Term: u64at(b, 2)}
	if len(b) > entryHeaderLen {
		e.Data = b[entryHeaderLen:]
	}
	return e, nil
}

func valueLen(h ValueHeader, user int) int {
	if h.Expiry != 0 {
		return valueHeaderLen + valueExpiryLen + user
	}
	return valueHeaderLen + user
}

// putValue fills dst, which has valueLen bytes.
func putValue(dst []byte, h ValueHeader, user []byte) {
	_ = dst[valueHeaderLen-1]
	dst[0], dst[1] = layoutV1, h.Flags&^flagExpiry
	binary.BigEndian.PutUint64(dst[2:], h.Version)
	at := valueHeaderLen
	if h.Expiry != 0 {
		dst[1] |= flagExpiry
		binary.BigEndian.PutUint64(dst[at:], h.Expiry)
		at += valueExpiryLen
	}
	copy(dst[at:], user)
}

// decodeValue splits a stored value; user points into b.
func decodeValue(b []byte) (h ValueHeader, user []byte, err error) {
	if err := checkLayout("value", b, valueHeaderLen, false); err != nil {
		return ValueHeader{}, nil, err
	}
	h = ValueHeader{Flags: b[1] &^ flagExpiry, Version: u64at(b, 2)}
	user = b[valueHeaderLen:]
	if b[1]&flagExpiry != 0 {
		if len(user) < valueExpiryLen {
			return ValueHeader{}, nil, fmt.Errorf("value: %d bytes, too short for its expiry: %w", len(b), ErrCorrupt)
		}
		h.Expiry = u64at(user, 0)
		if h.Expiry == 0 {
			return ValueHeader{}, nil, fmt.Errorf("value: expiry flag with expiry 0: %w", ErrCorrupt)
		}
		user = user[valueExpiryLen:]
	}
	return h, user, nil
}
