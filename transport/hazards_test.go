package transport

import (
	"runtime"
	"sync"
	"testing"
	"time"

	"go.etcd.io/etcd/raft/v3/raftpb"

	"github.com/shardd/shardd/internal/wire"
)

// cockroach#93397, yugabyte#256: heartbeats wait behind bulk traffic, and a busy peer is taken for a dead one. Here the
// peer has stopped reading appends altogether, queue and windows are full, and heartbeats, their answers and read
// indexes still get through, both ways.
func TestHeartbeatsPassAFullBulkLane(t *testing.T) {
	b := newBook()
	one := start(t, b, 1, "", func(c *Config) {
		c.QueueBytes, c.CompressMin, c.PingInterval = 1<<20, -1, time.Minute
	})
	stuck := newRecorder()
	stuck.hold = make(chan struct{})
	two := start(t, b, 2, "", func(c *Config) { c.Handler = stuck })
	release := sync.OnceFunc(func() { close(stuck.hold) })
	t.Cleanup(release)

	drops := one.tr.metrics.drops.WithLabelValues("bulk", dropFull)
	left := one.tr.metrics.lanes[bulkLane].bytesOut
	data := make([]byte, 100<<10)
	for i := uint64(0); value(left) < streamWindow/2 || value(drops) < 20; i++ {
		one.tr.Send(2, []wire.RaftMessage{appendMsg(1, i, data)})
		runtime.Gosched()
	}
	for round := range 20 {
		for full := value(drops); value(drops) == full; {
			one.tr.Send(2, []wire.RaftMessage{appendMsg(1, 1<<20, data)})
		}
		beat, read := beatMsg(1), beatMsg(2)
		read.Msg.Context = []byte{byte(round)}
		one.tr.Send(2, []wire.RaftMessage{beat, read})
		back := beat
		back.From, back.To = 2, 1
		back.Msg.Type, back.Msg.From, back.Msg.To, back.Msg.Commit = raftpb.MsgHeartbeatResp, 2, 1, 0
		two.tr.Send(1, []wire.RaftMessage{back})
		count := func(r *recorder, typ raftpb.MessageType, context bool) (n int) {
			for i := range r.msgs {
				if m := &r.msgs[i].Msg; m.Type == typ && (len(m.Context) > 0) == context {
					n++
				}
			}
			return n
		}
		stuck.until(t, "a heartbeat and a read index", func() bool {
			return count(stuck, raftpb.MsgHeartbeat, false) > round && count(stuck, raftpb.MsgHeartbeat, true) > round
		})
		one.rec.until(t, "the answer", func() bool { return count(one.rec, raftpb.MsgHeartbeatResp, false) > round })
	}
	if n := countType(stuck, raftpb.MsgApp); n != 0 {
		t.Errorf("%d appends were stepped: the peer was not stuck", n)
	}
	release()
	stuck.until(t, "the appends", func() bool { return len(stuck.msgs) > 60 })
}

func countType(r *recorder, typ raftpb.MessageType) (n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range r.msgs {
		if r.msgs[i].Msg.Type == typ {
			n++
		}
	}
	return n
}
