package transport

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"
	"testing"
	"time"

	"go.etcd.io/etcd/raft/v3/raftpb"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
)

func TestAppendsArriveOnceInOrderAndWhole(t *testing.T) {
	b := newBook()
	stores := []*store{start(t, b, 1, "", nil), start(t, b, 2, "", nil), start(t, b, 3, "", nil)}
	const groups, count = 8, 300
	payload := func(from base.StoreID, shard base.ShardID, i uint64) []byte {
		rng := rand.New(rand.NewPCG(uint64(from)<<32|uint64(shard), i))
		d := make([]byte, rng.IntN(6000))
		for j := range d {
			d[j] = byte(rng.Uint32())
		}
		return d
	}
	var wg sync.WaitGroup
	for _, s := range stores {
		for shard := range base.ShardID(groups) {
			wg.Go(func() {
				for i := range uint64(count) {
					m := []wire.RaftMessage{appendMsg(shard, i, payload(s.id, shard, i))}
					for _, to := range stores {
						if to != s {
							s.tr.Send(to.id, m)
						}
					}
				}
			})
		}
	}
	wg.Wait()
	for _, s := range stores {
		s.rec.until(t, "all appends", func() bool { return len(s.rec.msgs) == 2*groups*count })
		next := map[string]uint64{}
		for _, m := range s.rec.stepped() {
			k := fmt.Sprint(m.FromStore, m.Shard)
			if m.Msg.Index != next[k] || m.ToStore != s.id {
				t.Fatalf("%s: %s has append %d to %s, want %d", s.id, k, m.Msg.Index, m.ToStore, next[k])
			}
			if !bytes.Equal(m.Msg.Entries[0].Data, payload(m.FromStore, m.Shard, m.Msg.Index)) {
				t.Fatalf("%s: %s append %d: data differ", s.id, k, m.Msg.Index)
			}
			next[k]++
		}
	}
}

func TestPeerThatRestartsIsFoundAgain(t *testing.T) {
	b := newBook()
	one, two := start(t, b, 1, "", nil), start(t, b, 2, "", nil)
	for round := uint64(1); round <= 3; round++ {
		sendUntil(t, one, two, appendMsg(1, round, nil))
		sendUntil(t, one, two, voteMsg(round))
		sendUntil(t, two, one, voteMsg(round))
		two.stop()
		if round == 2 {
			two = start(t, b, 2, "", func(c *Config) { c.Incarnation = round + 1 }) // at another address
		} else {
			two = start(t, b, 2, two.addr, func(c *Config) { c.Incarnation = round + 1 })
		}
	}
	if len(one.fenced)+len(two.fenced) > 0 {
		t.Error("a restart was taken for a copy")
	}
}

func TestFullQueueDropsWithoutBlockingOthers(t *testing.T) {
	b := newBook()
	one := start(t, b, 1, "", func(c *Config) {
		c.QueueBytes, c.CompressMin, c.PingInterval = 1<<20, -1, time.Minute
	})
	stuck := newRecorder()
	stuck.hold = make(chan struct{})
	start(t, b, 2, "", func(c *Config) { c.Handler = stuck })
	release := sync.OnceFunc(func() { close(stuck.hold) })
	t.Cleanup(release)
	three := start(t, b, 3, "", nil)

	// Until windows and queue are full: store 2 has taken one append and sits on it.
	drops := one.tr.metrics.drops.WithLabelValues("bulk", dropFull)
	left := one.tr.metrics.lanes[bulkLane].bytesOut
	data := make([]byte, 100<<10)
	for i := uint64(0); value(left) < streamWindow/2 || value(drops) < 20; i++ {
		one.tr.Send(2, []wire.RaftMessage{appendMsg(1, i, data), appendMsg(2, i, data)})
		runtime.Gosched()
	}
	one.rec.until(t, "both groups reported", func() bool { return len(one.rec.lost) >= 2 })
	if q := value(one.tr.metrics.lanes[bulkLane].queue); q > 1<<20 {
		t.Errorf("queue holds %v bytes, bound 1 MiB", q)
	}
	// Neither another peer nor this peer's control lane waits.
	sendUntil(t, one, three, appendMsg(1, 7, data))
	one.tr.Send(2, []wire.RaftMessage{voteMsg(9)})
	stuck.until(t, "a vote past a full bulk lane", func() bool { return stuck.has(raftpb.MsgVote, 9) })
	release()
	stuck.until(t, "the queue to drain", func() bool { return len(stuck.msgs) > 20 })
}

