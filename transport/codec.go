package transport

import (
	"fmt"

	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
)

// outFrame is a message that is bytes already. Its buffers belong to gRPC once it was given to SendMsg.
type outFrame struct{ bufs mem.BufferSlice }

// inFrame receives a message as bytes that belong to the garbage collector.
type inFrame struct{ b []byte }

// codec passes raw frames through and leaves everything else to protobuf. It is forced on servers and connections, so
// that one port serves raw streams and ordinary gRPC; both travel as "application/grpc+proto".
type codec struct{ proto encoding.CodecV2 }

func newCodec() codec { return codec{proto: encoding.GetCodecV2(proto.Name)} }

// Name implements encoding.CodecV2.
func (codec) Name() string { return proto.Name }

// Marshal implements encoding.CodecV2.
func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	if f, ok := v.(*outFrame); ok {
		return f.bufs, nil
	}
	if _, ok := v.(*inFrame); ok {
		return nil, fmt.Errorf("marshal %T: it is for receiving only", v)
	}
	return c.proto.Marshal(v)
}

// Unmarshal implements encoding.CodecV2.
func (c codec) Unmarshal(data mem.BufferSlice, v any) error {
	f, ok := v.(*inFrame)
	if !ok {
		return c.proto.Unmarshal(data, v)
	}
	// A SliceBuffer has no reference count: nobody can take it back, so it may be kept without a copy.
	if len(data) == 1 {
		if s, ok := data[0].(mem.SliceBuffer); ok {
			f.b = s[:len(s):len(s)]
			return nil
		}
	}
	f.b = data.Materialize()
	return nil
}
