package placement

import (
	"encoding/binary"
	"fmt"
	"maps"
	"slices"

	"github.com/shardd/shardd/internal/base"
)

// recordVersion is the first byte of every record; a binary refuses one that it does not know.
const recordVersion = 1

// Limits of a node's texts, in bytes, and of its labels.
const (
	maxText   = 1024
	maxLabels = 64
)

// Cluster is the record of the cluster itself.
type Cluster struct {
	ID base.ClusterID
	// CreatedMS is the wall time of Init in Unix milliseconds; for people only.
	CreatedMS uint64
}

// Append encodes: u8 version | 16 cluster id | u64 created ms.
func (c *Cluster) Append(buf []byte) []byte {
	buf = append(buf, recordVersion)
	buf = append(buf, c.ID[:]...)
	return binary.BigEndian.AppendUint64(buf, c.CreatedMS)
}

// DecodeCluster is the reverse of Append; errors wrap base.ErrCorrupt.
func DecodeCluster(b []byte) (Cluster, error) {
	r := newReader("cluster record", b)
	var c Cluster
	copy(c.ID[:], r.bytes(len(c.ID)))
	c.CreatedMS = r.u64()
	return c, r.end()
}

// Node is the record of one node.
type Node struct {
	ID base.StoreID
	// Incarnation of the node's last registration; 0 before the first.
	Incarnation uint64
	Address     string
	HTTP        string
	Version     string
	Labels      map[string]string
}

// Validate checks the limits; the error names the field.
func (n *Node) Validate() error {
	switch {
	case n.Address == "":
		return fmt.Errorf("node %s: empty address", n.ID)
	case len(n.Address) > maxText || len(n.HTTP) > maxText || len(n.Version) > maxText:
		return fmt.Errorf("node %s: address, http address or version over %d bytes", n.ID, maxText)
	case len(n.Labels) > maxLabels:
		return fmt.Errorf("node %s: %d labels, at most %d", n.ID, len(n.Labels), maxLabels)
	}
	for k, v := range n.Labels {
		if k == "" || len(k) > maxText || len(v) > maxText {
			return fmt.Errorf("node %s: label %.32q is empty or over %d bytes", n.ID, k, maxText)
		}
	}
	return nil
}

// Equal reports whether the two records have the same content.
func (n *Node) Equal(o *Node) bool {
	return n.ID == o.ID && n.Incarnation == o.Incarnation && n.Address == o.Address && n.HTTP == o.HTTP &&
		n.Version == o.Version && maps.Equal(n.Labels, o.Labels)
}

// Append encodes, with labels in key order:
//
//	u8 version | u64 id | u64 incarnation | text address | text http | text version
//	u16 labels | labels x { text | text }
//
// where a text is u16 length and bytes.
func (n *Node) Append(buf []byte) []byte {
	buf = append(buf, recordVersion)
	buf = binary.BigEndian.AppendUint64(buf, uint64(n.ID))
	buf = binary.BigEndian.AppendUint64(buf, n.Incarnation)
	buf = appendText(buf, n.Address)
	buf = appendText(buf, n.HTTP)
	buf = appendText(buf, n.Version)
	buf = binary.BigEndian.AppendUint16(buf, uint16(len(n.Labels)))
	for _, k := range slices.Sorted(maps.Keys(n.Labels)) {
		buf = appendText(buf, k)
		buf = appendText(buf, n.Labels[k])
	}
	return buf
}

// DecodeNode is the reverse of Append; errors wrap base.ErrCorrupt.
func DecodeNode(b []byte) (Node, error) {
	r := newReader("node record", b)
	n := Node{
		ID: base.StoreID(r.u64()), Incarnation: r.u64(), Address: r.text(), HTTP: r.text(), Version: r.text(),
	}
	last := ""
	for i := r.u16(); i > 0 && r.err == nil; i-- {
		k, v := r.text(), r.text()
		if r.err == nil && k <= last {
			return Node{}, fmt.Errorf("node record %s: labels out of order: %w", n.ID, base.ErrCorrupt)
		}
		if n.Labels == nil {
			n.Labels = make(map[string]string)
		}
		n.Labels[k], last = v, k
	}
	if err := r.end(); err != nil {
		return Node{}, err
	}
	if err := n.Validate(); err != nil {
		return Node{}, fmt.Errorf("%w: %w", err, base.ErrCorrupt)
	}
	return n, nil
}

