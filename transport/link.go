package transport

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/mem"

	"github.com/shardd/shardd/internal/clock"
)

const (
	peerService = "shardd.v1.Peer"

	// ackBytes is how much the accepting side takes before it says so: a slow link that makes progress is not silent.
	ackBytes = 256 << 10
	// Pings without an answer after which a link is given up. Bulk gets longer, since its pings queue behind data.
	controlMisses = 3
	bulkMisses    = 5
)

var (
	errSilent     = errors.New("link is half open: the peer does not answer")
	errSuperseded = errors.New("the peer has restarted")
	errRemoved    = errors.New("the peer was removed from the cluster")
	errNoAddress  = errors.New("no address is known")
	errDialSlow   = fmt.Errorf("no handshake within %s", dialTimeout)
)

// link is one outbound stream whose handshake is done. The lane's goroutine sends; one goroutine receives answers.
type link struct {
	lane   *lane
	addr   string
	peer   hello
	conn   *grpc.ClientConn
	stream grpc.ClientStream
	cancel context.CancelCauseFunc
	done   chan struct{} // closed when receiving has ended

	pingDue atomic.Bool
	heard   atomic.Bool // since the last tick of watch

	out   outFrame // the sender's
	press compressor

	mu struct {
		sync.Mutex
		err    error
		misses int
		watch  *time.Timer
	}
}

