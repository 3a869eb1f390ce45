package snapshotter

import (
	"slices"
	"sync"
	"time"

	"github.com/shardd/shardd/internal/base"
)

// jobKey: at most one snapshot is sent to a replica at a time.
type jobKey struct {
	shard base.ShardID
	to    base.ReplicaID
}

// queue decides which job gets a sending slot: the higher priority first, then who asked first. Jobs that the receiver
// put off keep their place, but do not hold a slot while they wait.
type queue struct {
	slots int
	wake  chan struct{} // of Run; one token

	mu struct {
		sync.Mutex
		current map[jobKey]*job // the job that a later one would replace
		waiting []*job
		ended   []*job // replaced while they waited; their Done is for Run to call
		active  map[*job]struct{}
		nextSeq uint64
		stopped bool
	}
}

func newQueue(slots int) *queue {
	q := &queue{slots: slots, wake: make(chan struct{}, 1)}
	q.mu.current, q.mu.active = map[jobKey]*job{}, map[*job]struct{}{}
	return q
}

// add queues a job. It returns the one that it replaces and false if the queue has stopped.
func (q *queue) add(j *job) (old *job, ok bool) {
	defer q.wakeUp()
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.mu.stopped {
		return nil, false
	}
	old = q.mu.current[j.key]
	if at := slices.Index(q.mu.waiting, old); old != nil && at >= 0 {
		q.mu.waiting = slices.Delete(q.mu.waiting, at, at+1)
		q.mu.ended = append(q.mu.ended, old)
	}
	q.mu.current[j.key] = j
	q.mu.nextSeq++
	j.seq = q.mu.nextSeq
	q.mu.waiting = append(q.mu.waiting, j)
	return old, true
}

// next takes the jobs that may start now and those that ended while they waited, and says how long there is nothing to
// do but for a wake-up.
func (q *queue) next(now time.Duration) (ready, ended []*job, wait time.Duration) {
	q.mu.Lock()
	defer q.mu.Unlock()
	ended, q.mu.ended = q.mu.ended, nil
	wait = time.Hour
	slices.SortFunc(q.mu.waiting, func(a, b *job) int {
		if a.req.Priority != b.req.Priority {
			return int(b.req.Priority) - int(a.req.Priority)
		}
		return int(int64(a.seq) - int64(b.seq))
	})
	q.mu.waiting = slices.DeleteFunc(q.mu.waiting, func(j *job) bool {
		if j.notBefore > now {
			wait = min(wait, j.notBefore-now)
			return false
		}
		if len(q.mu.active) >= q.slots {
			return false
		}
		q.mu.active[j] = struct{}{}
		ready = append(ready, j)
		return true
	})
	return ready, ended, wait
}

// leave gives a job's slot back. With again set the job waits for another one from notBefore on; false means that it
// may not, because it was replaced or the queue has stopped.
func (q *queue) leave(j *job, again bool, notBefore time.Duration) bool {
	defer q.wakeUp()
	q.mu.Lock()
	defer q.mu.Unlock()
	delete(q.mu.active, j)
	if again && !q.mu.stopped && q.mu.current[j.key] == j {
		j.notBefore = notBefore
		q.mu.waiting = append(q.mu.waiting, j)
		return true
	}
	if q.mu.current[j.key] == j {
		delete(q.mu.current, j.key)
	}
	return false
}

// stop refuses further jobs and returns those that wait and those that run.
func (q *queue) stop() (ended, active []*job) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.mu.stopped = true
	ended = append(q.mu.ended, q.mu.waiting...)
	q.mu.ended, q.mu.waiting = nil, nil
	for j := range q.mu.active {
		active = append(active, j)
	}
	return ended, active
}

func (q *queue) meters() []*meter {
	q.mu.Lock()
	defer q.mu.Unlock()
	var out []*meter
	for _, j := range q.mu.waiting {
		out = append(out, j.meter)
	}
	for j := range q.mu.active {
		out = append(out, j.meter)
	}
	return out
}

// state returns how many jobs have a slot and how many wait.
func (q *queue) state() (active, waiting int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.mu.active), len(q.mu.waiting)
}

func (q *queue) wakeUp() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}