func TestLostAppendIsReportedOncePerLoss(t *testing.T) {
	b := newBook()
	one, two := start(t, b, 1, "", nil), start(t, b, 2, "", nil)
	two.stop()
	for i := range uint64(500) {
		one.tr.Send(2, []wire.RaftMessage{appendMsg(5, i, nil), appendMsg(6, i, nil), voteMsg(i)})
	}
	one.rec.until(t, "both reports", func() bool { return len(one.rec.lost) == 2 })
	untilMetric(t, "a failed dial", one.tr.metrics.lanes[bulkLane].failures)
	for i := range uint64(500) {
		one.tr.Send(2, []wire.RaftMessage{appendMsg(5, i, nil), appendMsg(7, i, nil)})
	}
	one.rec.until(t, "the third group", func() bool { return len(one.rec.lost) == 3 })
	want := map[group]bool{{5, 1, 2}: true, {6, 1, 2}: true, {7, 1, 2}: true}
	lost := one.rec.lostGroups()
	for _, g := range lost {
		if !want[g] {
			t.Errorf("reports %v, want each group once", lost)
		}
		delete(want, g)
	}
	// Once appends get through again the next loss is news.
	two = start(t, b, 2, two.addr, func(c *Config) { c.Incarnation = 2 })
	sendUntil(t, one, two, appendMsg(5, 1000, nil))
	two.stop()
	deadline := time.Now().Add(patience)
	for {
		one.tr.Send(2, []wire.RaftMessage{appendMsg(5, 1001, nil)})
		one.rec.mu.Lock()
		n := 0
		for _, g := range one.rec.lost {
			if g.shard == 5 {
				n++
			}
		}
		one.rec.mu.Unlock()
		if n >= 2 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the second loss was not reported")
		}
		<-time.After(time.Millisecond)
	}
}

func TestHeartbeatsOfAThousandGroupsAreOneFramePerTick(t *testing.T) {
	b := newBook()
	one := start(t, b, 1, "", func(c *Config) { c.HeartbeatWindow = time.Hour })
	two, three := start(t, b, 2, "", nil), start(t, b, 3, "", nil)
	sendUntil(t, one, two, voteMsg(1)) // both links are up
	sendUntil(t, one, three, voteMsg(1))
	for tick := 1; tick <= 2; tick++ {
		sent := value(one.tr.metrics.lanes[controlLane].framesOut)
		for g := range base.ShardID(1000) {
			m := beatMsg(g)
			if g%2 == 1 {
				m.Msg.Type, m.Msg.Commit = raftpb.MsgHeartbeatResp, 0
			}
			one.tr.Send(2, []wire.RaftMessage{m})
			one.tr.Send(3, []wire.RaftMessage{m})
		}
		one.tr.flushBeats()
		for _, s := range []*store{two, three} {
			s.rec.until(t, "all heartbeats", func() bool {
				n := 0
				for _, m := range s.rec.msgs {
					if m.Msg.Type != raftpb.MsgVote {
						n++
					}
				}
				return n == 1000*tick
			})
		}
		if n := value(one.tr.metrics.lanes[controlLane].framesOut) - sent; n != 2 {
			t.Errorf("tick %d: %v frames to two stores, want one each", tick, n)
		}
	}
	// One that carries a read index does not wait for the tick.
	m := beatMsg(4)
	m.Msg.Context = []byte("read 1")
	one.tr.Send(2, []wire.RaftMessage{m})
	two.rec.until(t, "the heartbeat with context", func() bool {
		return string(two.rec.msgs[len(two.rec.msgs)-1].Msg.Context) == "read 1"
	})
}

