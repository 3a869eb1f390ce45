package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"

	"google.golang.org/grpc"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
)

// Run serves until ctx ends, then stops gracefully within Config.StopTimeout, and closes the engine. It returns nil
// after a graceful stop; an error that ends the process otherwise, with an exit code (engine.ExitCode) if the node was
// fenced (12) or belongs to another cluster (11). It may be called once.
func (n *Node) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := n.server.Serve(n.lis); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
			n.failWith(fmt.Errorf("serve %s: %w", n.addr, err))
		}
	})
	var web *http.Server
	if n.httpLis != nil {
		web = n.newHTTP()
		wg.Go(func() {
			if err := web.Serve(n.httpLis); err != nil && !errors.Is(err, http.ErrServerClosed) {
				n.failWith(fmt.Errorf("serve http %s: %w", n.httpLis.Addr(), err))
			}
		})
	}
	err := n.serve(ctx)
	n.stopping.Store(true)
	if web != nil {
		// Scrapes are short: what is still open after the drain is cut.
		stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), min(time.Second, n.cfg.StopTimeout/5))
		if serr := web.Shutdown(stop); serr != nil {
			web.Close() // the listener is closed; nothing else can fail
		}
		cancel()
	}
	cerr := n.closeAll()
	wg.Wait()
	return errors.Join(err, cerr)
}

// serve waits until the node has an ident, then runs as a member until the end.
func (n *Node) serve(ctx context.Context) error {
	if err := n.awaitIdent(ctx); err != nil {
		return err
	}
	if ctx.Err() != nil || isClosed(n.halt) {
		return nil
	}
	m, err := n.boot()
	if err != nil {
		return err
	}
	return m.run(ctx)
}

// awaitIdent returns once the ident is on disk, ctx has ended, or the node has failed.
func (n *Node) awaitIdent(ctx context.Context) error {
	if isClosed(n.identSet) {
		return nil
	}
	n.log.Info(waitingText, "addr", n.addr, "join", n.cfg.Join)
	joining, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop()
	if len(n.cfg.Join) > 0 {
		wg.Go(func() {
			if err := n.joinLoop(joining); err != nil {
				n.failWith(err)
			}
		})
	}
	select {
	case <-n.identSet:
	case <-ctx.Done():
	case <-n.halt:
	case err := <-n.fail:
		return err
	}
	return nil
}

// setHealth sets what grpc.health.v1 answers.
func (n *Node) setHealth(ok bool) {
	s := healthpb.HealthCheckResponse_NOT_SERVING
	if ok {
		s = healthpb.HealthCheckResponse_SERVING
	}
	n.health.SetServingStatus("", s)
}

// publicHTTP returns the HTTP address as others can use it, "" if there is none: where the listener is bound to all
// interfaces, the host of the advertised address stands for them.
func (n *Node) publicHTTP() string {
	bound := n.HTTPAddr()
	host, port, err := net.SplitHostPort(bound)
	if err != nil || !unspecified(host) {
		return bound
	}
	if host, _, err = net.SplitHostPort(n.addr); err != nil {
		return bound
	}
	return net.JoinHostPort(host, port)
}
