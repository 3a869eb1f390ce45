package transport

import (
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"go.etcd.io/etcd/raft/v3/raftpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
)

func TestStoreOfAnotherClusterIsRefused(t *testing.T) {
	b := newBook()
	one := start(t, b, 1, "", func(c *Config) { c.Cluster = base.ClusterID{9} })
	two := start(t, b, 2, "", nil)
	one.tr.Send(2, []wire.RaftMessage{voteMsg(1), appendMsg(1, 1, nil)})
	err := fencedBy(t, one)
	var ref *RefusedError
	if !errors.Is(err, ErrOtherCluster) || errors.Is(err, ErrFenced) || !errors.As(err, &ref) || ref.Peer != 2 {
		t.Errorf("fenced with %v", err)
	}
	one.rec.until(t, "the report", func() bool { return len(one.rec.lost) == 1 })
	if len(two.rec.stepped()) != 0 || len(b.seen) != 0 {
		t.Errorf("%d messages were stepped, recorded %v", len(two.rec.stepped()), b.seen)
	}
}

func TestOldIncarnationIsFenced(t *testing.T) {
	b := newBook()
	two := start(t, b, 2, "", nil)
	b.seen[1] = 5
	one := start(t, b, 1, "", func(c *Config) { c.Incarnation = 4 })
	one.tr.Send(2, []wire.RaftMessage{voteMsg(1)})
	if err := fencedBy(t, one); !errors.Is(err, ErrFenced) || !errors.Is(err, ErrRefused) {
		t.Errorf("fenced with %v", err)
	}
	if len(two.rec.stepped()) != 0 {
		t.Error("a vote of an old copy was stepped")
	}
	// The other way round: the store that dials sees that who answers is an old copy, and tells it.
	two.tr.Send(1, []wire.RaftMessage{voteMsg(2)})
	if err := fencedBy(t, one); !errors.Is(err, ErrFenced) {
		t.Errorf("fenced with %v", err)
	}
	untilMetric(t, "the refusal", two.tr.metrics.refusals.WithLabelValues("acceptor", RefusedStale.String()))
	if len(one.rec.stepped()) != 0 {
		t.Error("a vote reached an old copy")
	}
}

func TestSecondProcessOnACopiedDirectoryIsFenced(t *testing.T) {
	b := newBook()
	two := start(t, b, 2, "", nil)
	one := start(t, b, 1, "", nil)
	sendUntil(t, one, two, voteMsg(1))
	addr, _ := b.Addr(1)
	copied := start(t, b, 1, "", nil) // same id, same incarnation
	b.set(1, addr)
	copied.tr.Send(2, []wire.RaftMessage{voteMsg(2)})
	if err := fencedBy(t, copied); !errors.Is(err, ErrFenced) {
		t.Errorf("fenced with %v", err)
	}
	sendUntil(t, one, two, voteMsg(3)) // the first one goes on
	two.rec.mu.Lock()
	defer two.rec.mu.Unlock()
	if two.rec.has(raftpb.MsgVote, 2) || len(one.fenced) != 0 {
		t.Error("the copy was heard, or the original fenced")
	}
}

func TestWrongStoreAtAnAddressIsNoReasonToStop(t *testing.T) {
	b := newBook()
	one, two := start(t, b, 1, "", nil), start(t, b, 2, "", nil)
	b.set(3, two.addr)
	one.tr.Send(3, []wire.RaftMessage{voteMsg(1)})
	untilMetric(t, "the refusal", two.tr.metrics.refusals.WithLabelValues("acceptor", RefusedWrongID.String()))
	three := start(t, b, 3, "", nil) // takes its address back
	sendUntil(t, one, three, voteMsg(2))
	two.rec.mu.Lock()
	defer two.rec.mu.Unlock()
	if len(one.fenced) != 0 || two.rec.has(raftpb.MsgVote, 1) {
		t.Error("fenced, or stepped for somebody else")
	}
}

