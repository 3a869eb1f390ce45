package node

import (
	"context"
	"sync"

	"google.golang.org/grpc"
)

// calls counts what a graceful stop waits for: unary calls and operation streams. The raft streams of other nodes are
// not among them; they last as long as the process.
type calls struct {
	mu   sync.Mutex
	open int
	idle chan struct{} // closed when open comes to 0; nil if nobody waits
}

func (c *calls) enter() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.open++
}

func (c *calls) leave() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.open--
	if c.open == 0 && c.idle != nil {
		close(c.idle)
		c.idle = nil
	}
}

// wait returns a channel that is closed once nothing is open. It is called once, when nothing new is let in.
func (c *calls) wait() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	done := make(chan struct{})
	if c.open == 0 {
		close(done)
	} else {
		c.idle = done
	}
	return done
}

// unary is the server's interceptor.
func (c *calls) unary(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	c.enter()
	defer c.leave()
	return next(ctx, req)
}
