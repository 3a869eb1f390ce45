package liveness

import (
	"context"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/clock"
)

// settled returns a world in which everybody supports everybody.
func settled(t testing.TB, stores int, config func(*Config)) *world {
	w := newWorld(t, 1, stores, config)
	w.run(50 * ms)
	for _, a := range w.stores {
		for _, b := range w.stores {
			if a != b && !w.counts(a.id, b.id) {
				t.Fatalf("%s does not count on %s", a.id, b.id)
			}
		}
		a.takeEvents()
	}
	return w
}

func TestTwoStoresSupportEachOtherWithinOneBeat(t *testing.T) {
	w := newWorld(t, 1, 2, nil)
	w.run(30 * ms) // beats are 100 ms apart: what is urgent does not wait for one
	w.store(1).wantEvents("support n2 1.1 fresh=true")
	w.store(2).wantEvents("support n1 1.1 fresh=true")
}

func TestSupportCountsFromTheTimeOfSendingLessTheMargin(t *testing.T) {
	w := settled(t, 2, nil)
	a, b := w.store(1), w.store(2)
	w.run(time.Second)
	// From here on bodies take 40 ms each way.
	w.net = netFaults{minDelay: 40 * ms, maxDelay: 40 * ms}
	w.run(time.Second)
	last := b.mon.peer(1).lastSent
	w.cut[[2]base.StoreID{2, 1}] = true
	w.run(300 * ms) // the answer to the last request has come
	if got, want := b.mon.Held(1).Until, last+760*ms; got > want || got < want-2*ms {
		t.Errorf("counts until %s after sending, want 760ms", got-last)
	}
	epoch := a.mon.Epoch(2, a.Boot())
	if left := a.mon.peer(2).promise.Load().until - a.Boot(); left > 600*ms || left < 400*ms {
		t.Errorf("our promise binds for another %s, want 800 ms from the arrival", left)
	}
	w.run(480*ms + 400*ms)
	if w.counts(2, 1) || a.mon.Supports(2, epoch, a.Boot()) {
		t.Error("support outlives the requests")
	}
}

func TestALapseEndsTheEpochForGood(t *testing.T) {
	w := settled(t, 2, nil)
	a := w.store(1)
	first := a.mon.Epoch(2, a.Boot())
	w.cutBoth(1, 2, true)
	w.run(900 * ms)
	a.wantEvents("lapse n2 1.1")
	if a.mon.Epoch(2, a.Boot()) != 0 || a.mon.Supports(2, first, a.Boot()) {
		t.Error("still supported")
	}
	w.cutBoth(1, 2, false)
	w.run(200 * ms)
	a.wantEvents("support n2 1.2 fresh=true")
	w.store(2).wantEvents("lapse n1 1.1", "support n1 1.2 fresh=true")
	second := a.mon.Epoch(2, a.Boot())
	if second <= first || a.mon.Supports(2, first, a.Boot()) || !a.mon.Supports(2, second, a.Boot()) {
		t.Errorf("epoch %x after %x", second, first)
	}
}

// TestWhoeverSeesTheLapseFirstMakesItFinal: a worker asks when the time is over and lets its replica vote, while a body
// is being taken whose clock was read before. The promise must not go on under the same epoch.
func TestWhoeverSeesTheLapseFirstMakesItFinal(t *testing.T) {
	w := settled(t, 2, nil)
	a := w.store(1)
	w.cutBoth(1, 2, true)
	pr := a.mon.peer(2).promise.Load()
	if a.mon.Supports(2, pr.epoch, pr.until) {
		t.Fatal("a promise binds at its end")
	}
	// The body came a moment before the end, by a clock that was read then.
	early := pr.until - ms
	b := body{asks: true, from: 1, to: 1, seq: 1 << 20, heard: a.mon.peer(2).sent, promise: 800 * ms}
	a.mon.peer(2).sentAt[b.heard%sentRing].at = early
	a.mon.mu.Lock()
	a.mon.takeLocked(2, 1, &b, early, true)
	a.mon.unlock()
	if got := a.mon.Epoch(2, early); got == pr.epoch || got == 0 {
		t.Errorf("epoch %s after a lapse of %s", short(got), short(pr.epoch))
	}
	a.wantEvents("lapse n2 1.1")
}

