package transport

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
)

// Class says what the operations of a stream may touch.
type Class uint8

const (
	// ClassClient streams carry operations of clients: user space only.
	ClassClient Class = 0
	// ClassNode streams carry operations of nodes, which may touch the system space.
	ClassNode Class = 1
)

// String returns the word used in metrics.
func (c Class) String() string {
	if c == ClassNode {
		return "node"
	}
	return "client"
}

const (
	opsService = "shardd.v1.Ops"

	// The first frame each way: 8 bytes magic, u16 least and u16 greatest protocol version that the sender speaks.
	opsMagic    = "SHARDOPS"
	opsPreamble = len(opsMagic) + 4
	opsProtoMin = 1
	opsProtoMax = 1
)

// grpcStream is what both ends of a gRPC stream have in common.
type grpcStream interface {
	Context() context.Context
	SendMsg(m any) error
	RecvMsg(m any) error
}

// Stream carries raw frames of operations and answers, in order, both ways. One goroutine may send while another
// receives; several may send. When either fails the stream is done.
type Stream struct {
	s      grpcStream
	close  func() error // half-close, client side
	cancel context.CancelFunc
	server bool

	recv struct { // owned by the receiving goroutine
		greeted bool
		in      inFrame
	}

	mu struct { // gRPC wants one sender at a time
		sync.Mutex
		out outFrame
	}
}

// openTimeout bounds how long OpenBatch waits for the node's first frame.
const openTimeout = 3 * time.Second

// OpenBatch opens a stream of operations to a node, over a connection made with DialOptions. It waits until the node
// has greeted, so that nothing was sent on a stream that a node refuses, for example while it starts: an operation
// that waited for the stream is then known not to have happened. ctx bounds the life of the stream.
func OpenBatch(ctx context.Context, cc grpc.ClientConnInterface, class Class) (*Stream, error) {
	name := "Client"
	if class == ClassNode {
		name = "Node"
	}
	ctx, cancel := context.WithCancel(ctx)
	desc := &grpc.StreamDesc{StreamName: name, ClientStreams: true, ServerStreams: true}
	cs, err := cc.NewStream(ctx, desc, "/"+opsService+"/"+name, grpc.ForceCodecV2(newCodec()))
	if err != nil {
		cancel()
		return nil, fmt.Errorf("open %s stream: %w", class, err)
	}
	s := &Stream{s: cs, close: cs.CloseSend, cancel: cancel}
	if err := s.Send(appendPreamble(GetBuffer(opsPreamble))); err != nil {
		cancel()
		return nil, fmt.Errorf("open %s stream: %w", class, err)
	}
	late := time.AfterFunc(openTimeout, cancel)
	if err := s.greet(); err != nil {
		late.Stop()
		cancel()
		return nil, fmt.Errorf("open %s stream: %w", class, err)
	}
	if !late.Stop() {
		return nil, fmt.Errorf("open %s stream: no answer within %s: %w", class, openTimeout, context.DeadlineExceeded)
	}
	return s, nil
}

// RegisterBatch serves operation streams on a server made with ServerOptions. serve runs on the stream's goroutine
// until it returns, which ends the stream: nil closes it cleanly, an error is sent to the other side. It is not called
// for a stream whose first bytes are not this protocol.
func RegisterBatch(r grpc.ServiceRegistrar, serve func(class Class, s *Stream) error) {
	handler := func(class Class) grpc.StreamHandler {
		return func(_ any, ss grpc.ServerStream) error {
			s := &Stream{s: ss, server: true, cancel: func() {}}
			if err := s.greet(); err != nil {
				if errors.Is(err, io.EOF) {
					return nil
				}
				return err
			}
			return serve(class, s)
		}
	}
	r.RegisterService(&grpc.ServiceDesc{
		ServiceName: opsService,
		HandlerType: (*any)(nil),
		Streams: []grpc.StreamDesc{
			{StreamName: "Client", Handler: handler(ClassClient), ClientStreams: true, ServerStreams: true},
			{StreamName: "Node", Handler: handler(ClassNode), ClientStreams: true, ServerStreams: true},
		},
	}, struct{}{})
}

func appendPreamble(b []byte) []byte {
	b = append(b, opsMagic...)
	b = binary.BigEndian.AppendUint16(b, opsProtoMin)
	return binary.BigEndian.AppendUint16(b, opsProtoMax)
}

func checkPreamble(b []byte) error {
	if len(b) != opsPreamble || string(b[:len(opsMagic)]) != opsMagic {
		return status.Error(codes.InvalidArgument, "not an operation stream: the first frame has no shardd magic")
	}
	lo, hi := binary.BigEndian.Uint16(b[len(opsMagic):]), binary.BigEndian.Uint16(b[len(opsMagic)+2:])
	if lo > opsProtoMax || hi < opsProtoMin {
		return status.Errorf(codes.FailedPrecondition,
			"no common protocol version: peer speaks %d to %d, this binary %d to %d", lo, hi, opsProtoMin, opsProtoMax)
	}
	return nil
}

// greet receives and checks the other side's first frame; a server answers with its own.
func (s *Stream) greet() error {
	if err := s.s.RecvMsg(&s.recv.in); err != nil {
		return err
	}
	s.recv.greeted = true
	if err := checkPreamble(s.recv.in.b); err != nil {
		s.cancel()
		return err
	}
	if s.server {
		return s.Send(appendPreamble(GetBuffer(opsPreamble)))
	}
	return nil
}

// Send sends one frame. The frame belongs to the stream from now on, whatever the outcome; it is best taken from
// GetBuffer. Send blocks while the other side does not read (flow control). io.EOF means that the stream has ended, and
// Recv has the reason.
func (s *Stream) Send(frame []byte) error {
	if len(frame) > MaxMessageSize {
		return fmt.Errorf("frame of %d bytes, at most %d", len(frame), MaxMessageSize)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	// A new slice each time: gRPC holds on to it after SendMsg, until the bytes have left.
	s.mu.out.bufs = mem.BufferSlice{mem.NewBuffer(buffers.handle(frame), &buffers)}
	return s.s.SendMsg(&s.mu.out)
}

// Recv returns the next frame, which belongs to the caller and the garbage collector. io.EOF is the clean end.
func (s *Stream) Recv() ([]byte, error) {
	if !s.recv.greeted {
		if err := s.greet(); err != nil {
			return nil, err
		}
	}
	s.recv.in.b = nil
	if err := s.s.RecvMsg(&s.recv.in); err != nil {
		s.cancel()
		return nil, err
	}
	b := s.recv.in.b
	s.recv.in.b = nil
	return b, nil
}

// CloseSend says that no more frames follow; what was sent is still answered. On the serving side it does nothing:
// returning from serve ends the stream.
func (s *Stream) CloseSend() error {
	if s.close == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.close()
}

// Close ends the stream at once, in both directions, and frees what it holds. It is needed on the dialling side when
// the stream is given up before Recv has failed; the serving side returns from serve instead.
func (s *Stream) Close() { s.cancel() }

// Context is done when the stream is.
func (s *Stream) Context() context.Context { return s.s.Context() }
