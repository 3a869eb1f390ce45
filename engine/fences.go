package engine

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/shardd/shardd/internal/base"
)

// Fences and recoveries. A fence is a tombstone for a store that is gone for good: nothing of it is listened to any
// more. A recovery makes shards that have lost their quorum new from what is left; every surviving store keeps where it
// stands. Both are in the store span, since the meta shard may be among what is lost, and each change is one synced
// step: a store that says that it has fenced others has them on disk.
//
//	fence     u8 version | u64 recovery | u32 crc                       (the store is in the key; recovery 0: it was removed)
//	recovery  u8 version | u64 id | u64 coordinator | u8 stage | 32 token | u16 failed | u16 survivors
//	          | u64 stores ... | u32 crc

// RecoveryStage is how far a recovery has come. The numbers are part of the format.
type RecoveryStage uint8

// Stages, in order; the last three are ends. Up to RecoveryFence a recovery can be called off without a trace.
const (
	RecoveryFence     RecoveryStage = 1 // the failed stores are being fenced, on every survivor
	RecoveryMeta      RecoveryStage = 2 // the meta shard is being made new
	RecoveryShards    RecoveryStage = 3 // the other shards
	RecoveryDone      RecoveryStage = 4
	RecoveryCancelled RecoveryStage = 5 // called off, the fences are lifted
	RecoveryStopped   RecoveryStage = 6 // stopped on the way, the fences stay
)

// String returns the word that the API uses.
func (s RecoveryStage) String() string {
	names := [...]string{RecoveryFence: "fence", RecoveryMeta: "meta", RecoveryShards: "shards", RecoveryDone: "done",
		RecoveryCancelled: "cancelled", RecoveryStopped: "stopped"}
	if s >= RecoveryFence && int(s) < len(names) {
		return names[s]
	}
	return fmt.Sprintf("stage(%d)", uint8(s))
}

// Ended reports whether nothing is left to do.
func (s RecoveryStage) Ended() bool { return s >= RecoveryDone }

// Recovery is the record of a recovery of lost quorums. One with a higher ID takes the place of one with a lower: what
// the lower one still asks for is refused.
type Recovery struct {
	ID          uint64
	Coordinator base.StoreID // who carries it out
	Stage       RecoveryStage
	Token       [32]byte       // of the plan that was confirmed
	Failed      []base.StoreID // ascending
	Survivors   []base.StoreID // ascending
}

func (r *Recovery) check() error {
	switch {
	case r.ID == 0 || r.Coordinator == 0:
		return fmt.Errorf("recovery %d of coordinator %s", r.ID, r.Coordinator)
	case r.Stage < RecoveryFence || r.Stage > RecoveryStopped:
		return fmt.Errorf("recovery %d in %s", r.ID, r.Stage)
	case len(r.Failed) == 0 || len(r.Survivors) == 0:
		return fmt.Errorf("recovery %d with %d failed stores and %d survivors", r.ID, len(r.Failed), len(r.Survivors))
	case len(r.Failed) > maxFences || len(r.Survivors) > maxFences:
		return fmt.Errorf("recovery %d with over %d stores", r.ID, maxFences)
	}
	for _, list := range [][]base.StoreID{r.Failed, r.Survivors} {
		for i, s := range list {
			if s == 0 || i > 0 && s <= list[i-1] {
				return fmt.Errorf("recovery %d: stores out of order", r.ID)
			}
		}
	}
	return nil
}

// Fence says that a store is gone for good.
type Fence struct {
	Store    base.StoreID
	Recovery uint64 // the recovery that it was given up in; 0: it was removed from the cluster
}

const (
	fenceLen      = 1 + 8 + crcLen
	recoveryFixed = 1 + 8 + 8 + 1 + 32 + 2 + 2
	maxFences     = 1 << 12 // stores in one list
)

// FenceChange is one synced change of the fences and of the recovery's record.
type FenceChange struct {
	Add  []Fence
	Lift []base.StoreID
	// Recovery becomes the record, if it is given. One with an ID below that of the present one is refused.
	Recovery *Recovery
}

// StaleRecoveryError refuses what an earlier recovery asks for.
type StaleRecoveryError struct{ Have, Asked uint64 }

func (e *StaleRecoveryError) Error() string {
	return fmt.Sprintf("recovery %d has been taken over by recovery %d", e.Asked, e.Have)
}

