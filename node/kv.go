package node

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
	"github.com/shardd/shardd/router"
)

const (
	maxMultiGet = 1024
	// maxReply is where an answer to MultiGet is refused and a Scan page is cut, in bytes of keys and values.
	maxReply    = 32 << 20
	scanPage    = 4 << 20
	scanRows    = 1000
	maxScanRows = 100_000
)

// kvService is the plain unary interface: each call goes through the node's router to the leader.
type kvService struct {
	pb.UnimplementedKVServiceServer
	n *Node
}

// statusOf maps the router's outcomes to the codes that kv.proto documents.
func statusOf(err error) error {
	code := codes.Unavailable
	switch {
	case errors.Is(err, router.ErrAmbiguous):
		code = codes.Unknown
	case errors.Is(err, router.ErrInvalid), errors.Is(err, router.ErrCrossShard):
		code = codes.InvalidArgument
	case errors.Is(err, router.ErrOverloaded), errors.Is(err, router.ErrDiskFull):
		code = codes.ResourceExhausted
	}
	return status.Error(code, err.Error())
}

func userKey(k []byte) ([]byte, error) {
	if len(k) == 0 || len(k) > base.MaxKeySize {
		return nil, status.Errorf(codes.InvalidArgument, "key of %d bytes, want 1 to %d", len(k), base.MaxKeySize)
	}
	return base.UserKey(k), nil
}

// userRange maps a range of user keys, an empty end meaning the end of the space.
func userRange(start, end []byte) (lo, hi []byte, err error) {
	if len(start) > base.MaxKeySize || len(end) > base.MaxKeySize {
		return nil, nil, status.Errorf(codes.InvalidArgument, "range bound over %d bytes", base.MaxKeySize)
	}
	lo, hi = base.UserKey(start), base.UserEnd()
	if len(end) > 0 {
		hi = base.UserKey(end)
	}
	if bytes.Compare(lo, hi) >= 0 {
		return nil, nil, status.Errorf(codes.InvalidArgument, "range start %q is not below its end %q", start, end)
	}
	return lo, hi, nil
}

// do runs one operation.
func (s *kvService) do(ctx context.Context, op wire.Op) (wire.Answer, error) {
	m, err := s.n.needMember()
	if err != nil {
		return wire.Answer{}, err
	}
	a, err := m.router.Do(ctx, op)
	if err != nil {
		return a, statusOf(err)
	}
	if a.Code == wire.ConditionFailed {
		if op.Code == wire.OpBatch && len(a.Payload) >= 4 {
			return a, status.Errorf(codes.FailedPrecondition, "step %d does not hold: the key has version %d (0: absent)",
				binary.BigEndian.Uint32(a.Payload), a.Arg)
		}
		return a, status.Errorf(codes.FailedPrecondition, "the key has version %d (0: absent)", a.Arg)
	}
	return a, nil
}

// readMode translates the options of a read; nil is none.
func readMode(o *pb.ReadOptions) router.ReadMode {
	return router.ReadMode{
		Follower: o.GetAtFollower(), MaxAge: time.Duration(o.GetMaxStalenessMs()) * time.Millisecond,
	}
}

// Get implements KVService.
func (s *kvService) Get(ctx context.Context, req *pb.GetRequest) (*pb.GetResponse, error) {
	key, err := userKey(req.Key)
	if err != nil {
		return nil, err
	}
	mode, op := readMode(req.Read), wire.Op{Code: wire.OpGet, Key: key}
	mode.Set(&op)
	a, err := s.do(ctx, op)
	if err != nil {
		return nil, err
	}
	if a.Code == wire.NotFound {
		return nil, status.Errorf(codes.NotFound, "no key %q", req.Key)
	}
	return &pb.GetResponse{Value: a.Payload, Version: a.Arg}, nil
}

// MultiGet implements KVService.
func (s *kvService) MultiGet(ctx context.Context, req *pb.MultiGetRequest) (*pb.MultiGetResponse, error) {
	m, err := s.n.needMember()
	if err != nil {
		return nil, err
	}
	if len(req.Keys) > maxMultiGet {
		return nil, status.Errorf(codes.InvalidArgument, "%d keys, at most %d", len(req.Keys), maxMultiGet)
	}
	mode := readMode(req.Read)
	ops := make([]wire.Op, len(req.Keys))
	for i, k := range req.Keys {
		key, err := userKey(k)
		if err != nil {
			return nil, err
		}
		ops[i] = wire.Op{Code: wire.OpGet, Key: key}
		mode.Set(&ops[i])
	}
	answers, errs := m.router.DoMany(ctx, ops)
	resp, size := &pb.MultiGetResponse{}, 0
	for i, a := range answers {
		if errs[i] != nil {
			return nil, statusOf(errs[i])
		}
		if a.Code == wire.NotFound {
			continue
		}
		if size += len(req.Keys[i]) + len(a.Payload); size > maxReply {
			return nil, status.Errorf(codes.InvalidArgument, "the values take more than %d bytes: ask for fewer keys", maxReply)
		}
		resp.Rows = append(resp.Rows, &pb.Row{Key: req.Keys[i], Value: a.Payload, Version: a.Arg})
	}
	return resp, nil
}

// Put implements KVService.
func (s *kvService) Put(ctx context.Context, req *pb.PutRequest) (*pb.PutResponse, error) {
	key, err := userKey(req.Key)
	if err != nil {
		return nil, err
	}
	op := wire.Op{Code: wire.OpPut, Key: key, Value: req.Value}
	if req.IfVersion != nil {
		op.Flags, op.Arg = wire.FlagIfVersion, *req.IfVersion
	}
	a, err := s.do(ctx, op)
	if err != nil {
		return nil, err
	}
	return &pb.PutResponse{Version: a.Arg}, nil
}

