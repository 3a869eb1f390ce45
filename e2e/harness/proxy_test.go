package harness

import (
	"io"
	"net"
	"testing"
	"time"
)

// echo serves connections that get back what they send.
func echo(t *testing.T) string {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { lis.Close() })
	go func() {
		for {
			c, err := lis.Accept()
			if err != nil {
				return
			}
			go func() {
				_, _ = io.Copy(c, c)
				c.Close()
			}()
		}
	}()
	return lis.Addr().String()
}

func TestAProxyPassesCutsAndMends(t *testing.T) {
	p := NewProxy(t, echo(t))
	say := func() error {
		c, err := net.Dial("tcp", p.Addr)
		if err != nil {
			return err
		}
		defer c.Close()
		if _, err := c.Write([]byte("hello")); err != nil {
			return err
		}
		_, err = io.ReadFull(c, make([]byte, 5))
		return err
	}
	if err := say(); err != nil {
		t.Fatal(err)
	}
	open, err := net.Dial("tcp", p.Addr)
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	if _, err := open.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(open, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	p.Cut()
	if _, err := open.Read(make([]byte, 1)); err == nil {
		t.Error("an open connection outlived the cut")
	}
	if err := say(); err == nil {
		t.Error("passed through a cut link")
	}
	p.Mend()
	if err := say(); err != nil {
		t.Error(err)
	}
	if in, out := p.Passed(ToTarget), p.Passed(FromTarget); in != 11 || out != 11 {
		t.Errorf("counted %d and %d bytes, want 11 each", in, out)
	}
}

func TestAThrottledProxyIsAsSlowAsTold(t *testing.T) {
	p := NewProxy(t, echo(t))
	p.Throttle(64 << 10)
	c, err := net.Dial("tcp", p.Addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	from := time.Now()
	go func() { _, _ = c.Write(make([]byte, 32<<10)) }()
	if _, err := io.ReadFull(c, make([]byte, 32<<10)); err != nil {
		t.Fatal(err)
	}
	// A lower bound only: a busy machine makes it slower, nothing makes it faster.
	if d := time.Since(from); d < 450*time.Millisecond {
		t.Errorf("32 KiB at 64 KiB/s took %s", d)
	}
}