func TestARemovedStoreIsCutOffAndToldWhy(t *testing.T) {
	b := newBook()
	one, two := start(t, b, 1, "", nil), start(t, b, 2, "", nil)
	sendUntil(t, one, two, voteMsg(1))
	sendUntil(t, two, one, voteMsg(1)) // connected both ways
	two.tr.Fence(1)
	sends, stop := make(chan struct{}), make(chan struct{})
	go func() { // as a candidate does: the first may be lost with the connection
		defer close(sends)
		for {
			one.tr.Send(2, []wire.RaftMessage{voteMsg(2)})
			select {
			case <-stop:
				return
			case <-time.After(10 * time.Millisecond):
			}
		}
	}()
	defer func() { <-sends }()
	defer close(stop)
	if err := fencedBy(t, one); !errors.Is(err, ErrFenced) || !errors.Is(err, ErrRefused) {
		t.Errorf("fenced with %v", err)
	}
	untilMetric(t, "the refusal", two.tr.metrics.refusals.WithLabelValues("acceptor", RefusedRemoved.String()))
	two.rec.mu.Lock()
	heard := two.rec.has(raftpb.MsgVote, 2)
	two.rec.mu.Unlock()
	if heard || len(two.fenced) != 0 {
		t.Error("a vote of a removed store was stepped, or it has fenced the one that removed it")
	}
	two.tr.Unfence(1)
	sendUntil(t, two, one, voteMsg(3))
	sendUntil(t, one, two, voteMsg(4))
}

func TestTheAddressBookMayRefuseARemovedStore(t *testing.T) {
	b := newBook()
	two := start(t, b, 2, "", nil)
	one := start(t, b, 1, "", nil)
	b.refuse(1, ErrRemoved)
	one.tr.Send(2, []wire.RaftMessage{voteMsg(1)})
	var ref *RefusedError
	if err := fencedBy(t, one); !errors.As(err, &ref) || ref.Reason != RefusedRemoved {
		t.Errorf("fenced with %v", err)
	}
	if len(two.rec.stepped()) != 0 {
		t.Error("a vote of a removed store was stepped")
	}
}

func TestNewIncarnationEndsStreamsOfTheOldOne(t *testing.T) {
	r := &registry{}
	r.mu.stores = map[base.StoreID]*identity{}
	admit := func(inc, process uint64, lane laneKind) (*inbound, *refusal) {
		in := &inbound{lane: lane, evicted: make(chan struct{}), peer: hello{store: 7, incarnation: inc, process: process}}
		_, ref := r.admit(&in.peer, in)
		return in, ref
	}
	gone := func(in *inbound) bool {
		select {
		case <-in.evicted:
			return true
		default:
			return false
		}
	}
	bulk, _ := admit(1, 10, bulkLane)
	control, _ := admit(1, 10, controlLane)
	again, ref := admit(1, 10, bulkLane) // the same process has redialled
	if ref != nil || !gone(bulk) || gone(control) {
		t.Fatalf("redial: %v, old %v, other lane %v", ref, gone(bulk), gone(control))
	}
	r.leave(bulk) // late: must not unseat its successor
	if _, ref := admit(1, 11, bulkLane); ref == nil || ref.reason != RefusedTwice {
		t.Fatalf("copy: %+v", ref)
	}
	if _, ref := admit(2, 12, controlLane); ref != nil || !gone(again) || !gone(control) {
		t.Fatalf("restart: %+v, streams gone %v %v", ref, gone(again), gone(control))
	}
	if _, ref := admit(1, 10, bulkLane); ref == nil || ref.reason != RefusedStale {
		t.Fatalf("old incarnation: %+v", ref)
	}
}

// dialRaw opens a peer stream by hand.
func dialRaw(t *testing.T, s *store) grpc.ClientStream {
	t.Helper()
	return dialLane(t, s, bulkLane)
}

