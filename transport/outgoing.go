package transport

import (
	"github.com/golang/snappy"
	"go.etcd.io/etcd/raft/v3/raftpb"
	"google.golang.org/grpc/mem"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
)

// group names one direction between two replicas.
type group struct {
	shard    base.ShardID
	from, to base.ReplicaID
}

// outgoing is a frame under construction: headers in one pooled buffer, entry data by reference.
type outgoing struct {
	kind  kind
	head  *[]byte         // frame header, then records
	data  mem.BufferSlice // [0] is kept free for head; grpc owns the slice after sending
	bytes int             // of data
	count uint32
	apps  []group // appends in it, to report if they are lost
}

func newOutgoing(k kind) *outgoing {
	f := &outgoing{kind: k, head: buffers.Get(1 << minClassBits)}
	*f.head = (*f.head)[:headerSize]
	return f
}

func (f *outgoing) size() int { return len(*f.head) + f.bytes }

// add encodes one message. checkMessage has passed.
func (f *outgoing) add(m *wire.RaftMessage) {
	f.count++
	if f.kind == kindHeartbeats {
		buffers.grow(f.head, beatLen(m))
		*f.head = appendBeat(*f.head, m)
		return
	}
	buffers.grow(f.head, recordSize(m))
	*f.head = appendRecord(*f.head, m)
	if m.Msg.Type == raftpb.MsgApp {
		f.apps = append(f.apps, group{m.Shard, m.From, m.To})
	}
	if len(f.data) == 0 && len(m.Msg.Entries) > 0 {
		f.data = make(mem.BufferSlice, 1, 1+len(m.Msg.Entries))
	}
	for i := range m.Msg.Entries {
		if d := m.Msg.Entries[i].Data; len(d) > 0 {
			f.data = append(f.data, mem.SliceBuffer(d))
			f.bytes += len(d)
		}
	}
}

// release gives the buffers of a frame back that is not sent.
func (f *outgoing) release() {
	buffers.Put(f.head)
	f.head, f.data = nil, nil
}

// finish completes the header and hands the buffers over.
func (f *outgoing) finish() mem.BufferSlice {
	putHeader(*f.head, frameHeader{
		kind: f.kind, count: f.count, records: uint32(len(*f.head) - headerSize),
		body: uint32(f.size() - headerSize),
	})
	if len(f.data) == 0 {
		f.data = make(mem.BufferSlice, 1)
	}
	f.data[0] = mem.NewBuffer(f.head, &buffers)
	bufs := f.data
	f.head, f.data = nil, nil
	return bufs
}

// livenessFrame wraps one store's word to another, by reference.
func livenessFrame(payload []byte) *outgoing {
	f := newOutgoing(kindLiveness)
	f.data, f.bytes = mem.BufferSlice{nil, mem.SliceBuffer(payload)}, len(payload)
	return f
}

// control frames (ping, pong, hello, refusal) are small and contiguous.
func smallFrame(k kind) mem.BufferSlice {
	b := make([]byte, headerSize)
	putHeader(b, frameHeader{kind: k})
	return mem.BufferSlice{mem.SliceBuffer(b)}
}

// compressor decides when snappy is worth its time. After an attempt that saved less than an eighth it lets frames pass
// untried, twice as many each time, so that random data costs next to nothing. Owned by one sender.
type compressor struct {
	min     int // least body; negative: never
	skip    int // frames to let pass
	penalty int
}

const maxCompressSkip = 256

// pack returns the bytes of a frame to send; the frame is spent. packed is the compressed size of the body, 0 if the
// body goes as it is.
func (c *compressor) pack(f *outgoing) (bufs mem.BufferSlice, packed int) {
	body := f.size() - headerSize
	if c.min < 0 || body < c.min {
		return f.finish(), 0
	}
	if c.skip > 0 {
		c.skip--
		return f.finish(), 0
	}
	raw := buffers.Get(body)
	n := copy(*raw, (*f.head)[headerSize:])
	for i := 1; i < len(f.data); i++ {
		n += copy((*raw)[n:], f.data[i].ReadOnlyData())
	}
	out := buffers.Get(headerSize + snappy.MaxEncodedLen(body))
	packed = len(snappy.Encode((*out)[headerSize:], (*raw)[:n]))
	buffers.Put(raw)
	if packed > body-body/8 {
		buffers.Put(out)
		c.penalty = min(max(2*c.penalty, 2), maxCompressSkip)
		c.skip = c.penalty
		return f.finish(), 0
	}
	c.penalty = 0
	*out = (*out)[:headerSize+packed]
	putHeader(*out, frameHeader{
		kind: f.kind, flags: flagSnappy, count: f.count, records: uint32(len(*f.head) - headerSize), body: uint32(body),
	})
	f.release()
	return mem.BufferSlice{mem.NewBuffer(out, &buffers)}, packed
}
