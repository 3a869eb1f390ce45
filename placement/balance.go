package placement

import (
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"time"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
)

// Part is a part of the placement driver that can be paused on its own. The numbers are bits of the format.
type Part uint16

// Parts.
const (
	PartAll      Part = 1 << 0
	PartSplit    Part = 1 << 1
	PartMerge    Part = 1 << 2
	PartReplicas Part = 1 << 3
	PartLeaders  Part = 1 << 4
	PartHot      Part = 1 << 5
	PartRepair   Part = 1 << 6

	allParts = PartAll | PartSplit | PartMerge | PartReplicas | PartLeaders | PartHot | PartRepair
)

var partNames = []string{"all", "split", "merge", "replicas", "leaders", "hot", "repair"}

// ParsePart is the part of a name of the API; the error wraps ErrInvalid and lists the names.
func ParsePart(s string) (Part, error) {
	i := slices.Index(partNames, s)
	if i < 0 {
		return 0, fmt.Errorf("unknown part of the driver %.32q, want one of %q: %w", s, partNames, ErrInvalid)
	}
	return 1 << i, nil
}

// Names lists the parts of a set in the words of the API.
func (p Part) Names() (out []string) {
	for i, name := range partNames {
		if p&(1<<i) != 0 {
			out = append(out, name)
		}
	}
	return out
}

// Balance is what people have set of the placement driver, for the whole cluster. A limit of 0 is left to the settings
// of the node that drives.
type Balance struct {
	Paused Part
	BalanceLimits
}

// BalanceLimits bound what the driver does and say when it does it.
type BalanceLimits struct {
	// Operators is how many run at once, NodeSnapshots and NodeTransfers how many of them one node takes part in.
	Operators, NodeSnapshots, NodeTransfers uint32
	// DownAfter is how long a node may be silent before its replicas are replaced.
	DownAfter time.Duration
	// SplitBytes is the size above which a shard is split, MergeBytes that below which cold neighbours are merged.
	SplitBytes, MergeBytes uint64
	// MergeAge is how long after a split or merge a shard is left in one piece.
	MergeAge time.Duration
	// SplitRequests is the load above which a shard is split, in requests per second; the record holds thousandths.
	SplitRequests float64
}

// Or returns the limits with those of o where l has none.
func (l BalanceLimits) Or(o BalanceLimits) BalanceLimits {
	pick := func(a, b uint32) uint32 {
		if a != 0 {
			return a
		}
		return b
	}
	out := BalanceLimits{
		Operators: pick(l.Operators, o.Operators), NodeSnapshots: pick(l.NodeSnapshots, o.NodeSnapshots),
		NodeTransfers: pick(l.NodeTransfers, o.NodeTransfers), DownAfter: l.DownAfter, SplitBytes: l.SplitBytes,
		MergeBytes: l.MergeBytes, MergeAge: l.MergeAge, SplitRequests: l.SplitRequests,
	}
	if out.DownAfter == 0 {
		out.DownAfter = o.DownAfter
	}
	if out.SplitBytes == 0 {
		out.SplitBytes = o.SplitBytes
	}
	if out.MergeBytes == 0 {
		out.MergeBytes = o.MergeBytes
	}
	if out.MergeAge == 0 {
		out.MergeAge = o.MergeAge
	}
	if out.SplitRequests == 0 {
		out.SplitRequests = o.SplitRequests
	}
	return out
}

// Append encodes:
//
//	u8 version | u16 paused | u32 operators | u32 node snapshots | u32 node transfers | u64 down after ms
//	u64 split bytes | u64 merge bytes | u64 merge age ms | u64 split requests x 1000
func (b *Balance) Append(buf []byte) []byte {
	u32, u64 := binary.BigEndian.AppendUint32, binary.BigEndian.AppendUint64
	buf = binary.BigEndian.AppendUint16(append(buf, recordVersion), uint16(b.Paused))
	buf = u32(u32(u32(buf, b.Operators), b.NodeSnapshots), b.NodeTransfers)
	buf = u64(u64(buf, uint64(b.DownAfter.Milliseconds())), b.SplitBytes)
	buf = u64(u64(buf, b.MergeBytes), uint64(b.MergeAge.Milliseconds()))
	return u64(buf, uint64(b.SplitRequests*1000))
}

