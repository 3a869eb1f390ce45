package liveness

import (
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/clock"
)

// Config says who we are, what we promise, and whom to tell. Store, Incarnation, Clock and Send must be set.
//
// The On functions are called one at a time, in the order of what they report, from whatever goroutine has called a method
// of the Monitor, without a lock held. They must not block; they may call the Monitor.
type Config struct {
	Store       base.StoreID
	Incarnation uint64 // raised and synced before

	// Promise is D: the support asked for with every beat, and the most that is granted. At most an hour. It must be on
	// record in the store's ident before the Monitor takes its first body (V7). 0: no leases here; nothing is asked for,
	// granted or sent, and only QuietUntil says what an earlier life may have promised.
	Promise time.Duration
	// Recorded is the longest promise that any earlier life of this store may have given: QuietUntil follows from it.
	Recorded time.Duration
	// Margin bounds the relative error between the rates of two stores' clocks, in [0, 1). It has no default, so that a
	// test can leave it out; nodes take the setting clock-margin, 0.05.
	Margin float64
	// Interval is the time between beats; default a little less than a third of Promise, so that beats divide a second, or
	// seconds divide them: a process that does other things each second wakes for both at once.
	Interval time.Duration
	// CheckInterval is the mean time between two checks of what Follows returns (V8); default 10 s, negative: none.
	CheckInterval time.Duration
	Clock         clock.Clock

	// Healthy says whether the store may lead: a store that is not asks for no support (V10). nil: always. It must be
	// cheap; it is called without a lock held.
	Healthy func() bool
	// Send hands a body to the transport. It never blocks, may drop, and keeps the payload. It is called with the
	// Monitor's lock held and must not call back.
	Send func(to base.StoreID, payload []byte)

	// OnLapse: our support of a store has ended, by time or because it runs under a new incarnation. What was promised
	// under this epoch binds nobody any more.
	OnLapse func(store base.StoreID, epoch uint64)
	// OnSupport: a store's support of us has begun, or begun again after we had ceased to count on it; fresh: under an
	// epoch that we did not know.
	OnSupport func(store base.StoreID, epoch uint64, fresh bool)
	// OnReleased: a store says that it does not lead these groups at these terms (V8). Each is said once, unless the sender
	// forgot it. The slice is the callee's.
	OnReleased func(from base.StoreID, items []Group)
	// Leads answers another store's question: do we lead this group at this term? nil: nothing is answered.
	Leads func(g Group) bool
	// Follows returns the groups of which a replica here keeps a promise towards a leader on that store. nil: no checks.
	Follows func(store base.StoreID) []Group

	Logger     *slog.Logger          // nil: discarded
	Registerer prometheus.Registerer // nil: no metrics
}

// Validate names what New would refuse.
func (c *Config) Validate() error {
	switch {
	case c.Store == 0 || c.Incarnation == 0:
		return fmt.Errorf("liveness: store %s, incarnation %d: both must be set", c.Store, c.Incarnation)
	case c.Incarnation > maxIncarnation:
		return fmt.Errorf("liveness: incarnation %d, at most %d: epochs have no room for more", c.Incarnation, maxIncarnation)
	case c.Promise < 0 || c.Promise > maxDuration || c.Recorded < 0:
		return fmt.Errorf("liveness: a promise of %s, %s recorded: want at most %s", c.Promise, c.Recorded, maxDuration)
	case c.Margin < 0 || c.Margin >= 1:
		return fmt.Errorf("liveness: clock margin %g: want one in [0, 1)", c.Margin)
	case c.Clock == nil || c.Send == nil:
		return fmt.Errorf("liveness: Clock and Send must be set")
	}
	return nil
}

