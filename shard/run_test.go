package shard

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/shardd/shardd/engine"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/clock"
	"github.com/shardd/shardd/internal/wire"
	"github.com/shardd/shardd/transport/simnet"
)

// single waits for one answer.
type single chan wire.Answer

func (s single) Complete(_ uint64, a wire.Answer) { s <- a }

// running is a cluster whose stores run on their own goroutines.
type running struct {
	stores []*Store
	engs   []*engine.Engine
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

func startRunning(tb testing.TB, n int, tune func(*Config)) *running {
	tb.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	net := simnet.New(1)
	run := &running{cancel: cancel}
	for i := range n {
		eng, err := engine.Open(engine.Options{Dir: "data", FS: engine.NewMemFS()})
		if err != nil {
			tb.Fatal(err)
		}
		late := &lateSender{}
		cfg := Config{
			Store: base.StoreID(i + 1), Incarnation: 1, Engine: eng, Sender: late, Clock: clock.Process(),
			Tick: 20 * time.Millisecond, Workers: 2, ApplyWorkers: 2,
		}
		if tune != nil {
			tune(&cfg)
		}
		s, err := New(cfg)
		if err != nil {
			tb.Fatal(err)
		}
		late.to = net.Node(base.StoreID(i+1), s)
		run.stores, run.engs = append(run.stores, s), append(run.engs, eng)
	}
	run.wg.Go(func() { _ = net.Run(ctx) })
	for _, s := range run.stores {
		run.wg.Go(func() {
			if err := s.Run(ctx); err != nil {
				tb.Error(err)
			}
		})
	}
	return run
}

func (run *running) stop(tb testing.TB) {
	run.cancel()
	run.wg.Wait()
	for _, e := range run.engs {
		if err := e.Close(); err != nil {
			tb.Error(err)
		}
	}
}

// do sends a write to whoever leads, until it has an answer that is not a redirection.
func (run *running) do(o wire.Op) wire.Answer {
	at := int(o.Shard)
	for {
		ch := make(single, 1)
		s := run.stores[at%len(run.stores)]
		s.Write([]WriteRequest{{Shard: o.Shard, Version: 1, Req: 1, Raw: o.Append(nil), Waiter: ch}})
		a := <-ch
		if a.Code != wire.NotLeader {
			return a
		}
		if at++; a.Arg > 0 {
			at = int(a.Arg) - 1
		}
	}
}

func (run *running) read(o wire.Op) wire.Answer {
	at := int(o.Shard)
	for {
		ch := make(single, 1)
		s := run.stores[at%len(run.stores)]
		s.ReadIndex([]ReadRequest{{Shard: o.Shard, Version: 1, Req: 1, Waiter: ch}})
		a := <-ch
		switch {
		case a.Code == wire.OK:
			if _, err := wire.DecodeAnswer(s.Read(&o, nil), &a); err != nil {
				a = answerText(wire.Invalid, err.Error())
			}
			return a
		case a.Code != wire.NotLeader:
			return a
		}
		if at++; a.Arg > 0 {
			at = int(a.Arg) - 1
		}
	}
}

func TestRunningStoresServeManyClientsAndStopClean(t *testing.T) {
	defer goleak.VerifyNone(t)
	const groups, clients, each = 8, 16, 40
	run := startRunning(t, 3, nil)
	for i := range groups {
		d := desc(shardID(10+i), fmt.Sprint(i), fmt.Sprint(i+1), 1, 2, 3)
		for j, s := range run.stores {
			if err := s.Create(d, nil, j == i%3); err != nil {
				t.Fatal(err)
			}
		}
	}
	var wg sync.WaitGroup
	for cl := range clients {
		wg.Go(func() {
			for i := range each {
				g := (cl + i) % groups
				key := fmt.Sprintf("%d/%d", g, cl)
				if a := run.do(op(wire.OpPut, shardID(10+g), key, fmt.Sprint(i))); a.Code != wire.OK {
					t.Errorf("put: %s %s", a.Code, a.Payload)
				}
				a := run.read(op(wire.OpGet, shardID(10+g), key, ""))
				if a.Code != wire.OK || string(a.Payload) != fmt.Sprint(i) {
					t.Errorf("own write %d is not read: %s %q", i, a.Code, a.Payload)
				}
			}
		})
	}
	var moved atomic.Int64
	wg.Go(func() { // leaderships move under load
		n, err := run.stores[0].HandOver(t.Context())
		if err != nil {
			t.Log(err)
		}
		moved.Store(int64(n))
	})
	wg.Wait()
	t.Logf("%d leaderships handed over", moved.Load())
	for _, s := range run.stores {
		for _, sum := range s.Summaries() {
			if sum.Faulted != "" {
				t.Errorf("%s on %d: %s", sum.Desc.Shard, s.cfg.Store, sum.Faulted)
			}
		}
		if ok, detail := s.SyncHealthy(); !ok {
			t.Error(detail)
		}
	}
	run.stop(t)
	ch := make(single, 1)
	o := op(wire.OpPut, 10, "0", "x")
	run.stores[0].Write([]WriteRequest{{Shard: 10, Version: 1, Req: 1, Raw: o.Append(nil), Waiter: ch}})
	if a := <-ch; a.Code != wire.Unavailable {
		t.Fatalf("after the stop: %s", a.Code)
	}
}

func TestScansArePagedBoundedAndCheckedAgainstTheRange(t *testing.T) {
	c := newCluster(t, 1, nil)
	c.create(desc(7, "a", "c", 1))
	for i := range 30 {
		c.put(7, fmt.Sprintf("a%02d", i), fmt.Sprintf("%0100d", i))
	}
	s := c.nodes[1].store
	scan := func(lo, hi string, rows, bytes uint32, flags uint8) (wire.Answer, []wire.Row) {
		o := op(wire.OpScan, 7, lo, "")
		o.Value, o.Arg, o.Flags, o.Req = base.UserKey([]byte(hi)), wire.ScanArg(rows, bytes), flags, 42
		var a wire.Answer
		if rest, err := wire.DecodeAnswer(s.Read(&o, []byte("before"))[6:], &a); err != nil || len(rest) > 0 {
			t.Fatalf("%v, %d bytes behind the answer", err, len(rest))
		}
		var out []wire.Row
		for b := a.Payload; a.Code == wire.OK && len(b) > 0; {
			var r wire.Row
			rest, err := wire.DecodeRow(b, &r)
			if err != nil {
				t.Fatal(err)
			}
			out, b = append(out, r), rest
		}
		return a, out
	}
	if a, rows := scan("a", "b", 0, 0, 0); len(rows) != 30 || a.Flags != 0 || a.Req != 42 || a.Version != 1 {
		t.Fatalf("%d rows, flags %d, req %d", len(rows), a.Flags, a.Req)
	}
	if a, rows := scan("a", "b", 7, 0, wire.FlagReverse); len(rows) != 7 || a.Flags != wire.FlagMore ||
		string(rows[0].Key[1:]) != "a29" {
		t.Fatalf("%d rows, flags %d", len(rows), a.Flags)
	}
	if a, rows := scan("a", "b", 0, 1000, 0); len(rows) != 8 || a.Flags != wire.FlagMore {
		t.Fatalf("%d rows of 119 bytes in a page of 1000, flags %d", len(rows), a.Flags)
	}
	_, rows := scan("a", "b", 0, 1, wire.FlagKeysOnly)
	if len(rows) != 1 || len(rows[0].Value) != 0 || rows[0].Version == 0 {
		t.Fatalf("a page always holds a row: %d", len(rows))
	}
	if a, _ := scan("a", "d", 0, 0, 0); a.Code != wire.EpochMismatch {
		t.Fatalf("beyond the range: %s", a.Code)
	}
	if a, rows := scan("b", "bb", 0, 0, 0); a.Code != wire.OK || len(rows) != 0 {
		t.Fatalf("empty range: %s, %d rows", a.Code, len(rows))
	}
}

// BenchmarkReplicatedWrite is one client write through three stores in process: pass, log, quorum, apply, answer.
func BenchmarkReplicatedWrite(b *testing.B) {
	for _, groups := range []int{1, 16, 128} {
		b.Run(fmt.Sprint(groups, "groups"), func(b *testing.B) {
			run := startRunning(b, 3, nil)
			defer run.stop(b)
			for i := range groups {
				d := desc(shardID(10+i), fmt.Sprintf("%04d", i), fmt.Sprintf("%04d", i+1), 1, 2, 3)
				for j, s := range run.stores {
					if err := s.Create(d, nil, j == i%3); err != nil {
						b.Fatal(err)
					}
				}
			}
			value := fmt.Sprintf("%01000d", 1)
			for i := range groups {
				run.do(op(wire.OpPut, shardID(10+i), fmt.Sprintf("%04d", i), value))
			}
			var next atomic.Int64
			b.SetParallelism(128)
			b.ReportAllocs()
			b.ResetTimer()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					i := int(next.Add(1))
					g := i % groups
					key := fmt.Sprintf("%04d/%d", g, i%1000)
					if a := run.do(op(wire.OpPut, shardID(10+g), key, value)); a.Code != wire.OK {
						b.Errorf("put: %s %s", a.Code, a.Payload)
					}
				}
			})
		})
	}
}
