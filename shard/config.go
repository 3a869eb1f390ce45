package shard

import (
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/shardd/shardd/engine"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/clock"
	"github.com/shardd/shardd/internal/wire"
	"github.com/shardd/shardd/shard/liveness"
)

// Sender carries raft messages to another store. It never blocks and may drop; msgs is not retained after the call, the
// entries in them may be.
type Sender interface {
	Send(to base.StoreID, msgs []wire.RaftMessage)
}

// Waiter takes the outcome of one request. Complete is called exactly once per request, from a worker, or from inside
// Write or ReadIndex when the request is refused at once, or confirmed by a lease; so it must not block and the caller of
// Write must not hold a lock that Complete takes. The answer's payload is the waiter's to keep.
type Waiter interface {
	Complete(req uint64, a wire.Answer)
}

// WriteRequest is one client write on its way into a shard's log.
type WriteRequest struct {
	Shard    base.ShardID
	Version  uint64        // Epoch.Version that the client believes
	Req      uint64        // handed back to the Waiter
	Raw      []byte        // exact wire bytes of the operation; the store's until Complete
	Deadline time.Duration // on Clock.Boot; 0 means Config.RequestTimeout from now
	Waiter   Waiter
	Trace    *Trace // nil: not followed
}

// ReadRequest asks for the right to read a shard linearizably at this store.
type ReadRequest struct {
	Shard    base.ShardID
	Version  uint64
	Key, End []byte // what is to be read, for the answer to a stale route; optional. No End: Key alone
	Req      uint64
	Deadline time.Duration // on Clock.Boot; 0 means Config.RequestTimeout from now
	Waiter   Waiter

	// Follower lets this store serve the read though it does not lead the shard; it stays linearizable. MaxAge, if above
	// 0, lets it do so from a state that is at most that old. See follower.go.
	Follower bool
	MaxAge   time.Duration
	// IndexOnly asks a leader for the index alone, for a read elsewhere: it is the Arg of OK, and Version is not looked at.
	IndexOnly bool

	Trace *Trace // nil: not followed
}

// Config is what a Store is made of. Store, Incarnation, Engine and Sender are required; the zero value of every other
// field means its default.
type Config struct {
	// Store is the id of this store, Incarnation the number of its present life: higher than in every life before.
	Store       base.StoreID
	Incarnation uint64
	Engine      *engine.Engine
	Sender      Sender

	// Liveness is this store's end of store liveness; nil: there are no leases, and nothing sleeps.
	Liveness *liveness.Monitor
	// NoSleep keeps replicas awake that could sleep: they beat seldom instead (rest.go).
	NoSleep bool

	// Indexes asks leaders on other stores for read indexes. Without it this store serves no reads of shards that it does
	// not lead. IndexTimeout bounds one such question, 1 s.
	Indexes      IndexAsker
	IndexTimeout time.Duration

	// Snapshots sends them to followers that the log cannot feed. Without it none are sent.
	Snapshots Snapshots

	// Clock defaults to the machine's, Logger to one that discards, Registerer to no metrics.
	Clock      clock.Clock
	Logger     *slog.Logger
	Registerer prometheus.Registerer

	// Tick is the unit of raft's clocks, 100 ms. ElectionTick (10) is how many ticks without a leader start an
	// election, HeartbeatTick (2) how many lie between heartbeats. Raise Tick where round trips approach
	// HeartbeatTick x Tick.
	Tick          time.Duration
	ElectionTick  int
	HeartbeatTick int

	// Workers run the raft groups, ApplyWorkers the state machines; both default to half the processors, at least 1.
	// Fewer workers make larger commits, since every worker commits for itself.
	Workers      int
	ApplyWorkers int

	// SyncDepth is how many synced commits one worker may have in flight, 2. Beyond the first, another starts only for
	// at most PipelineGroups groups, 1, with little queued: overlap helps a lone client's latency, but many gain more
	// from one batch.
	SyncDepth      int
	PipelineGroups int

	// InlineBytes is up to how many committed bytes of a group its worker applies itself at the end of the pass, 256 KiB,
	// if they read nothing; more goes to the apply workers. Negative: everything does.
	InlineBytes int64

	// CommitNotice is for how long a leader may leave followers without word of a commit if there is nothing else to tell
	// them, 250 ms: an append or heartbeat that comes sooner tells it as well. Negative: not at all.
	CommitNotice time.Duration

	// MaxSizePerMsg (64 KiB) x MaxInflightMsgs (128) bounds what is in flight to one follower; a single entry may be
	// larger.
	MaxSizePerMsg   uint64
	MaxInflightMsgs int

	// EntryBytes is the most client writes that are put into one log entry, in bytes, 512 KiB; a larger operation goes
	// alone. PassBytes ends a pass early, 16 MiB: the batch of a pass must stay below half a memtable.
	EntryBytes int
	PassBytes  int

	// ScanRows and ScanBytes bound a scan page where the client does not: 1000 rows, 64 KiB.
	ScanRows  int
	ScanBytes int

	// RequestTimeout is the deadline of requests that carry none, 10 s.
	RequestTimeout time.Duration

	Limits Limits

	// Split says when a shard is due for a split. SetSplitLimits changes it.
	Split SplitLimits

	// Compaction says how much of the raft logs is kept.
	Compaction Compaction

	// OnVerify takes the view of a replica that is to be verified, or the error that there is none. It is called from
	// apply workers and must not block; it owns the view. Without it verifications pass unheeded.
	OnVerify func(VerifyRun)

	// MayLead reports whether a store is fit to be given leaderships that this one should not have: one that is neither
	// drained nor short of space. It is called from workers and must not block; nil means that all are.
	MayLead func(base.StoreID) bool

	// OnSplit is told of every split that is applied here, once both sides are visible: the descriptors after it, and
	// whether this store led the shard. It must not block.
	OnSplit func(left *base.Descriptor, rights []*base.Descriptor, leads bool)

	// OnMerge is told of every merge that is applied here, once it is visible: the descriptor after it, and the shard that
	// is gone. It must not block.
	OnMerge func(left *base.Descriptor, right base.ShardID)

	// Merges finds out for the leader of a shard that is frozen for a merge what became of that. Without it only what the
	// store itself knows counts. MergeTimeout is for how long a merge may stay undecided before such a leader has it
	// aborted, 10 s: longer than a good one ever takes, since clients wait meanwhile.
	Merges       MergeAsker
	MergeTimeout time.Duration

	// OnLeader is told of every leader that a local replica learns of. Fault is told of every replica that stops for
	// good. Both are called from workers and must not block.
	OnLeader func(shard base.ShardID, leader base.StoreID, term uint64)
	Fault    func(shard base.ShardID, replica base.ReplicaID, reason string)
}

