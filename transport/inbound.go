package transport

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"

	"github.com/shardd/shardd/internal/wire"
)

// Register adds the peer service to a server made with ServerOptions. Streams are accepted while Run runs; before and
// after, peers are told to come again.
func (t *Transport) Register(r grpc.ServiceRegistrar) {
	handler := func(lane laneKind) grpc.StreamHandler {
		return func(_ any, ss grpc.ServerStream) error { return t.accept(lane, ss) }
	}
	desc := &grpc.ServiceDesc{ServiceName: peerService, HandlerType: (*any)(nil)}
	for k := range numLanes {
		desc.Streams = append(desc.Streams, grpc.StreamDesc{
			StreamName: k.method(), Handler: handler(k), ClientStreams: true, ServerStreams: true,
		})
	}
	r.RegisterService(desc, t)
}

// accept runs one inbound stream. Returning from here is the only way to end a server's stream, so a second goroutine
// receives, and this one waits for whatever ends it first.
func (t *Transport) accept(lane laneKind, ss grpc.ServerStream) error {
	t.mu.RLock()
	ctx := t.mu.running
	if ctx != nil {
		t.inbounds.Add(1) // under the lock: Run waits only after it has reset running
	}
	t.mu.RUnlock()
	if ctx == nil {
		return status.Error(codes.Unavailable, "the transport is not running")
	}
	in := &inbound{lane: lane, evicted: make(chan struct{})}
	greeted, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		defer t.inbounds.Done()
		ended <- t.receive(in, ss, greeted)
	}()
	slow := time.NewTimer(dialTimeout)
	defer slow.Stop()
	for {
		select {
		case err := <-ended:
			return err
		case <-greeted:
			greeted = nil
			slow.Stop()
		case <-slow.C:
			return status.Error(codes.DeadlineExceeded, "no hello")
		case <-in.evicted:
			return status.Error(codes.Aborted, "replaced by a later connection of the same store")
		case <-ctx.Done():
			return status.Error(codes.Unavailable, "the transport stops")
		}
	}
}

// receive shakes hands, then steps what arrives until the stream ends.
func (t *Transport) receive(in *inbound, ss grpc.ServerStream, greeted chan struct{}) error {
	if err := t.greet(in, ss); err != nil {
		return err
	}
	close(greeted)
	defer t.registry.leave(in)
	t.log.Debug("peer accepted", slog.String("peer", in.peer.store.String()), slog.String("lane", in.lane.String()),
		slog.Uint64("incarnation", in.peer.incarnation))
	err := t.stepAll(in, ss)
	switch {
	case errors.Is(err, ErrFrame):
		t.metrics.malformed.Inc()
		t.log.Warn("peer sent garbage", slog.String("peer", in.peer.store.String()),
			slog.String("lane", in.lane.String()), slog.Any("error", err))
		return status.Error(codes.InvalidArgument, err.Error())
	case errors.Is(err, io.EOF):
		return nil
	}
	return err
}

// greet checks the dialler's Hello and answers with ours, or with a refusal. Nothing else is decoded before.
func (t *Transport) greet(in *inbound, ss grpc.ServerStream) error {
	var frame inFrame
	if err := ss.RecvMsg(&frame); err != nil {
		return err
	}
	h, err := parseHeader(frame.b)
	if err == nil {
		in.peer, err = parseHello(h, frame.b[headerSize:])
	}
	if err != nil {
		t.metrics.malformed.Inc()
		ref := &refusal{reason: RefusedProtocol, text: err.Error()}
		return t.refuse(in, ss, ref)
	}
	if ref := t.vet(&in.peer); ref != nil {
		return t.refuse(in, ss, ref)
	}
	if _, ref := t.registry.admit(&in.peer, in); ref != nil {
		return t.refuse(in, ss, ref)
	}
	me := hello{
		protoMin: protoMin, protoMax: protoMax, clusterVersion: clusterVersion, cluster: t.cfg.Cluster,
		store: t.cfg.Store, dest: in.peer.store, incarnation: t.cfg.Incarnation, process: t.process,
		addr: t.cfg.Address,
	}
	if err := ss.SendMsg(&outFrame{bufs: mem.BufferSlice{mem.SliceBuffer(me.append(nil))}}); err != nil {
		t.registry.leave(in)
		return err
	}
	t.peerAlive(&in.peer)
	return nil
}