func (c Config) withDefaults() Config {
	if c.Interval <= 0 {
		c.Interval = intervalOf(c.Promise)
	}
	if c.CheckInterval == 0 {
		c.CheckInterval = 10 * time.Second
	}
	if c.Healthy == nil {
		c.Healthy = func() bool { return true }
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}

// intervalOf leaves room for one lost body: an answer comes with the beat after the request, the one after that must come
// before the support of a request two beats earlier is over, less the margin.
func intervalOf(promise time.Duration) time.Duration {
	switch most := promise * 5 / 16; {
	case promise == 0:
		return time.Second
	case most >= time.Second:
		return most.Truncate(time.Second)
	default:
		return max(time.Second/((time.Second+most-1)/max(most, 1)), time.Millisecond)
	}
}

// An epoch is the supporter's incarnation and a counter of its life.
const (
	epochBits      = 32
	maxIncarnation = 1<<(64-epochBits) - 1
)

// SplitEpoch returns an epoch's two halves: the incarnation of the store that gave it, and its count in that life.
func SplitEpoch(epoch uint64) (incarnation, count uint64) {
	return epoch >> epochBits, epoch & (1<<epochBits - 1)
}

// EpochIncarnation returns the incarnation of the store that gave an epoch.
func EpochIncarnation(epoch uint64) uint64 { return epoch >> epochBits }

// Support is another store's support of us: we may count on it while Until is ahead on our own boot time. It never changes.
type Support struct {
	Epoch uint64
	Until time.Duration
}

// promise is our support of another store. It never changes but by being replaced, compare-and-swap: that makes its end
// one event, whoever sees it first.
type promise struct {
	epoch uint64
	until time.Duration
	ended bool // for ever
}

// binds says whether the promise still binds us; no promise binds nobody.
func (p *promise) binds(now time.Duration) bool { return p != nil && !p.ended && now < p.until }

// sentRing remembers when our latest bodies left; older ones are of no use to anybody.
const sentRing = 64

// peer is everything between us and one other store.
type peer struct {
	store   base.StoreID
	promise atomic.Pointer[promise]
	held    atomic.Pointer[Support]

	// Guarded by Monitor.mu.

	listed      bool          // by SetPeers: we ask for support
	incarnation uint64        // its highest; 0: nothing heard
	seq         uint64        // its highest body
	heardAt     time.Duration // when that came
	asks        bool          // whether that asked for support
	granted     uint64        // its body that our promise answers
	grantedFor  time.Duration
	announced   uint64 // epoch whose end was reported
	counted     bool   // its support of us was good when we last looked

	sent      uint64 // number of our last body
	sentAt    [sentRing]sentBody
	lastSent  time.Duration
	beaten    bool          // lastSent is set
	urgent    bool          // something should not wait for the next beat
	heardUs   time.Duration // when we sent the latest body that it has heard
	hasHeard  bool
	nextCheck time.Duration
	round     []Group // of checks: those that it is not asked about yet
	part      int     // of them in each check

	releases, questions           list
	releasesTaken, questionsTaken uint64
}

type sentBody struct {
	seq uint64
	at  time.Duration
}

// Monitor is one store's end of the protocol. All methods are safe for concurrent use; Epoch, Supports and Held take no
// lock.
type Monitor struct {
	cfg     Config
	metrics *metrics
	margin  uint32 // millionths
	quiet   time.Duration
	wake    chan struct{}
	peers   atomic.Pointer[map[base.StoreID]*peer] // replaced under mu

	mu struct {
		sync.Mutex
		counter  uint64 // of epochs
		rng      *rand.Rand
		events   []event       // not delivered yet
		draining bool          // by somebody
		slack    time.Duration // by which beats leave early to be in step; only Run has any
	}
}

// New returns a stopped Monitor; Run or Tick makes it beat. It panics on a Config that Validate refuses.
func New(cfg Config) *Monitor {
	cfg = cfg.withDefaults()
	if err := cfg.Validate(); err != nil {
		panic(err.Error())
	}
	m := &Monitor{cfg: cfg, metrics: newMetrics(cfg.Registerer), wake: make(chan struct{}, 1)}
	// Rounded up: a body must never claim less than what is set.
	m.margin = min(uint32(cfg.Margin*million+0.999), million-1)
	if cfg.Recorded > 0 {
		m.quiet = cfg.Clock.Boot() + cfg.Recorded
	}
	m.mu.rng = rand.New(rand.NewPCG(uint64(cfg.Store), cfg.Incarnation))
	m.peers.Store(&map[base.StoreID]*peer{})
	return m
}

// QuietUntil returns the boot time until which this store keeps what an earlier life of it may have promised: it neither
// votes nor campaigns before (V7). 0 or a past time: no such promise.
func (m *Monitor) QuietUntil() time.Duration { return m.quiet }

// Promise returns D, and so the longest time for which a promise of this life can bind.
func (m *Monitor) Promise() time.Duration { return m.cfg.Promise }

// Interval returns the time between two beats.
func (m *Monitor) Interval() time.Duration { return m.cfg.Interval }

// SetPeers says which stores share a group with us: they get a beat each interval and are asked for support. A store that
// is left out keeps what it was promised; a store that beats to us is answered in any case.
func (m *Monitor) SetPeers(stores []base.StoreID) {
	m.mu.Lock()
	defer m.unlock()
	news := false
	for _, p := range *m.peers.Load() {
		if p.listed && !slices.Contains(stores, p.store) {
			p.listed = false
			p.releases.clear()
			p.questions.clear()
		}
	}
	for _, s := range stores {
		if s == 0 || s == m.cfg.Store {
			continue
		}
		if p := m.peerLocked(s); !p.listed {
			p.listed, p.urgent, news = true, true, true
		}
	}
	if news {
		poke(m.wake)
	}
}

func (m *Monitor) peer(s base.StoreID) *peer { return (*m.peers.Load())[s] }

// peerLocked returns the state towards a store, made at the first use and kept for good: stores are few.
func (m *Monitor) peerLocked(s base.StoreID) *peer {
	if p := m.peer(s); p != nil {
		return p
	}
	p := &peer{store: s, releases: newList(), questions: newList()}
	next := maps.Clone(*m.peers.Load())
	next[s] = p
	m.peers.Store(&next)
	return p
}

// Epoch returns the epoch under which we support a store at boot time now, 0 if we do not.
func (m *Monitor) Epoch(store base.StoreID, now time.Duration) uint64 {
	p := m.peer(store)
	if p == nil {
		return 0
	}
	if pr := p.settle(now); pr.binds(now) {
		return pr.epoch
	}
	return 0
}

// Supports reports whether what we promised a store under an epoch binds us at boot time now. Once it has said no, it
// never says yes for this epoch again.
func (m *Monitor) Supports(store base.StoreID, epoch uint64, now time.Duration) bool {
	p := m.peer(store)
	if p == nil || epoch == 0 {
		return false
	}
	pr := p.settle(now)
	return pr != nil && pr.epoch == epoch && pr.binds(now)
}

// Held returns a store's latest support of us, nil if there is none. It counts while its Until is above the boot time at
// which it is used; the caller reads the clock after whatever the support is to vouch for.
func (m *Monitor) Held(store base.StoreID) *Support {
	if p := m.peer(store); p != nil {
		return p.held.Load()
	}
	return nil
}

// settle returns the current promise, after making its lapse final if its time is over. Without that a body that is being
// taken now, with a clock read before, could prolong a promise on whose end the caller is about to act.
func (p *peer) settle(now time.Duration) *promise {
	for {
		pr := p.promise.Load()
		if pr == nil || pr.ended || now < pr.until {
			return pr
		}
		end := &promise{epoch: pr.epoch, until: pr.until, ended: true}
		if p.promise.CompareAndSwap(pr, end) {
			return end
		}
	}
}

// Release tells stores that a replica here does not lead the group at this term any more (V8), with the next beats until
// they acknowledge it. Call it after the lease of that term was withdrawn.
func (m *Monitor) Release(to []base.StoreID, g Group) {
	m.mu.Lock()
	defer m.unlock()
	for _, s := range to {
		if p := m.peer(s); p != nil {
			m.enqueueLocked(p, &p.releases, []Group{g})
		}
	}
}

// Ask asks a store whether it still leads groups at these terms. It answers with a Release for those that it does not.
func (m *Monitor) Ask(to base.StoreID, gs []Group) {
	m.mu.Lock()
	defer m.unlock()
	if p := m.peer(to); p != nil && len(gs) > 0 {
		m.enqueueLocked(p, &p.questions, gs)
	}
}

// enqueueLocked adds to a list of a peer's and has it sent soon.
func (m *Monitor) enqueueLocked(p *peer, l *list, gs []Group) {
	m.metrics.forgotten.Add(float64(l.add(gs)))
	p.urgent = true
	poke(m.wake)
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
