package transport

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
)

// opsServer serves operation streams and an ordinary protobuf service on one port.
func opsServer(t *testing.T, serve func(Class, *Stream) error) *grpc.ClientConn {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer(append(ServerOptions(), grpc.WaitForHandlers(true))...)
	RegisterBatch(srv, serve)
	healthpb.RegisterHealthServer(srv, health.NewServer())
	var wg sync.WaitGroup
	wg.Go(func() { srv.Serve(lis) })
	t.Cleanup(wg.Wait)
	t.Cleanup(srv.Stop)
	conn, err := grpc.NewClient(lis.Addr().String(), DialOptions()...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// echo answers every frame with the class and the frame.
func echo(class Class, s *Stream) error {
	for {
		b, err := s.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		out := append(GetBuffer(len(b)+8), class.String()...)
		if err := s.Send(append(out, b...)); err != nil {
			return err
		}
	}
}

func TestBatchStreamCarriesFramesOfAllSizesBothWays(t *testing.T) {
	conn := opsServer(t, echo)
	for _, class := range []Class{ClassClient, ClassNode} {
		s, err := OpenBatch(t.Context(), conn, class)
		if err != nil {
			t.Fatal(err)
		}
		sizes := []int{0, 1, 1000, 1024, 5000, 16 << 10, 100 << 10, 5 << 20}
		var wg sync.WaitGroup
		wg.Go(func() {
			for i, n := range sizes {
				if err := s.Send(append(GetBuffer(n), bytes.Repeat([]byte{byte(i)}, n)...)); err != nil {
					t.Error(err)
				}
			}
			s.CloseSend()
		})
		for i, n := range sizes {
			b, err := s.Recv()
			if err != nil || !bytes.Equal(b, append([]byte(class.String()), bytes.Repeat([]byte{byte(i)}, n)...)) {
				t.Fatalf("%s: frame %d: %d bytes, %v", class, i, len(b), err)
			}
		}
		if _, err := s.Recv(); !errors.Is(err, io.EOF) {
			t.Errorf("%s: ends with %v", class, err)
		}
		wg.Wait()
	}
}

func TestFramesThatWereReceivedAreNeverReused(t *testing.T) {
	conn := opsServer(t, echo)
	s, err := OpenBatch(t.Context(), conn, ClassClient)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var kept [][]byte
	for i := range 200 {
		want := bytes.Repeat([]byte{byte(i)}, 500+i*50)
		if err := s.Send(append(GetBuffer(len(want)), want...)); err != nil {
			t.Fatal(err)
		}
		b, err := s.Recv()
		if err != nil {
			t.Fatal(err)
		}
		kept = append(kept, b)
	}
	for i, b := range kept {
		if !bytes.Equal(b[len("client"):], bytes.Repeat([]byte{byte(i)}, 500+i*50)) {
			t.Fatalf("frame %d changed after Recv", i)
		}
	}
}

func TestSeveralSendersShareAStream(t *testing.T) {
	conn := opsServer(t, echo)
	s, err := OpenBatch(t.Context(), conn, ClassClient)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 50 {
				if err := s.Send(fmt.Appendf(GetBuffer(16), "%d/%d", i, j)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	got := map[string]bool{}
	for range 8 * 50 {
		b, err := s.Recv()
		if err != nil {
			t.Fatal(err)
		}
		got[string(b)] = true
	}
	wg.Wait()
	if len(got) != 8*50 {
		t.Errorf("%d distinct frames, want 400", len(got))
	}
}

func TestProtobufServicesShareThePortAndTheConnection(t *testing.T) {
	conn := opsServer(t, echo)
	res, err := healthpb.NewHealthClient(conn).Check(t.Context(), &healthpb.HealthCheckRequest{})
	if err != nil || res.Status != healthpb.HealthCheckResponse_SERVING {
		t.Errorf("%v, %v", res, err)
	}
}

func TestStreamThatIsNoOperationStreamIsRefused(t *testing.T) {
	served := make(chan Class, 10)
	conn := opsServer(t, func(c Class, _ *Stream) error { served <- c; return nil })
	late := append([]byte(opsMagic), 0, 9, 0, 12)
	for name, c := range map[string]struct {
		first []byte
		want  codes.Code
	}{
		"garbage": {[]byte("garbage"), codes.InvalidArgument}, "empty": {nil, codes.InvalidArgument},
		"later protocol": {late, codes.FailedPrecondition},
	} {
		desc := &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}
		cs, err := conn.NewStream(t.Context(), desc, "/shardd.v1.Ops/Client")
		if err != nil {
			t.Fatal(err)
		}
		if err := cs.SendMsg(&outFrame{bufs: mem.BufferSlice{mem.SliceBuffer(c.first)}}); err != nil {
			t.Fatal(err)
		}
		var in inFrame
		if err := cs.RecvMsg(&in); status.Code(err) != c.want {
			t.Errorf("%s: %v", name, err)
		}
	}
	if len(served) != 0 {
		t.Error("a stream was served")
	}
}

func TestErrorOfTheServingSideReachesTheOther(t *testing.T) {
	conn := opsServer(t, func(Class, *Stream) error { return status.Error(codes.ResourceExhausted, "enough") })
	s, err := OpenBatch(t.Context(), conn, ClassClient)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Recv(); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("got %v", err)
	}
	for s.Send(nil) == nil { // ends once the stream has
	}
	if s.Context().Err() == nil {
		t.Error("the stream's context goes on")
	}
}

func TestClosedStreamUnblocksBothSides(t *testing.T) {
	ended := make(chan error, 1)
	conn := opsServer(t, func(_ Class, s *Stream) error {
		_, err := s.Recv()
		ended <- err
		return err
	})
	s, err := OpenBatch(t.Context(), conn, ClassNode)
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
	if _, err := s.Recv(); status.Code(err) != codes.Canceled && !errors.Is(err, context.Canceled) {
		t.Errorf("own side: %v", err)
	}
	// The server may have refused the stream before serve, if it heard of the end first.
	select {
	case err := <-ended:
		if err == nil {
			t.Error("the other side saw a frame")
		}
	case <-t.Context().Done():
	default:
	}
	if err := s.Send(make([]byte, MaxMessageSize+1)); err == nil {
		t.Error("sent more than a message may hold")
	}
}
