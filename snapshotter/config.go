package snapshotter

import (
	"context"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"

	"github.com/shardd/shardd/engine"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/clock"
	"github.com/shardd/shardd/transport"
)

// Defaults of Config.
const (
	DefaultBytesPerSecond = 32 << 20
	DefaultSlots          = 2
	DefaultChunkBytes     = 16 << 20
	DefaultSmallBytes     = 1 << 20
	DefaultMemoryBytes    = 64 << 20
	DefaultReserveBytes   = 64 << 30
)

// MinBytesPerSecond is the least limit that SetLimits and Config accept: below it one part would take longer than an
// idle stream may live.
const MinBytesPerSecond = 256 << 10

const (
	partBytes     = 1 << 20   // most data of one message
	sliceBytes    = 256 << 10 // what the token buckets give at a time when they are the limit
	maxPartBytes  = 4 << 20   // most data of one message that is accepted
	maxChunkBytes = 64 << 20  // biggest chunk that is accepted
	minChunkBytes = 1 << 20   // chunks get no smaller, however low the limit
	ackWindow     = 64 << 10  // gRPC window of the answers, the least that gRPC takes
)

// chunksPerSecond is how many chunks a stream at its limit makes.
const chunksPerSecond = 32

// Target takes received snapshots; shard.Store does.
//
// A refusal is an error with a method Declined() (reason string, wait time.Duration), found by errors.As: wait is when
// the sender should ask again, 0 not at all. Any other error ends the snapshot too and is reported to the sender.
type Target interface {
	// AcceptSnapshot is asked before a byte is staged. It must not block.
	AcceptSnapshot(m *engine.SnapshotMeta) error
	// InstallSnapshot makes the staged state the replica's. On return without an error it is durable, or was no longer
	// needed. The staging is removed afterwards in any case: the target must have let go of it when it returns, also
	// because of ctx.
	InstallSnapshot(ctx context.Context, m *engine.SnapshotMeta, st *engine.Staging) error
}

// Timeouts bound everything that a snapshot waits for. Zero fields take the defaults.
type Timeouts struct {
	// Reserve is how long a sender goes on asking for a reservation before it gives up; default 2 min.
	Reserve time.Duration
	// ReserveWait is how long a receiver lets one request wait for a slot before it declines it; default 10 s.
	ReserveWait time.Duration
	// Idle ends a stream on which nothing moves; default 30 s.
	Idle time.Duration
	// Resume is how long the sender keeps its view and the receiver its staging after a stream broke; default 1 min.
	Resume time.Duration
	// Install bounds Target.InstallSnapshot; default 5 min.
	Install time.Duration
	// Snapshot bounds a whole snapshot from its grant on; a second is added for every SlowestRate bytes. Default 5 min.
	Snapshot time.Duration
	// SlowestRate is the rate, in bytes per second, below which a snapshot is given up in the long run; default 1 MiB/s,
	// and never more than a quarter of what the send limit leaves for one of MaxSending streams.
	SlowestRate uint64
}

func (t Timeouts) withDefaults() Timeouts {
	pick := func(v *time.Duration, d time.Duration) {
		if *v == 0 {
			*v = d
		}
	}
	pick(&t.Reserve, 2*time.Minute)
	pick(&t.ReserveWait, 10*time.Second)
	pick(&t.Idle, 30*time.Second)
	pick(&t.Resume, time.Minute)
	pick(&t.Install, 5*time.Minute)
	pick(&t.Snapshot, 5*time.Minute)
	if t.SlowestRate == 0 {
		t.SlowestRate = 1 << 20
	}
	return t
}

// Config is what New needs.
type Config struct {
	Engine  *engine.Engine // required
	Cluster base.ClusterID // required: streams of another cluster are refused
	Store   base.StoreID   // required: our own
	Target  Target         // required
	// Dial returns a connection to a store, made with DialOptions, that nothing but snapshots uses: bulk data in front of
	// a heartbeat would delay it (L1). It is called for every stream, must not block for long, and keeps the connection:
	// snapshotter never closes one. Required.
	Dial func(base.StoreID) (grpc.ClientConnInterface, error)

	Logger     *slog.Logger          // nil: none
	Registerer prometheus.Registerer // nil: none
	Clock      clock.Clock           // nil: clock.System

	// SendBytesPerSecond and ReceiveBytesPerSecond limit all streams of this store together, each direction by itself;
	// 0 is DefaultBytesPerSecond. See SetLimits.
	SendBytesPerSecond, ReceiveBytesPerSecond uint64
	// MaxSending and MaxReceiving are how many streams may run at once in each direction; default DefaultSlots. More
	// streams share the same limit, so they end later each.
	MaxSending, MaxReceiving int
	// MaxWaiting is how many requests may wait for a slot at the receiver; default 64. The others are declined at once.
	MaxWaiting int
	// ReserveBytes bounds the sum of the sizes of all snapshots that are being received; default DefaultReserveBytes. A
	// bigger one is received when it is the only one.
	ReserveBytes uint64
	// ChunkBytes is the most bytes of one chunk, an SST; default DefaultChunkBytes, at most 32 MiB. Under a limit chunks
	// are smaller, down to 1 MiB. Each stream has up to two in memory at each end; what breaks costs at most one.
	ChunkBytes int
	// SmallBytes is the size up to which a shard is sent without waiting for the grant; default DefaultSmallBytes.
	SmallBytes int
	// MemoryBytes bounds the chunks in memory, for all streams of one direction; default DefaultMemoryBytes. A stream
	// waits for its share. It is at least one chunk.
	MemoryBytes int64

	Timeouts Timeouts
}

func (c Config) withDefaults() Config {
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Clock == nil {
		c.Clock = clock.System()
	}
	pick := func(v *int, d int) {
		if *v <= 0 {
			*v = d
		}
	}
	pick(&c.MaxSending, DefaultSlots)
	pick(&c.MaxReceiving, DefaultSlots)
	pick(&c.MaxWaiting, 64)
	pick(&c.ChunkBytes, DefaultChunkBytes)
	pick(&c.SmallBytes, DefaultSmallBytes)
	c.ChunkBytes = min(c.ChunkBytes, maxChunkBytes/2)
	c.SmallBytes = min(c.SmallBytes, DefaultSmallBytes)
	if c.MemoryBytes <= 0 {
		c.MemoryBytes = DefaultMemoryBytes
	}
	c.MemoryBytes = max(c.MemoryBytes, int64(c.ChunkBytes))
	if c.ReserveBytes == 0 {
		c.ReserveBytes = DefaultReserveBytes
	}
	c.SendBytesPerSecond = clampLimit(c.SendBytesPerSecond)
	c.ReceiveBytesPerSecond = clampLimit(c.ReceiveBytesPerSecond)
	c.Timeouts = c.Timeouts.withDefaults()
	return c
}

func clampLimit(bytesPerSecond uint64) uint64 {
	if bytesPerSecond == 0 {
		return DefaultBytesPerSecond
	}
	return max(bytesPerSecond, MinBytesPerSecond)
}

// DialOptions returns what a connection for snapshots needs: transport's options with a small window for the answers,
// which are few and short. How much of the data may be on its way is the receiving server's window, a few MiB a stream
// (transport.ServerOptions).
func DialOptions() []grpc.DialOption {
	return append(transport.DialOptions(),
		grpc.WithInitialWindowSize(ackWindow),
		grpc.WithInitialConnWindowSize(ackWindow),
	)
}
