package ycsb

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"
)

// Config says what to load or run, and where.
type Config struct {
	// DB is the store. Required.
	DB DB
	// Name labels the workload in reports, for example "a".
	Name string
	// Properties are the workload; see Workload and Keys. Missing keys have YCSB's defaults.
	Properties Properties
	// Status, if set, is called every StatusInterval from one goroutine while a load or run goes on.
	Status func(Status)
	// StatusInterval is 1 s if zero.
	StatusInterval time.Duration
	// Grace is how long operations under way may go on after the time limit; 0 means 10 s. Then they are canceled and
	// counted as errors.
	Grace time.Duration
}

func (c Config) withDefaults() Config {
	if c.StatusInterval <= 0 {
		c.StatusInterval = time.Second
	}
	if c.Grace <= 0 {
		c.Grace = 10 * time.Second
	}
	return c
}

func (c Config) prepare() (Config, *settings, error) {
	if c.DB == nil {
		return c, nil, errors.New("ycsb: Config.DB is missing")
	}
	set, err := newSettings(c.Properties)
	if err != nil {
		return c, nil, fmt.Errorf("workload %s: %w", c.Name, err)
	}
	return c.withDefaults(), set, nil
}

// LoadError says how far a load came that did not finish.
type LoadError struct {
	// Next is the first record number that is not known to be loaded: all from insertstart up to it are.
	Next int64
	// Left is how many records from Next on the load still had to do.
	Left int64
	// Err is why it stopped.
	Err error
}

// Error says how to go on.
func (e *LoadError) Error() string {
	return fmt.Sprintf("load stopped before record %d: %v (go on with insertstart=%d and insertcount=%d)",
		e.Next, e.Err, e.Next, e.Left)
}

// Unwrap returns the reason.
func (e *LoadError) Unwrap() error { return e.Err }

// Load inserts the records insertstart to insertstart+insertcount-1. Each depends on its number alone, so that a load
// may be repeated, resumed, or divided among processes. The first insert that fails, past its retries, ends it with a
// *LoadError, as does the end of ctx; the report then says what was done.
func Load(ctx context.Context, cfg Config) (*Report, error) {
	cfg, set, err := cfg.prepare()
	if err != nil {
		return nil, err
	}
	w := newWorkload(set, cfg.DB)
	loaded := newCounter(set.insertStart)
	d := newDriver(plan{
		threads:    set.threads,
		target:     set.target,
		operations: set.insertCount,
		grace:      cfg.Grace,
		step: func(ctx context.Context, k *worker, n int64, s sample) error {
			number := set.insertStart + n
			if err := k.load(ctx, number, s); err != nil {
				return err
			}
			return loaded.acknowledge(number)
		},
	}, w)
	report, err := execute(ctx, cfg, set, d, "load")
	next := loaded.last() + 1
	if left := set.insertStart + set.insertCount - next; left > 0 {
		return report, &LoadError{Next: next, Left: left, Err: err}
	}
	return report, nil
}

// load inserts one record, again if it may.
func (k *worker) load(ctx context.Context, number int64, s sample) error {
	for attempt := 0; ; attempt++ {
		k.key = k.set.appendKey(k.key[:0], number)
		k.record = k.appendInserted(k.record[:0], k.key)
		s.start = k.clock()
		err := k.db.Insert(ctx, k.key, k.record)
		s.end = k.clock()
		k.finish(opInsert, s, true, err)
		if err == nil {
			return nil
		}
		if attempt >= k.set.retries {
			return fmt.Errorf("insert record %d: %w", number, err)
		}
		if !pause(ctx, k.set.retryInterval, k.rnd) {
			return fmt.Errorf("insert record %d: %w", number, errors.Join(err, ctx.Err()))
		}
	}
}

// pause waits 0.8 to 1.2 times the mean, and reports false if ctx ends before.
func pause(ctx context.Context, mean time.Duration, r *rand.Rand) bool {
	timer := time.NewTimer(time.Duration(float64(mean) * (0.8 + 0.4*r.Float64())))
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// Run runs the operation mix against loaded records until operationcount operations were measured, maxexecutiontime is
// over or ctx ends. In the last case it returns ctx's cause together with the report of what was measured. Operations
// that fail do not end it; they are in the report.
func Run(ctx context.Context, cfg Config) (*Report, error) {
	cfg, set, err := cfg.prepare()
	if err != nil {
		return nil, err
	}
	w := newWorkload(set, cfg.DB)
	w.chooseFrom()
	d := newDriver(plan{
		threads:    set.threads,
		target:     set.target,
		warmup:     set.warmup,
		limit:      set.limit,
		operations: set.operations,
		grace:      cfg.Grace,
		step: func(ctx context.Context, k *worker, n int64, s sample) error {
			k.runOne(ctx, s, n >= 0)
			return nil
		},
	}, w)
	return execute(ctx, cfg, set, d, "run")
}

// execute drives and reports.
func execute(ctx context.Context, cfg Config, set *settings, d *driver, phase string) (*Report, error) {
	started := time.Now()
	var observe func(<-chan struct{})
	if cfg.Status != nil {
		observe = newObserver(cfg, d).run
	}
	err := d.run(ctx, observe)
	return newReport(cfg, set, d, phase, started), err
}
