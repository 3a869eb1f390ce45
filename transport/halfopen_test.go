package transport

import (
	"io"
	"net"
	"sync"
	"testing"
	"time"
)

// proxy forwards TCP until it is told to swallow: then every connection that exists stays open, and nothing passes any
// more, as with a router that has lost its state. New connections are forwarded again.
type proxy struct {
	lis    net.Listener
	target string

	mu    sync.Mutex
	conns []*pipe
	wg    sync.WaitGroup
}

type pipe struct {
	in, out net.Conn
	swallow chan struct{}
}

func newProxy(t *testing.T, target string) *proxy {
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{lis: lis, target: target}
	p.wg.Go(p.accept)
	t.Cleanup(func() {
		lis.Close()
		p.mu.Lock()
		for _, c := range p.conns {
			c.in.Close()
			c.out.Close()
		}
		p.mu.Unlock()
		p.wg.Wait()
	})
	return p
}

func (p *proxy) accept() {
	for {
		in, err := p.lis.Accept()
		if err != nil {
			return
		}
		out, err := net.Dial("tcp", p.target)
		if err != nil {
			in.Close()
			continue
		}
		c := &pipe{in: in, out: out, swallow: make(chan struct{})}
		p.mu.Lock()
		p.conns = append(p.conns, c)
		p.mu.Unlock()
		p.wg.Go(func() { c.copy(in, out) })
		p.wg.Go(func() { c.copy(out, in) })
	}
}

func (c *pipe) copy(to io.WriteCloser, from io.Reader) {
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		select {
		case <-c.swallow:
			if err != nil {
				return // and the other side never learns
			}
			continue
		default:
		}
		if err != nil {
			to.Close()
			return
		}
		if _, err := to.Write(buf[:n]); err != nil {
			return
		}
	}
}

// swallow makes the present connections half open and returns how many there are.
func (p *proxy) swallow() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := 0
	for _, c := range p.conns {
		select {
		case <-c.swallow:
		default:
			close(c.swallow)
			n++
		}
	}
	return n
}

func TestHalfOpenLinksAreNoticedAndReplaced(t *testing.T) {
	b := newBook()
	one := start(t, b, 1, "", func(c *Config) { c.PingInterval = 50 * time.Millisecond })
	two := start(t, b, 2, "", nil)
	p := newProxy(t, two.addr)
	b.set(2, p.lis.Addr().String())
	sendUntil(t, one, two, voteMsg(1))
	sendUntil(t, one, two, appendMsg(1, 1, nil))
	for round := uint64(2); round < 4; round++ {
		if n := p.swallow(); n < 2 {
			t.Fatalf("%d connections, want one per lane", n)
		}
		// Nothing says that the connections are dead; pings find out, long before the 10 s of gRPC's keepalive.
		sendUntil(t, one, two, voteMsg(round))
		sendUntil(t, one, two, appendMsg(1, round, nil))
	}
	if n := value(one.tr.metrics.lanes[controlLane].disconnects); n < 2 {
		t.Errorf("%v control links given up, want 2", n)
	}
	if len(one.fenced) > 0 {
		t.Error("a redial was taken for a copy")
	}
}

func TestIdleLinkThatIsHalfOpenIsGivenUp(t *testing.T) {
	b := newBook()
	one := start(t, b, 1, "", func(c *Config) { c.PingInterval = 20 * time.Millisecond })
	two := start(t, b, 2, "", nil)
	p := newProxy(t, two.addr)
	b.set(2, p.lis.Addr().String())
	sendUntil(t, one, two, voteMsg(1))
	sendUntil(t, one, two, appendMsg(1, 1, nil))
	p.swallow()
	untilMetric(t, "the control link's end", one.tr.metrics.lanes[controlLane].disconnects)
	untilMetric(t, "the bulk link's end", one.tr.metrics.lanes[bulkLane].disconnects)
}