func TestCompressibleFramesTravelCompressed(t *testing.T) {
	b := newBook()
	one, two := start(t, b, 1, "", nil), start(t, b, 2, "", nil)
	data := bytes.Repeat([]byte("all work and no play "), 1000)
	sendUntil(t, one, two, appendMsg(1, 1, data))
	for _, m := range two.rec.stepped() {
		if !bytes.Equal(m.Msg.Entries[0].Data, data) {
			t.Fatal("data differ")
		}
	}
	in, out := value(one.tr.metrics.compressIn), value(one.tr.metrics.compressed)
	if in == 0 || out > in/4 {
		t.Errorf("%v bytes compressed to %v", in, out)
	}
}

func TestTransportWithoutPeersOrRunStaysQuiet(t *testing.T) {
	b := newBook()
	rec := newRecorder()
	tr := New(Config{Cluster: testCluster, Store: 1, Handler: rec, Peers: b})
	tr.Send(1, []wire.RaftMessage{voteMsg(1)})                                  // to itself
	tr.Send(2, []wire.RaftMessage{{Msg: raftpb.Message{Type: raftpb.MsgSnap}}}) // never
	tr.Send(3, nil)
	if len(tr.mu.peers) != 0 {
		t.Error("made lanes for nothing")
	}
	one := start(t, b, 4, "", nil)
	one.tr.Send(9, []wire.RaftMessage{appendMsg(1, 1, nil)}) // no address
	one.rec.until(t, "the report", func() bool { return len(one.rec.lost) == 1 })
	one.stop()
	one.tr.Send(9, []wire.RaftMessage{appendMsg(1, 2, nil)})
	one.tr.Send(8, []wire.RaftMessage{appendMsg(1, 2, nil)})
	for k := range numLanes {
		if q := value(one.tr.metrics.lanes[k].queue); q != 0 {
			t.Errorf("%s queue holds %v bytes after the end", k, q)
		}
	}
	if err := one.tr.Run(t.Context()); err == nil {
		t.Error("ran twice")
	}
}

// BenchmarkLoopback sends the appends of one pass over real TCP, 64 groups with an entry each, and waits for them.
func BenchmarkLoopback(b *testing.B) {
	for _, size := range []int{0, 1024, 16 << 10} {
		b.Run(fmt.Sprintf("entry-%d", size), func(b *testing.B) {
			book := newBook()
			count := &counter{recorder: newRecorder(), full: make(chan struct{}, 1)}
			one := start(b, book, 1, "", func(c *Config) { c.CompressMin = -1 })
			two := start(b, book, 2, "", func(c *Config) { c.Handler = count })
			count.want = 1
			one.tr.Send(2, []wire.RaftMessage{appendMsg(1, 1, nil)})
			<-count.full
			msgs := make([]wire.RaftMessage, 64)
			for i := range msgs {
				msgs[i] = appendMsg(base.ShardID(i), 1, make([]byte, size))
			}
			b.ReportAllocs()
			b.SetBytes(int64(len(msgs) * (size + messageSize + entrySize)))
			for b.Loop() {
				count.want = len(msgs)
				one.tr.Send(2, msgs)
				<-count.full
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(msgs)), "ns/msg")
			one.stop()
			two.stop()
		})
	}
}

// counter tells when a number of messages is there.
type counter struct {
	*recorder
	want int
	full chan struct{}
}

func (c *counter) Step(msgs []wire.RaftMessage) {
	if c.want -= len(msgs); c.want == 0 {
		c.full <- struct{}{}
	}
}
