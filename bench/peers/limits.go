package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// limits is what the machine can do without a database around it, in the same run: bare Pebble and bare gRPC.
type limits struct {
	SyncedPuts1   float64 `json:"pebble_synced_puts_per_sec_1"` // one writer, 1 KiB, each synced
	SyncedPuts256 float64 `json:"pebble_synced_puts_per_sec_256"`
	Gets          float64 `json:"pebble_gets_per_sec"` // 64 readers, 100,000 records in the cache
	UnaryEcho     float64 `json:"grpc_unary_per_sec"`  // 64 callers, 1 KiB both ways, one connection
	StreamEcho    float64 `json:"grpc_stream_per_sec"` // 64 streams, one message under way on each
}

// limitTime is how long each limit is measured.
const limitTime = 3 * time.Second

func measureLimits(ctx context.Context, dir string, cfg config) (*limits, error) {
	db, err := pebble.Open(dir+"/pebble", &pebble.Options{MemTableSize: 64 << 20, MemTableStopWritesThreshold: 4,
		FormatMajorVersion: pebble.FormatNewest, CacheSize: 256 << 20, Logger: quiet{}})
	if err != nil {
		return nil, err
	}
	defer db.Close()
	l := &limits{}
	value := make([]byte, 1024)
	put := func(opt *pebble.WriteOptions) func(*rand.Rand) error {
		return func(r *rand.Rand) error { return db.Set(key(r.IntN(cfg.Records)), value, opt) }
	}
	for i := range cfg.Records {
		if err := db.Set(key(i), value, pebble.NoSync); err != nil {
			return nil, err
		}
	}
	if l.SyncedPuts1, err = rate(1, put(pebble.Sync)); err != nil {
		return nil, err
	}
	if l.SyncedPuts256, err = rate(256, put(pebble.Sync)); err != nil {
		return nil, err
	}
	if l.Gets, err = rate(64, func(r *rand.Rand) error {
		_, c, err := db.Get(key(r.IntN(cfg.Records)))
		if err == nil {
			err = c.Close()
		}
		return err
	}); err != nil {
		return nil, err
	}
	return l, l.echo(ctx, value)
}

type quiet struct{}

func (quiet) Infof(string, ...any)  {}
func (quiet) Errorf(string, ...any) {}
func (quiet) Fatalf(format string, args ...any) {
	panic(fmt.Sprintf(format, args...))
}

func key(i int) []byte {
	return binary.BigEndian.AppendUint64([]byte("user"), uint64(i)*0x9e3779b97f4a7c15)
}

// rate calls do from n goroutines for limitTime and returns calls per second.
func rate(n int, do func(*rand.Rand) error) (float64, error) {
	var wg sync.WaitGroup
	counts, errs := make([]int, n), make([]error, n)
	began := time.Now()
	for i := range n {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(i), 1))
			for errs[i] == nil && time.Since(began) < limitTime {
				errs[i] = do(r)
				counts[i]++
			}
		})
	}
	wg.Wait()
	sum := 0
	for i := range n {
		if errs[i] != nil {
			return 0, errs[i]
		}
		sum += counts[i]
	}
	return float64(sum) / time.Since(began).Seconds(), nil
}

// echoService answers what it is sent, once or on a stream.
type echoService interface {
	echo(context.Context, *wrapperspb.BytesValue) (*wrapperspb.BytesValue, error)
}

type echoer struct{}

func (echoer) echo(_ context.Context, m *wrapperspb.BytesValue) (*wrapperspb.BytesValue, error) {
	return m, nil
}

var echoDesc = grpc.ServiceDesc{
	ServiceName: "peers.Echo", HandlerType: (*echoService)(nil),
	Methods: []grpc.MethodDesc{{MethodName: "Unary", Handler: func(srv any, ctx context.Context, dec func(any) error,
		_ grpc.UnaryServerInterceptor) (any, error) {
		in := new(wrapperspb.BytesValue)
		if err := dec(in); err != nil {
			return nil, err
		}
		return srv.(echoService).echo(ctx, in)
	}}},
	Streams: []grpc.StreamDesc{{StreamName: "Stream", ServerStreams: true, ClientStreams: true,
		Handler: func(_ any, s grpc.ServerStream) error {
			for {
				in := new(wrapperspb.BytesValue)
				if err := s.RecvMsg(in); err != nil {
					return nil // the client has gone
				}
				if err := s.SendMsg(in); err != nil {
					return err
				}
			}
		}}},
}

// echo measures both ends of gRPC in this process, over loopback.
func (l *limits) echo(ctx context.Context, value []byte) error {
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	srv := grpc.NewServer()
	srv.RegisterService(&echoDesc, echoer{})
	served := make(chan error, 1)
	go func() { served <- srv.Serve(lis) }()
	defer func() {
		srv.Stop()
		<-served
	}()
	cc, err := grpc.NewClient(lis.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer cc.Close()
	msg := wrapperspb.Bytes(value)
	if l.UnaryEcho, err = rate(64, func(*rand.Rand) error {
		return cc.Invoke(ctx, "/peers.Echo/Unary", msg, new(wrapperspb.BytesValue))
	}); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	free := make(chan grpc.ClientStream, 64)
	for range cap(free) {
		s, err := cc.NewStream(ctx, &echoDesc.Streams[0], "/peers.Echo/Stream")
		if err != nil {
			return err
		}
		free <- s
	}
	l.StreamEcho, err = rate(64, func(*rand.Rand) error {
		s := <-free
		defer func() { free <- s }()
		if err := s.SendMsg(msg); err != nil {
			return err
		}
		return s.RecvMsg(new(wrapperspb.BytesValue))
	})
	return err
}
