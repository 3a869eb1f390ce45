package bench

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"

	"go.etcd.io/etcd/raft/v3/raftpb"
	"google.golang.org/grpc"

	"github.com/shardd/shardd/engine"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
	"github.com/shardd/shardd/transport"
)

// passMessages is what one pass of a busy leader sends to one peer: an append of one entry for each group.
func passMessages(groups, writes int) []wire.RaftMessage {
	r := rand.New(rand.NewPCG(1, 1))
	msgs := make([]wire.RaftMessage, groups)
	for i := range msgs {
		msgs[i] = wire.RaftMessage{
			Shard: base.ShardID(10 + i), From: 1, To: 2, FromStore: 1, ToStore: 2,
			Msg: raftpb.Message{Type: raftpb.MsgApp, From: 1, To: 2, Term: engine.InitialTerm, LogTerm: engine.InitialTerm,
				Index: 99, Commit: 99, Entries: []raftpb.Entry{benchEntry(r, i, groups, writes, 100)}},
		}
	}
	return msgs
}

func messageBytes(msgs []wire.RaftMessage) (n int64) {
	for i := range msgs {
		for _, e := range msgs[i].Msg.Entries {
			n += int64(len(e.Data))
		}
	}
	return n
}

// BenchmarkTransportFrame encodes and decodes the frame of one pass.
func BenchmarkTransportFrame(b *testing.B) {
	for _, groups := range []int{1, 16, 128} {
		msgs := passMessages(groups, 8)
		frame, err := transport.AppendFrame(nil, msgs)
		if err != nil {
			b.Fatal(err)
		}
		b.Run(fmt.Sprintf("encode/groups=%d", groups), func(b *testing.B) {
			b.SetBytes(messageBytes(msgs))
			b.ReportAllocs()
			buf := make([]byte, 0, len(frame))
			for b.Loop() {
				if buf, err = transport.AppendFrame(buf[:0], msgs); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(fmt.Sprintf("decode/groups=%d", groups), func(b *testing.B) {
			b.SetBytes(messageBytes(msgs))
			b.ReportAllocs()
			var out []wire.RaftMessage
			for b.Loop() {
				if out, _, err = transport.DecodeFrame(frame, 1, 2, out[:0]); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// counting is a handler that gives a place in flight back for every pass, which the message of the last group ends, and
// says when the link is up.
type counting struct {
	last base.ShardID
	up   chan struct{}
	free chan struct{}
}

func (c *counting) Step(msgs []wire.RaftMessage) {
	for i := range msgs {
		switch {
		case msgs[i].Msg.Type == raftpb.MsgAppResp: // see BenchmarkTransport
			select {
			case c.up <- struct{}{}:
			default:
			}
		case msgs[i].Shard == c.last:
			c.free <- struct{}{}
		}
	}
}

func (*counting) Unreachable(base.ShardID, base.ReplicaID, base.ReplicaID) {}

func (*counting) Liveness(base.StoreID, uint64, []byte) {}

// addresses are the peers of a benchmark; nothing is kept.
type addresses map[base.StoreID]string

func (a addresses) Addr(s base.StoreID) (string, bool) {
	addr, ok := a[s]
	return addr, ok
}

func (addresses) Hello(base.StoreID, string, uint64) error { return nil }

// BenchmarkTransport sends the messages of one pass after the other from store to store over loopback gRPC, up to eight
// passes in flight.
func BenchmarkTransport(b *testing.B) {
	for _, groups := range []int{1, 16, 128} {
		b.Run(fmt.Sprintf("groups=%d", groups), func(b *testing.B) {
			const inFlight = 8
			msgs := passMessages(groups, 8)
			received := &counting{last: msgs[groups-1].Shard, up: make(chan struct{}, 1), free: make(chan struct{}, inFlight)}
			sender := startTransports(b, received)
			b.SetBytes(messageBytes(msgs))
			b.ReportAllocs()

			// Before the link is up messages are dropped: something small goes out until it arrives.
			hello := []wire.RaftMessage{msgs[0]}
			hello[0].Msg = raftpb.Message{Type: raftpb.MsgAppResp, From: 1, To: 2, Term: engine.InitialTerm}
			again := time.NewTicker(10 * time.Millisecond)
			defer again.Stop()
			for up := false; !up; {
				sender.Send(2, hello)
				select {
				case <-received.up:
					up = true
				case <-again.C:
				}
			}
			b.ResetTimer()
			sent, got := 0, 0
			for got < b.N {
				for sent < b.N && sent-got < inFlight {
					sender.Send(2, msgs)
					sent++
				}
				<-received.free
				got++
			}
		})
	}
}

// startTransports returns store 1's transport, linked to store 2, whose messages go to h.
func startTransports(b *testing.B, h transport.Handler) *transport.Transport {
	b.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	known := addresses{}
	listeners := map[base.StoreID]net.Listener{}
	for _, s := range []base.StoreID{1, 2} {
		l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
		if err != nil {
			b.Fatal(err)
		}
		listeners[s], known[s] = l, l.Addr().String()
	}
	transports := map[base.StoreID]*transport.Transport{}
	var servers []*grpc.Server
	for s, l := range listeners {
		t := transport.New(transport.Config{Cluster: base.ClusterID{1}, Store: s, Incarnation: 1, Address: known[s],
			Handler: h, Peers: known, Fenced: func(err error) { b.Error(err) }})
		server := grpc.NewServer(transport.ServerOptions()...)
		t.Register(server)
		wg.Go(func() {
			if err := server.Serve(l); err != nil {
				b.Error(err)
			}
		})
		wg.Go(func() {
			if err := t.Run(ctx); err != nil && !errors.Is(err, context.Canceled) {
				b.Error(err)
			}
		})
		transports[s] = t
		servers = append(servers, server)
	}
	b.Cleanup(func() {
		cancel()
		for _, s := range servers {
			s.Stop()
		}
		wg.Wait()
	})
	return transports[1]
}
