package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	sharddv1 "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/engine"
)

var (
	errTakenOver = errors.New("the sender has opened another stream for the snapshot")
	errAbandoned = errors.New("the sender did not come back")
	errSilent    = errors.New("nothing was heard from the sender")
)

// Why a snapshot is declined, for the metric; the sender is given a text.
const (
	declinedTarget  = "target"  // AcceptSnapshot or InstallSnapshot refused
	declinedBusy    = "busy"    // no slot in time, or another one of the shard is being installed
	declinedCrowded = "crowded" // too many wait
	declinedOlder   = "older"   // a later leader's snapshot is being received
	declinedSpace   = "space"   // staging is full, or the disk
	declinedDamaged = "damaged" // a chunk that arrived as it was sent is not what it says
	declinedInstall = "install" // InstallSnapshot failed
	declinedInvalid = "invalid"
)

// When to ask again.
const (
	retrySoon = time.Second
	retryBusy = 2 * time.Second
	retryFull = 10 * time.Second
)

// refusal is an answer that ends a snapshot at the receiver.
type refusal struct {
	code   string
	reason string
	wait   time.Duration
}

func (e *refusal) Error() string { return e.reason }

// refused turns an error of the Target into an answer.
func refused(code string, err error) *refusal {
	var d declined
	if errors.As(err, &d) {
		reason, wait := d.Declined()
		return &refusal{code: declinedTarget, reason: reason, wait: wait}
	}
	return &refusal{code: code, reason: err.Error()}
}

// recvStream is one stream at the receiver: a handler that decides, writes and answers, and a reader that assembles the
// next chunk meanwhile. The handler returns before the reader ends, since only that ends a stream of a server.
type recvStream struct {
	s      *Service
	grpc   sharddv1.SnapshotService_StreamServer
	run    context.Context // the service's
	ctx    context.Context // the stream's
	cancel context.CancelCauseFunc
	events chan event    // closed by the reader
	open   chan struct{} // closed when granted: parts are taken from then on
	idle   *time.Timer
	fault  error // why the reader ended; read after events is closed

	sn *session // nil before the reserve
}

// event is what the reader hands to the handler: one of the three.
type event struct {
	reserve *sharddv1.SnapshotReserve
	chunk   *engine.Chunk
	finish  *sharddv1.SnapshotFinish
	release func() // of the chunk's memory
}

func (e *event) complete() bool { return e.reserve != nil || e.chunk != nil || e.finish != nil }

// Stream implements the gRPC service.
func (s *Service) Stream(ss sharddv1.SnapshotService_StreamServer) error {
	running, ok := s.begin()
	if !ok {
		return status.Error(codes.Unavailable, "the snapshot service is not running")
	}
	defer s.tasks.Done()
	ctx, cancel := context.WithCancelCause(ss.Context())
	defer cancel(io.EOF)
	defer context.AfterFunc(running, func() { cancel(ErrStopped) })()
	r := &recvStream{
		s: s, grpc: ss, run: running, ctx: ctx, cancel: cancel, events: make(chan event), open: make(chan struct{}),
	}
	r.idle = time.AfterFunc(s.cfg.Timeouts.Idle, func() { cancel(errSilent) })
	defer r.idle.Stop()
	s.tasks.Go(r.read)

	err := r.serve()
	var no *refusal
	switch {
	case err == nil:
		return nil
	case errors.As(err, &no):
		s.metrics.declined(no.code)
		s.log.Debug("snapshot declined", "reason", no.reason, "wait", no.wait)
		return r.answer(&sharddv1.StreamResponse{Frame: &sharddv1.StreamResponse_Declined{
			Declined: &sharddv1.SnapshotDeclined{Reason: no.reason, WaitMs: uint64(no.wait / time.Millisecond)},
		}})
	case errors.Is(err, ErrStopped):
		return status.Error(codes.Unavailable, err.Error())
	case errors.Is(err, errTakenOver), errors.Is(err, ErrReplaced):
		return status.Error(codes.Aborted, err.Error())
	case errors.Is(err, errSilent):
		return status.Error(codes.DeadlineExceeded, err.Error())
	}
	return err // a status already
}

func (r *recvStream) answer(m *sharddv1.StreamResponse) error { return r.grpc.Send(m) }

// next waits for the reader.
func (r *recvStream) next() (event, error) {
	select {
	case ev, ok := <-r.events:
		if ok {
			return ev, nil
		}
		if err := context.Cause(r.ctx); err != nil {
			return event{}, err
		}
		return event{}, r.fault
	case <-r.ctx.Done():
		return event{}, context.Cause(r.ctx)
	}
}

// during runs what may take long on a goroutine of its own and tells the sender from time to time that we are here.
func (r *recvStream) during(f func() error) error {
	done := make(chan error, 1)
	r.s.tasks.Go(func() { done <- f() })
	alive := time.NewTicker(max(r.s.cfg.Timeouts.Idle/3, time.Millisecond))
	defer alive.Stop()
	for {
		select {
		case err := <-done:
			return err
		case <-alive.C:
			_ = r.staged() // if the stream is gone, the reader says so
		}
	}
}