// connect dials the peer once and exchanges Hellos.
func (l *lane) connect(ctx context.Context) (*link, error) {
	t := l.t
	addr, ok := t.cfg.Peers.Addr(l.peer)
	if !ok {
		return nil, fmt.Errorf("dial %s: %w", l.peer, errNoAddress)
	}
	// A connection per attempt: the back-off is ours, and the address may have changed.
	conn, err := grpc.NewClient(addr, t.dial...)
	if err != nil {
		return nil, fmt.Errorf("dial %s at %s: %w", l.peer, addr, err)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	slow := time.AfterFunc(dialTimeout, func() { cancel(errDialSlow) })
	k := &link{
		lane: l, addr: addr, conn: conn, cancel: cancel, done: make(chan struct{}),
		press: compressor{min: t.cfg.CompressMin},
	}
	err = k.handshake(ctx)
	if !slow.Stop() && err == nil {
		err = errDialSlow
	}
	if err != nil {
		cancel(err)
		conn.Close()
		if cause := context.Cause(ctx); cause == errDialSlow {
			err = cause
		}
		return nil, fmt.Errorf("dial %s at %s: %w", l.peer, addr, err)
	}
	k.mu.Lock()
	// Links tick together, and with the process's other ticks: a beat and a ping leave in one write then.
	k.mu.watch = time.AfterFunc(clock.NextAligned(t.cfg.PingInterval), k.tick)
	k.mu.Unlock()
	t.lanes.Go(k.receive)
	return k, nil
}

func (k *link) handshake(ctx context.Context) error {
	l := k.lane
	t := l.t
	desc := &grpc.StreamDesc{StreamName: l.kind.method(), ClientStreams: true, ServerStreams: true}
	var err error
	if k.stream, err = k.conn.NewStream(ctx, desc, "/"+peerService+"/"+l.kind.method()); err != nil {
		return err
	}
	me := hello{
		protoMin: protoMin, protoMax: protoMax, clusterVersion: clusterVersion, cluster: t.cfg.Cluster,
		store: t.cfg.Store, dest: l.peer, incarnation: t.cfg.Incarnation, process: t.process, addr: t.cfg.Address,
	}
	if err := k.write(mem.BufferSlice{mem.SliceBuffer(me.append(nil))}); err != nil {
		return k.recvError()
	}
	var in inFrame
	if err := k.stream.RecvMsg(&in); err != nil {
		return err
	}
	peer, ref, err := firstFrame(in.b)
	if err != nil {
		return err
	}
	if ref != nil {
		return &RefusedError{Peer: l.peer, Addr: k.addr, Reason: ref.reason, Text: ref.text}
	}
	k.peer = peer
	return k.vetPeer(&peer)
}

// vetPeer checks what the acceptor says of itself. It has accepted us, so a contradiction is its problem: it is told,
// and fences itself.
func (k *link) vetPeer(peer *hello) error {
	t := k.lane.t
	if peer.store != k.lane.peer {
		return fmt.Errorf("%s answered", peer.store)
	}
	ref := t.vet(peer)
	var newer bool
	if ref == nil {
		newer, ref = t.registry.admit(peer, nil)
	}
	if ref != nil {
		t.metrics.refusals.WithLabelValues("acceptor", ref.reason.String()).Inc()
		ref.cluster, ref.store = t.cfg.Cluster, t.cfg.Store
		if err := k.write(mem.BufferSlice{mem.SliceBuffer(ref.append(nil))}); err == nil {
			// Wait until it has read the reason: closing the connection at once might overtake it.
			if k.stream.CloseSend() == nil {
				var in inFrame
				for k.stream.RecvMsg(&in) == nil {
				}
			}
		}
		return fmt.Errorf("not accepted as %s (%s): %s", peer.store, ref.reason, ref.text)
	}
	if newer {
		t.peerAlive(peer)
	}
	return nil
}

// peerAlive tells the lanes to a store that it has been heard from under this identity.
func (t *Transport) peerAlive(peer *hello) {
	t.mu.RLock()
	p := t.mu.peers[peer.store]
	t.mu.RUnlock()
	if p == nil {
		return
	}
	for _, l := range p {
		l.peerAlive(peer.incarnation)
	}
}

func (k *link) write(bufs mem.BufferSlice) error {
	k.out.bufs = bufs
	err := k.stream.SendMsg(&k.out)
	k.out.bufs = nil
	return err
}

// recvError returns the reason for the io.EOF that a broken stream gives its sender; only RecvMsg has it.
func (k *link) recvError() error {
	var in inFrame
	for {
		if err := k.stream.RecvMsg(&in); err != nil {
			return err
		}
		if _, ref, err := firstFrame(in.b); err == nil && ref != nil {
			return &RefusedError{Peer: k.lane.peer, Addr: k.addr, Reason: ref.reason, Text: ref.text}
		}
	}
}

// send gives a frame to gRPC; it blocks while the peer's window is full. The frame is spent.
func (k *link) send(f *outgoing) error {
	m := k.lane.metrics()
	count, body := f.count, f.size()-headerSize
	bufs, packed := k.press.pack(f)
	size := headerSize + body
	if packed > 0 {
		size = headerSize + packed
		k.lane.t.metrics.compressIn.Add(float64(body))
		k.lane.t.metrics.compressed.Add(float64(packed))
	}
	if err := k.write(bufs); err != nil {
		k.cancel(err)
		return err
	}
	m.framesOut.Inc()
	m.msgsOut.Add(float64(count))
	m.bytesOut.Add(float64(size))
	return nil
}

func (k *link) ping() error {
	if err := k.write(smallFrame(kindPing)); err != nil {
		k.cancel(err)
		return err
	}
	return nil
}

// receive takes pongs and refusals until the stream ends.
func (k *link) receive() {
	defer close(k.done)
	var in inFrame
	for {
		if err := k.stream.RecvMsg(&in); err != nil {
			k.fail(err)
			return
		}
		h, err := parseHeader(in.b)
		if err != nil {
			k.fail(err)
			return
		}
		k.heard.Store(true)
		if h.kind == kindRefusal {
			ref, err := parseRefusal(h, in.b[headerSize:])
			if err == nil {
				err = &RefusedError{Peer: k.lane.peer, Addr: k.addr, Reason: ref.reason, Text: ref.text}
			}
			k.fail(err)
			return
		}
	}
}

// tick runs every PingInterval: it counts the intervals in which nothing was heard. Counting intervals, not time, keeps
// a process that was stopped for a while from taking its own sleep for the peer's.
func (k *link) tick() {
	limit := controlMisses
	if k.lane.kind == bulkLane {
		limit = bulkMisses
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.mu.watch == nil {
		return
	}
	if k.heard.Swap(false) {
		k.mu.misses = 0
	} else if k.mu.misses++; k.mu.misses > limit {
		k.failLocked(errSilent)
		return
	}
	k.pingDue.Store(true)
	poke(k.lane.wake)
	k.mu.watch.Reset(clock.NextAligned(k.lane.t.cfg.PingInterval))
}

// fail ends the link with a reason; the first one counts. It unblocks sender and receiver.
func (k *link) fail(err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.failLocked(err)
}

func (k *link) failLocked(err error) {
	if k.mu.err == nil {
		k.mu.err = err
	}
	k.cancel(err)
}

func (k *link) reason() error {
	<-k.done // every caller has seen the link fail; this is where the receiver says why
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.mu.err
}

// close ends the link and joins its receiver.
func (k *link) close() {
	k.mu.Lock()
	k.mu.watch.Stop()
	k.mu.watch = nil
	k.mu.Unlock()
	k.cancel(context.Canceled)
	<-k.done
	k.conn.Close()
}
