package plan

import (
	"fmt"
	"time"
)

// Config is what the planner is set to. The zero value of each field means its default; Off fields pause parts.
type Config struct {
	// Rules say how many replicas a shard has and where; nil: Voters of them, spread over Levels.
	Rules Rules
	// Voters and Levels make the rule if Rules is nil; 3, and zone, rack, host.
	Voters int
	Levels []string

	// Off pauses parts of the planner; all run if it is empty.
	Off Parts

	// Operators bounds what runs at once (64). Raise it in big clusters; each costs the meta shard a few writes.
	Operators int
	// StoreSnapshots bounds the replicas that move to or from one store at once (4), each direction by itself.
	StoreSnapshots int
	// StoreTransfers bounds the leaderships that move to or from one store at once (8).
	StoreTransfers int
	// Boundaries bounds the splits and merges that run at once (32), of the Operators.
	Boundaries int

	// DownAfter is the silence after which a store's replicas are replaced (5 min). Shorter heals sooner, but copies data
	// for a node that only restarts.
	DownAfter time.Duration
	// AliveFor is the silence up to which a store gets new work (10 s).
	AliveFor time.Duration
	// Grace is how long a new driver waits for stores that do not report (1 min).
	Grace time.Duration
	// JointPatience is how long a shard may stay between two configurations before the driver steps in (30 s).
	JointPatience time.Duration
	// SlowFor is how long a store counts as slow after it last said so (1 min).
	SlowFor time.Duration
	// Settle is how long after its range changed a shard is not split by load, since its load is of before (1 min), and a
	// twelfth of that by size. Cooldown is how long after a change of leader its load is no reason to move it (2 min).
	Settle, Cooldown time.Duration
	// Backoff is the first wait after an operator failed (10 s); it doubles up to MaxBackoff (10 min).
	Backoff, MaxBackoff time.Duration

	// SplitBytes is the size above which a shard splits (256 MiB); rules may say otherwise.
	SplitBytes uint64
	// SplitRequests (2,500), SplitByteRate (64 MiB) and SplitCPUMicros (500,000) are the loads per second above which it
	// splits, if the leader knows a key that divides the load.
	SplitRequests, SplitByteRate, SplitCPUMicros uint64
	// MergeBytes is the size up to which neighbours may merge (SplitBytes/10), MergeRequests (10) and MergeByteRate (64
	// KiB) are the loads up to which they count as cold.
	MergeBytes, MergeRequests, MergeByteRate uint64
	// MergeAge is how long the ranges of both must not have changed (10 min), MergeColdFor how long both must have been cold
	// (5 min).
	MergeAge, MergeColdFor time.Duration

	// Tolerance is the largest difference of replicas, and of leaders, between two stores at which nothing is moved (2),
	// as long as TolerancePercent (1) of the mean is not more.
	Tolerance, TolerancePercent int
	// ByteTolerancePercent is by how much the bytes of a store may lie above the mean before replicas move for them (20).
	ByteTolerancePercent int
	// HotTolerancePercent is by how much the load of a store may lie above the mean before leaders move for it (25), and
	// HotFloor the requests per second of a store below which load is no reason (1,000).
	HotTolerancePercent int
	HotFloor            uint64
	// LowSpacePercent is the part of a disk that must stay free for a store to get more replicas (10), and LowSpaceBytes
	// what is enough on a large one (16 GiB, twice that below which writes are refused).
	LowSpacePercent int
	LowSpaceBytes   uint64

	// SnapshotRate is the bytes per second that one snapshot is taken to make at least; it sets deadlines (4 MiB).
	SnapshotRate uint64
	// JournalBytes bounds the journal (4 MiB).
	JournalBytes int
	// ScanPerRound bounds the shards that wait for something and are looked at again in one round (2,000).
	ScanPerRound int
}

// Parts names parts of the planner.
type Parts uint8

// Parts.
const (
	PartSplit Parts = 1 << iota
	PartMerge
	PartReplicas // balance of replicas, and spread
	PartLeaders
	PartHot
	PartRepair // replacing replicas that are lost, faulted or on stores that must lose them
	PartAll    = PartSplit | PartMerge | PartReplicas | PartLeaders | PartHot | PartRepair
)

