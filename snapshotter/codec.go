package snapshotter

import (
	"encoding/binary"
	"sync/atomic"

	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/shardd/shardd/engine"
)

// partFrame is a StreamRequest with a part whose data is not copied on its way to the network.
type partFrame struct {
	chunk  uint32
	header []byte
	data   mem.Buffer // gRPC frees it
	last   bool
}

// codec writes part frames and leaves everything else to protobuf. Only the sender uses it; what it writes is protobuf.
type codec struct{ proto encoding.CodecV2 }

func newCodec() codec { return codec{proto: encoding.GetCodecV2(proto.Name)} }

// Name implements encoding.CodecV2.
func (codec) Name() string { return proto.Name }

// Unmarshal implements encoding.CodecV2.
func (c codec) Unmarshal(data mem.BufferSlice, v any) error { return c.proto.Unmarshal(data, v) }

// Field numbers of StreamRequest and SnapshotPart in internal.proto; a test compares the result with protobuf's.
const (
	fieldPart   protowire.Number = 2
	fieldChunk  protowire.Number = 1
	fieldHeader protowire.Number = 2
	fieldData   protowire.Number = 3
	fieldLast   protowire.Number = 4
)

// Marshal implements encoding.CodecV2.
func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	f, ok := v.(*partFrame)
	if !ok {
		return c.proto.Marshal(v)
	}
	// The data goes last: protobuf takes fields in any order.
	part := make([]byte, 0, len(f.header)+4*binary.MaxVarintLen32)
	part = protowire.AppendTag(part, fieldChunk, protowire.VarintType)
	part = protowire.AppendVarint(part, uint64(f.chunk))
	if len(f.header) > 0 {
		part = protowire.AppendTag(part, fieldHeader, protowire.BytesType)
		part = protowire.AppendBytes(part, f.header)
	}
	if f.last {
		part = protowire.AppendTag(part, fieldLast, protowire.VarintType)
		part = protowire.AppendVarint(part, 1)
	}
	size := 0
	if f.data != nil {
		size = f.data.Len()
		part = protowire.AppendTag(part, fieldData, protowire.BytesType)
		part = protowire.AppendVarint(part, uint64(size))
	}
	head := make([]byte, 0, len(part)+2*binary.MaxVarintLen32)
	head = protowire.AppendTag(head, fieldPart, protowire.BytesType)
	head = protowire.AppendVarint(head, uint64(len(part)+size))
	head = append(head, part...)
	out := mem.BufferSlice{mem.SliceBuffer(head)}
	if f.data != nil {
		out = append(out, f.data)
	}
	return out, nil
}

// table is a chunk's table while gRPC reads from it. It is a pool that its parts return to: when the last one has, and
// the sender has let go, release runs. Parts that gRPC forgets cost nothing but that.
type table struct {
	sst     []byte
	users   atomic.Int32
	release func()
}

func newTable(c *engine.Chunk, release func()) *table {
	t := &table{sst: c.SST, release: release}
	t.users.Store(1) // the sender
	return t
}

// Get implements mem.BufferPool; nobody calls it.
func (t *table) Get(n int) *[]byte { b := make([]byte, n); return &b }

// Put implements mem.BufferPool.
func (t *table) Put(*[]byte) { t.done() }

func (t *table) done() {
	if t.users.Add(-1) == 0 {
		t.release()
	}
}

// part returns a piece of the table that keeps it alive until gRPC frees it. Short ones are copied: gRPC does not count
// their users.
func (t *table) part(at, n int) mem.Buffer {
	b := t.sst[at : at+n : at+n]
	if n < smallPart {
		return mem.Copy(b, mem.DefaultBufferPool())
	}
	t.users.Add(1)
	return mem.NewBuffer(&b, t)
}

// smallPart is above the size from which gRPC counts references (mem.IsBelowBufferPoolingThreshold).
const smallPart = 4 << 10
