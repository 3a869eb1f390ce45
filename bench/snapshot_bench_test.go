package bench

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"go.etcd.io/etcd/raft/v3/raftpb"
	"google.golang.org/grpc"

	sharddv1 "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/engine"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/snapshotter"
	"github.com/shardd/shardd/transport"
)

// snapshotMiB is the size of the shard, which SHARDD_BENCH_SNAPSHOT_MIB sets.
func snapshotMiB(b testing.TB, otherwise int) int {
	b.Helper()
	s := os.Getenv("SHARDD_BENCH_SNAPSHOT_MIB")
	if s == "" {
		return otherwise
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < 1 {
		b.Fatalf("SHARDD_BENCH_SNAPSHOT_MIB=%q: want a number of MiB", s)
	}
	return n
}

// BenchmarkSnapshotStream sends a shard from one store to another over loopback, unthrottled, from the request to the
// answer that it is installed.
func BenchmarkSnapshotStream(b *testing.B) {
	s := newSnapshotBench(b, snapshotMiB(b, 64))
	b.SetBytes(s.bytes)
	for b.Loop() {
		s.snapshot(b)
	}
}

// BenchmarkPlainStreamBuildIngest does by hand what a snapshot cannot do without, with the engine's tables, checks of
// them included: tables of 16 MiB built from the rows, sent as 1 MiB messages of a gRPC stream, written, synced and
// ingested at the other end. It has no limits, no reservation, no acknowledgements and no way to resume.
func BenchmarkPlainStreamBuildIngest(b *testing.B) {
	s := newSnapshotBench(b, snapshotMiB(b, 64))
	b.SetBytes(s.bytes)
	for b.Loop() {
		s.plain(b)
	}
}

// BenchmarkSnapshotRatio runs the two in turn and reports the throughput of the first as a part of the second's.
func BenchmarkSnapshotRatio(b *testing.B) {
	s := newSnapshotBench(b, snapshotMiB(b, 64))
	var snapshot, plain time.Duration
	n := 0
	for b.Loop() {
		began := time.Now()
		s.plain(b)
		plain += time.Since(began)
		began = time.Now()
		s.snapshot(b)
		snapshot += time.Since(began)
		n++
	}
	mb := float64(s.bytes) * float64(n) / 1e6
	b.ReportMetric(mb/snapshot.Seconds(), "snapshot-MB/s")
	b.ReportMetric(mb/plain.Seconds(), "plain-MB/s")
	b.ReportMetric(plain.Seconds()/snapshot.Seconds(), "ratio")
}

const benchChunk = 16 << 20

// snapshotBench is a filled store and two empty ones, one for each way.
type snapshotBench struct {
	desc           *base.Descriptor
	bytes          int64 // of keys and values
	source         *engine.Engine
	service        *snapshotter.Service
	snapshotSink   *engine.Engine
	plainSink      *plainSink
	plainClient    sharddv1.SnapshotServiceClient
	plainID, terms uint64
}

func newSnapshotBench(b testing.TB, mib int) *snapshotBench {
	b.Helper()
	s := &snapshotBench{desc: &base.Descriptor{
		Shard: 10, Start: base.UserKey([]byte("a")), End: base.UserKey([]byte("b")),
		Epoch: base.Epoch{ConfVer: 2, Version: 1}, NextReplicaID: 3,
		Replicas: []base.ReplicaDesc{{Replica: 1, Store: 1, Role: base.RoleVoter},
			{Replica: 2, Store: 2, Role: base.RoleLearner}},
	}}
	s.source, _ = benchEngine(b, 0)
	s.fill(b, mib)
	sink, _ := benchEngine(b, 0)
	s.snapshotSink = sink
	plain, _ := benchEngine(b, 0)
	s.plainSink = &plainSink{engine: plain}
	s.plainClient = sharddv1.NewSnapshotServiceClient(serve(b, transport.DialOptions(), func(r grpc.ServiceRegistrar) {
		sharddv1.RegisterSnapshotServiceServer(r, s.plainSink)
	}))

	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	b.Cleanup(func() {
		cancel()
		wg.Wait()
	})
	const unthrottled = 1 << 40
	var conn *grpc.ClientConn
	newService := func(store base.StoreID, e *engine.Engine) *snapshotter.Service {
		x, err := snapshotter.New(snapshotter.Config{
			Engine: e, Cluster: base.ClusterID{1}, Store: store, Target: installer{e},
			Dial:               func(base.StoreID) (grpc.ClientConnInterface, error) { return conn, nil },
			SendBytesPerSecond: unthrottled, ReceiveBytesPerSecond: unthrottled,
		})
		if err != nil {
			b.Fatal(err)
		}
		wg.Go(func() {
			if err := x.Run(ctx); err != nil {
				b.Error(err)
			}
		})
		return x
	}
	conn = serve(b, snapshotter.DialOptions(), newService(2, sink).Register)
	s.service = newService(1, s.source)
	return s
}

// fill writes rows of 1 KiB that do not compress.
func (s *snapshotBench) fill(b testing.TB, mib int) {
	b.Helper()
	r := rand.New(rand.NewPCG(1, 1))
	rows := mib << 10
	batch := s.source.NewBatch()
	defer batch.Close()
	batch.CreateReplica(s.desc, 1, 1, nil)
	value := make([]byte, 1<<10)
	for i := range rows {
		for at := 0; at < len(value); at += 8 {
			v := r.Uint64()
			for j := range 8 {
				value[at+j] = byte(v >> (8 * j))
			}
		}
		key := fmt.Appendf(base.UserKey([]byte("a")), "user%016d", i)
		batch.Put(key, engine.ValueHeader{Version: 1}, value)
		s.bytes += int64(len(key) + len(value))
		if batch.Len() > 4<<20 || i == rows-1 {
			if err := s.source.Commit(batch, i == rows-1); err != nil {
				b.Fatal(err)
			}
			batch.Reset()
		}
	}
}

func (s *snapshotBench) snapshot(b testing.TB) {
	b.Helper()
	done := make(chan error, 1)
	s.terms++
	s.service.Send(snapshotter.Request{
		Shard: s.desc.Shard, From: 1, To: 2, ToStore: 2, Term: engine.InitialTerm + s.terms, Priority: snapshotter.Recovery,
		Done: func(err error) { done <- err },
	})
	if err := <-done; err != nil {
		b.Fatal(err)
	}
}

// installer is a target without rules.
type installer struct{ engine *engine.Engine }

func (installer) AcceptSnapshot(*engine.SnapshotMeta) error { return nil }

func (x installer) InstallSnapshot(_ context.Context, m *engine.SnapshotMeta, st *engine.Staging) error {
	_, err := x.engine.Install(engine.Install{
		Staging: st, Mark: engine.ReplicaMark{ReplicaID: m.To, NextReplicaID: m.Desc.NextReplicaID},
		Hard: raftpb.HardState{Term: max(m.RaftTerm, m.Applied.Term)},
	})
	return err
}

func (s *snapshotBench) plain(b testing.TB) {
	b.Helper()
	if err := s.sendPlain(b.Context()); err != nil {
		b.Fatal(err)
	}
}

func (s *snapshotBench) sendPlain(ctx context.Context) error {
	view, err := s.source.OpenView(s.desc.Shard)
	if err != nil {
		return err
	}
	defer view.Close()
	s.plainID++
	meta := &engine.SnapshotMeta{
		Shard: s.desc.Shard, From: 1, To: 2, FromStore: 1, ToStore: 2, RaftTerm: engine.InitialTerm + s.plainID,
		Desc: view.Desc(), Applied: view.Applied(), ApproxBytes: view.ApproxBytes(),
	}
	stream, err := s.plainClient.Stream(ctx)
	if err != nil {
		return err
	}
	if err := stream.Send(&sharddv1.StreamRequest{Frame: &sharddv1.StreamRequest_Reserve{
		Reserve: &sharddv1.SnapshotReserve{Meta: meta.Append(nil)}}}); err != nil {
		return err
	}
	var from []byte
	for seq := uint32(0); ; seq++ {
		c, next, err := view.Chunk(seq, from, benchChunk)
		if err != nil {
			return err
		}
		header := c.AppendHeader(nil)
		for at := 0; at < len(c.SST); at += 1 << 20 {
			end := min(at+1<<20, len(c.SST))
			if err := stream.Send(&sharddv1.StreamRequest{Frame: &sharddv1.StreamRequest_Part{Part: &sharddv1.SnapshotPart{
				Chunk: seq, Header: header, Data: c.SST[at:end], Last: end == len(c.SST)}}}); err != nil {
				return err
			}
			header = nil
		}
		view.Release(c) // protobuf has copied it
		if next == nil {
			break
		}
		from = next
	}
	if err := stream.CloseSend(); err != nil {
		return err
	}
	_, err = stream.Recv()
	return err
}

// plainSink takes the stream of sendPlain.
type plainSink struct {
	sharddv1.UnimplementedSnapshotServiceServer
	engine *engine.Engine
	n      byte
}

// Stream stages what it receives and ingests it at the end.
func (x *plainSink) Stream(ss sharddv1.SnapshotService_StreamServer) error {
	first, err := ss.Recv()
	if err != nil {
		return err
	}
	meta, err := engine.DecodeSnapshotMeta(first.GetReserve().GetMeta())
	if err != nil {
		return err
	}
	x.n++
	staging, err := x.engine.NewStaging(meta, [16]byte{x.n})
	if err != nil {
		return err
	}
	var c *engine.Chunk
	var table []byte
	for {
		m, err := ss.Recv()
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		p := m.GetPart()
		if len(p.GetHeader()) > 0 {
			if c, err = engine.DecodeChunkHeader(p.GetHeader()); err != nil {
				return err
			}
			table = table[:0]
		}
		table = append(table, p.GetData()...)
		if p.GetLast() {
			c.SST = table
			if err := staging.Add(c); err != nil {
				return err
			}
		}
	}
	if err := (installer{x.engine}).InstallSnapshot(ss.Context(), meta, staging); err != nil {
		return err
	}
	return ss.Send(&sharddv1.StreamResponse{Frame: &sharddv1.StreamResponse_Installed{
		Installed: &sharddv1.SnapshotInstalled{}}})
}

// serve runs a server on loopback and returns a connection to it.
func serve(b testing.TB, dial []grpc.DialOption, register func(grpc.ServiceRegistrar)) *grpc.ClientConn {
	b.Helper()
	l, err := (&net.ListenConfig{}).Listen(b.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	server := grpc.NewServer(transport.ServerOptions()...)
	register(server)
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := server.Serve(l); err != nil {
			b.Error(err)
		}
	})
	conn, err := grpc.NewClient(l.Addr().String(), dial...)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := conn.Close(); err != nil {
			b.Error(err)
		}
		server.Stop()
		wg.Wait()
	})
	return conn
}