// Delete implements KVService.
func (s *kvService) Delete(ctx context.Context, req *pb.DeleteRequest) (*pb.DeleteResponse, error) {
	key, err := userKey(req.Key)
	if err != nil {
		return nil, err
	}
	op := wire.Op{Code: wire.OpDelete, Key: key}
	if req.IfVersion != nil {
		op.Flags, op.Arg = wire.FlagIfVersion, *req.IfVersion
	}
	a, err := s.do(ctx, op)
	if err != nil {
		return nil, err
	}
	return &pb.DeleteResponse{Version: a.Arg}, nil
}

// DeleteRange implements KVService.
func (s *kvService) DeleteRange(ctx context.Context, req *pb.DeleteRangeRequest) (*pb.DeleteRangeResponse, error) {
	m, err := s.n.needMember()
	if err != nil {
		return nil, err
	}
	lo, hi, err := userRange(req.Start, req.End)
	if err != nil {
		return nil, err
	}
	shards, err := m.router.DeleteRange(ctx, lo, hi)
	if err != nil {
		return nil, statusOf(err)
	}
	return &pb.DeleteRangeResponse{Shards: uint32(shards)}, nil
}

// Batch implements KVService.
func (s *kvService) Batch(ctx context.Context, req *pb.BatchRequest) (*pb.BatchResponse, error) {
	op := wire.Op{Code: wire.OpBatch}
	for i, step := range req.Steps {
		sub, err := subOf(step)
		if err != nil {
			return nil, status.Errorf(codes.InvalidArgument, "step %d: %s", i, status.Convert(err).Message())
		}
		if err := sub.Validate(); err != nil {
			return nil, status.Errorf(codes.InvalidArgument, "step %d: %v", i, err)
		}
		if len(op.Value)+sub.Size() > base.MaxBatchSize {
			return nil, status.Errorf(codes.InvalidArgument, "batch of more than %d bytes", base.MaxBatchSize)
		}
		if i == 0 {
			op.Key = sub.Key
		}
		op.Value = sub.Append(op.Value)
	}
	if len(req.Steps) == 0 {
		return nil, status.Error(codes.InvalidArgument, "batch has no steps")
	}
	a, err := s.do(ctx, op)
	if err != nil {
		return nil, err
	}
	return &pb.BatchResponse{Version: a.Arg}, nil
}

// subOf translates one step of a Batch.
func subOf(step *pb.BatchStep) (sub wire.Sub, err error) {
	switch s := step.GetStep().(type) {
	case *pb.BatchStep_Put:
		sub.Code, sub.Value = wire.OpPut, s.Put.GetValue()
		sub.Key, err = userKey(s.Put.GetKey())
	case *pb.BatchStep_Delete:
		sub.Code = wire.OpDelete
		sub.Key, err = userKey(s.Delete.GetKey())
	case *pb.BatchStep_DeleteRange:
		sub.Code = wire.OpDeleteRange
		sub.Key, sub.Value, err = userRange(s.DeleteRange.GetStart(), s.DeleteRange.GetEnd())
	case *pb.BatchStep_Check:
		if sub.Key, err = userKey(s.Check.GetKey()); err != nil {
			return sub, err
		}
		switch c := s.Check.GetCondition().(type) {
		case *pb.CheckStep_Absent:
			sub.Code = choose(c.Absent, wire.OpCheckAbsent, wire.OpCheckPresent)
		case *pb.CheckStep_Present:
			sub.Code = choose(c.Present, wire.OpCheckPresent, wire.OpCheckAbsent)
		case *pb.CheckStep_Version:
			sub.Code, sub.Arg = wire.OpCheckVersion, c.Version
		case *pb.CheckStep_Value:
			sub.Code, sub.Value = wire.OpCheckValue, c.Value
		default:
			err = status.Error(codes.InvalidArgument, "check without a condition")
		}
	default:
		err = status.Error(codes.InvalidArgument, "empty step")
	}
	return sub, err
}

func choose(cond bool, yes, no wire.OpCode) wire.OpCode {
	if cond {
		return yes
	}
	return no
}

// Scan implements KVService.
func (s *kvService) Scan(ctx context.Context, req *pb.ScanRequest) (*pb.ScanResponse, error) {
	m, err := s.n.needMember()
	if err != nil {
		return nil, err
	}
	lo, hi, err := userRange(req.Start, req.End)
	if err != nil {
		return nil, err
	}
	limit := int(req.Limit)
	if limit == 0 {
		limit = scanRows
	}
	if limit > maxScanRows {
		return nil, status.Errorf(codes.InvalidArgument, "limit of %d rows, at most %d", limit, maxScanRows)
	}
	resp, size := &pb.ScanResponse{}, 0
	o := router.ScanOptions{Reverse: req.Reverse, KeysOnly: req.KeysOnly, Limit: limit + 1,
		ReadMode: readMode(req.Read)}
	for row, err := range m.router.Scan(ctx, lo, hi, o) {
		if err != nil {
			return nil, statusOf(err)
		}
		if len(resp.Rows) == limit || size > scanPage {
			last := resp.Rows[len(resp.Rows)-1].Key
			resp.Next = bytes.Clone(last) // in reverse, the end of the next page is exclusive
			if !req.Reverse {
				resp.Next = row.Key[1:]
			}
			break
		}
		resp.Rows = append(resp.Rows, &pb.Row{Key: row.Key[1:], Value: row.Value, Version: row.Version})
		size += len(row.Key) + len(row.Value)
	}
	return resp, nil
}
