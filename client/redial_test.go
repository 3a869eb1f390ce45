package client

import (
	"fmt"
	"net"
	"os"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/transport"
)

// The first stream that is opened to a node after its return opens, however often that has failed before: what gRPC
// remembers of its last try is not an answer.
func TestTheFirstStreamToANodeThatIsBackOpens(t *testing.T) {
	addr, listen := boundPort(t)
	n, err := newNodes([]string{addr}, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := n.close(); err != nil {
			t.Error(err)
		}
	}()
	n.learn(addr, map[uint64]string{1: addr})
	pace := time.NewTicker(25 * time.Millisecond)
	defer pace.Stop()
	for range 40 { // until gRPC takes its longest pauses
		<-pace.C
		if _, err := n.open(t.Context(), 1); err == nil {
			t.Fatal("a stream to nobody")
		}
		if _, err := n.Lookup(t.Context(), base.UserStart(), false); err == nil {
			t.Fatal("an answer of nobody")
		}
	}
	lis := listen()
	server := grpc.NewServer(transport.ServerOptions()...)
	transport.RegisterBatch(server, func(_ transport.Class, s *transport.Stream) error {
		_, err := s.Recv()
		return err
	})
	served := make(chan error, 1)
	go func() { served <- server.Serve(lis) }()
	defer func() {
		server.Stop()
		if err := <-served; err != nil {
			t.Errorf("serve: %v", err)
		}
	}()
	s, err := n.open(t.Context(), base.StoreID(1))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.CloseSend(); err != nil {
		t.Error(err)
	}
}

// boundPort takes a port on which nobody listens before listen is called: nobody else can get it meanwhile.
func boundPort(t *testing.T) (addr string, listen func() net.Listener) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	must(err)
	f := os.NewFile(uintptr(fd), "port")
	t.Cleanup(func() { _ = f.Close() })
	must(syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}))
	name, err := syscall.Getsockname(fd)
	must(err)
	return fmt.Sprintf("127.0.0.1:%d", name.(*syscall.SockaddrInet4).Port), func() net.Listener {
		must(syscall.Listen(fd, 16))
		lis, err := net.FileListener(f)
		must(err)
		return lis
	}
}