// Limits bound memory, in bytes unless said otherwise, per group and over the store. A group always may hold one
// item, so that no limit makes an operation impossible. Past a limit clients get Busy, messages are dropped,
// committed entries wait in the log.
type Limits struct {
	GroupInbox, StoreInbox             int64 // received messages that wait for their group: 16 MiB, 256 MiB
	GroupQueue, StoreQueue             int64 // writes not proposed yet: 16 MiB, 256 MiB
	GroupUncommitted, StoreUncommitted int64 // proposed here, not committed: 16 MiB, 256 MiB
	GroupApply, StoreApply             int64 // committed entries handed to apply: 16 MiB, 256 MiB
	GroupReads, StoreReads             int64 // number of waiting reads: 16 Ki, 256 Ki
}

func (l Limits) withDefaults() Limits {
	def := func(group, store *int64, g, s int64) {
		if *group == 0 {
			*group = g
		}
		if *store == 0 {
			*store = s
		}
	}
	const mib = 1 << 20
	def(&l.GroupInbox, &l.StoreInbox, 16*mib, 256*mib)
	def(&l.GroupQueue, &l.StoreQueue, 16*mib, 256*mib)
	def(&l.GroupUncommitted, &l.StoreUncommitted, 16*mib, 256*mib)
	def(&l.GroupApply, &l.StoreApply, 16*mib, 256*mib)
	def(&l.GroupReads, &l.StoreReads, 16<<10, 256<<10)
	return l
}

func orElse[T comparable](v *T, def T) {
	var zero T
	if *v == zero {
		*v = def
	}
}

func (c Config) withDefaults() Config {
	if c.Clock == nil {
		c.Clock = clock.System()
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	orElse(&c.Tick, 100*time.Millisecond)
	orElse(&c.ElectionTick, 10)
	orElse(&c.HeartbeatTick, 2)
	orElse(&c.Workers, max(1, runtime.GOMAXPROCS(0)/2))
	orElse(&c.ApplyWorkers, max(1, runtime.GOMAXPROCS(0)/2))
	orElse(&c.SyncDepth, 2)
	orElse(&c.PipelineGroups, 1)
	orElse(&c.InlineBytes, 256<<10)
	orElse(&c.MaxSizePerMsg, 64<<10)
	orElse(&c.MaxInflightMsgs, 128)
	orElse(&c.EntryBytes, 512<<10)
	orElse(&c.PassBytes, 16<<20)
	orElse(&c.ScanRows, 1000)
	orElse(&c.ScanBytes, 64<<10)
	orElse(&c.RequestTimeout, 10*time.Second)
	orElse(&c.MergeTimeout, 10*time.Second)
	orElse(&c.IndexTimeout, time.Second)
	orElse(&c.CommitNotice, 250*time.Millisecond)
	c.Limits = c.Limits.withDefaults()
	c.Compaction = c.Compaction.withDefaults()
	return c
}

// Validate reports the first field that cannot work.
func (c *Config) Validate() error {
	switch {
	case c.Store == 0:
		return errors.New("shard config: Store is not set")
	case c.Incarnation == 0:
		return errors.New("shard config: Incarnation is not set")
	case c.Engine == nil || c.Sender == nil:
		return errors.New("shard config: Engine and Sender are required")
	case c.Tick < 0 || c.HeartbeatTick < 1 || c.ElectionTick < 3*c.HeartbeatTick:
		return fmt.Errorf("shard config: tick %s, heartbeat %d, election %d: election must be at least 3 heartbeats",
			c.Tick, c.HeartbeatTick, c.ElectionTick)
	case c.Workers < 1 || c.ApplyWorkers < 1 || c.SyncDepth < 1:
		return errors.New("shard config: Workers, ApplyWorkers and SyncDepth must be at least 1")
	}
	return nil
}
