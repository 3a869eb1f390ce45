package node

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/internal/base"
)

func TestUnaryInterfaceKeepsItsDocumentedCodes(t *testing.T) {
	ps := startProcs(t, 3)
	initAll(t, ps[0], ps, 3) // split at k001 and k002
	settled(t, ps[0], 3)
	ctx := testContext(t)
	kv := ps[1].kv()
	want := func(what string, code codes.Code, err error) {
		t.Helper()
		if status.Code(err) != code {
			t.Errorf("%s: %v, want %s", what, err, code)
		}
	}
	ver := func(v uint64) *uint64 { return &v }
	put, err := kv.Put(ctx, &pb.PutRequest{Key: []byte("k001a"), Value: []byte("1"), IfVersion: ver(0)})
	want("put if absent", codes.OK, err)
	_, err = kv.Put(ctx, &pb.PutRequest{Key: []byte("k001a"), Value: []byte("2"), IfVersion: ver(0)})
	want("put if absent again", codes.FailedPrecondition, err)
	_, err = kv.Put(ctx, &pb.PutRequest{Key: []byte("k001a"), Value: []byte("2"), IfVersion: ver(put.Version)})
	want("put if version", codes.OK, err)
	_, err = kv.Delete(ctx, &pb.DeleteRequest{Key: []byte("k001a"), IfVersion: ver(put.Version)})
	want("delete of an old version", codes.FailedPrecondition, err)
	_, err = kv.Get(ctx, &pb.GetRequest{Key: []byte("nothing")})
	want("get", codes.NotFound, err)
	_, err = kv.Get(ctx, &pb.GetRequest{})
	want("get of the empty key", codes.InvalidArgument, err)
	_, err = kv.Put(ctx, &pb.PutRequest{Key: bytes.Repeat([]byte("k"), base.MaxKeySize+1)})
	want("long key", codes.InvalidArgument, err)
	_, err = kv.Put(ctx, &pb.PutRequest{Key: []byte("k"), Value: make([]byte, base.MaxValueSize+1)})
	want("large value", codes.InvalidArgument, err)
	_, err = kv.Scan(ctx, &pb.ScanRequest{Start: []byte("b"), End: []byte("b")})
	want("empty range", codes.InvalidArgument, err)
	_, err = kv.DeleteRange(ctx, &pb.DeleteRangeRequest{Start: []byte("b"), End: []byte("a")})
	want("inverted range", codes.InvalidArgument, err)
	_, err = kv.Batch(ctx, &pb.BatchRequest{})
	want("empty batch", codes.InvalidArgument, err)
	_, err = kv.Batch(ctx, &pb.BatchRequest{Steps: []*pb.BatchStep{putStep("a", "1"), putStep("k002z", "2")}})
	want("batch over two shards", codes.InvalidArgument, err)
	_, err = kv.Batch(ctx, &pb.BatchRequest{Steps: []*pb.BatchStep{
		putStep("k001b", "1"),
		{Step: &pb.BatchStep_Check{Check: &pb.CheckStep{
			Key: []byte("k001a"), Condition: &pb.CheckStep_Value{Value: []byte("other")},
		}}},
	}})
	want("batch with a failing check", codes.FailedPrecondition, err)
	_, err = kv.Get(ctx, &pb.GetRequest{Key: []byte("k001b")})
	want("write of the failed batch", codes.NotFound, err)
	var big []*pb.BatchStep
	for range 5 {
		big = append(big, putStep("k001c", strings.Repeat("v", base.MaxValueSize)))
	}
	_, err = kv.Batch(ctx, &pb.BatchRequest{Steps: big})
	want("large batch", codes.InvalidArgument, err)
}

func putStep(k, v string) *pb.BatchStep {
	return &pb.BatchStep{Step: &pb.BatchStep_Put{Put: &pb.PutStep{Key: []byte(k), Value: []byte(v)}}}
}