func dialLane(t *testing.T, s *store, lane laneKind) grpc.ClientStream {
	t.Helper()
	conn, err := grpc.NewClient(s.addr, DialOptions()...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	desc := &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}
	stream, err := conn.NewStream(t.Context(), desc, "/"+peerService+"/"+lane.method())
	if err != nil {
		t.Fatal(err)
	}
	return stream
}

func rawSend(t *testing.T, s grpc.ClientStream, b []byte) {
	t.Helper()
	if err := s.SendMsg(&outFrame{bufs: mem.BufferSlice{mem.SliceBuffer(b)}}); err != nil {
		t.Fatal(err)
	}
}

func TestGarbageIsRefusedAndHarmsNobody(t *testing.T) {
	b := newBook()
	one, two := start(t, b, 1, "", nil), start(t, b, 2, "", nil)

	var wg sync.WaitGroup
	for _, junk := range []string{"", "\x00", "GET / HTTP/1.1\r\n\r\n",
		"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff\xff\xff\xff\xff\xff"} {
		wg.Go(func() {
			c, err := net.Dial("tcp", two.addr)
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			io.WriteString(c, junk)
			c.(*net.TCPConn).CloseWrite()
			c.SetReadDeadline(time.Now().Add(patience))
			if _, err := io.Copy(io.Discard, c); errors.Is(err, net.ErrClosed) {
				t.Error(err)
			}
		})
	}
	wg.Wait()

	me := hello{protoMin: 1, protoMax: 1, cluster: testCluster, store: 8, dest: 2, incarnation: 1}
	newer := me
	newer.protoMin, newer.protoMax = 7, 9
	for name, first := range map[string][]byte{
		"bytes": []byte("hello there, this is no frame"), "empty": {}, "wrong kind": smallFrame(kindPing).Materialize(),
		"newer protocol": newer.append(nil),
	} {
		s := dialRaw(t, two)
		rawSend(t, s, first)
		var in inFrame
		if err := s.RecvMsg(&in); err != nil {
			t.Fatalf("%s: no refusal frame: %v", name, err)
		}
		if _, ref, err := firstFrame(in.b); err != nil || ref == nil || ref.reason != RefusedProtocol || ref.text == "" {
			t.Errorf("%s: got %+v, %v", name, ref, err)
		}
		if err := s.RecvMsg(&in); status.Code(err) != codes.FailedPrecondition {
			t.Errorf("%s: stream ended with %v", name, err)
		}
	}

	// Garbage after a good handshake ends the stream only.
	bomb := make([]byte, headerSize)
	putHeader(bomb, frameHeader{kind: kindMessages, flags: flagSnappy, count: 1 << 30, records: maxBody, body: maxBody})
	for name, frame := range map[string][]byte{"junk": []byte("\x01\x01garbage"), "bomb": append(bomb, 1, 2, 3)} {
		s := dialRaw(t, two)
		rawSend(t, s, me.append(nil))
		var in inFrame
		if err := s.RecvMsg(&in); err != nil {
			t.Fatal(err)
		}
		if peer, ref, err := firstFrame(in.b); err != nil || ref != nil || peer.store != 2 {
			t.Fatalf("handshake: %+v %+v %v", peer, ref, err)
		}
		rawSend(t, s, frame)
		if err := s.RecvMsg(&in); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: stream ended with %v", name, err)
		}
	}
	// A frame of a kind from the future is not garbage.
	s := dialRaw(t, two)
	rawSend(t, s, me.append(nil))
	var in inFrame
	if err := s.RecvMsg(&in); err != nil {
		t.Fatal(err)
	}
	rawSend(t, s, smallFrame(kind(77)).Materialize())
	rawSend(t, s, smallFrame(kindPing).Materialize())
	if err := s.RecvMsg(&in); err != nil || kind(in.b[1]) != kindPong {
		t.Errorf("got %x, %v", in.b, err)
	}
	sendUntil(t, one, two, voteMsg(1))
	if got := two.rec.stepped(); len(got) == 0 || got[0].FromStore != 1 {
		t.Error("garbage was stepped")
	}
}