func TestAShortPauseOfTheHolderKeepsTheEpoch(t *testing.T) {
	w := settled(t, 2, nil)
	b := w.store(2)
	w.run(time.Second)
	// Answers are lost for as long as an answer counts; the promise was prolonged a few times meanwhile.
	w.cut[[2]base.StoreID{1, 2}] = true
	w.run(790 * ms)
	if w.counts(2, 1) {
		t.Fatal("counts without an answer")
	}
	w.cut[[2]base.StoreID{1, 2}] = false
	w.run(200 * ms)
	if got := b.takeEvents(); len(got) == 0 || got[len(got)-1] != "support n1 1.1 fresh=false" {
		t.Errorf("events %q", got)
	}
}

// With beats as far apart as by default, and in step as on one machine, one body that is lost, whichever it is, ends no support
// on either side, while a round trip takes some milliseconds.
func TestOneLostBodyEndsNoSupport(t *testing.T) {
	for _, promise := range []time.Duration{600 * ms, 800 * ms, time.Second, 3 * time.Second} {
		lost := 0
		for phase := time.Duration(0); phase < promise; phase += 3 * ms {
			w := newWorld(t, uint64(phase)+1, 2, func(c *Config) { c.Promise, c.Interval = promise, 0 })
			w.net.minDelay, w.net.maxDelay = 1*ms, 4*ms
			inStep := func() {
				for _, s := range w.stores {
					every := s.mon.Interval()
					s.mon.mu.slack = every / slackShare
					s.nextTick = min(s.nextTick, w.now.Truncate(every)+every)
				}
			}
			w.run(3*promise+phase, inStep)
			sent := w.store(1).sent
			w.cut[[2]base.StoreID{1, 2}] = true
			w.run(3*ms, inStep)
			w.cut[[2]base.StoreID{1, 2}] = false
			lost += w.store(1).sent - sent
			w.run(3*promise, inStep, func() {
				if !t.Failed() && !(w.counts(1, 2) && w.counts(2, 1)) {
					t.Errorf("promise of %s, a body lost after %s: support has lapsed at %s", promise, 3*promise+phase, w.now)
				}
			})
		}
		if lost == 0 {
			t.Errorf("promise of %s: nothing was lost", promise)
		}
	}
}

func TestARestartOfEitherStoreEndsSupport(t *testing.T) {
	w := settled(t, 2, nil)
	a, b := w.store(1), w.store(2)
	epoch := a.mon.Epoch(2, a.Boot())
	b.kill()
	b.start()
	w.run(50 * ms)
	a.wantEvents("lapse n2 1.1", "support n2 2.1 fresh=true")
	b.wantEvents("support n1 1.2 fresh=true")
	if a.mon.Supports(2, epoch, a.Boot()) {
		t.Error("a promise outlives the process that it was given to")
	}
	a.kill()
	a.start()
	w.run(50 * ms)
	b.wantEvents("lapse n1 2.1", "support n1 2.1 fresh=true")
	if EpochIncarnation(b.mon.Held(1).Epoch) != 2 {
		t.Errorf("counts on epoch %x of an earlier life", b.mon.Held(1).Epoch)
	}
}

// TestAnswersToAnEarlierLifeCountForNothing: numbers of bodies start anew with each life.
func TestAnswersToAnEarlierLifeCountForNothing(t *testing.T) {
	w := settled(t, 2, nil)
	b := w.store(2)
	w.run(time.Second)
	old := body{from: 1, to: 1, seq: 1 << 30, heard: 3, granted: 3, epoch: 1<<epochBits | 9, grantedFor: 800 * ms}
	b.kill()
	w.cutBoth(1, 2, true)
	b.start()
	w.run(250 * ms) // numbers 1 to 3 have been used again
	b.takeEvents()
	b.mon.Receive(1, 1, old.append(nil))
	if b.mon.Held(1) != nil {
		t.Error("counts on an answer to its previous life")
	}
	b.wantEvents()
}

