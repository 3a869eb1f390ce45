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
//	AppliedState    u8 version | u64 index | u64 term | u64 stamp | u64 put bytes | u64 put ops | u64 delete ops | conf
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
	entryHeaderLen  = 1 + 1 + 8
	valueHeaderLen  = 1 + 1 + 8
	valueExpiryLen  = 8

	flagExpiry uint8 = 0x80
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

func appliedLen(a *AppliedState) int { return appliedFixedLen + confLen(&a.Conf) }

// putApplied fills dst, which has appliedLen bytes.
func putApplied(dst []byte, a *AppliedState) {
	_ = dst[appliedFixedLen-1]
	dst[0] = layoutV1
	at := 1
	for _, v := range [...]uint64{a.Index, a.Term, a.Stamp, a.Stats.PutBytes, a.Stats.PutOps, a.Stats.DeleteOps} {
		binary.BigEndian.PutUint64(dst[at:], v)
		at += 8
	}
	putConf(dst[appliedFixedLen:], &a.Conf)
}

func decodeApplied(b []byte) (AppliedState, error) {
	const what = "applied state"
	if err := checkLayout(what, b, appliedFixedLen, false); err != nil {
		return AppliedState{}, err
	}
	conf, err := decodeConf(what, b[appliedFixedLen:])
	if err != nil {
		return AppliedState{}, err
	}
	return AppliedState{
		Index: u64at(b, 1), Term: u64at(b, 9), Stamp: u64at(b, 17), Conf: conf,
		Stats: Stats{PutBytes: u64at(b, 25), PutOps: u64at(b, 33), DeleteOps: u64at(b, 41)},
	}, nil
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
