package transport

import (
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
)

// Limits and buffers of every connection of Shardd, in bytes; measured on the hot path.
const (
	ioBuffer     = 128 << 10
	streamWindow = 4 << 20
	connWindow   = 16 << 20
	// MaxMessageSize bounds one gRPC message in either direction.
	MaxMessageSize = 64 << 20
)

const (
	// The least that gRPC accepts on the dialling side. The time-out also is TCP_USER_TIMEOUT: sent bytes that the other
	// kernel does not acknowledge end the connection after it.
	clientPing = 10 * time.Second
	// The accepting side only wants its memory back. Each timer of gRPC's wakes an idle process by itself.
	serverPing = 30 * time.Second
	// Peer links ping on their own, faster and in step with the process's other ticks.
	linkPing      = time.Hour
	pingTimeout   = 3 * time.Second
	maxRedial     = time.Second
	baseRedial    = 50 * time.Millisecond
	dialTimeout   = 3 * time.Second
	redialFactor  = 1.6
	redialJitter  = 0.2
	minPingPeriod = time.Second
)

// ServerOptions returns what a gRPC server of a node needs: the codec for raw frames and protobuf, buffers, windows,
// message limit and keepalive. It has no credentials.
func ServerOptions() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.ForceServerCodecV2(newCodec()),
		grpc.ReadBufferSize(ioBuffer),
		grpc.WriteBufferSize(ioBuffer),
		grpc.InitialWindowSize(streamWindow),
		grpc.InitialConnWindowSize(connWindow),
		grpc.MaxRecvMsgSize(MaxMessageSize),
		grpc.MaxSendMsgSize(MaxMessageSize),
		grpc.ConnectionTimeout(dialTimeout),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: serverPing, Timeout: pingTimeout}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: minPingPeriod, PermitWithoutStream: true}),
	}
}

// DialOptions returns what a connection to a node needs; see ServerOptions. Connections are not encrypted unless a
// later option brings credentials.
func DialOptions() []grpc.DialOption {
	return []grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(
			grpc.ForceCodecV2(newCodec()),
			grpc.MaxCallRecvMsgSize(MaxMessageSize),
			grpc.MaxCallSendMsgSize(MaxMessageSize),
		),
		grpc.WithReadBufferSize(ioBuffer),
		grpc.WithWriteBufferSize(ioBuffer),
		grpc.WithInitialWindowSize(streamWindow),
		grpc.WithInitialConnWindowSize(connWindow),
		keepaliveOf(clientPing),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff: backoff.Config{
				BaseDelay: baseRedial, Multiplier: redialFactor, Jitter: redialJitter, MaxDelay: maxRedial,
			},
			MinConnectTimeout: dialTimeout,
		}),
		// A retry would keep copies of sent frames; every user of a stream has its own way to recover.
		grpc.WithDisableRetry(),
		grpc.WithNoProxy(), // a proxy for the web is not on the way to our own nodes
	}
}

// keepaliveOf has a dialled connection ping after so long without a word.
func keepaliveOf(silence time.Duration) grpc.DialOption {
	return grpc.WithKeepaliveParams(keepalive.ClientParameters{
		Time: silence, Timeout: pingTimeout, PermitWithoutStream: true,
	})
}