func TestBodiesOfAnEarlierIncarnationAreDropped(t *testing.T) {
	w := settled(t, 2, nil)
	a, b := w.store(1), w.store(2)
	last := a.mon.peer(2).seq
	b.kill()
	b.start()
	w.run(50 * ms)
	before := a.mon.Status(a.Boot())[0]
	old := body{asks: true, from: 1, to: 1, seq: last + 1, heard: a.mon.peer(2).sent, promise: 800 * ms,
		firstRelease: 1, releases: []Group{{Shard: 1, Term: 1}}}
	a.mon.Receive(2, 1, old.append(nil))
	a.mon.Receive(2, 2, old.append(nil)) // says 1, while the transport says 2
	if got := a.mon.Status(a.Boot())[0]; got.Epoch != before.Epoch || got.Incarnation != 2 || len(a.released) != 0 {
		t.Errorf("got %+v, was %+v, released %v", got, before, a.released)
	}
}

// TestABodyThatComesTwiceOrLateProlongsNothing: a promise of ours is not kept alive by what the network repeats.
func TestABodyThatComesTwiceOrLateProlongsNothing(t *testing.T) {
	w := settled(t, 2, nil)
	a := w.store(1)
	w.run(time.Second)
	var last *packet
	w.net = netFaults{minDelay: ms, maxDelay: ms}
	for last == nil {
		w.run(ms, func() {
			for _, p := range w.queue {
				if p.to == 1 {
					last = p
				}
			}
		})
	}
	w.run(10 * ms)
	w.cutBoth(1, 2, true)
	before := a.mon.peer(2).promise.Load().until
	w.run(100 * ms)
	a.mon.Receive(2, 1, last.payload)
	if after := a.mon.peer(2).promise.Load().until; after != before {
		t.Errorf("a copy prolonged the promise by %s", after-before)
	}
}

func TestAStoreThatDoesNotHearUsGetsNoSupport(t *testing.T) {
	w := settled(t, 2, nil)
	a := w.store(1)
	w.cut[[2]base.StoreID{1, 2}] = true // n2 still reaches us
	w.run(1300 * ms)
	a.wantEvents("lapse n2 1.1")
	w.run(5 * time.Second)
	a.wantEvents()
	if a.mon.Epoch(2, a.Boot()) != 0 {
		t.Error("supports a store that cannot hear it")
	}
	w.cut[[2]base.StoreID{1, 2}] = false
	w.run(200 * ms)
	if !w.counts(2, 1) {
		t.Error("no support after the cut")
	}
}

func TestAnUnhealthyStoreAsksForNoSupport(t *testing.T) {
	w := settled(t, 2, nil)
	w.store(2).sick = true
	w.run(1100 * ms)
	w.store(1).wantEvents("lapse n2 1.1")
	if w.counts(2, 1) || !w.counts(1, 2) {
		t.Errorf("n2 counts: %v, n1 counts: %v", w.counts(2, 1), w.counts(1, 2))
	}
	w.store(2).sick = false
	w.run(200 * ms)
	if !w.counts(2, 1) {
		t.Error("no support once it is healthy again")
	}
}

func TestAStartedStoreIsQuietForTheRecordedPromise(t *testing.T) {
	w := newWorld(t, 1, 1, nil)
	s := w.store(1)
	if s.mon.QuietUntil() > s.Boot() {
		t.Error("the first life of a store has promised nothing before")
	}
	s.recorded = 3 * time.Second // by a life with another setting
	w.run(time.Second)
	s.kill()
	s.start()
	if got, want := s.mon.QuietUntil(), s.Boot()+3*time.Second; got != want {
		t.Errorf("quiet until %s, want %s", got, want)
	}
}