// staged tells the sender how far we are.
func (r *recvStream) staged() error {
	var n uint32
	if r.sn != nil && r.sn.staging != nil {
		n = r.sn.staging.Chunks()
	}
	f := &sharddv1.SnapshotStaged{Chunks: n}
	if r.sn != nil {
		f.Bytes = r.sn.bytes
	}
	return r.answer(&sharddv1.StreamResponse{Frame: &sharddv1.StreamResponse_Staged{Staged: f}})
}

// serve runs the conversation. A *refusal is to be answered; any other error breaks the stream.
func (r *recvStream) serve() error {
	ev, err := r.next()
	if err != nil {
		return err
	}
	if ev.reserve == nil {
		return status.Error(codes.InvalidArgument, "a snapshot stream starts with a reserve")
	}
	r.idle.Stop() // the sender is silent until it is granted
	meta, err := r.checkReserve(ev.reserve)
	if err != nil {
		return err
	}
	s := r.s
	p := parsePriority(ev.reserve.GetPriority())
	fresh := &session{
		shard: meta.Shard, from: meta.FromStore, to: meta.To, term: meta.RaftTerm,
		meter: newMeter(s.cfg.Clock, Progress{
			Shard: meta.Shard, FromStore: meta.FromStore, ToStore: meta.ToStore, ToReplica: meta.To, Priority: p,
			Total: ev.reserve.GetTotalBytes(),
		}),
	}
	copy(fresh.id[:], ev.reserve.GetSnapshotId())
	sn, err := s.inbox.attach(r.ctx, r, fresh, s.drop)
	if err != nil {
		return err
	}
	if sn.stage == finished { // it does not change any more
		if sn.result != nil {
			return sn.result
		}
		return r.installed()
	}
	r.sn = sn
	held := false
	defer func() {
		if held {
			s.admission.leave(0)
		}
		s.inbox.detach(sn, s.cfg.Clock.Boot())
	}()
	if err := r.accept(meta, ev.reserve); err != nil {
		return r.end(err)
	}
	want := max(ev.reserve.GetTotalBytes(), 1) // what has not been flushed is not in the estimate
	if sn.reserved > 0 {
		want = 0 // held since the first stream
	}
	sn.meter.enter(Reserving)
	err = r.during(func() error { return s.admission.enter(r.ctx, p, want, s.cfg.Timeouts.ReserveWait) })
	switch {
	case errors.Is(err, errBusy): // no end: what is staged stays
		return &refusal{code: declinedBusy, reason: err.Error(), wait: retryBusy}
	case errors.Is(err, errTooMany):
		return &refusal{code: declinedCrowded, reason: err.Error(), wait: retryBusy}
	case err != nil:
		return err
	}
	held = true
	sn.reserved += want
	if err := r.grant(); err != nil {
		return err
	}
	return r.receive()
}

// checkReserve returns what the reserve speaks of.
func (r *recvStream) checkReserve(f *sharddv1.SnapshotReserve) (*engine.SnapshotMeta, error) {
	cfg := &r.s.cfg
	if string(f.GetClusterId()) != string(cfg.Cluster[:]) {
		return nil, status.Error(codes.FailedPrecondition, "this node belongs to another cluster")
	}
	if len(f.GetSnapshotId()) != len(session{}.id) {
		return nil, status.Errorf(codes.InvalidArgument, "snapshot id of %d bytes", len(f.GetSnapshotId()))
	}
	m, err := engine.DecodeSnapshotMeta(f.GetMeta())
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	if m.ToStore != cfg.Store {
		return nil, status.Errorf(codes.FailedPrecondition, "the snapshot is for %s, this is %s", m.ToStore, cfg.Store)
	}
	return m, nil
}

// accept asks the target about the state that is announced. What was staged of another state goes.
func (r *recvStream) accept(m *engine.SnapshotMeta, f *sharddv1.SnapshotReserve) error {
	sn := r.sn
	if m.Shard != sn.shard || m.To != sn.to || m.RaftTerm != sn.term {
		return &refusal{code: declinedInvalid, reason: "the snapshot changed its shard, replica or term"}
	}
	if sn.staging != nil && !sn.same(f.GetMeta()) {
		if err := sn.staging.Remove(); err != nil {
			return &refusal{code: declinedSpace, reason: err.Error()}
		}
		sn.staging, sn.bytes = nil, 0
	}
	if err := r.s.cfg.Target.AcceptSnapshot(m); err != nil {
		return refused(declinedTarget, err)
	}
	sn.state, sn.meta = m, f.GetMeta()
	sn.meter.setTotal(f.GetTotalBytes())
	return nil
}

