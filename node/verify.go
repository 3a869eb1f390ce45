package node

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"hash/crc64"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	pb "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/engine"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/clock"
	"github.com/shardd/shardd/shard"
)

// Checksums of local replicas. The store hands in a view of exactly one applied index; one goroutine walks the views,
// one after the other and no faster than asked, and keeps the sums for a while for whoever compares them (checksum.go).

const (
	// spanRows is how many rows one sum covers: small enough to name the keys that differ, large enough that the sums of
	// a big shard fit into one answer.
	spanRows = 4096
	// verifyQueue bounds the views that wait, since each pins files; verifyKept and verifyAge bound the sums kept.
	verifyQueue = 16
	verifyKept  = 256
	verifyAge   = 10 * time.Minute
	// defaultVerifyRate is what one store reads for checksums where the verification does not say, in bytes per second.
	defaultVerifyRate = 32 << 20
)

// verifier computes and keeps the checksums of this store.
type verifier struct {
	clock   clock.Clock
	bytes   prometheus.Counter
	wake    chan struct{}                        // capacity 1
	damaged func(d *base.Descriptor, why string) // of a replica whose data cannot be read; set before anything runs

	mu struct {
		sync.Mutex
		queue   []queuedRun
		sums    map[sumKey]*checksum
		stopped bool
	}
}

type sumKey struct {
	shard base.ShardID
	id    uint64
}

type queuedRun struct {
	shard.VerifyRun
	sum *checksum
}

// checksum is one computation and its result. Guarded by verifier.mu but for spans, which are set once at the end.
type checksum struct {
	state string // waiting, running, done or failed
	err   string
	index uint64
	rows  uint64
	bytes uint64
	total uint64
	spans []*pb.SpanSum
	at    time.Duration // Boot time of the last change of state
}

func newVerifier(c clock.Clock, bytes prometheus.Counter) *verifier {
	v := &verifier{clock: c, bytes: bytes, wake: make(chan struct{}, 1)}
	v.mu.sums = make(map[sumKey]*checksum)
	return v
}

// add takes a run in; it is shard.Config.OnVerify and never blocks.
func (v *verifier) add(run shard.VerifyRun) {
	now := v.clock.Boot()
	sum := &checksum{state: "waiting", index: run.Index, at: now}
	if run.View != nil {
		sum.total = run.View.ApproxBytes()
	}
	v.mu.Lock()
	v.expireLocked(now)
	switch {
	case run.Err != nil:
		sum.state, sum.err = "failed", run.Err.Error()
	case v.mu.stopped:
		sum.state, sum.err = "failed", "the node is stopping"
	case len(v.mu.queue) >= verifyQueue:
		sum.state, sum.err = "failed", fmt.Sprintf("%d other checksums wait on this node", verifyQueue)
	default:
		v.mu.queue = append(v.mu.queue, queuedRun{run, sum})
	}
	v.mu.sums[sumKey{run.Shard, run.ID}] = sum
	queued := sum.state == "waiting"
	v.mu.Unlock()
	if !queued {
		if run.View != nil {
			_ = run.View.Close() // nothing was read from it
		}
		return
	}
	poke(v.wake)
}

// expireLocked forgets results that nobody has asked for in time, and the oldest of too many.
func (v *verifier) expireLocked(now time.Duration) {
	var oldest sumKey
	for k, s := range v.mu.sums {
		if s.state != "done" && s.state != "failed" {
			continue
		}
		if now-s.at > verifyAge {
			delete(v.mu.sums, k)
			continue
		}
		if o := v.mu.sums[oldest]; o == nil || s.at < o.at {
			oldest = k
		}
	}
	if len(v.mu.sums) >= verifyKept {
		delete(v.mu.sums, oldest)
	}
}

// run computes until ctx ends.
func (v *verifier) run(ctx context.Context) error {
	for {
		if q, ok := v.next(); ok {
			v.compute(ctx, q)
			continue
		}
		select {
		case <-v.wake:
		case <-ctx.Done():
			v.stop()
			return nil
		}
	}
}

func (v *verifier) next() (queuedRun, bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.mu.queue) == 0 || v.mu.stopped {
		return queuedRun{}, false
	}
	q := v.mu.queue[0]
	v.mu.queue[0] = queuedRun{}
	v.mu.queue = v.mu.queue[1:]
	q.sum.state, q.sum.at = "running", v.clock.Boot()
	return q, true
}

// stop lets the views go that wait still.
func (v *verifier) stop() {
	v.mu.Lock()
	queue := v.mu.queue
	v.mu.queue, v.mu.stopped = nil, true
	v.mu.Unlock()
	for _, q := range queue {
		v.finish(q, nil, context.Canceled)
	}
}

