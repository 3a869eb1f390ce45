package node

import (
	"context"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/reflection"
	"google.golang.org/grpc/status"

	pb "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/transport"
)

// newServer builds the gRPC server with every service. All are there from the start; those that need a member answer
// Unavailable until the node is one.
func (n *Node) newServer() {
	n.late = &lateServices{}
	n.server = grpc.NewServer(append(transport.ServerOptions(),
		grpc.UnknownServiceHandler(n.late.serve), grpc.UnaryInterceptor(n.calls.unary))...)
	n.health = health.NewServer()
	n.health.SetServingStatus("", healthpb.HealthCheckResponse_NOT_SERVING)
	healthpb.RegisterHealthServer(n.server, n.health)
	pb.RegisterAdminServiceServer(n.server, &adminService{n: n})
	pb.RegisterInternalServiceServer(n.server, &internalService{n: n})
	pb.RegisterRouteServiceServer(n.server, &routeService{n: n})
	pb.RegisterKVServiceServer(n.server, &kvService{n: n})
	transport.RegisterBatch(n.server, n.serveBatch)
	reflection.Register(n.server)
}

// lateServices takes streaming services after the server has started: gRPC itself wants them before, but the transport
// can only be made once the node knows which store it is.
type lateServices struct {
	mu      sync.RWMutex
	streams map[string]lateStream
}

type lateStream struct {
	handler grpc.StreamHandler
	impl    any
}

// RegisterService implements grpc.ServiceRegistrar for services that have streams only.
func (l *lateServices) RegisterService(desc *grpc.ServiceDesc, impl any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.streams == nil {
		l.streams = make(map[string]lateStream)
	}
	for _, s := range desc.Streams {
		l.streams["/"+desc.ServiceName+"/"+s.StreamName] = lateStream{s.Handler, impl}
	}
}

func (l *lateServices) serve(_ any, ss grpc.ServerStream) error {
	method, _ := grpc.MethodFromServerStream(ss)
	l.mu.RLock()
	ready := l.streams != nil
	s, ok := l.streams[method]
	l.mu.RUnlock()
	switch {
	case ok:
		return s.handler(s.impl, ss)
	case !ready:
		return status.Errorf(codes.Unavailable, "%s: %s", method, waitingText)
	}
	return status.Errorf(codes.Unimplemented, "unknown method %s", method)
}

// waitingText is what a node says that has no ident yet.
const waitingText = "waiting for init or join"

// hopKey marks a call that one node forwards to another: it is not forwarded again.
const hopKey = "shardd-hop"

func withHop(ctx context.Context) context.Context {
	return metadata.AppendToOutgoingContext(ctx, hopKey, "1")
}

func isHop(ctx context.Context) bool {
	md, _ := metadata.FromIncomingContext(ctx)
	return len(md.Get(hopKey)) > 0
}

// needMember returns the running member, or the status that says what the node waits for.
func (n *Node) needMember() (*member, error) {
	m := n.member.Load()
	switch {
	case n.stopping.Load():
		return nil, status.Errorf(codes.Unavailable, "node %s is stopping", n.addr)
	case m == nil:
		return nil, status.Errorf(codes.Unavailable, "node %s: %s", n.addr, n.waiting())
	}
	return m, nil
}

// waiting says what keeps the node from serving, "" if nothing does.
func (n *Node) waiting() string {
	if n.member.Load() != nil {
		return ""
	}
	if _, ok := n.eng.Ident(); ok {
		return "starting"
	}
	if n.founding.Load() {
		return "making a cluster"
	}
	return waitingText
}
