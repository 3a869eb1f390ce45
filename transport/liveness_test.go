package transport

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/shardd/shardd/internal/wire"
)

// say repeats a liveness body, as a Monitor does, until it is there.
func say(t *testing.T, from, to *store, payload string) liveBody {
	t.Helper()
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			from.tr.SendLiveness(to.id, []byte(payload))
			select {
			case <-done:
				return
			case <-time.After(2 * time.Millisecond):
			}
		}
	})
	defer wg.Wait()
	defer close(done)
	var got liveBody
	to.rec.until(t, "liveness "+payload, func() bool {
		for _, b := range to.rec.live {
			if b.payload == payload {
				got = b
				return true
			}
		}
		return false
	})
	return got
}

func TestLivenessComesWithTheIncarnationOfTheHandshake(t *testing.T) {
	b := newBook()
	one, two := start(t, b, 1, "", func(c *Config) { c.Incarnation = 5 }), start(t, b, 2, "", nil)
	if got := say(t, one, two, "a"); got.from != 1 || got.incarnation != 5 {
		t.Errorf("got %+v", got)
	}
	one.stop()
	one = start(t, b, 1, one.addr, func(c *Config) { c.Incarnation = 6 })
	if got := say(t, one, two, "b"); got.from != 1 || got.incarnation != 6 {
		t.Errorf("after a restart: got %+v", got)
	}
	if got := say(t, two, one, strings.Repeat("x", MaxLiveness)); got.from != 2 {
		t.Errorf("from %s", got.from)
	}
	one.tr.SendLiveness(2, make([]byte, MaxLiveness+1))
	one.tr.SendLiveness(1, []byte("myself"))
	if got := value(one.tr.metrics.livenessDrops.WithLabelValues(dropRefused)); got != 2 {
		t.Errorf("%v refused, want the long one and the one to itself", got)
	}
}

func TestLivenessLeavesAtOnceAndDoesNotWaitForTheHeartbeatTick(t *testing.T) {
	b := newBook()
	one, two := start(t, b, 1, "", func(c *Config) { c.HeartbeatWindow = time.Hour }), start(t, b, 2, "", nil)
	one.tr.Send(2, []wire.RaftMessage{beatMsg(1)})
	one.tr.SendLiveness(2, []byte("now"))
	two.rec.until(t, "the body", func() bool { return len(two.rec.live) > 0 })
	if len(two.rec.stepped()) != 0 {
		t.Error("a heartbeat left before its tick")
	}
}

// TestALaterLivenessBodyReplacesOneThatWaits: however many are said while the peer takes none, one waits, the last.
func TestALaterLivenessBodyReplacesOneThatWaits(t *testing.T) {
	tr := New(Config{Store: 1}) // not running: nothing leaves
	for i := range 10 {
		tr.SendLiveness(2, []byte(fmt.Sprint(i)))
	}
	l := tr.mu.peers[2][controlLane]
	if got := string(l.takeLiveness()); got != "9" || l.takeLiveness() != nil {
		t.Errorf("waits: %q", got)
	}
	if got := value(tr.metrics.livenessDrops.WithLabelValues(dropReplaced)); got != 9 {
		t.Errorf("%v were replaced, want 9", got)
	}
	tr.SendLiveness(2, []byte("last"))
	l.stop()
	tr.SendLiveness(2, []byte("later"))
	if l.takeLiveness() != nil {
		t.Error("a stopped lane keeps bodies")
	}
}

// TestLivenessPassesAFullControlQueue: a queue at its bound takes no votes, but the latest word of the store.
func TestLivenessPassesAFullControlQueue(t *testing.T) {
	tr := New(Config{Store: 1, ControlQueueBytes: 200})
	for i := range uint64(5) {
		tr.Send(2, []wire.RaftMessage{voteMsg(i)})
	}
	tr.SendLiveness(2, []byte("alive"))
	l := tr.mu.peers[2][controlLane]
	if l.mu.bytes > 200 || string(l.takeLiveness()) != "alive" {
		t.Errorf("%d bytes are queued", l.mu.bytes)
	}
}

