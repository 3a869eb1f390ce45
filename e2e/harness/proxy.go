package harness

import (
	"context"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// Proxy is a TCP link to one address that a test can cut and slow down. Its two directions are paced apart, each over
// all connections together, as on a line between two machines.
type Proxy struct {
	Addr   string // where it listens
	target string
	lis    net.Listener
	rate   atomic.Int64 // bytes per second in each direction; 0: as fast as it goes
	passed [2]atomic.Uint64
	pace   [2]pacer
	wg     sync.WaitGroup

	mu struct {
		sync.Mutex
		cut   bool
		ended bool
		conns map[*link]struct{}
	}
}

// Directions of a Proxy's counters.
const (
	ToTarget = iota
	FromTarget
)

// NewProxy listens on a free loopback port and passes connections on to target until the end of the test.
func NewProxy(t testing.TB, target string) *Proxy {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &Proxy{Addr: lis.Addr().String(), target: target, lis: lis}
	p.mu.conns = map[*link]struct{}{}
	p.wg.Go(p.accept)
	t.Cleanup(func() {
		lis.Close()
		p.mu.Lock()
		p.mu.ended = true
		p.mu.Unlock()
		p.drop()
		p.wg.Wait()
	})
	return p
}

// Cut closes every connection and refuses new ones until Mend.
func (p *Proxy) Cut() {
	p.mu.Lock()
	p.mu.cut = true
	p.mu.Unlock()
	p.drop()
}

// Mend ends a Cut.
func (p *Proxy) Mend() {
	p.mu.Lock()
	p.mu.cut = false
	p.mu.Unlock()
}

// Throttle limits each direction to so many bytes per second from now on; 0 lifts the limit.
func (p *Proxy) Throttle(bytesPerSecond int64) { p.rate.Store(bytesPerSecond) }

// Passed is how many bytes have gone in a direction.
func (p *Proxy) Passed(direction int) uint64 { return p.passed[direction].Load() }

func (p *Proxy) drop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for l := range p.mu.conns {
		l.close()
	}
}

// link is one connection through the proxy.
type link struct {
	ctx    context.Context
	cancel context.CancelFunc
	a, b   net.Conn
}

func (l *link) close() {
	l.cancel()
	l.a.Close()
	l.b.Close()
}

func (p *Proxy) accept() {
	for {
		in, err := p.lis.Accept()
		if err != nil {
			return
		}
		p.wg.Go(func() { p.serve(in) })
	}
}

func (p *Proxy) serve(in net.Conn) {
	defer in.Close()
	if p.refuses() {
		return
	}
	out, err := net.DialTimeout("tcp", p.target, 5*time.Second)
	if err != nil {
		return
	}
	defer out.Close()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	l := &link{ctx: ctx, cancel: cancel, a: in, b: out}
	p.mu.Lock()
	if p.mu.cut || p.mu.ended {
		p.mu.Unlock()
		return
	}
	p.mu.conns[l] = struct{}{}
	p.mu.Unlock()
	var both sync.WaitGroup
	both.Go(func() { p.copy(l, out, in, ToTarget) })
	both.Go(func() { p.copy(l, in, out, FromTarget) })
	both.Wait()
	p.mu.Lock()
	delete(p.mu.conns, l)
	p.mu.Unlock()
}

func (p *Proxy) refuses() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.mu.cut || p.mu.ended
}

// copy passes one direction on until either end closes, then closes both.
func (p *Proxy) copy(l *link, to io.Writer, from io.Reader, direction int) {
	defer l.close()
	buf := make([]byte, 32<<10)
	for {
		read := buf
		if rate := p.rate.Load(); rate > 0 {
			read = buf[:max(1, min(int64(len(buf)), rate/20))] // pieces of a twentieth of a second
		}
		n, err := from.Read(read)
		if n > 0 {
			if !p.pace[direction].wait(l.ctx, n, p.rate.Load()) {
				return
			}
			if _, werr := to.Write(read[:n]); werr != nil {
				return
			}
			p.passed[direction].Add(uint64(n))
		}
		if err != nil {
			return
		}
	}
}

// pacer gives out the time of a line: each piece takes its size over the rate, one after the other.
type pacer struct {
	mu   sync.Mutex
	next time.Time // when the line is free
}

// wait returns when a piece of n bytes has passed the line; false if ctx ended before.
func (p *pacer) wait(ctx context.Context, n int, rate int64) bool {
	if rate <= 0 {
		return ctx.Err() == nil
	}
	p.mu.Lock()
	now := time.Now()
	if p.next.Before(now) {
		p.next = now
	}
	p.next = p.next.Add(time.Duration(float64(n) / float64(rate) * float64(time.Second)))
	until := p.next.Sub(now)
	p.mu.Unlock()
	t := time.NewTimer(until)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