// Shard is one record of the descriptor index.
type Shard struct {
	Desc *base.Descriptor
	// Creating is set from Init until every member has its replica.
	Creating bool
}

const flagCreating = 1

// Append encodes: u8 version | u8 flags (1: creating) | descriptor.
func (s *Shard) Append(buf []byte) []byte {
	var flags byte
	if s.Creating {
		flags |= flagCreating
	}
	return s.Desc.Append(append(buf, recordVersion, flags))
}

// DecodeShard is the reverse of Append; errors wrap base.ErrCorrupt.
func DecodeShard(b []byte) (Shard, error) {
	r := newReader("index record", b)
	flags := r.u8()
	if r.err == nil && flags&^flagCreating != 0 {
		return Shard{}, fmt.Errorf("index record: unknown flags %#x: %w", flags, base.ErrCorrupt)
	}
	if r.err != nil {
		return Shard{}, r.err
	}
	d, rest, err := base.DecodeDescriptor(r.b)
	if err != nil {
		return Shard{}, fmt.Errorf("index record: %w", err)
	}
	r.b = rest
	return Shard{Desc: d, Creating: flags&flagCreating != 0}, r.end()
}

// appendNumber encodes a counter or a nonce's node id: u8 version | u64 value.
func appendNumber(buf []byte, v uint64) []byte {
	return binary.BigEndian.AppendUint64(append(buf, recordVersion), v)
}

func decodeNumber(what string, b []byte) (uint64, error) {
	r := newReader(what, b)
	v := r.u64()
	return v, r.end()
}

func appendText(buf []byte, s string) []byte {
	return append(binary.BigEndian.AppendUint16(buf, uint16(len(s))), s...)
}

// reader walks a record; after the first error it returns zeros.
type reader struct {
	what string
	b    []byte
	err  error
}

func newReader(what string, b []byte) *reader {
	r, _ := newReaderOf(what, b, recordVersion)
	return r
}

// newReaderOf reads the layout version of a record that has had several, the last one included.
func newReaderOf(what string, b []byte, last byte) (*reader, byte) {
	r := &reader{what: what, b: b}
	v := r.u8()
	if r.err == nil && (v < recordVersion || v > last) {
		r.err = fmt.Errorf("%s: layout version %d, this binary knows %d to %d: %w", what, v, recordVersion, last,
			base.ErrCorrupt)
	}
	return r, v
}

func (r *reader) bytes(n int) []byte {
	if r.err == nil && (n < 0 || len(r.b) < n) {
		r.err = fmt.Errorf("%s: %d bytes left, want %d: %w", r.what, len(r.b), n, base.ErrCorrupt)
	}
	if r.err != nil {
		return nil
	}
	out := r.b[:n:n]
	r.b = r.b[n:]
	return out
}

func (r *reader) u8() byte {
	if b := r.bytes(1); b != nil {
		return b[0]
	}
	return 0
}

func (r *reader) u16() int {
	if b := r.bytes(2); b != nil {
		return int(binary.BigEndian.Uint16(b))
	}
	return 0
}

func (r *reader) u32() int {
	if b := r.bytes(4); b != nil {
		return int(binary.BigEndian.Uint32(b))
	}
	return 0
}

func (r *reader) u64() uint64 {
	if b := r.bytes(8); b != nil {
		return binary.BigEndian.Uint64(b)
	}
	return 0
}

func (r *reader) text() string { return string(r.bytes(r.u16())) }

func (r *reader) end() error {
	if r.err == nil && len(r.b) > 0 {
		r.err = fmt.Errorf("%s: %d bytes too many: %w", r.what, len(r.b), base.ErrCorrupt)
	}
	return r.err
}
