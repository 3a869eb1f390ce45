package client_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"net"
	"sort"
	"sync"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	sharddv1 "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/client"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
	"github.com/shardd/shardd/transport"
)

// fakeNode is a node in memory behind a real gRPC server: it speaks the frames and the look-up, and nothing else. It
// lets a test see what was sent and break what is open. The rules of shards it knows are those that the client relies
// on.
type fakeNode struct {
	sharddv1.UnimplementedRouteServiceServer
	addr    string
	server  *grpc.Server
	ops     atomic.Int64
	frames  atomic.Int64
	lookups atomic.Int64
	refuse  atomic.Bool   // look-ups
	mute    atomic.Bool   // operations are taken and never answered
	muted   chan struct{} // one token for each of those

	mu      sync.Mutex
	rows    map[string]client.Value
	version uint64
	shards  []*base.Descriptor
	streams map[*transport.Stream]chan struct{}
}

func startFake(t testing.TB, splits ...string) *fakeNode {
	t.Helper()
	n := &fakeNode{rows: map[string]client.Value{}, streams: map[*transport.Stream]chan struct{}{},
		muted: make(chan struct{}, 16)}
	lo := base.UserStart()
	for i := range len(splits) + 1 {
		hi := base.UserEnd()
		if i < len(splits) {
			hi = base.UserKey([]byte(splits[i]))
		}
		n.shards = append(n.shards, &base.Descriptor{
			Shard: base.ShardID(i + 2), Start: lo, End: hi, Epoch: base.Epoch{ConfVer: 1, Version: 1}, NextReplicaID: 2,
			Replicas: []base.ReplicaDesc{{Replica: 1, Store: 1, Role: base.RoleVoter}},
		})
		lo = hi
	}
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	n.addr = lis.Addr().String()
	n.server = grpc.NewServer(transport.ServerOptions()...)
	transport.RegisterBatch(n.server, n.serve)
	sharddv1.RegisterRouteServiceServer(n.server, n)
	served := make(chan error, 1)
	go func() { served <- n.server.Serve(lis) }()
	t.Cleanup(func() {
		n.server.Stop()
		if err := <-served; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return n
}

func (n *fakeNode) Lookup(_ context.Context, req *sharddv1.LookupRequest) (*sharddv1.LookupResponse, error) {
	n.lookups.Add(1)
	if n.refuse.Load() {
		return nil, status.Error(codes.Unavailable, "the meta shard has no leader")
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	resp := &sharddv1.LookupResponse{Addresses: map[uint64]string{1: n.addr}}
	for _, d := range n.shards {
		if d.Contains(req.GetKey()) || req.GetReverse() && bytes.Equal(d.End, req.GetKey()) || len(resp.Routes) > 0 {
			resp.Routes = append(resp.Routes, &sharddv1.Route{Descriptor_: d.Append(nil), Leader: 1})
		}
	}
	return resp, nil
}

// serve answers one stream until it ends or the test breaks it.
func (n *fakeNode) serve(class transport.Class, s *transport.Stream) error {
	broken := make(chan struct{})
	n.mu.Lock()
	n.streams[s] = broken
	n.mu.Unlock()
	frames := make(chan []byte)
	go func() {
		defer close(frames)
		for {
			f, err := s.Recv()
			if err != nil {
				return
			}
			select {
			case frames <- f:
			case <-s.Context().Done():
				return
			}
		}
	}()
	for {
		select {
		case f, ok := <-frames:
			if !ok {
				return nil
			}
			n.frames.Add(1)
			if err := s.Send(n.answer(f)); err != nil {
				return err
			}
		case <-broken:
			return status.Error(codes.Unavailable, "the test broke the stream")
		}
	}
}

// breakStreams ends all streams from the node's side.
func (n *fakeNode) breakStreams() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for s, ch := range n.streams {
		close(ch)
		delete(n.streams, s)
	}
}

func (n *fakeNode) answer(frame []byte) []byte {
	out := transport.GetBuffer(1 << 10)
	var op wire.Op
	for len(frame) > 0 {
		_, rest, err := wire.DecodeOp(frame, &op)
		if err != nil {
			return out
		}
		frame = rest
		n.ops.Add(1)
		if n.mute.Load() {
			n.muted <- struct{}{}
			continue
		}
		n.mu.Lock()
		a := n.runLocked(&op)
		n.mu.Unlock()
		a.Req = op.Req
		out = a.Append(out)
	}
	return out
}

func (n *fakeNode) runLocked(op *wire.Op) wire.Answer {
	for _, d := range n.shards {
		if d.Shard != op.Shard {
			continue
		}
		if d.Epoch.Version != op.Version || !d.Contains(op.Key) {
			return wire.Answer{Code: wire.EpochMismatch, Payload: wire.AppendDescriptors(nil, n.shards...)}
		}
		if err := op.Validate(); err != nil {
			return wire.Answer{Code: wire.Invalid, Payload: []byte(err.Error())}
		}
		a := n.applyLocked(op)
		a.Version = d.Epoch.Version
		return a
	}
	return wire.Answer{Code: wire.ShardNotFound}
}

func (n *fakeNode) applyLocked(op *wire.Op) wire.Answer {
	have := n.rows[string(op.Key)]
	if op.Flags&wire.FlagIfVersion != 0 && have.Version != op.Arg {
		return wire.Answer{Code: wire.ConditionFailed, Arg: have.Version, Payload: []byte{0, 0, 0, 0}}
	}
	switch op.Code {
	case wire.OpGet:
		if !have.Exists() {
			return wire.Answer{Code: wire.NotFound}
		}
		return wire.Answer{Arg: have.Version, Payload: have.Bytes}
	case wire.OpScan:
		return n.scanLocked(op)
	case wire.OpBatch:
		return n.batchLocked(op.Value)
	}
	n.version++
	n.writeLocked(op.Code, op.Key, op.Value)
	return wire.Answer{Arg: n.version}
}

func (n *fakeNode) writeLocked(code wire.OpCode, key, value []byte) {
	switch code {
	case wire.OpPut:
		n.rows[string(key)] = client.Value{Bytes: bytes.Clone(value), Version: n.version}
	case wire.OpDelete:
		delete(n.rows, string(key))
	case wire.OpDeleteRange:
		for k := range n.rows {
			if k >= string(key) && k < string(value) {
				delete(n.rows, k)
			}
		}
	}
}

func (n *fakeNode) batchLocked(steps []byte) wire.Answer {
	var s wire.Sub
	for i, b := 0, steps; len(b) > 0; i++ {
		b, _ = wire.DecodeSub(b, &s)
		have := n.rows[string(s.Key)]
		failed := s.Code == wire.OpCheckAbsent && have.Exists() || s.Code == wire.OpCheckPresent && !have.Exists() ||
			s.Code == wire.OpCheckVersion && have.Version != s.Arg ||
			s.Code == wire.OpCheckValue && (!have.Exists() || !bytes.Equal(have.Bytes, s.Value))
		if failed {
			return wire.Answer{
				Code: wire.ConditionFailed, Arg: have.Version, Payload: binary.BigEndian.AppendUint32(nil, uint32(i)),
			}
		}
	}
	n.version++
	for b := steps; len(b) > 0; {
		b, _ = wire.DecodeSub(b, &s)
		n.writeLocked(s.Code, s.Key, s.Value)
	}
	return wire.Answer{Arg: n.version}
}

func (n *fakeNode) scanLocked(op *wire.Op) (a wire.Answer) {
	var keys []string
	for k := range n.rows {
		if k >= string(op.Key) && k < string(op.Value) {
			keys = append(keys, k)
		}
	}
	sort.Strings(keys)
	maxRows, maxBytes := wire.SplitScanArg(op.Arg)
	for i := range keys {
		k := keys[i]
		if op.Flags&wire.FlagReverse != 0 {
			k = keys[len(keys)-1-i]
		}
		row := wire.Row{Key: []byte(k), Value: n.rows[k].Bytes, Version: n.rows[k].Version}
		if op.Flags&wire.FlagKeysOnly != 0 {
			row.Value = nil
		}
		a.Payload = row.Append(a.Payload)
		if (maxRows > 0 && i+1 >= int(maxRows) || len(a.Payload) >= int(maxBytes)) && i+1 < len(keys) {
			a.Flags = wire.FlagMore
			break
		}
	}
	return a
}