// ChangeFences makes a change, and returns when it is durable. *StaleRecoveryError: a later recovery is on record.
func (e *Engine) ChangeFences(c FenceChange) error {
	if c.Recovery != nil {
		if err := c.Recovery.check(); err != nil {
			return fmt.Errorf("record recovery: %w", err)
		}
	}
	return e.changeIdent(func(id *Ident, b *Batch) (changed bool, err error) {
		if !e.ident.mu.have {
			return false, errors.New("fence stores: the store has no ident yet")
		}
		if c.Recovery != nil && id.Recovery != nil && c.Recovery.ID < id.Recovery.ID {
			return false, &StaleRecoveryError{Have: id.Recovery.ID, Asked: c.Recovery.ID}
		}
		fences := slices.Clone(id.Fences)
		for _, f := range c.Add {
			if f.Store == 0 || f.Store == id.Store {
				return false, fmt.Errorf("fence stores: %s cannot be fenced by %s", f.Store, id.Store)
			}
			i, found := findFence(fences, f.Store)
			if found {
				continue // the first word stands
			}
			fences, changed = slices.Insert(fences, i, f), true
			setRecord(b, fenceKey(f.Store), appendFence(nil, f))
		}
		for _, s := range c.Lift {
			if i, found := findFence(fences, s); found {
				fences, changed = slices.Delete(fences, i, i+1), true
				b.deleteLocal(fenceKey(s))
			}
		}
		if c.Recovery != nil {
			r := c.Recovery.clone()
			next := appendRecovery(nil, r)
			if id.Recovery == nil || string(next) != string(appendRecovery(nil, id.Recovery)) {
				setRecord(b, recoveryKey(), next)
				id.Recovery, changed = r, true
			}
		}
		id.Fences = fences
		return changed, nil
	})
}

func findFence(fences []Fence, s base.StoreID) (int, bool) {
	return slices.BinarySearchFunc(fences, s, func(f Fence, s base.StoreID) int {
		return cmpUint(uint64(f.Store), uint64(s))
	})
}

func (r *Recovery) clone() *Recovery {
	c := *r
	c.Failed, c.Survivors = slices.Clone(r.Failed), slices.Clone(r.Survivors)
	return &c
}

func appendFence(b []byte, f Fence) []byte {
	start := len(b)
	b = append(b, layoutV1)
	b = binary.BigEndian.AppendUint64(b, f.Recovery)
	return append(b[:start], sealCRC(b[start:])...)
}

func decodeFence(store base.StoreID, b []byte) (Fence, error) {
	const what = "fence"
	body, err := openCRC(what, b)
	if err != nil {
		return Fence{}, err
	}
	if err := checkLayout(what, body, fenceLen-crcLen, true); err != nil {
		return Fence{}, err
	}
	return Fence{Store: store, Recovery: u64at(body, 1)}, nil
}

func appendRecovery(b []byte, r *Recovery) []byte {
	start := len(b)
	b = append(b, layoutV1)
	b = binary.BigEndian.AppendUint64(b, r.ID)
	b = binary.BigEndian.AppendUint64(b, uint64(r.Coordinator))
	b = append(b, byte(r.Stage))
	b = append(b, r.Token[:]...)
	b = binary.BigEndian.AppendUint16(b, uint16(len(r.Failed)))
	b = binary.BigEndian.AppendUint16(b, uint16(len(r.Survivors)))
	for _, list := range [][]base.StoreID{r.Failed, r.Survivors} {
		for _, s := range list {
			b = binary.BigEndian.AppendUint64(b, uint64(s))
		}
	}
	return append(b[:start], sealCRC(b[start:])...)
}

func decodeRecovery(b []byte) (*Recovery, error) {
	const what = "recovery record"
	body, err := openCRC(what, b)
	if err != nil {
		return nil, err
	}
	if err := checkLayout(what, body, recoveryFixed, false); err != nil {
		return nil, err
	}
	r := &Recovery{
		ID: u64at(body, 1), Coordinator: base.StoreID(u64at(body, 9)), Stage: RecoveryStage(body[17]),
		Token: [32]byte(body[18:50]),
	}
	failed, survivors := int(binary.BigEndian.Uint16(body[50:])), int(binary.BigEndian.Uint16(body[52:]))
	if len(body) != recoveryFixed+8*(failed+survivors) {
		return nil, fmt.Errorf("%s: %d bytes for %d stores: %w", what, len(b), failed+survivors, ErrCorrupt)
	}
	for i := range failed + survivors {
		s := base.StoreID(u64at(body, recoveryFixed+8*i))
		if i < failed {
			r.Failed = append(r.Failed, s)
		} else {
			r.Survivors = append(r.Survivors, s)
		}
	}
	if err := r.check(); err != nil {
		return nil, fmt.Errorf("%s: %w: %w", what, err, ErrCorrupt)
	}
	return r, nil
}
