package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"google.golang.org/grpc"

	sharddv1 "github.com/shardd/shardd/api/shardd/v1"
)

// Service sends and receives snapshots of one store. Its methods may be called from anywhere.
//
// Lock order: none of the locks of this package is held while another one, Done, the Target or the network is called,
// but for meter's and budget's, which are innermost.
type Service struct {
	sharddv1.UnimplementedSnapshotServiceServer

	cfg     Config
	log     *slog.Logger
	metrics *metrics

	send, receive             *pacer
	sendMemory, receiveMemory *budget
	queue                     *queue
	inbox                     *inbox
	admission                 *admission
	tables                    sync.Pool // *[]byte: received tables

	mu struct {
		sync.Mutex
		running context.Context // nil unless Run runs; ends with ErrStopped
		started bool
	}
	tasks sync.WaitGroup // every goroutine and handler of a running service
}

// New returns a stopped service.
func New(cfg Config) (*Service, error) {
	cfg = cfg.withDefaults()
	switch {
	case cfg.Engine == nil || cfg.Target == nil || cfg.Dial == nil:
		return nil, errors.New("snapshotter: Engine, Target and Dial are required")
	case cfg.Cluster.IsZero() || cfg.Store == 0:
		return nil, errors.New("snapshotter: Cluster and Store are required")
	}
	m := newMetrics()
	s := &Service{
		cfg: cfg, log: cfg.Logger, metrics: m,
		send:          newPacer(cfg.Clock, cfg.SendBytesPerSecond, m.send.throttled),
		receive:       newPacer(cfg.Clock, cfg.ReceiveBytesPerSecond, m.receive.throttled),
		sendMemory:    newBudget(cfg.MemoryBytes),
		receiveMemory: newBudget(cfg.MemoryBytes),
		queue:         newQueue(cfg.MaxSending),
		inbox:         newInbox(),
		admission:     newAdmission(cfg.MaxReceiving, cfg.MaxWaiting, cfg.ReserveBytes),
	}
	if err := s.metrics.gauges(s, cfg.Registerer); err != nil {
		return nil, fmt.Errorf("snapshotter: %w", err)
	}
	return s, nil
}

// Register adds the snapshot service to a server made with transport.ServerOptions. Streams are accepted while Run runs;
// before and after, senders are told to come again.
func (s *Service) Register(r grpc.ServiceRegistrar) { sharddv1.RegisterSnapshotServiceServer(r, s) }

// Send asks for a snapshot to be sent. It never blocks. A request for a shard and target replica for which another one
// waits or runs replaces that one, which ends with ErrReplaced. Requests made before Run wait for it.
func (s *Service) Send(req Request) {
	j := newJob(s, req)
	old, ok := s.queue.add(j)
	if old != nil {
		old.cancel(ErrReplaced)
	}
	if !ok {
		j.finish(ErrStopped)
	}
}

// SetLimits changes the rates of all streams, running ones included, in bytes per second; 0 leaves a rate as it is, and
// less than MinBytesPerSecond is raised to it. It returns what holds now.
func (s *Service) SetLimits(send, receive uint64) (uint64, uint64) {
	if send != 0 {
		s.send.setLimit(clampLimit(send))
	}
	if receive != 0 {
		s.receive.setLimit(clampLimit(receive))
	}
	return s.send.limit.Load(), s.receive.limit.Load()
}

// Run sends and receives until ctx ends, which is no error. Then it ends every snapshot with ErrStopped, removes all
// staging and joins all goroutines. A service runs once.
func (s *Service) Run(ctx context.Context) error {
	running, stop := context.WithCancelCause(context.Background())
	defer stop(ErrStopped)
	s.mu.Lock()
	if s.mu.started {
		s.mu.Unlock()
		return errors.New("snapshotter: Run was called before")
	}
	s.mu.started, s.mu.running = true, running
	s.mu.Unlock()

	for ctx.Err() == nil {
		wait := s.poll()
		timer := time.NewTimer(wait)
		select {
		case <-s.queue.wake:
		case <-timer.C:
		case <-ctx.Done():
		}
		timer.Stop()
	}

	s.mu.Lock()
	s.mu.running = nil // begin adds no task any more
	s.mu.Unlock()
	stop(ErrStopped)
	ended, active := s.queue.stop()
	for _, j := range active {
		j.cancel(ErrStopped)
	}
	for _, j := range ended {
		j.finish(j.cause(ErrStopped))
	}
	s.tasks.Wait()
	for _, sn := range s.inbox.clear() {
		s.drop(sn, ErrStopped)
	}
	s.metrics.unregister(s.cfg.Registerer)
	return nil
}

// pollInterval is how often staging that nobody comes back for is looked for, at most.
const pollInterval = time.Second

// poll starts the jobs whose turn it is, ends those that were replaced while they waited, drops what was left behind,
// and returns when to look again.
func (s *Service) poll() time.Duration {
	now := s.cfg.Clock.Boot()
	ready, ended, wait := s.queue.next(now)
	for _, j := range ended {
		j.finish(j.cause(ErrReplaced))
	}
	for _, j := range ready {
		s.tasks.Go(func() { s.runJob(j) })
	}
	for _, sn := range s.inbox.expired(now - s.cfg.Timeouts.Resume) {
		s.drop(sn, errAbandoned)
	}
	return min(wait, pollInterval, s.cfg.Timeouts.Resume)
}

// begin counts an inbound handler in, unless the service does not run. The context ends when the service stops.
func (s *Service) begin() (context.Context, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.running == nil {
		return nil, false
	}
	s.tasks.Add(1) // under the lock: Run waits only after it has reset running
	return s.mu.running, true
}

func (s *Service) meters() []*meter {
	return append(s.queue.meters(), s.inbox.meters()...)
}
