package node

import (
	"fmt"
	"testing"

	pb "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/internal/wire"
	"github.com/shardd/shardd/transport"
)

func TestStagesOfFollowedRequestsAddUp(t *testing.T) {
	p, d := oneNode(t)
	c := openOps(t, p, transport.ClassClient)
	for i := range uint64(20) {
		c.send(op(d, wire.OpPut, 2*i, "k", fmt.Sprint(i)), op(d, wire.OpGet, 2*i+1, "k", ""))
		for range 2 {
			if a, err := c.next(); err != nil || a.Code != wire.OK && a.Code != wire.NotFound {
				t.Fatalf("%s %s, %v", a.Code, a.Payload, err)
			}
		}
	}
	resp, err := p.admin().Latency(testContext(t), &pb.LatencyRequest{})
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]*pb.StageLatency{}
	for _, s := range resp.Stages {
		got[s.Operation+" "+s.Stage] = s
		n := uint64(0)
		for _, b := range s.Buckets {
			n += b
		}
		if n != s.Count || len(s.Buckets) != len(resp.Bounds)+1 {
			t.Errorf("%s %s: %d samples, %d in %d buckets", s.Operation, s.Stage, s.Count, n, len(s.Buckets))
		}
	}
	var sum float64
	for _, stage := range []string{"queue", "propose", "commit", "apply", "answer"} {
		s := got["write "+stage]
		if s.GetCount() == 0 {
			t.Fatalf("no samples of %s in %v", stage, resp.Stages)
		}
		sum += s.GetSeconds()
	}
	total := got["write total"]
	if total.GetCount() == 0 || total.GetCount() > 20 || got["write sync"].GetCount() == 0 || got["read total"].GetCount() == 0 {
		t.Fatalf("stages %v", resp.Stages)
	}
	// A pass's time is from its beginning, so that stages may overlap by a pass; they leave no gap.
	if sum < total.GetSeconds()*0.999 {
		t.Errorf("stages take %f s of %f", sum, total.GetSeconds())
	}
}
