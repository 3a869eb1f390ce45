package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/shard"
)

// Comparing the replicas of a shard. Ask: the leader proposes an entry, at whose index every replica takes a checksum of
// its data. Collect: the members are asked until each has an answer or stands still for too long. Compare: the sums of
// spans of rows, in key order. A replica that was fed by a snapshot meanwhile has passed the entry without a checksum:
// then all is done once more.

const (
	verifyTries = 2
	// verifyPolls is how often a replica that is past the index may know nothing of the checksum before it counts as
	// skipped: it becomes known a moment after the index does.
	verifyPolls = 5
	verifyPoll  = 100 * time.Millisecond
	// defaultVerifyPatience is how long a replica may show no progress.
	defaultVerifyPatience = 30 * time.Second
)

// Verify implements InternalService.
func (s *internalService) Verify(ctx context.Context, req *pb.VerifyRequest) (*pb.VerifyResponse, error) {
	m, err := s.member(ctx, req.ClusterId)
	if err != nil {
		return nil, err
	}
	id, index, err := m.verifyHere(ctx, base.ShardID(req.ShardId), req.BytesPerSecond)
	var not *notLead
	switch {
	case errors.As(err, &not):
		return &pb.VerifyResponse{NotLeader: true, Leader: uint64(not.leader)}, nil
	case err != nil:
		return nil, err
	}
	return &pb.VerifyResponse{VerifyId: id, Index: index}, nil
}

// verifyHere starts a verification of a shard that this store leads; *notLead if it does not.
func (m *member) verifyHere(ctx context.Context, id base.ShardID, rate uint64) (run, index uint64, err error) {
	run, index, err = m.store.Verify(ctx, id, rate)
	var refused *shard.ChangeError
	switch {
	case errors.Is(err, shard.ErrAmbiguousChange), errors.As(err, &refused) && refused.Retry:
		// To take one more checksum than needed is harmless: ask again.
		return 0, 0, status.Error(codes.Unavailable, err.Error())
	case err != nil:
		return 0, 0, leadStatus(err)
	}
	return run, index, nil
}

// Checksum implements InternalService.
func (s *internalService) Checksum(ctx context.Context, req *pb.ChecksumRequest) (*pb.ChecksumResponse, error) {
	m, err := s.member(ctx, req.ClusterId)
	if err != nil {
		return nil, err
	}
	return m.checksumHere(base.ShardID(req.ShardId), req.VerifyId)
}

func (m *member) checksumHere(id base.ShardID, run uint64) (*pb.ChecksumResponse, error) {
	st, ok := m.store.Status(id)
	if !ok {
		return nil, m.noReplica(id)
	}
	if st.Faulted != "" {
		return nil, status.Errorf(codes.FailedPrecondition, "the replica has stopped: %s", st.Faulted)
	}
	resp := m.verifier.response(sumKey{id, run})
	resp.Applied = st.Applied
	return resp, nil
}

// verification is one run over all replicas of a shard.
type verification struct {
	shard base.ShardID
	id    uint64
	index uint64
	desc  *base.Descriptor
	parts []*part
}

// part is one replica's part in it.
type part struct {
	replica base.ReplicaDesc
	resp    *pb.ChecksumResponse
	why     string // there is no checksum: the reason
	skipped bool   // the replica has passed the index without one
	over    bool

	moved   time.Duration // Boot time of the last progress
	unknown int           // polls past the index without a checksum
	lastErr string
}

// verifyShard compares all replicas of a shard and returns what it found, nothing if they are the same. A replica that
// cannot answer is a finding too. rate bounds what each replica reads, in bytes per second, 0 for the default. report is
// told of the progress in bytes, of all replicas together. The error is one of the search for the leader, or of ctx.
func (m *member) verifyShard(ctx context.Context, id base.ShardID, rate uint64, report func(done, total uint64)) (
	findings []string, err error) {
	for try := 1; ; try++ {
		v, err := m.startVerification(ctx, id, rate)
		if err != nil {
			return nil, err
		}
		if err := m.collect(ctx, v, report); err != nil {
			return nil, err
		}
		findings := v.compare()
		if len(findings) == 0 {
			return nil, nil
		}
		// Who has left meanwhile owes nothing, and who was fed by a snapshot may answer the next time.
		now, err := m.shardNow(ctx, id)
		if err != nil {
			return nil, err
		}
		again := false
		kept := v.parts[:0]
		for _, p := range v.parts {
			if _, listed := now.Desc.Replica(p.replica.Replica); listed {
				again = again || p.skipped
				kept = append(kept, p)
			}
		}
		v.parts = kept
		if !again || try == verifyTries {
			return v.compare(), nil
		}
	}
}

