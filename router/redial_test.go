package router

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shardd/shardd/internal/base"
)

// A node that cannot be reached is tried again without waiting for an operation, so that the first one that comes after
// its return does not find it shunned; and it is left alone once nobody has asked for it for a while.
func TestMuxFindsANodeThatIsBackBeforeAnyoneAsks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newRig(MuxConfig{})
		defer m.Close()
		refused := errors.New("connection refused")
		m.fail.Store(&refused)
		for i := range 200 { // for a second, as while a shard looks for its leader
			ch, _ := m.send(i)
			if o := <-ch; !errors.Is(o.err, ErrNotSent) {
				t.Fatalf("operation %d: %v", i, o.err)
			}
			time.Sleep(5 * time.Millisecond)
		}
		if n := m.opens.Load(); n > 15 {
			t.Errorf("tried %d times in a second", n)
		}
		m.fail.Store(nil)
		time.Sleep(m.cfg.RedialMax * 13 / 10)
		synctest.Wait()
		p := <-m.streams
		before := m.opens.Load()
		ch, _ := m.send(0)
		p.answers <- echo(t, <-p.sent)
		if o := <-ch; o.err != nil || m.opens.Load() != before {
			t.Fatalf("after its return: %v, %d streams opened for it", o.err, m.opens.Load()-before)
		}

		m.fail.Store(&refused)
		p.pull()
		time.Sleep(time.Hour)
		if n := m.opens.Load(); n != before {
			t.Errorf("%d streams were tried with nobody asking", n-before)
		}
		ch, _ = m.send(0)
		if o := <-ch; !errors.Is(o.err, ErrNotSent) {
			t.Fatal(o.err)
		}
		time.Sleep(2 * wantedFor)
		tried := m.opens.Load()
		time.Sleep(time.Hour)
		if n := m.opens.Load(); n != tried || n == before {
			t.Errorf("%d tries after the last operation, %d of them more than %s after it", n-before, n-tried, 2*wantedFor)
		}
		m.fail.Store(nil)
		ch, _ = m.send(0) // nobody has looked for an hour: this one does
		p = <-m.streams
		p.answers <- echo(t, <-p.sent)
		if o := <-ch; o.err != nil {
			t.Fatal(o.err)
		}
	})
}

// A host that swallows what is sent to it costs those that come while it is first tried OpenTimeout, and later ones nothing.
func TestMuxRefusesAtOnceWhileANodeIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := NewMux(func(ctx context.Context, _ base.StoreID) (FrameStream, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}, MuxConfig{})
		defer m.Close()
		r := &rig{Mux: m}
		for i := range 1000 {
			began := time.Now()
			ch, _ := r.send(i)
			o := <-ch
			if took := time.Since(began); !errors.Is(o.err, ErrNotSent) || (i > 0 && took > 0) {
				t.Fatalf("operation %d: %v after %s", i, o.err, took)
			}
			time.Sleep(20 * time.Millisecond)
		}
	})
}
