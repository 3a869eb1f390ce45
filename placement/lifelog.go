package placement

import (
	"context"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
)

// The life of a shard: what happened to it, for people. The meta leader collects events and writes them in batches, so
// the last second before its death may be missing. A record keeps the first event and the newest ones.

// LifeKind is what happened to a shard. The numbers are part of the format.
type LifeKind uint8

// Kinds.
const (
	LifeCreated    LifeKind = 1
	LifeSplit      LifeKind = 2 // Other was split off
	LifeSplitFrom  LifeKind = 3 // it was split off Other
	LifeMerged     LifeKind = 4 // it took Other in
	LifeMergedInto LifeKind = 5 // Other took it in
	LifeReplica    LifeKind = 6
	LifeLeader     LifeKind = 7
	LifeRecovered  LifeKind = 8
)

var lifeKinds = [...]string{
	LifeCreated: "created", LifeSplit: "split", LifeSplitFrom: "split-from", LifeMerged: "merged",
	LifeMergedInto: "merged-into", LifeReplica: "replica", LifeLeader: "leader", LifeRecovered: "recovered",
}

// String returns the word that the API uses.
func (k LifeKind) String() string { return word(lifeKinds[:], int(k)) }

// LifeEvent is one line of a shard's life.
type LifeEvent struct {
	// UnixMS is the wall time of the meta leader; for people only.
	UnixMS uint64
	Kind   LifeKind
	Other  base.ShardID // 0: none
	Detail string
}

const (
	// maxLife is how many events a record keeps.
	maxLife     = 128
	maxLifeText = 256
	// lifeAtOnce is how many records one write changes.
	lifeAtOnce = 64
)

// appendLife encodes: u8 version | u16 events x { u64 unix ms | u8 kind | u64 other | text detail }.
func appendLife(buf []byte, events []LifeEvent) []byte {
	buf = binary.BigEndian.AppendUint16(append(buf, recordVersion), uint16(len(events)))
	for _, e := range events {
		buf = append(binary.BigEndian.AppendUint64(buf, e.UnixMS), byte(e.Kind))
		buf = binary.BigEndian.AppendUint64(buf, uint64(e.Other))
		buf = appendText(buf, e.Detail[:min(len(e.Detail), maxLifeText)])
	}
	return buf
}

func decodeLife(b []byte) ([]LifeEvent, error) {
	r := newReader("life of a shard", b)
	var out []LifeEvent
	for i := r.u16(); i > 0 && r.err == nil; i-- {
		e := LifeEvent{UnixMS: r.u64(), Kind: LifeKind(r.u8()), Other: base.ShardID(r.u64()), Detail: r.text()}
		if r.err == nil && (e.Kind < LifeCreated || e.Kind > LifeRecovered) {
			return nil, fmt.Errorf("life of a shard: kind %d: %w", e.Kind, base.ErrCorrupt)
		}
		out = append(out, e)
	}
	return out, r.end()
}

// Life returns up to limit events of a shard, the newest of them, oldest first.
func (d *Directory) Life(ctx context.Context, id base.ShardID, limit int) ([]LifeEvent, error) {
	v, ver, err := d.kv.Get(ctx, lifeKey(id))
	if err != nil || ver == 0 {
		return nil, err
	}
	events, err := decodeLife(v)
	if err != nil {
		return nil, err
	}
	return events[max(0, len(events)-limit):], nil
}

// AddLife adds events to the lives of shards, for the meta leader that holds the fence. ErrStale: another one does.
func (d *Directory) AddLife(ctx context.Context, f Fence, events map[base.ShardID][]LifeEvent) error {
	return d.addLife(ctx, &f, events)
}

// AddRecovered adds what a recovery of lost quorums did to shards, which needs no driver.
func (d *Directory) AddRecovered(ctx context.Context, events map[base.ShardID][]LifeEvent) error {
	return d.addLife(ctx, nil, events)
}

// addLife is AddLife, for anybody if there is no fence.
func (d *Directory) addLife(ctx context.Context, f *Fence, events map[base.ShardID][]LifeEvent) error {
	for some := range slices.Chunk(slices.Sorted(maps.Keys(events)), lifeAtOnce) {
		err := d.retry(ctx, "record the life of shards", func() ([]wire.Sub, error) {
			checks, err := d.fenced(ctx, f)
			if err != nil {
				return nil, err
			}
			var puts []wire.Sub
			for _, id := range some {
				key := lifeKey(id)
				v, ver, err := d.kv.Get(ctx, key)
				if err != nil {
					return nil, err
				}
				var life []LifeEvent
				if ver != 0 {
					if life, err = decodeLife(v); err != nil {
						return nil, err
					}
				}
				life = trimLife(append(life, events[id]...))
				checks = append(checks, checkVersion(key, ver))
				puts = append(puts, wire.Sub{Code: wire.OpPut, Key: key, Value: appendLife(nil, life)})
			}
			return append(checks, puts...), nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// trimLife keeps the first event, which says where the shard came from, and the newest ones.
func trimLife(life []LifeEvent) []LifeEvent {
	if over := len(life) - maxLife; over > 0 {
		life = slices.Delete(life, 1, 1+over)
	}
	return life
}

// TrimLives removes the lives of shards that were merged away before a wall time in Unix milliseconds. after is the last
// shard of the call before; next is 0 once all were looked at.
func (d *Directory) TrimLives(ctx context.Context, f Fence, before uint64, after base.ShardID) (
	next base.ShardID, err error) {
	_, hi := tagSpan(tagLife)
	rows, err := d.kv.Scan(ctx, lifeKey(after+1), hi, 1024, false)
	if err != nil {
		return 0, fmt.Errorf("read lives of shards: %w", err)
	}
	checks, err := d.fenced(ctx, &f)
	if err != nil {
		return 0, err
	}
	var steps []wire.Sub
	for _, r := range rows {
		life, err := decodeLife(r.Value)
		if err != nil {
			return 0, err
		}
		if n := len(life); n > 0 && life[n-1].Kind == LifeMergedInto && life[n-1].UnixMS < before {
			checks = append(checks, checkVersion(r.Key, r.Version))
			steps = append(steps, wire.Sub{Code: wire.OpDelete, Key: r.Key})
		}
	}
	if len(steps) > 0 {
		if err := d.kv.Apply(ctx, append(checks, steps...)); err != nil {
			return 0, fmt.Errorf("remove lives of merged shards: %w", err)
		}
	}
	if len(rows) < 1024 {
		return 0, nil
	}
	last := rows[len(rows)-1].Key
	return base.ShardID(binary.BigEndian.Uint64(last[len(last)-8:])), nil
}
