package admin_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	sharddv1 "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/client/admin"
	"github.com/shardd/shardd/transport"
)

// fake answers as a test sets it: fail for every call, silent until the caller gives up.
type fake struct {
	sharddv1.UnimplementedAdminServiceServer
	fail   error
	silent bool
	calls  int
	pages  [][]*sharddv1.ShardInfo
}

func (f *fake) NodeStatus(ctx context.Context, _ *sharddv1.NodeStatusRequest) (*sharddv1.NodeStatusResponse, error) {
	f.calls++
	if f.silent {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return &sharddv1.NodeStatusResponse{NodeId: 7}, f.fail
}

func (f *fake) TransferLeader(
	_ context.Context, r *sharddv1.TransferLeaderRequest) (*sharddv1.TransferLeaderResponse, error) {
	f.calls++
	return &sharddv1.TransferLeaderResponse{ToNode: r.GetToNode()}, f.fail
}

func (f *fake) ListShards(_ context.Context, r *sharddv1.ListShardsRequest) (*sharddv1.ListShardsResponse, error) {
	page := len(r.GetAfter())
	resp := &sharddv1.ListShardsResponse{Shards: f.pages[page]}
	if page+1 < len(f.pages) {
		resp.Next = make([]byte, page+1)
	}
	return resp, nil
}

func start(t *testing.T, f sharddv1.AdminServiceServer) string {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer(transport.ServerOptions()...)
	sharddv1.RegisterAdminServiceServer(s, f)
	served := make(chan error, 1)
	go func() { served <- s.Serve(lis) }()
	t.Cleanup(func() {
		s.Stop()
		if err := <-served; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return lis.Addr().String()
}

func open(t *testing.T, endpoints ...string) *admin.Client {
	t.Helper()
	c, err := admin.Open(endpoints)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return c
}

func deadAddr(t *testing.T) string {
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer lis.Close()
	return lis.Addr().String()
}

func TestTheNextEndpointIsAskedWhenOneCannotServe(t *testing.T) {
	t.Cleanup(func() { goleak.VerifyNone(t) })
	unavailable, good := &fake{fail: status.Error(codes.Unavailable, "no quorum")}, &fake{}
	c := open(t, deadAddr(t), start(t, unavailable), start(t, &fake{silent: true}), start(t, good))
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	resp, err := c.NodeStatus(ctx)
	if err != nil || resp.GetNodeId() != 7 || unavailable.calls != 1 || good.calls != 1 {
		t.Errorf("%v, %v after %d and %d calls", resp, err, unavailable.calls, good.calls)
	}
	if _, err := c.At(c.Endpoints()[1]).NodeStatus(ctx); !errors.Is(err, admin.ErrUnreachable) || unavailable.calls != 2 {
		t.Errorf("view of one endpoint: %v", err)
	}
}

func TestErrorsSayKindEndpointAndRemedy(t *testing.T) {
	for code, want := range map[codes.Code]error{
		codes.NotFound:           admin.ErrNotFound,
		codes.FailedPrecondition: admin.ErrConflict,
		codes.AlreadyExists:      admin.ErrConflict,
		codes.InvalidArgument:    admin.ErrInvalid,
		codes.Internal:           admin.ErrFailed,
		codes.DeadlineExceeded:   admin.ErrTimedOut,
		codes.Unavailable:        admin.ErrUnreachable,
	} {
		f, second := &fake{fail: status.Error(code, "because")}, &fake{fail: status.Error(code, "because")}
		addr := start(t, f)
		_, err := open(t, addr, start(t, second)).TransferLeader(context.Background(), 12, 3)
		var e *admin.Error
		if !errors.Is(err, want) || !errors.As(err, &e) || e.Code != code || f.calls != 1 {
			t.Errorf("%s: %v after %d calls", code, err, f.calls)
		}
		for _, part := range []string{"transfer leader of s12 to n3", addr, "because"} {
			if !strings.Contains(err.Error(), part) {
				t.Errorf("%s: %q lacks %q", code, err, part)
			}
		}
		if again := code == codes.Unavailable || code == codes.DeadlineExceeded; again != (second.calls == 1) {
			t.Errorf("%s: the second endpoint was asked %d times", code, second.calls)
		}
	}
	_, err := open(t, start(t, &fake{})).Health(context.Background())
	if !errors.Is(err, admin.ErrUnsupported) || !strings.Contains(err.Error(), "not a shardd node") {
		t.Errorf("a server without the call: %v", err)
	}
	if _, err := admin.Open(nil); !errors.Is(err, admin.ErrInvalid) {
		t.Errorf("no endpoint: %v", err)
	}
}

func TestListShardsFollowsPages(t *testing.T) {
	f := &fake{}
	id := uint64(0)
	for range 3 {
		var page []*sharddv1.ShardInfo
		for range 4 {
			id++
			page = append(page, &sharddv1.ShardInfo{ShardId: id})
		}
		f.pages = append(f.pages, page)
	}
	c := open(t, start(t, f))
	want := uint64(0)
	for s, err := range c.ListShards(context.Background()) {
		if want++; err != nil || s.GetShardId() != want {
			t.Fatal(fmt.Sprint(s, err))
		}
	}
	if want != 12 {
		t.Errorf("%d shards", want)
	}
}