var partNames = [...]string{"split", "merge", "replicas", "leaders", "hot", "repair"}

// ParsePart reads the word of one part, or all.
func ParsePart(s string) (Parts, error) {
	if s == "all" {
		return PartAll, nil
	}
	for i, name := range partNames {
		if s == name {
			return 1 << i, nil
		}
	}
	return 0, fmt.Errorf("unknown part %.32q of the driver, want all or one of %q", s, partNames[:])
}

// Names returns the words of the parts.
func (p Parts) Names() []string {
	var out []string
	for i, name := range partNames {
		if p&(1<<i) != 0 {
			out = append(out, name)
		}
	}
	return out
}

// WithDefaults returns the settings with every zero field filled in.
func (c Config) WithDefaults() Config {
	set(&c.Voters, 3)
	if c.Levels == nil {
		c.Levels = DefaultLevels()
	}
	if c.Rules == nil {
		c.Rules = &Uniform{Voters: c.Voters, Levels: c.Levels}
	}
	set(&c.Operators, 64)
	set(&c.StoreSnapshots, 4)
	set(&c.StoreTransfers, 8)
	set(&c.Boundaries, 32)
	set(&c.DownAfter, 5*time.Minute)
	set(&c.AliveFor, 10*time.Second)
	set(&c.Grace, time.Minute)
	set(&c.JointPatience, 30*time.Second)
	set(&c.SlowFor, time.Minute)
	set(&c.Settle, time.Minute)
	set(&c.Cooldown, 2*time.Minute)
	set(&c.Backoff, 10*time.Second)
	set(&c.MaxBackoff, 10*time.Minute)
	set(&c.SplitBytes, 256<<20)
	set(&c.SplitRequests, 2500)
	set(&c.SplitByteRate, 64<<20)
	set(&c.SplitCPUMicros, 500_000)
	set(&c.MergeBytes, c.SplitBytes/10)
	set(&c.MergeRequests, 10)
	set(&c.MergeByteRate, 64<<10)
	set(&c.MergeAge, 10*time.Minute)
	set(&c.MergeColdFor, 5*time.Minute)
	set(&c.Tolerance, 2)
	set(&c.TolerancePercent, 1)
	set(&c.ByteTolerancePercent, 20)
	set(&c.HotTolerancePercent, 25)
	set(&c.HotFloor, 1000)
	set(&c.LowSpacePercent, 10)
	set(&c.LowSpaceBytes, 16<<30)
	set(&c.SnapshotRate, 4<<20)
	set(&c.JournalBytes, 4<<20)
	set(&c.ScanPerRound, 2000)
	return c
}

func set[T comparable](at *T, def T) {
	if *at == *new(T) {
		*at = def
	}
}

// Validate checks settings with their defaults filled in; the error names the field.
func (c *Config) Validate() error {
	switch {
	case c.Tolerance < 2:
		// Of two stores that differ by one a move only swaps the roles, and moves for bytes and load need slack; see fixed.go.
		return fmt.Errorf("tolerance of %d: at least 2", c.Tolerance)
	case c.MergeBytes > c.SplitBytes/4:
		return fmt.Errorf("merge size of %d is above a quarter of the split size of %d: shards would flap",
			c.MergeBytes, c.SplitBytes)
	case c.MergeRequests > c.SplitRequests/4 || c.MergeByteRate > c.SplitByteRate/4:
		return fmt.Errorf("the load for a merge is above a quarter of that for a split: shards would flap")
	case c.LowSpacePercent < 0 || c.LowSpacePercent > 90:
		return fmt.Errorf("low space at %d percent", c.LowSpacePercent)
	case c.DownAfter < c.AliveFor:
		return fmt.Errorf("down after %s, less than the %s for which a store counts as alive", c.DownAfter, c.AliveFor)
	}
	for name, n := range map[string]int{
		"operators": c.Operators, "snapshots per store": c.StoreSnapshots, "transfers per store": c.StoreTransfers,
		"boundaries": c.Boundaries, "voters": c.Voters,
	} {
		if n < 1 {
			return fmt.Errorf("%s: %d, at least 1", name, n)
		}
	}
	return nil
}