// DecodeBalance is the reverse of Append; errors wrap base.ErrCorrupt.
func DecodeBalance(buf []byte) (Balance, error) {
	r := newReader("balance record", buf)
	b := Balance{Paused: Part(r.u16())}
	b.Operators, b.NodeSnapshots, b.NodeTransfers = uint32(r.u32()), uint32(r.u32()), uint32(r.u32())
	b.DownAfter, b.SplitBytes = r.millis(), r.u64()
	b.MergeBytes, b.MergeAge = r.u64(), r.millis()
	b.SplitRequests = float64(r.u64()) / 1000
	if err := r.end(); err != nil {
		return Balance{}, err
	}
	if b.Paused&^allParts != 0 {
		return Balance{}, fmt.Errorf("balance record: unknown parts %#x: %w", uint16(b.Paused), base.ErrCorrupt)
	}
	return b, nil
}

// maxMillis bounds durations in records: a hundred years.
const maxMillis = 100 * 365 * 24 * 3600 * 1000

func (r *reader) millis() time.Duration {
	ms := r.u64()
	if r.err == nil && ms > maxMillis {
		r.err = fmt.Errorf("%s: %d ms: %w", r.what, ms, base.ErrCorrupt)
	}
	return time.Duration(ms) * time.Millisecond
}

// Validate checks what people may set; the error wraps ErrInvalid.
func (b *Balance) Validate() error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf(format+": %w", append(args, ErrInvalid)...)
	}
	switch {
	case b.DownAfter < 0 || b.DownAfter.Milliseconds() > maxMillis || b.DownAfter > 0 && b.DownAfter < AliveFor:
		return bad("a node counts as lost after %s, want %s at least: it reports each second", b.DownAfter, AliveFor)
	case b.MergeAge < 0 || b.MergeAge.Milliseconds() > maxMillis:
		return bad("merge age %s", b.MergeAge)
	case b.SplitBytes != 0 && b.SplitBytes < minSplitBytes:
		return bad("split size of %d bytes, want %d at least", b.SplitBytes, minSplitBytes)
	case b.SplitBytes != 0 && b.MergeBytes > b.SplitBytes/4:
		return bad("shards below %d bytes would merge and above %d split: want at most a quarter", b.MergeBytes, b.SplitBytes)
	case !(b.SplitRequests >= 0 && b.SplitRequests <= 1e12):
		return bad("split at %g requests per second", b.SplitRequests)
	}
	return nil
}

// minSplitBytes keeps a typing error from cutting the cluster into crumbs.
const minSplitBytes = 64 << 10

// Balance returns what people have set of the driver.
func (d *Directory) Balance(ctx context.Context) (Balance, error) {
	b, _, err := d.balance(ctx)
	return b, err
}

func (d *Directory) balance(ctx context.Context) (Balance, uint64, error) {
	v, ver, err := d.kv.Get(ctx, balanceKey())
	if err != nil || ver == 0 {
		return Balance{}, 0, err
	}
	b, err := DecodeBalance(v)
	return b, ver, err
}

// UpdateBalance changes what is set of the driver and returns it as it is then.
func (d *Directory) UpdateBalance(ctx context.Context, change func(*Balance) error) (Balance, error) {
	var out Balance
	err := d.retry(ctx, "change the driver's settings", func() ([]wire.Sub, error) {
		b, ver, err := d.balance(ctx)
		if err != nil {
			return nil, err
		}
		out = b
		if err := change(&out); err != nil {
			return nil, err
		}
		if err := out.Validate(); err != nil || out == b {
			return nil, err
		}
		return []wire.Sub{
			checkVersion(balanceKey(), ver), {Code: wire.OpPut, Key: balanceKey(), Value: out.Append(nil)},
		}, nil
	})
	return out, err
}
