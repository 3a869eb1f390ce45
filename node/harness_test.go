package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"

	pb "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/engine"
	"github.com/shardd/shardd/transport"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds every wait for a condition; it is never what a passing test waits for.
const patience = 60 * time.Second

// proc is a node as a process would be: it can be stopped, killed and started again on what its disk holds.
type proc struct {
	t    *testing.T
	name string
	fs   *engine.FS
	addr string
	join []string
	http string
	tune func(*Config) // changes the configuration of the next start

	n    *Node
	stop context.CancelFunc
	done chan struct{}
	err  error
	conn *grpc.ClientConn
}

// startSeed returns SHARDD_SEED or a fresh seed, and prints it if the test fails.
func startSeed(t *testing.T) int64 {
	s := time.Now().UnixNano()
	if v, err := strconv.ParseInt(os.Getenv("SHARDD_SEED"), 10, 64); err == nil {
		s = v
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("repeat with SHARDD_SEED=%d", s)
		}
	})
	return s
}

func newProc(t *testing.T, name string) *proc {
	return &proc{t: t, name: name, fs: engine.NewMemFS(), addr: "127.0.0.1:0"}
}

func (p *proc) config() Config {
	var w io.Writer = io.Discard
	if os.Getenv("SHARDD_TEST_LOG") != "" {
		w = os.Stderr
	}
	cfg := Config{
		DataDir: "data", FS: p.fs, Listen: p.addr, HTTP: p.http, Join: p.join, Version: "test",
		Labels: map[string]string{"name": p.name},
		Logger: slog.New(slog.NewTextHandler(w, nil)).With("proc", p.name),
		Settings: Settings{
			Tick: 10 * time.Millisecond, Workers: 1, ApplyWorkers: 1, ReportInterval: 100 * time.Millisecond,
			CacheBytes: 1 << 20, MemTableBytes: 1 << 20, RowCacheBytes: 1 << 20,
			NoBalance: true, // most tests place replicas by hand
		},
		Fatal: func(err error) { p.t.Logf("%s: fatal: %v", p.name, err) },
	}
	if p.tune != nil {
		p.tune(&cfg)
	}
	return cfg
}

func (p *proc) start() *proc {
	p.t.Helper()
	n, err := New(p.config())
	if err != nil {
		p.t.Fatalf("%s: %v", p.name, err)
	}
	p.addr, p.n, p.done = n.Addr(), n, make(chan struct{})
	ctx, cancel := context.WithCancel(context.Background())
	p.stop = cancel
	done := p.done
	go func() {
		defer close(done)
		p.err = n.Run(ctx)
	}()
	cc, err := grpc.NewClient("passthrough:///"+p.addr, transport.DialOptions()...)
	if err != nil {
		p.t.Fatal(err)
	}
	p.conn = cc
	p.t.Cleanup(func() {
		cancel()
		<-done
		cc.Close()
	})
	return p
}

// term stops the node as SIGTERM would and returns what Run returned.
func (p *proc) term() error {
	p.stop()
	<-p.done
	p.conn.Close()
	return p.err
}

// kill stops the node at once and leaves what a power loss now would: unsynced blocks kept with a chance.
func (p *proc) kill(keepPercent int, seed int64) {
	p.fs = p.fs.PowerOff(keepPercent, seed)
	p.halt()
}

func (p *proc) halt() {
	if !isClosed(p.n.halt) {
		close(p.n.halt)
	}
	<-p.done
	p.conn.Close()
}

func (p *proc) admin() pb.AdminServiceClient { return pb.NewAdminServiceClient(p.conn) }
func (p *proc) kv() pb.KVServiceClient       { return pb.NewKVServiceClient(p.conn) }

func startProcs(t *testing.T, n int) []*proc {
	t.Helper()
	var out []*proc
	for i := range n {
		out = append(out, newProc(t, fmt.Sprintf("p%d", i)).start())
	}
	return out
}

func addrs(ps []*proc) (out []string) {
	for _, p := range ps {
		out = append(out, p.addr)
	}
	return out
}

// byAddress sorts so that the founder comes first.
func byAddress(ps []*proc) []*proc {
	ps = slices.Clone(ps)
	slices.SortFunc(ps, func(a, b *proc) int { return bytes.Compare([]byte(a.addr), []byte(b.addr)) })
	return ps
}

func splitKeys(shards int) (out [][]byte) {
	for i := 1; i < shards; i++ {
		out = append(out, fmt.Appendf(nil, "k%03d", i))
	}
	return out
}

func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

// initAll makes a cluster of the nodes, asking one of them.
func initAll(t *testing.T, at *proc, ps []*proc, shards int) *pb.InitResponse {
	t.Helper()
	resp, err := at.admin().Init(testContext(t), &pb.InitRequest{Nodes: addrs(ps), Splits: splitKeys(shards)})
	if err != nil {
		t.Fatalf("init: %v", err)
	}
	if int(resp.Shards) != shards {
		t.Fatalf("init made %d shards, want %d", resp.Shards, shards)
	}
	return resp
}

// eventually waits until f returns nil.
func eventually(t *testing.T, what string, f func(ctx context.Context) error) {
	t.Helper()
	ctx := testContext(t)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		err := f(ctx)
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("%s: %v", what, err)
		case <-tick.C:
		}
	}
}

// settled waits until every shard has a leader and all replicas, as seen from p.
func settled(t *testing.T, p *proc, shards int) *pb.ClusterStatusResponse {
	t.Helper()
	var out *pb.ClusterStatusResponse
	eventually(t, "cluster settles", func(ctx context.Context) (err error) {
		out, err = p.admin().ClusterStatus(ctx, &pb.ClusterStatusRequest{})
		if err != nil {
			return err
		}
		if int(out.Shards) != shards+1 || out.ShardsWithoutLeader+out.ShardsUnderReplicated+out.ShardsCreating > 0 {
			return fmt.Errorf("status %v", out)
		}
		return nil
	})
	return out
}

// ledger remembers acknowledged writes.
type ledger struct {
	rows map[string]string
	rng  *rand.Rand
}

func newLedger(seed int64) *ledger {
	return &ledger{rows: map[string]string{}, rng: rand.New(rand.NewPCG(uint64(seed), 7))}
}

// put writes through p until it is acknowledged.
func (l *ledger) put(t *testing.T, p *proc, n, shards int) {
	t.Helper()
	for range n {
		key := fmt.Sprintf("k%03d-%d", l.rng.IntN(shards), l.rng.IntN(1000))
		value := strconv.FormatUint(l.rng.Uint64(), 36)
		eventually(t, "put", func(ctx context.Context) error {
			_, err := p.kv().Put(ctx, &pb.PutRequest{Key: []byte(key), Value: []byte(value)})
			return err
		})
		l.rows[key] = value
	}
}

// check reads every acknowledged write through p.
func (l *ledger) check(t *testing.T, p *proc) {
	t.Helper()
	for key, value := range l.rows {
		eventually(t, "get", func(ctx context.Context) error {
			resp, err := p.kv().Get(ctx, &pb.GetRequest{Key: []byte(key)})
			if err != nil {
				return err
			}
			if string(resp.Value) != value {
				t.Fatalf("%s: %s is %q, acknowledged %q", p.name, key, resp.Value, value)
			}
			return nil
		})
	}
}

var errPending = errors.New("not yet")
