package node

import (
	"fmt"
	"sync"
	"time"
)

// cpuMeter tells how much of a processor the process has taken between two looks. It is safe for concurrent use: whoever
// makes the head of a report looks, the loop and who asks for a view.
type cpuMeter struct {
	mu   sync.Mutex
	at   time.Duration // Boot time
	used uint64        // ms of processor
	last uint64
}

// cpuLook is the least time between two looks.
const cpuLook = 5 * time.Second

// millis returns thousandths of a core, as of the last few seconds.
func (c *cpuMeter) millis(now time.Duration) uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.at != 0 && now-c.at < cpuLook {
		return c.last
	}
	used := cpuMS()
	if c.at != 0 {
		c.last = (used - c.used) * 1000 / uint64((now - c.at).Milliseconds())
	}
	c.at, c.used = now, used
	return c.last
}

// slowness remembers that the disk did not take syncs in time, for a while after it does again: a disk that stalls now
// and then is slow all along, and leaderships should not go back and forth.
type slowness struct {
	mu   sync.Mutex
	last time.Duration // Boot time of the last stall, 0: none
	text string
}

// slowFor is how long a store is slow after its last stall.
const slowFor = time.Minute

func (s *slowness) see(ok bool, detail string, now time.Duration) {
	if ok {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last, s.text = now, detail
}

// why says how the store is slow, empty if it is not.
func (s *slowness) why(now time.Duration) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.last == 0 || now-s.last > slowFor {
		return ""
	}
	return fmt.Sprintf("the disk has stalled within the last %s: %s", slowFor, s.text)
}