// grant lets the sender start behind what is staged.
func (r *recvStream) grant() error {
	sn := r.sn
	g := &sharddv1.SnapshotGranted{}
	if sn.staging != nil {
		g.Chunks, g.Resume = sn.staging.Chunks(), sn.staging.Resume()
	}
	sn.meter.setDone(sn.bytes)
	sn.meter.enter(Streaming)
	if err := r.answer(&sharddv1.StreamResponse{Frame: &sharddv1.StreamResponse_Granted{Granted: g}}); err != nil {
		return err
	}
	r.idle.Reset(r.s.cfg.Timeouts.Idle)
	close(r.open)
	return nil
}

// receive takes chunks until the finish, and installs.
func (r *recvStream) receive() error {
	for {
		ev, err := r.next()
		if err != nil {
			return err
		}
		switch {
		case ev.reserve != nil:
			err = r.again(ev.reserve)
		case ev.chunk != nil:
			err = r.stage(ev.chunk)
			ev.release()
		default:
			return r.finish(ev.finish)
		}
		if err != nil {
			return r.end(err)
		}
	}
}

// again takes the reserve that says what the view holds, which the sender has pinned after the grant.
func (r *recvStream) again(f *sharddv1.SnapshotReserve) error {
	if r.sn.staging != nil {
		return status.Error(codes.InvalidArgument, "a reserve behind chunks")
	}
	m, err := r.checkReserve(f)
	if err != nil {
		return err
	}
	if err := r.accept(m, f); err != nil {
		return err
	}
	r.reserveAtLeast(f.GetTotalBytes())
	return nil
}

// reserveAtLeast follows the size where the estimate was too low. It does not wait: what is under way comes in.
func (r *recvStream) reserveAtLeast(n uint64) {
	if n > r.sn.reserved {
		r.s.admission.resize(r.sn.reserved, n)
		r.sn.reserved = n
	}
}

// stage checks a chunk and puts it on disk.
func (r *recvStream) stage(c *engine.Chunk) error {
	began := r.s.cfg.Clock.Boot()
	defer func() { r.sn.checked += r.s.cfg.Clock.Boot() - began }()
	// Damage on the way is told from damage at the source: only the former is worth sending again.
	if sum := crc32.Checksum(c.SST, crc32.MakeTable(crc32.Castagnoli)); sum != c.CRC {
		r.s.metrics.damaged.Inc()
		return status.Errorf(codes.DataLoss, "chunk %d arrived with checksum %08x, want %08x", c.Seq, sum, c.CRC)
	}
	err := r.newStaging()
	if err == nil {
		err = r.during(func() error { return r.sn.staging.Add(c) })
	}
	var full *engine.StagingFullError
	switch {
	case err == nil:
		r.sn.bytes += uint64(c.Size)
		r.reserveAtLeast(r.sn.bytes)
		return r.staged()
	case errors.As(err, &full):
		return &refusal{code: declinedSpace, reason: err.Error(), wait: retryFull}
	case errors.Is(err, engine.ErrCorrupt), errors.Is(err, engine.ErrChunkOrder):
		return &refusal{code: declinedDamaged, reason: err.Error()}
	}
	return &refusal{code: declinedSpace, reason: err.Error(), wait: retryFull}
}

func (r *recvStream) newStaging() (err error) {
	if r.sn.staging == nil {
		r.sn.staging, err = r.s.cfg.Engine.NewStaging(r.sn.state, r.sn.id)
	}
	return err
}

// finish installs what is staged and answers.
func (r *recvStream) finish(f *sharddv1.SnapshotFinish) error {
	sn, s := r.sn, r.s
	r.idle.Stop()
	if err := r.newStaging(); err != nil { // of an empty shard
		return r.end(refused(declinedSpace, err))
	}
	if n := sn.staging.Chunks(); n != f.GetChunks() || sn.bytes != f.GetBytes() {
		return r.end(&refusal{code: declinedInvalid, reason: fmt.Sprintf(
			"%d chunks of %d bytes were staged, %d of %d announced", n, sn.bytes, f.GetChunks(), f.GetBytes())})
	}
	sn.meter.enter(Installing)
	s.inbox.install(sn)
	err := r.during(func() error {
		// Not the stream's context: an install that has begun goes on without it.
		ctx, cancel := context.WithTimeoutCause(r.run, s.cfg.Timeouts.Install,
			fmt.Errorf("%w: install", ErrTimeout))
		defer cancel()
		return s.cfg.Target.InstallSnapshot(ctx, sn.state, sn.staging)
	})
	if err != nil {
		return r.end(refused(declinedInstall, err))
	}
	s.end(sn, nil)
	return r.installed()
}

func (r *recvStream) installed() error {
	return r.answer(&sharddv1.StreamResponse{Frame: &sharddv1.StreamResponse_Installed{
		Installed: &sharddv1.SnapshotInstalled{}}})
}
