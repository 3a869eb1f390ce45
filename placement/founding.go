package placement

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/shardd/shardd/internal/base"
)

// ReplicationFactor is how many of the founding nodes get a replica of each first shard, if there are as many.
const ReplicationFactor = 3

// maxFounding bounds the encoded founding record in bytes: it is one value of the meta shard.
const maxFounding = base.MaxValueSize

// ErrInvalid marks a request that no retry can make valid; the wrapping error says what to mend.
var ErrInvalid = errors.New("invalid request")

// Founding is everything that the first contents of a cluster depend on. It is kept in the meta shard until every
// founding node and every first shard exists, so that any interrupted Init is finished by whoever finds it: Contents is
// a pure function of it, and a node that is adopted late starts from exactly the bytes that the others started from.
type Founding struct {
	Cluster Cluster
	// Nodes in the order of their ids; the first is the founder.
	Nodes []Node
	// Splits are user keys, sorted, without duplicates.
	Splits [][]byte
}

// Pair is one key with its value. Key is a routing key.
type Pair struct{ Key, Value []byte }

// NewFounding gives the nodes ids from 1 in their order, and sorts the split keys. Errors wrap ErrInvalid.
func NewFounding(c Cluster, nodes []Node, splits [][]byte) (*Founding, error) {
	f := &Founding{Cluster: c, Nodes: slices.Clone(nodes)}
	if len(nodes) == 0 {
		return nil, fmt.Errorf("no nodes: %w", ErrInvalid)
	}
	for i := range f.Nodes {
		f.Nodes[i].ID, f.Nodes[i].Incarnation = base.StoreID(i+1), 0
		if err := f.Nodes[i].Validate(); err != nil {
			return nil, fmt.Errorf("%w: %w", err, ErrInvalid)
		}
	}
	for _, s := range splits {
		if len(s) == 0 || len(s) > MaxSplitKey {
			return nil, fmt.Errorf("split key of %d bytes, want 1 to %d: %w", len(s), MaxSplitKey, ErrInvalid)
		}
		f.Splits = append(f.Splits, bytes.Clone(s))
	}
	slices.SortFunc(f.Splits, bytes.Compare)
	f.Splits = slices.CompactFunc(f.Splits, bytes.Equal)
	if n := len(f.Append(nil)); n > maxFounding {
		return nil, fmt.Errorf("nodes and split keys take %d bytes, at most %d: make fewer first shards: %w",
			n, maxFounding, ErrInvalid)
	}
	return f, nil
}

// Append encodes:
//
//	u8 version | u32 length | cluster record | u32 nodes | nodes x { u32 length | node record }
//	u32 splits | splits x text
func (f *Founding) Append(buf []byte) []byte {
	sized := func(app func([]byte) []byte) {
		at := len(buf)
		buf = app(append(buf, 0, 0, 0, 0))
		binary.BigEndian.PutUint32(buf[at:], uint32(len(buf)-at-4))
	}
	buf = append(buf, recordVersion)
	sized(f.Cluster.Append)
	buf = binary.BigEndian.AppendUint32(buf, uint32(len(f.Nodes)))
	for i := range f.Nodes {
		sized(f.Nodes[i].Append)
	}
	buf = binary.BigEndian.AppendUint32(buf, uint32(len(f.Splits)))
	for _, s := range f.Splits {
		buf = appendText(buf, string(s))
	}
	return buf
}

// DecodeFounding is the reverse of Append; errors wrap base.ErrCorrupt.
func DecodeFounding(b []byte) (*Founding, error) {
	r := newReader("founding record", b)
	f := &Founding{}
	var err error
	if f.Cluster, err = DecodeCluster(r.bytes(r.u32())); err != nil && r.err == nil {
		return nil, err
	}
	for i := r.u32(); i > 0 && r.err == nil; i-- {
		n, err := DecodeNode(r.bytes(r.u32()))
		if err != nil && r.err == nil {
			return nil, err
		}
		f.Nodes = append(f.Nodes, n)
	}
	for i := r.u32(); i > 0 && r.err == nil; i-- {
		s := bytes.Clone(r.bytes(r.u16()))
		if r.err == nil && (len(s) == 0 || len(s) > MaxSplitKey ||
			len(f.Splits) > 0 && bytes.Compare(f.Splits[len(f.Splits)-1], s) >= 0) {
			return nil, fmt.Errorf("founding record: split keys out of order: %w", base.ErrCorrupt)
		}
		f.Splits = append(f.Splits, s)
	}
	if err := r.end(); err != nil {
		return nil, err
	}
	for i, n := range f.Nodes {
		if n.ID != base.StoreID(i+1) {
			return nil, fmt.Errorf("founding record: node %s at place %d: %w", n.ID, i+1, base.ErrCorrupt)
		}
	}
	if len(f.Nodes) == 0 {
		return nil, fmt.Errorf("founding record: no nodes: %w", base.ErrCorrupt)
	}
	return f, nil
}

// Descriptors returns the meta shard's descriptor and those of the user shards in key order. The replicas rotate over
// the nodes, so that leaders spread: the replica listed first is the one that campaigns.
func (f *Founding) Descriptors() (meta *base.Descriptor, shards []*base.Descriptor) {
	meta = f.descriptor(base.MetaShard, base.SystemStart(), base.SystemEnd(), 0)
	start := base.UserStart()
	for i := range len(f.Splits) + 1 {
		end := base.UserEnd()
		if i < len(f.Splits) {
			end = base.UserKey(f.Splits[i])
		}
		shards = append(shards, f.descriptor(base.MetaShard+1+base.ShardID(i), start, end, i))
		start = end
	}
	return meta, shards
}

func (f *Founding) descriptor(id base.ShardID, start, end []byte, first int) *base.Descriptor {
	d := &base.Descriptor{Shard: id, Start: start, End: end, Epoch: base.Epoch{ConfVer: 1, Version: 1}, NextReplicaID: 1}
	for j := range min(ReplicationFactor, len(f.Nodes)) {
		d.Replicas = append(d.Replicas, base.ReplicaDesc{
			Replica: d.NextReplicaID, Store: f.Nodes[(first+j)%len(f.Nodes)].ID, Role: base.RoleVoter,
		})
		d.NextReplicaID++
	}
	return d
}

// Contents returns the first contents of the meta shard, sorted by key.
func (f *Founding) Contents() []Pair {
	meta, shards := f.Descriptors()
	pairs := []Pair{
		{ClusterKey(), f.Cluster.Append(nil)},
		{FoundingKey(), f.Append(nil)},
		{counterKey(ShardIDs), appendNumber(nil, uint64(base.MetaShard)+1+uint64(len(shards)))},
		{counterKey(NodeIDs), appendNumber(nil, uint64(len(f.Nodes))+1)},
		{indexKey(meta.End), (&Shard{Desc: meta}).Append(nil)},
	}
	for i := range f.Nodes {
		pairs = append(pairs, Pair{NodeKey(f.Nodes[i].ID), f.Nodes[i].Append(nil)})
	}
	for _, d := range shards {
		pairs = append(pairs, Pair{indexKey(d.End), (&Shard{Desc: d, Creating: true}).Append(nil)})
	}
	slices.SortFunc(pairs, func(a, b Pair) int { return bytes.Compare(a.Key, b.Key) })
	return pairs
}