// TestDifferentSettingsCostTimeNotSafety: the lower time and the greater margin count.
func TestDifferentSettingsCostTimeNotSafety(t *testing.T) {
	w := settled(t, 2, func(c *Config) {
		if c.Store == 2 {
			c.Promise, c.Margin, c.Interval = 2*time.Second, 0.01, 100*ms
		} else {
			c.Margin = 0.2
		}
	})
	w.run(time.Second)
	for _, s := range w.stores {
		other := 3 - s.id
		// A beat of 100 ms, and as much until the answer's.
		left := s.mon.Held(other).Until - s.Boot()
		if left > 640*ms || left < 430*ms {
			t.Errorf("%s counts on %s for %s, want less than 80 %% of 800 ms", s.id, other, left)
		}
		if p := w.store(other).mon.peer(s.id).promise.Load(); p.until-w.store(other).Boot() > 800*ms {
			t.Errorf("%s promised more than the lower of both settings", other)
		}
	}
}

func TestAStoreThatLeadsNoMoreTellsItsPeersAtOnce(t *testing.T) {
	w := settled(t, 3, nil)
	g := Group{Shard: 7, Term: 3}
	w.store(1).mon.Release([]base.StoreID{2, 3}, g)
	w.run(20 * ms)
	for _, id := range []base.StoreID{2, 3} {
		if got := w.store(id).released; len(got) != 1 || got[0] != g {
			t.Errorf("%s: released %v", id, got)
		}
	}
	w.run(time.Second)
	if got := w.store(2).released; len(got) != 1 {
		t.Errorf("said %d times", len(got))
	}
}

func TestHintsToASilentStoreAreBounded(t *testing.T) {
	reg := prometheus.NewRegistry()
	w := settled(t, 2, func(c *Config) {
		if c.Store == 1 {
			c.Registerer = reg
		}
	})
	w.cutBoth(1, 2, true)
	const extra = 100
	for i := range maxPending + extra {
		w.store(1).mon.Release([]base.StoreID{2}, Group{Shard: base.ShardID(i + 1)})
	}
	if got := w.store(1).mon.Status(w.store(1).Boot())[0].Pending; got != maxPending {
		t.Errorf("%d are kept", got)
	}
	w.cutBoth(1, 2, false)
	w.run(5 * time.Second)
	got := w.store(2).released
	if len(got) != maxPending || got[0].Shard != extra+1 {
		t.Errorf("%d arrived, the first is of %v", len(got), got[0])
	}
}

func TestAQuestionIsAnsweredForWhatIsNotLed(t *testing.T) {
	w := settled(t, 2, nil)
	a, b := w.store(1), w.store(2)
	led, lost := Group{Shard: 4, Term: 2}, Group{Shard: 5, Term: 2}
	b.leads[led] = true
	a.mon.Ask(2, []Group{led, lost})
	a.mon.Ask(2, nil)
	a.mon.Ask(9, []Group{led}) // nobody
	w.run(50 * ms)
	if len(a.released) != 1 || a.released[0] != lost {
		t.Errorf("released %v", a.released)
	}
}

func TestEverySupporterChecksNowAndThenWhomItFollows(t *testing.T) {
	lost := Group{Shard: 5, Term: 2}
	w := newWorld(t, 1, 3, nil)
	for _, s := range w.stores {
		s.kill()
	}
	var calls int
	w.config = func(c *Config) {
		if c.Store == 1 {
			c.Follows = func(store base.StoreID) []Group {
				calls++
				if store == 2 {
					return []Group{lost}
				}
				return nil
			}
		}
	}
	for _, s := range w.stores {
		s.start()
	}
	w.run(40 * time.Second)
	a := w.store(1)
	if n := len(a.released); n < 2 || n > 8 || calls > 16 {
		t.Errorf("%d answers, %d checks of two stores in 40 s, want one in 5 to 15 s", n, calls)
	}
}