func (m *member) startVerification(ctx context.Context, id base.ShardID, rate uint64) (*verification, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*leaderTimeout)
	defer cancel()
	v := &verification{shard: id}
	err := m.atLeader(ctx, id, func(at base.StoreID) (err error) {
		if v.id, v.index, err = m.askVerify(ctx, at, id, rate); err != nil {
			return err
		}
		v.desc, err = m.appliedAt(ctx, at, id)
		if err != nil {
			return status.Error(codes.Unavailable, err.Error())
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	for _, r := range v.desc.Replicas {
		v.parts = append(v.parts, &part{replica: r, moved: m.clock.Boot()})
	}
	return v, nil
}

func (m *member) askVerify(ctx context.Context, at base.StoreID, id base.ShardID, rate uint64) (
	run, index uint64, err error) {
	if at == m.self {
		return m.verifyHere(ctx, id, rate)
	}
	c, err := m.internal(at)
	if err != nil {
		return 0, 0, status.Error(codes.Unavailable, err.Error())
	}
	resp, err := c.Verify(ctx, &pb.VerifyRequest{ClusterId: m.cluster[:], ShardId: uint64(id), BytesPerSecond: rate})
	switch {
	case err != nil:
		return 0, 0, err
	case resp.NotLeader:
		return 0, 0, &notLead{base.StoreID(resp.Leader)}
	}
	return resp.VerifyId, resp.Index, nil
}

// collect asks the members until none is open any more.
func (m *member) collect(ctx context.Context, v *verification, report func(done, total uint64)) error {
	for {
		var wg sync.WaitGroup
		for _, p := range v.parts {
			if !p.over {
				wg.Go(func() { m.askPart(ctx, v, p) })
			}
		}
		wg.Wait()
		open := 0
		var done, total uint64
		for _, p := range v.parts {
			if !p.over {
				open++
			}
			if p.resp != nil {
				done, total = done+p.resp.Bytes, total+max(p.resp.TotalBytes, p.resp.Bytes)
			}
		}
		if report != nil {
			report(done, total)
		}
		if open == 0 {
			return nil
		}
		pause(ctx, verifyPoll)
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("verify %s: %w", v.shard, err)
		}
	}
}

// askPart asks one member how far it is.
func (m *member) askPart(ctx context.Context, v *verification, p *part) {
	resp, err := m.askChecksum(ctx, p.replica.Store, v)
	now := m.clock.Boot()
	if err != nil {
		p.lastErr = status.Convert(err).Message()
		if c := status.Code(err); c == codes.NotFound || c == codes.FailedPrecondition {
			p.over, p.why = true, p.lastErr
		}
	} else {
		if p.resp == nil || p.resp.State != resp.State || p.resp.Bytes != resp.Bytes || p.resp.Applied != resp.Applied {
			p.moved = now
		}
		p.resp, p.lastErr = resp, ""
		switch resp.State {
		case "done":
			p.over = true
		case "failed":
			p.over, p.why = true, resp.Error
		case "unknown":
			if resp.Applied >= v.index {
				p.unknown++
			}
			if p.unknown >= verifyPolls {
				p.over, p.skipped = true, true
				p.why = fmt.Sprintf("it was fed by a snapshot past index %d, or restarted, and has no checksum", v.index)
			}
		}
	}
	if !p.over && now-p.moved > m.verifyPatience {
		p.over = true
		p.why = fmt.Sprintf("no progress for %s", m.verifyPatience)
		switch {
		case p.lastErr != "":
			p.why += ": " + p.lastErr
		case p.resp != nil && p.resp.State == "unknown":
			p.why += fmt.Sprintf(": it has applied index %d of %d", p.resp.Applied, v.index)
		}
	}
}

func (m *member) askChecksum(ctx context.Context, at base.StoreID, v *verification) (*pb.ChecksumResponse, error) {
	if at == m.self {
		return m.checksumHere(v.shard, v.id)
	}
	c, err := m.internal(at)
	if err != nil {
		return nil, status.Error(codes.Unavailable, err.Error())
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return c.Checksum(ctx, &pb.ChecksumRequest{ClusterId: m.cluster[:], ShardId: uint64(v.shard), VerifyId: v.id})
}

func (p *part) String() string {
	return fmt.Sprintf("replica %s on %s", p.replica.Replica, p.replica.Store)
}

// compare returns one line for each replica without a checksum, and one for each group of replicas that differ from
// the largest group of equal ones.
func (v *verification) compare() (findings []string) {
	var groups [][]*part
	for _, p := range v.parts {
		if p.why != "" || p.resp == nil {
			findings = append(findings, fmt.Sprintf("%s: %s cannot be compared: %s", v.shard, p, p.why))
			continue
		}
		found := false
		for i := range groups {
			if firstDifference(groups[i][0].resp.Spans, p.resp.Spans) < 0 {
				groups[i], found = append(groups[i], p), true
				break
			}
		}
		if !found {
			groups = append(groups, []*part{p})
		}
	}
	best := 0
	for i := range groups {
		if len(groups[i]) > len(groups[best]) {
			best = i
		}
	}
	for i, g := range groups {
		if i == best {
			continue
		}
		a, b := groups[best][0].resp.Spans, g[0].resp.Spans
		at := firstDifference(a, b)
		lo, hi := v.desc.Start, v.desc.End
		if at > 0 {
			lo = a[at-1].Last
		}
		if at < len(a) && at < len(b) {
			hi = a[at].Last
			if bytes.Compare(b[at].Last, hi) > 0 {
				hi = b[at].Last
			}
		}
		findings = append(findings, fmt.Sprintf(
			"%s at index %d: %s differs from %s, first within keys %s to %s (%d rows against %d in all)",
			v.shard, v.index, names(g), names(groups[best]), keyText(lo), keyText(hi), g[0].resp.Rows,
			groups[best][0].resp.Rows))
	}
	return findings
}

// firstDifference returns the number of the first span that differs, -1 if none does.
func firstDifference(a, b []*pb.SpanSum) int {
	for i := range max(len(a), len(b)) {
		if i >= len(a) || i >= len(b) || a[i].Sum != b[i].Sum || a[i].Rows != b[i].Rows ||
			!bytes.Equal(a[i].Last, b[i].Last) {
			return i
		}
	}
	return -1
}

func names(ps []*part) string {
	var out []string
	for _, p := range ps {
		out = append(out, p.String())
	}
	return strings.Join(out, " and ")
}

// keyText shows a routing key as its user knows it, the end of a key space as such.
func keyText(k []byte) string {
	switch {
	case bytes.Equal(k, base.UserEnd()) || bytes.Equal(k, base.SystemEnd()):
		return "the end"
	case len(k) == 1:
		return "the start"
	}
	return fmt.Sprintf("%q", k[1:])
}