func TestUnaryScanPagesOverShardsBothWays(t *testing.T) {
	ps := startProcs(t, 3)
	initAll(t, ps[0], ps, 4)
	ctx := testContext(t)
	var keys []string
	for i := range 40 {
		key := fmt.Sprintf("k%03d/%02d", i%4, i)
		eventually(t, "put", func(ctx context.Context) error {
			_, err := ps[0].kv().Put(ctx, &pb.PutRequest{Key: []byte(key), Value: []byte(key)})
			return err
		})
	}
	for s := range 4 {
		for i := s; i < 40; i += 4 {
			keys = append(keys, fmt.Sprintf("k%03d/%02d", s, i))
		}
	}
	for _, reverse := range []bool{false, true} {
		for _, limit := range []uint32{1, 7, 40, 100} {
			var got []string
			req := &pb.ScanRequest{Limit: limit, Reverse: reverse}
			for {
				resp, err := ps[2].kv().Scan(ctx, req)
				if err != nil {
					t.Fatal(err)
				}
				for _, r := range resp.Rows {
					got = append(got, string(r.Key))
				}
				if len(resp.Next) == 0 {
					break
				}
				if reverse {
					req.End = resp.Next
				} else {
					req.Start = resp.Next
				}
			}
			if len(got) != 40 {
				t.Fatalf("limit %d reverse %v: %d rows", limit, reverse, len(got))
			}
			for i := range got {
				want := keys[i]
				if reverse {
					want = keys[39-i]
				}
				if got[i] != want {
					t.Fatalf("limit %d reverse %v: row %d is %s, want %s", limit, reverse, i, got[i], want)
				}
			}
		}
	}
	mg, err := ps[1].kv().MultiGet(ctx, &pb.MultiGetRequest{
		Keys: [][]byte{[]byte(keys[30]), []byte("none"), []byte(keys[0])},
	})
	if err != nil || len(mg.Rows) != 2 || string(mg.Rows[0].Key) != keys[30] || string(mg.Rows[1].Value) != keys[0] {
		t.Errorf("multi-get: %v %v", mg, err)
	}
	del, err := ps[1].kv().DeleteRange(ctx, &pb.DeleteRangeRequest{Start: []byte("k001"), End: []byte("k003")})
	if err != nil || del.Shards != 2 {
		t.Errorf("delete range: %v %v", del, err)
	}
	left, err := ps[1].kv().Scan(ctx, &pb.ScanRequest{})
	if err != nil || len(left.Rows) != 20 {
		t.Errorf("%d rows left, want 20: %v", len(left.GetRows()), err)
	}
}

func TestLookupAnswersOnEveryNodeAndWithoutTheMetaShard(t *testing.T) {
	ps := startProcs(t, 3)
	initAll(t, ps[0], ps, 4)
	settled(t, ps[0], 4)
	ask := func(p *proc, req *pb.LookupRequest) *pb.LookupResponse {
		t.Helper()
		var out *pb.LookupResponse
		eventually(t, "lookup", func(ctx context.Context) (err error) {
			out, err = pb.NewRouteServiceClient(p.conn).Lookup(ctx, req)
			return err
		})
		return out
	}
	shards := func(r *pb.LookupResponse) (out []base.ShardID) {
		for _, x := range r.Routes {
			d, _, err := base.DecodeDescriptor(x.Descriptor_)
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, d.Shard)
		}
		return out
	}
	up := &pb.LookupRequest{Key: base.UserKey([]byte("k001x")), Limit: 2}
	down := &pb.LookupRequest{Key: base.UserKey([]byte("k001")), Limit: 5, Reverse: true}
	for _, p := range ps {
		r := ask(p, up)
		if got := shards(r); len(got) != 2 || got[0] != 3 || got[1] != 4 || r.Routes[0].Leader == 0 || len(r.Addresses) != 3 {
			t.Errorf("%s: up %v, %v", p.name, got, r)
		}
		if got := shards(ask(p, down)); len(got) != 1 || got[0] != 2 {
			t.Errorf("%s: down %v", p.name, got)
		}
		if got := shards(ask(p, &pb.LookupRequest{Key: []byte{base.SpaceSystem, 'x'}})); len(got) != 1 || got[0] != 1 {
			t.Errorf("%s: system %v", p.name, got)
		}
	}
	ps[0].kill(100, 1)
	ps[1].kill(100, 1)
	if got := shards(ask(ps[2], up)); len(got) != 2 || got[0] != 3 || got[1] != 4 {
		t.Errorf("without the meta shard: %v", got)
	}
}

func TestHTTPServesMetricsAndNamedChecks(t *testing.T) {
	p := newProc(t, "p")
	p.http = "127.0.0.1:0"
	p.start()
	get := func(path string) (int, string) {
		t.Helper()
		tr := &http.Transport{DisableKeepAlives: true}
		resp, err := (&http.Client{Transport: tr}).Get("http://" + p.n.HTTPAddr() + path)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(b)
	}
	if code, body := get("/readyz"); code != 503 || !strings.Contains(body, "ident: "+waitingText) {
		t.Errorf("readyz of an empty node: %d %s", code, body)
	}
	if code, body := get("/livez"); code != 200 {
		t.Errorf("livez of an empty node: %d %s", code, body)
	}
	initAll(t, p, []*proc{p}, 1)
	eventually(t, "ready", func(context.Context) error {
		if code, body := get("/readyz"); code != 200 {
			return fmt.Errorf("%d %s", code, body)
		}
		return nil
	})
	_, body := get("/readyz?verbose")
	for _, name := range []string{"engine", "ident", "store", "meta"} {
		if !strings.Contains(body, "[+] "+name+": ok") {
			t.Errorf("check %s is missing: %s", name, body)
		}
	}
	code, body := get("/metrics")
	for _, name := range []string{"go_goroutines", "process_cpu_seconds_total", "shardd_node_reports_total"} {
		if code != 200 || !strings.Contains(body, name) {
			t.Errorf("metrics have no %s", name)
		}
	}
	if code, _ := get("/debug/pprof/"); code != 404 {
		t.Errorf("pprof without being asked for: %d", code)
	}
}
