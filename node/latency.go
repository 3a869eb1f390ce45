package node

import (
	"context"
	"math"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	pb "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/internal/wire"
	"github.com/shardd/shardd/shard"
)

// Latency by stages. One request of a stream is followed every traceInterval at most, one write and one Get: what is not
// followed pays nothing. The histograms have no label that grows with the data.

// traceInterval is the least time between two requests of one stream that are followed: at 500 a second, with some six
// looks at the clock each, it stays below a thousandth of a core.
const traceInterval = 2 * time.Millisecond

// latencies are histograms by operation and stage.
type latencies struct {
	vec           *prometheus.HistogramVec
	writes, reads [shard.NumStages]prometheus.Observer
}

// latencyBounds go from 8 us to 8.6 s, a factor of two between quantiles that interpolation makes finer.
var latencyBounds = prometheus.ExponentialBuckets(8.192e-6, 2, 21)

func newLatencies() *latencies {
	l := &latencies{vec: prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "shardd_node_latency_seconds",
		Help: "Stages of sampled requests of batched streams; replicate and sync are inside commit.", Buckets: latencyBounds,
	}, []string{"operation", "stage"})}
	for s := range shard.NumStages {
		if s != shard.StageRead {
			l.writes[s] = l.vec.WithLabelValues("write", s.String())
		}
		switch s {
		case shard.StageQueue, shard.StageReplicate, shard.StageApply, shard.StageRead, shard.StageAnswer, shard.StageTotal:
			l.reads[s] = l.vec.WithLabelValues("read", s.String())
		}
	}
	return l
}

// followed is a traced request whose answer waits to be sent.
type followed struct {
	trace *shard.Trace
	write bool
	read  time.Duration // the look-up
}

// follow traces the first write and the first Get of a frame, if it is time for that again. The reader calls it.
func (st *opStream) follow(in *inbound, now time.Duration) {
	if now < st.nextTrace {
		return
	}
	st.nextTrace = now + traceInterval
	st.mu.Lock()
	defer st.mu.Unlock()
	if len(in.writes) > 0 {
		w := &in.writes[0]
		w.Trace = &shard.Trace{Arrived: now}
		st.mu.slots[w.Req].trace = w.Trace
	}
	for i := range in.reads {
		if r := &in.reads[i]; r.End == nil && !r.IndexOnly {
			r.Trace = &shard.Trace{Arrived: now}
			st.mu.slots[r.Req].trace = r.Trace
			break
		}
	}
}

// look follows the first Get of a frame, if that is answered at once.
type look struct {
	due                   bool // it is time, and no Get has been met
	arrived, began, ended time.Duration
}

// looks begins with a frame.
func (st *opStream) looks(now time.Duration) look { return look{due: now >= st.nextLook, arrived: now} }

// readNow asks the store, and looks at the clock before and after it if this is the Get to follow.
func (l *look) readNow(st *opStream, op *wire.Op, buf []byte) (out []byte, done bool) {
	if !l.due {
		return st.m.store.ReadNow(op, buf, l.arrived)
	}
	l.due = false
	began := st.m.clock.Boot()
	if out, done = st.m.store.ReadNow(op, buf, l.arrived); done {
		l.began, l.ended = began, st.m.clock.Boot()
		st.nextLook = l.arrived + traceInterval
	}
	return out, done
}

// endLook records the Get once the answers of its frame have left.
func (st *opStream) endLook(l *look) {
	if l.ended == 0 {
		return
	}
	now, of := st.m.clock.Boot(), &st.n.metrics.latency.reads
	of[shard.StageQueue].Observe((l.began - l.arrived).Seconds())
	of[shard.StageRead].Observe((l.ended - l.began).Seconds())
	of[shard.StageAnswer].Observe((now - l.ended).Seconds())
	of[shard.StageTotal].Observe((now - l.arrived).Seconds())
}

// left records the followed requests whose answers have just been sent.
func (l *latencies) left(all []followed, now time.Duration) {
	for i := range all {
		f := &all[i]
		of := &l.reads
		if f.write {
			of = &l.writes
		}
		observe := func(s shard.Stage, d time.Duration) {
			if of[s] != nil {
				of[s].Observe(d.Seconds())
			}
		}
		if applied := f.trace.Stages(observe); applied != 0 { // refused ones would make it look faster than it is
			if !f.write {
				observe(shard.StageRead, f.read)
			}
			observe(shard.StageAnswer, max(now-applied-f.read, 0))
			observe(shard.StageTotal, now-f.trace.Arrived)
		}
	}
}

// Latency implements AdminService.
func (s *adminService) Latency(context.Context, *pb.LatencyRequest) (*pb.LatencyResponse, error) {
	m, err := s.n.needMember()
	if err != nil {
		return nil, err
	}
	out := &pb.LatencyResponse{NodeId: uint64(m.self), Incarnation: m.incarnation, Bounds: latencyBounds}
	l := s.n.metrics.latency
	for _, op := range []struct {
		name string
		of   *[shard.NumStages]prometheus.Observer
	}{{"write", &l.writes}, {"read", &l.reads}} {
		for stage, o := range op.of {
			var d dto.Metric
			if h, ok := o.(prometheus.Metric); !ok || h.Write(&d) != nil || d.GetHistogram().GetSampleCount() == 0 {
				continue
			}
			out.Stages = append(out.Stages, stageLatency(op.name, shard.Stage(stage), d.GetHistogram()))
		}
	}
	return out, nil
}

func stageLatency(op string, stage shard.Stage, h *dto.Histogram) *pb.StageLatency {
	out := &pb.StageLatency{Operation: op, Stage: stage.String(), Count: h.GetSampleCount(), Seconds: h.GetSampleSum()}
	below := uint64(0)
	for _, b := range h.GetBucket() { // cumulative; the one to infinity is left out by some versions
		if math.IsInf(b.GetUpperBound(), 1) {
			break
		}
		out.Buckets = append(out.Buckets, b.GetCumulativeCount()-below)
		below = b.GetCumulativeCount()
	}
	out.Buckets = append(out.Buckets, h.GetSampleCount()-below)
	return out
}