func TestLivenessOnTheBulkLaneOrWithMessagesIsGarbage(t *testing.T) {
	b := newBook()
	two := start(t, b, 2, "", nil)
	me := hello{protoMin: 1, protoMax: 1, cluster: testCluster, store: 8, dest: 2, incarnation: 1}
	good := livenessFrame([]byte("word")).finish().Materialize()
	counted := append([]byte{}, good...)
	counted[7] = 1
	for name, c := range map[string]struct {
		lane  laneKind
		frame []byte
	}{"bulk": {bulkLane, good}, "counted": {controlLane, counted}} {
		s := dialLane(t, two, c.lane)
		rawSend(t, s, me.append(nil))
		var in inFrame
		if err := s.RecvMsg(&in); err != nil {
			t.Fatal(err)
		}
		rawSend(t, s, c.frame)
		if err := s.RecvMsg(&in); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: stream ended with %v", name, err)
		}
	}
	if len(two.rec.live) != 0 {
		t.Error("garbage was handed on")
	}
}

// TestNothingOfAnEarlierIncarnationIsSteppedOnceALaterOneIsAdmitted (V13): not even a frame that was on its way to the
// handler.
func TestNothingOfAnEarlierIncarnationIsSteppedOnceALaterOneIsAdmitted(t *testing.T) {
	tr := New(Config{Cluster: testCluster, Store: 2, Handler: newRecorder(), Peers: newBook()})
	rec := tr.cfg.Handler.(*recorder)
	old := &inbound{lane: controlLane, peer: hello{store: 1, incarnation: 1, process: 1}, evicted: make(chan struct{})}
	if _, ref := tr.registry.admit(&old.peer, old); ref != nil {
		t.Fatal(ref.text)
	}
	frame, err := AppendFrame(nil, []wire.RaftMessage{voteMsg(1)})
	if err != nil {
		t.Fatal(err)
	}
	h, _ := parseHeader(frame)
	if _, live, err := tr.stepFrame(old, h, frame, nil); !live || err != nil || len(rec.stepped()) != 1 {
		t.Fatalf("live %v, %v", live, err)
	}
	old.step.Lock() // a frame is on its way
	admitted := make(chan struct{})
	go func() {
		tr.registry.admit(&hello{store: 1, incarnation: 2, process: 2}, nil)
		close(admitted)
	}()
	<-old.evicted
	select {
	case <-admitted:
		t.Error("the later incarnation was admitted while the handler has a frame of the earlier one")
	case <-time.After(20 * time.Millisecond):
	}
	old.step.Unlock()
	<-admitted
	if _, live, _ := tr.stepFrame(old, h, frame, nil); live || len(rec.stepped()) != 1 {
		t.Error("a frame of the earlier incarnation was stepped")
	}
}

// A store whose shards all sleep makes no heartbeats: nothing wakes it to look for some.
func TestHeartbeatsWakeTheTransportOnlyIfThereAreAny(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tr := New(Config{HeartbeatWindow: 100 * time.Millisecond})
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { tr.beatLoop(ctx) })
		l := newLane(tr, 2, controlLane, 1<<20)
		time.Sleep(time.Hour)
		synctest.Wait()
		if n := tr.flushes.Load(); n != 0 {
			t.Errorf("%d looks in an hour without heartbeats", n)
		}
		for round := uint64(1); round <= 2; round++ {
			l.send([]wire.RaftMessage{beatMsg(1), beatMsg(2)})
			time.Sleep(100 * time.Millisecond)
			synctest.Wait()
			if n := tr.flushes.Load(); n != round {
				t.Errorf("%d flushes within an interval of the heartbeats of round %d", n, round)
			}
			l.flushBeats() // of a lane that is no peer's
			l.take()
		}
		cancel()
		wg.Wait()
	})
}