// refuse sends the reason and ends the stream.
func (t *Transport) refuse(in *inbound, ss grpc.ServerStream, ref *refusal) error {
	t.metrics.refusals.WithLabelValues("acceptor", ref.reason.String()).Inc()
	ref.cluster, ref.store = t.cfg.Cluster, t.cfg.Store
	t.log.Debug("peer refused", slog.String("peer", in.peer.store.String()), slog.String("addr", in.peer.addr),
		slog.String("reason", ref.reason.String()), slog.String("detail", ref.text))
	if err := ss.SendMsg(&outFrame{bufs: mem.BufferSlice{mem.SliceBuffer(ref.append(nil))}}); err != nil {
		return err
	}
	return status.Error(codes.FailedPrecondition, ref.text)
}

// stepAll hands every frame to the handler.
func (t *Transport) stepAll(in *inbound, ss grpc.ServerStream) error {
	var (
		frame inFrame
		msgs  []wire.RaftMessage
		acked = ackBytes // bytes until the next acknowledgement
		pong  outFrame
	)
	for {
		frame.b = nil
		if err := ss.RecvMsg(&frame); err != nil {
			return err
		}
		h, err := parseHeader(frame.b)
		if err != nil {
			return err
		}
		if h.kind == kindRefusal { // the dialler does not believe us: we are an old copy
			return t.refusedInbound(in, h, frame.b[headerSize:])
		}
		answer := h.kind == kindPing
		if acked -= len(frame.b); acked <= 0 {
			acked, answer = ackBytes, true
		}
		live := true
		if msgs, live, err = t.stepFrame(in, h, frame.b, msgs); err != nil || !live {
			return err
		}
		if answer {
			pong.bufs = smallFrame(kindPong)
			if err := ss.SendMsg(&pong); err != nil {
				return err
			}
		}
	}
}

// stepFrame hands one frame to the handler; msgs is room for its messages. It reports whether the stream goes on.
func (t *Transport) stepFrame(in *inbound, h frameHeader, frame []byte, msgs []wire.RaftMessage) (
	_ []wire.RaftMessage, live bool, err error) {
	if h.kind != kindMessages && h.kind != kindHeartbeats && h.kind != kindLiveness {
		return msgs, true, nil
	}
	body, err := frameBody(h, frame)
	if err != nil {
		return msgs, false, err
	}
	m := &t.metrics.lanes[in.lane]
	m.framesIn.Inc()
	m.bytesIn.Add(float64(len(frame)))
	in.step.Lock()
	defer in.step.Unlock()
	select {
	case <-in.evicted: // a later incarnation speaks: what this one still says must not be stepped
		return msgs, false, nil
	default:
	}
	if h.kind == kindLiveness {
		if in.lane != controlLane || h.count != 0 || h.records != 0 || len(body) > MaxLiveness {
			return msgs, false, fmt.Errorf("liveness of %d bytes with %d messages on the %s lane: %w", len(body), h.count,
				in.lane, ErrFrame)
		}
		t.cfg.Handler.Liveness(in.peer.store, in.peer.incarnation, body)
		return msgs, true, nil
	}
	msgs, refused, err := decodeBody(h, body, in.peer.store, t.cfg.Store, msgs[:0])
	if err != nil {
		return msgs, false, err
	}
	m.msgsIn.Add(float64(len(msgs)))
	if refused > 0 {
		t.metrics.drops.WithLabelValues(in.lane.String(), dropInbound).Add(float64(refused))
	}
	if len(msgs) > 0 {
		t.cfg.Handler.Step(msgs)
		clear(msgs)
	}
	return msgs, true, nil
}

// refusedInbound takes the reason why a dialler that we had accepted does not accept us.
func (t *Transport) refusedInbound(in *inbound, h frameHeader, body []byte) error {
	ref, err := parseRefusal(h, body)
	if err != nil {
		return err
	}
	e := &RefusedError{Peer: in.peer.store, Addr: in.peer.addr, Reason: ref.reason, Text: ref.text}
	t.metrics.refusals.WithLabelValues("dialler", ref.reason.String()).Inc()
	t.log.Warn("peer refused us", slog.String("peer", in.peer.store.String()), slog.Any("error", e))
	if t.cfg.Fenced != nil && (errors.Is(e, ErrFenced) || errors.Is(e, ErrOtherCluster)) {
		t.cfg.Fenced(e)
	}
	return nil
}