func TestOfManyGroupsEachCheckAsksAPartAndSixAskAll(t *testing.T) {
	for _, groups := range []int{checkPart, 3*checkPart + 1, 10 * checkPart} {
		w := newWorld(t, 1, 2, nil)
		for _, s := range w.stores {
			s.kill()
		}
		rounds, most := 0, max(checkPart, (groups+checkParts-1)/checkParts)
		w.config = func(c *Config) {
			c.CheckInterval = time.Second
			if c.Store == 1 {
				c.Follows = func(base.StoreID) (out []Group) {
					rounds++
					for i := range groups {
						out = append(out, Group{Shard: base.ShardID(i + 1), Term: 2})
					}
					return out
				}
			}
		}
		for _, s := range w.stores {
			s.start()
		}
		a := w.store(1)
		// The first check comes after half a second at least, the next one as long behind it.
		w.run(600 * ms)
		for next := 0; len(a.released) < groups && next < 60; next++ {
			before := len(a.released)
			w.run(250 * ms) // no two checks are answered within it
			if n := len(a.released) - before; n > most {
				t.Errorf("%d groups: %d are asked about at once, want %d", groups, n, most)
			}
		}
		asked := map[base.ShardID]bool{}
		for _, g := range a.released {
			asked[g.Shard] = true
		}
		if len(asked) != groups || rounds > 2 {
			t.Errorf("%d groups: %d were asked about, in %d rounds", groups, len(asked), rounds)
		}
	}
}

func TestAStoreThatSharesNoGroupIsLeftAlone(t *testing.T) {
	w := settled(t, 2, nil)
	a, b := w.store(1), w.store(2)
	a.mon.SetPeers(nil)
	epoch := a.mon.Epoch(2, a.Boot())
	w.run(time.Second)
	// n2 believes that it shares one: it is answered and supported, and asked for nothing.
	if !a.mon.Supports(2, epoch, a.Boot()) || w.counts(1, 2) {
		t.Error("a store that asks is not supported, or is asked")
	}
	b.mon.SetPeers(nil)
	w.run(3 * time.Second)
	before := a.sent + b.sent
	w.run(5 * time.Second)
	if n := a.sent + b.sent - before; n != 0 || len(a.mon.Status(a.Boot())) != 0 {
		t.Errorf("%d bodies between stores that share nothing", n)
	}
	// Numbers and epochs go on where they were.
	a.mon.SetPeers([]base.StoreID{2})
	b.mon.SetPeers([]base.StoreID{1})
	w.run(100 * ms)
	if !w.counts(1, 2) || !w.counts(2, 1) || a.mon.Epoch(2, a.Boot()) == epoch {
		t.Error("no new support between stores that meet again")
	}
}

// TestAStoreWithoutLeasesKeepsOnlyThePromisesOfItsPast: the setting may be turned off while others have it on.
func TestAStoreWithoutLeasesKeepsOnlyThePromisesOfItsPast(t *testing.T) {
	w := settled(t, 2, nil)
	a, b := w.store(1), w.store(2)
	w.config = func(c *Config) { c.Promise = 0 }
	a.kill()
	a.start()
	if got, want := a.mon.QuietUntil(), a.Boot()+800*ms; got != want {
		t.Errorf("quiet until %s, want %s", got, want)
	}
	sent := a.sent
	a.mon.Release([]base.StoreID{2}, Group{Shard: 1, Term: 1})
	w.run(5 * time.Second)
	if a.sent != sent || a.mon.Epoch(2, a.Boot()) != 0 || b.mon.Epoch(1, b.Boot()) != 0 || w.counts(2, 1) {
		t.Errorf("%d bodies sent, n1 gives %x and gets %x", a.sent-sent, a.mon.Epoch(2, a.Boot()), b.mon.Epoch(1, b.Boot()))
	}
}

func TestBeatsAreFewHoweverMuchIsUrgent(t *testing.T) {
	w := settled(t, 2, nil)
	before := w.store(1).sent
	w.run(10 * time.Second)
	if n := w.store(1).sent - before; n < 95 || n > 105 {
		t.Errorf("%d beats in 10 s, want one in 100 ms", n)
	}
	before = w.store(1).sent
	for range 1000 {
		w.store(1).mon.Release([]base.StoreID{2}, Group{Shard: 1, Term: 1})
		w.run(ms)
	}
	if n := w.store(1).sent - before; n > 105 {
		t.Errorf("%d bodies in 1 s", n)
	}
}