// compute walks one view.
func (v *verifier) compute(ctx context.Context, q queuedRun) {
	d := q.View.Desc()
	it, err := q.View.NewIter(d.Start, d.End)
	if err != nil {
		v.finish(q, nil, err)
		return
	}
	rate := q.BytesPerSecond
	if rate == 0 {
		rate = defaultVerifyRate
	}
	start, read, told := v.clock.Boot(), uint64(0), uint64(0)
	s := newSummer()
	for ; it.Valid(); it.Next() {
		read += s.add(it)
		if read-told < 256<<10 {
			continue
		}
		v.progress(q, s.rows, read, read-told)
		told = read
		if wait := ahead(read, rate, v.clock.Boot()-start); wait > 0 {
			pause(ctx, wait)
		}
		if ctx.Err() != nil {
			break
		}
	}
	if err = it.Err(); err == nil {
		err = ctx.Err()
	}
	if cerr := it.Close(); err == nil {
		err = cerr
	}
	v.progress(q, s.rows, read, read-told)
	v.finish(q, s.end(), err)
}

// ahead returns how long to wait after read bytes in took, at rate bytes per second. It goes by the whole run, so that
// what was slow by itself is not slowed down further.
func ahead(read, rate uint64, took time.Duration) time.Duration {
	return time.Duration(float64(read)/float64(rate)*float64(time.Second)) - took
}

func (v *verifier) progress(q queuedRun, rows, read, more uint64) {
	v.bytes.Add(float64(more))
	v.mu.Lock()
	defer v.mu.Unlock()
	q.sum.rows, q.sum.bytes, q.sum.total = rows, read, max(q.sum.total, read)
}

func (v *verifier) finish(q queuedRun, spans []*pb.SpanSum, err error) {
	if errors.Is(err, engine.ErrCorrupt) {
		v.damaged(q.View.Desc(), "verify: "+err.Error())
	}
	if cerr := q.View.Close(); err == nil {
		err = cerr
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	q.sum.at = v.clock.Boot()
	if err != nil {
		q.sum.state, q.sum.err = "failed", err.Error()
		return
	}
	q.sum.state, q.sum.spans, q.sum.total = "done", spans, q.sum.bytes
}

// response describes a checksum; unknown if there is none.
func (v *verifier) response(k sumKey) *pb.ChecksumResponse {
	v.mu.Lock()
	defer v.mu.Unlock()
	s := v.mu.sums[k]
	if s == nil {
		return &pb.ChecksumResponse{State: "unknown"}
	}
	return &pb.ChecksumResponse{
		State: s.state, Error: s.err, Index: s.index, Rows: s.rows, Bytes: s.bytes, TotalBytes: s.total, Spans: s.spans,
	}
}

// summer sums rows up: everything that replicas must agree on, version stamps included.
type summer struct {
	table *crc64.Table
	h     hash.Hash64
	rows  uint64 // in all
	span  *pb.SpanSum
	spans []*pb.SpanSum
	buf   []byte
}

func newSummer() *summer {
	t := crc64.MakeTable(crc64.ECMA)
	return &summer{table: t, h: crc64.New(t)}
}

// add takes the row at the iterator and returns its bytes.
func (s *summer) add(it *engine.Iter) uint64 {
	key, value, h := it.Key(), it.Value(), it.Header()
	s.buf = binary.BigEndian.AppendUint32(s.buf[:0], uint32(len(key)))
	s.buf = append(s.buf, key...)
	s.buf = append(s.buf, h.Flags)
	s.buf = binary.BigEndian.AppendUint64(s.buf, h.Version)
	s.buf = binary.BigEndian.AppendUint64(s.buf, h.Expiry)
	s.buf = binary.BigEndian.AppendUint32(s.buf, uint32(len(value)))
	s.h.Write(s.buf) // never fails
	s.h.Write(value)
	if s.span == nil {
		s.span = &pb.SpanSum{}
		s.spans = append(s.spans, s.span)
	}
	s.rows++
	s.span.Rows++
	s.span.Last = append(s.span.Last[:0], key...)
	if s.span.Rows == spanRows {
		s.close()
	}
	return uint64(len(key) + len(value))
}

func (s *summer) close() {
	if s.span != nil {
		s.span.Sum = s.h.Sum64()
		s.span = nil
		s.h.Reset()
	}
}

func (s *summer) end() []*pb.SpanSum {
	s.close()
	return s.spans
}
