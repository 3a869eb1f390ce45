package client_test

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/shardd/shardd/client"
)

// swallower forwards TCP connections until it is told to swallow what passes over those that are open: they stay open,
// and neither side hears of the other, as behind a balancer that has lost its state. New ones are forwarded.
type swallower struct {
	lis    net.Listener
	target string
	wg     sync.WaitGroup

	mu    sync.Mutex
	conns []net.Conn
	holes []chan struct{} // one per pair of connections
}

func newSwallower(t *testing.T, target string) *swallower {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &swallower{lis: lis, target: target}
	s.wg.Go(s.accept)
	t.Cleanup(func() {
		lis.Close()
		s.mu.Lock()
		for _, c := range s.conns {
			c.Close()
		}
		s.mu.Unlock()
		s.wg.Wait()
	})
	return s
}

func (s *swallower) accept() {
	for {
		in, err := s.lis.Accept()
		if err != nil {
			return
		}
		out, err := net.Dial("tcp", s.target)
		if err != nil {
			in.Close()
			continue
		}
		hole := make(chan struct{})
		s.mu.Lock()
		s.conns, s.holes = append(s.conns, in, out), append(s.holes, hole)
		s.mu.Unlock()
		s.wg.Go(func() { forward(in, out, hole) })
		s.wg.Go(func() { forward(out, in, hole) })
	}
}

func forward(to io.WriteCloser, from io.Reader, hole chan struct{}) {
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		select {
		case <-hole:
			if err != nil {
				return // the other side never learns
			}
			continue
		default:
		}
		if err == nil {
			_, err = to.Write(buf[:n])
		}
		if err != nil {
			to.Close()
			return
		}
	}
}

// swallow makes the open connections half open and returns how many there were.
func (s *swallower) swallow() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, h := range s.holes {
		close(h)
	}
	n := len(s.holes)
	s.holes = nil
	return n
}

// etcd#18052: a client whose connection was half open stayed cut off until its own deadline, again and again. Here
// gRPC's keepalive gives the connection up and the client dials again. What it says until then is true: a read has
// failed, a write that was on its way is of unknown outcome and is not sent twice.
func TestAClientFindsBackFromAHalfOpenConnection(t *testing.T) {
	t.Parallel() // it mostly waits for the keepalive, whose least time is gRPC's
	n := startFake(t)
	p := newSwallower(t, n.addr)
	n.addr = p.lis.Addr().String() // what look-ups tell
	db := openFake(t, n)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	all := db.All()
	if _, err := all.Put(ctx, []byte("k"), []byte("1")); err != nil {
		t.Fatal(err)
	}
	if p.swallow() == 0 {
		t.Fatal("no connection was open")
	}
	once, stop := context.WithTimeout(ctx, 500*time.Millisecond)
	defer stop()
	if _, err := all.Put(once, []byte("k"), []byte("2")); !errors.Is(err, client.ErrAmbiguous) {
		t.Errorf("a write into the hole: %v", err)
	}
	for {
		v, err := all.Get(ctx, []byte("k"))
		if err == nil {
			if string(v.Bytes) != "1" {
				t.Errorf("read %q: the write into the hole was sent again", v.Bytes)
			}
			break
		}
		if !errors.Is(err, client.ErrUnavailable) || ctx.Err() != nil {
			t.Fatalf("read: %v", err)
		}
	}
	if _, err := all.Put(ctx, []byte("k"), []byte("3")); err != nil {
		t.Error(err)
	}
}