func TestEachChangeIsLoggedOnce(t *testing.T) {
	w := settled(t, 2, nil)
	w.run(3 * time.Second)
	w.cutBoth(1, 2, true)
	w.run(3 * time.Second)
	const want = `level=INFO msg="store is supported" store=n2 incarnation=1 epoch=1
level=INFO msg="store supports us" store=n2 incarnation=1 epoch=1
level=WARN msg="store does not support us any more" store=n2 incarnation=1 epoch=1 reason=lapsed
level=WARN msg="store is not supported any more" store=n2 incarnation=1 epoch=1 reason=lapsed
`
	if got := w.store(1).log.String(); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}

func TestConfigsThatCannotWorkAreRefused(t *testing.T) {
	good := Config{Store: 1, Incarnation: 1, Promise: time.Second, Clock: clock.Process(), Send: func(base.StoreID, []byte) {}}
	if err := good.Validate(); err != nil {
		t.Fatal(err)
	}
	for want, mend := range map[string]func(*Config){
		"must be set":        func(c *Config) { c.Incarnation = 0 },
		"no room":            func(c *Config) { c.Incarnation = 1 << 32 },
		"at most 1h":         func(c *Config) { c.Promise = 2 * time.Hour },
		"clock margin 1":     func(c *Config) { c.Margin = 1 },
		"Clock and Send":     func(c *Config) { c.Send = nil },
		"a promise of -1s":   func(c *Config) { c.Promise = -time.Second },
		"clock margin -0.05": func(c *Config) { c.Margin = -0.05 },
	} {
		c := good
		mend(&c)
		if err := c.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want an error with %q", err, want)
		}
	}
}

// TestRunBeatsAndSeesLapsesInTime runs two Monitors by their own timers; readers look on meanwhile.
func TestRunBeatsAndSeesLapsesInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var (
			mons  [3]*Monitor
			mu    sync.Mutex
			dead  bool
			lapse time.Duration
		)
		ctx, cancel := context.WithCancel(t.Context())
		clk := clock.Process()
		var wg sync.WaitGroup
		for id := base.StoreID(1); id <= 2; id++ {
			mons[id] = New(Config{
				Store: id, Incarnation: 1, Promise: 800 * ms, Interval: 100 * ms, Margin: 0.05, Clock: clk,
				Send: func(to base.StoreID, payload []byte) {
					mu.Lock()
					defer mu.Unlock()
					if !dead {
						time.AfterFunc(ms, func() { mons[to].Receive(id, 1, payload) })
					}
				},
				OnLapse: func(base.StoreID, uint64) {
					mu.Lock()
					defer mu.Unlock()
					lapse = clk.Boot()
				},
			})
		}
		for id := base.StoreID(1); id <= 2; id++ {
			mons[id].SetPeers([]base.StoreID{1, 2})
			wg.Go(func() { mons[id].Run(ctx) })
		}
		time.Sleep(5 * time.Second)
		for range 2 {
			wg.Go(func() {
				for range 100 {
					epoch := mons[1].Epoch(2, clk.Boot())
					if h := mons[2].Held(1); h == nil || h.Epoch != epoch || !mons[1].Supports(2, epoch, clk.Boot()) {
						t.Errorf("held %v, epoch %x", h, epoch)
					}
					time.Sleep(7 * ms)
				}
			})
		}
		time.Sleep(time.Second)
		mu.Lock()
		dead = true
		mu.Unlock()
		cut := clk.Boot()
		time.Sleep(2 * time.Second)
		cancel()
		wg.Wait()
		mu.Lock()
		defer mu.Unlock()
		if after := lapse - cut; after > 802*ms || after < 690*ms {
			t.Errorf("the lapse was reported %s after the last beat could leave", after)
		}
	})
}
