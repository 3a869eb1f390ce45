package wire

import (
	"bytes"
	"encoding/binary"
	"errors"
	"reflect"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/shardd/shardd/internal/base"
)

var shortBytes = rapid.SliceOfN(rapid.Byte(), 0, 64)

func drawOp(t *rapid.T) Op {
	o := Op{
		Code: OpCode(rapid.Byte().Draw(t, "code")), Flags: rapid.Byte().Draw(t, "flags"),
		Req: rapid.Uint64().Draw(t, "req"), Shard: base.ShardID(rapid.Uint64().Draw(t, "shard")),
		Version: rapid.Uint64().Draw(t, "version"), Arg: rapid.Uint64().Draw(t, "arg"),
		Timeout: rapid.Uint32().Draw(t, "timeout"),
		Key:     shortBytes.Draw(t, "key"), Value: shortBytes.Draw(t, "value"),
	}
	if o.stale() {
		o.MaxAge = rapid.Uint32().Draw(t, "max age")
	}
	return o
}

func equalOp(a, b Op) bool {
	if !bytes.Equal(a.Key, b.Key) || !bytes.Equal(a.Value, b.Value) {
		return false
	}
	a.Key, a.Value, b.Key, b.Value = nil, nil, nil, nil
	return reflect.DeepEqual(a, b)
}

func TestFrameOfOperationsRoundTrips(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ops := rapid.SliceOfN(rapid.Custom(drawOp), 1, 8).Draw(t, "ops")
		var frame []byte
		for i := range ops {
			before := len(frame)
			frame = ops[i].Append(frame)
			if len(frame)-before != ops[i].Size() {
				t.Fatalf("Size %d, encoded %d", ops[i].Size(), len(frame)-before)
			}
		}
		rest, at := frame, 0
		for i := range ops {
			var got Op
			raw, r, err := DecodeOp(rest, &got)
			if err != nil {
				t.Fatal(err)
			}
			if !equalOp(got, ops[i]) {
				t.Fatalf("got %+v, want %+v", got, ops[i])
			}
			if !bytes.Equal(raw, frame[at:at+got.Size()]) {
				t.Fatal("raw is not the exact encoding")
			}
			at, rest = at+len(raw), r
		}
		if len(rest) != 0 {
			t.Fatalf("%d bytes left", len(rest))
		}
		// A frame cut anywhere inside its last operation is truncated, never misread.
		last := ops[len(ops)-1].Append(nil)
		cut := rapid.IntRange(0, len(last)-1).Draw(t, "cut")
		var o Op
		if _, _, err := DecodeOp(last[:cut], &o); !errors.Is(err, ErrTruncated) {
			t.Fatalf("cut at %d: %v, want ErrTruncated", cut, err)
		}
	})
}

func TestDecodedSlicesCannotGrowIntoTheFrame(t *testing.T) {
	put := Op{Code: OpPut, Key: []byte("\x02k"), Value: []byte("v")}
	frame := put.Append(put.Append(nil))
	before := bytes.Clone(frame)
	var o Op
	raw, _, err := DecodeOp(frame, &o)
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range [][]byte{raw, o.Key, o.Value} {
		_ = append(b, 0xee, 0xee)
	}
	if !bytes.Equal(frame, before) {
		t.Fatal("appending to a decoded slice changed the frame")
	}
}

func TestLengthsAreCheckedBeforeSlicing(t *testing.T) {
	good := (&Op{Code: OpPut, Key: []byte("\x02k"), Value: []byte("v")}).Append(nil)
	for _, c := range []struct {
		name string
		mend func(b []byte)
		want error
	}{
		{"length short of the header", func(b []byte) { binary.BigEndian.PutUint32(b, HeaderSize-1) }, ErrInvalid},
		{"length over the parts", func(b []byte) { binary.BigEndian.PutUint32(b, uint32(len(good))+1) }, ErrInvalid},
		{"length 2^32-1", func(b []byte) { binary.BigEndian.PutUint32(b, 1<<32-1) }, ErrInvalid},
		{"key longer than length", func(b []byte) { binary.BigEndian.PutUint16(b[6:], 1<<16-1) }, ErrInvalid},
		{"value section over the limit", func(b []byte) {
			binary.BigEndian.PutUint32(b[40:], maxValueLen+1)
			binary.BigEndian.PutUint32(b, HeaderSize+2+maxValueLen+1)
		}, ErrInvalid},
		{"consistent but not there", func(b []byte) {
			binary.BigEndian.PutUint32(b[40:], maxValueLen)
			binary.BigEndian.PutUint32(b, HeaderSize+2+maxValueLen)
		}, ErrTruncated},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := bytes.Clone(good)
			c.mend(b)
			var o Op
			if _, _, err := DecodeOp(b, &o); !errors.Is(err, c.want) {
				t.Fatalf("got %v, want %v", err, c.want)
			}
		})
	}
}

func TestValidateHoldsTheLimits(t *testing.T) {
	key := func(n int) []byte { return bytes.Repeat([]byte{base.SpaceUser}, n+1) }
	k := key(3)
	put := Sub{Code: OpPut, Key: k, Value: []byte("v")}
	step := func(s Sub) Op { return Op{Code: OpBatch, Key: k, Value: batchValue(put, s)} }
	big := make([]byte, base.MaxValueSize+1)
	max := big[:base.MaxValueSize]
	cases := []struct {
		name string
		op   Op
		want string // part of the message; empty: valid
	}{
		{"largest put", Op{Code: OpPut, Key: key(base.MaxKeySize), Value: max}, ""},
		{"empty user key", Op{Code: OpPut, Key: key(0)}, ""},
		{"empty value", Op{Code: OpPut, Key: k}, ""},
		{"oversized key", Op{Code: OpPut, Key: key(base.MaxKeySize + 1)}, "put: key of 4097 bytes, at most 4096"},
		{"oversized value", Op{Code: OpPut, Key: k, Value: big}, "put: value of 1048577 bytes, at most 1048576"},
		{"no routing key", Op{Code: OpGet}, "get: empty routing key"},
		{"get with value", Op{Code: OpGet, Key: k, Value: k}, "unexpected value"},
		{"delete with value", Op{Code: OpDelete, Key: k, Value: k}, "unexpected value"},
		{"range", Op{Code: OpDeleteRange, Key: key(1), Value: key(2)}, ""},
		{"range to the longest end", Op{Code: OpScan, Key: k, Value: append(key(base.MaxKeySize-1), 3)}, ""},
		{"empty range", Op{Code: OpDeleteRange, Key: k, Value: k}, "is not below end"},
		{"inverted range", Op{Code: OpScan, Key: key(2), Value: key(1)}, "is not below end"},
		{"range without end", Op{Code: OpDeleteRange, Key: k}, "empty routing key"},
		{"range with oversized end", Op{Code: OpScan, Key: k, Value: key(base.MaxKeySize + 1)}, "at most 4096"},
		{"batch", step(put), ""},
		{"batch of nothing", Op{Code: OpBatch, Key: k}, "no steps"},
		{"batch with oversized key", step(Sub{Code: OpDelete, Key: key(base.MaxKeySize + 1)}), "delete: key of 4097"},
		{"batch with oversized value", step(Sub{Code: OpPut, Key: k, Value: big}), "put: value of 1048577"},
		{"batch comparing an oversized value", step(Sub{Code: OpCheckValue, Key: k, Value: big}), "check-value: value of"},
		{"batch with empty key", step(Sub{Code: OpCheckAbsent}), "empty routing key"},
		{"batch with inverted range", step(Sub{Code: OpDeleteRange, Key: key(2), Value: key(1)}), "is not below end"},
		{"batch check with value", step(Sub{Code: OpCheckVersion, Key: k, Value: k}), "unexpected value"},
		{"batch cut in a header", Op{Code: OpBatch, Key: k, Value: batchValue(put)[:10]}, "10 bytes left"},
		{"batch cut in a value", Op{Code: OpBatch, Key: k, Value: batchValue(put)[:SubHeaderSize+4]}, "1 bytes, 20 left"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			err := c.op.Validate()
			if c.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			if !errors.Is(err, ErrInvalid) || errors.Is(err, ErrUnknown) || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("got %v, want ErrInvalid with %q", err, c.want)
			}
		})
	}
}

// What a newer binary might define must be told apart from what no binary accepts: in the log the former faults.
func TestWhatIsNotKnownIsToldApart(t *testing.T) {
	k := []byte("\x02k")
	putStep := batchValue(Sub{Code: OpPut, Key: k})
	oddStep := bytes.Clone(putStep)
	oddStep[1] = 1
	for name, op := range map[string]Op{
		"operation 0":                 {Key: k},
		"operation 8":                 {Code: 8, Key: k},
		"unknown operation, no key":   {Code: 200},
		"check outside a batch":       {Code: OpCheckAbsent, Key: k},
		"unknown flag":                {Code: OpPut, Flags: 0x80, Key: k},
		"unknown flag, no key":        {Code: OpPut, Flags: 0x80},
		"scan flag on a put":          {Code: OpPut, Flags: FlagReverse, Key: k},
		"condition on a scan":         {Code: OpScan, Flags: FlagIfVersion, Key: k, Value: []byte("\x02l")},
		"condition on a delete-range": {Code: OpDeleteRange, Flags: FlagIfVersion, Key: k, Value: []byte("\x02l")},
		"condition on a batch":        {Code: OpBatch, Flags: FlagIfVersion, Key: k, Value: putStep},
		"get as a step":               {Code: OpBatch, Key: k, Value: batchValue(Sub{Code: OpGet, Key: k})},
		"batch as a step":             {Code: OpBatch, Key: k, Value: batchValue(Sub{Code: OpBatch, Key: k})},
		"unknown step without key":    {Code: OpBatch, Key: k, Value: batchValue(Sub{Code: 77})},
		"unknown step flag":           {Code: OpBatch, Key: k, Value: oddStep},
	} {
		if err := op.Validate(); !errors.Is(err, ErrUnknown) || !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: got %v, want ErrUnknown and ErrInvalid", name, err)
		}
	}
}

func TestKindsOfOperations(t *testing.T) {
	for c := range OpCode(32) {
		s := Sub{Code: c}
		_, known := c.known()
		switch c {
		case OpGet, OpScan:
			if !c.IsRead() || c.IsWrite() || s.IsCheck() || s.IsWrite() || !known {
				t.Errorf("%s must be a read only", c)
			}
		case OpPut, OpDelete, OpDeleteRange:
			if c.IsRead() || !c.IsWrite() || s.IsCheck() || !s.IsWrite() || !known {
				t.Errorf("%s must be a write, alone and as a step", c)
			}
		case OpBatch:
			if c.IsRead() || !c.IsWrite() || s.IsCheck() || s.IsWrite() || !known {
				t.Errorf("%s must be a write, not a step", c)
			}
		case OpReadIndex:
			if c.IsRead() || c.IsWrite() || s.IsCheck() || s.IsWrite() || !known {
				t.Errorf("%s must be neither a read nor a write", c)
			}
		case OpCheckAbsent, OpCheckPresent, OpCheckVersion, OpCheckValue:
			if c.IsRead() || c.IsWrite() || !s.IsCheck() || s.IsWrite() || known {
				t.Errorf("%s must be a condition only", c)
			}
		default:
			if c.IsRead() || c.IsWrite() || s.IsCheck() || s.IsWrite() || known {
				t.Errorf("%s must be nothing", c)
			}
		}
	}
}

func TestOnlyReadsMayGoToAnyReplica(t *testing.T) {
	for c := range OpCode(32) {
		for _, flag := range []uint8{FlagFollower, FlagStale} {
			o := Op{Code: c, Flags: flag, MaxAge: 1, Key: []byte("\x02k")}
			switch c {
			case OpScan:
				o.Value = []byte("\x02l")
			case OpBatch:
				o.Value = batchValue(steps()...)
			}
			read := c == OpGet || c == OpScan
			if o.AnyReplica() != read {
				t.Errorf("%s with flag %#x: any replica %t", c, flag, !read)
			}
			if err := o.Validate(); read != (err == nil) || !read && !errors.Is(err, ErrUnknown) {
				t.Errorf("%s with flag %#x: %v", c, flag, err)
			}
		}
	}
}

func TestAStaleReadWithoutAMaxAgeIsRefused(t *testing.T) {
	o := Op{Code: OpGet, Flags: FlagStale, Key: []byte("\x02k")}
	if err := o.Validate(); !errors.Is(err, ErrInvalid) || errors.Is(err, ErrUnknown) {
		t.Errorf("max age 0: %v", err)
	}
	b := (&Op{Code: OpGet, Key: []byte("\x02k"), Value: []byte("abc")}).Append(nil)
	b[5] = FlagStale
	if _, _, err := DecodeOp(b, &o); !errors.Is(err, ErrInvalid) {
		t.Errorf("value section of 3 bytes: %v", err)
	}
}

func TestScanArgRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rows, size := rapid.Uint32().Draw(t, "rows"), rapid.Uint32().Draw(t, "bytes")
		if r, s := SplitScanArg(ScanArg(rows, size)); r != rows || s != size {
			t.Fatalf("got %d, %d, want %d, %d", r, s, rows, size)
		}
	})
}

func TestBatchStepsRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		steps := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) Sub {
			return Sub{
				Code: OpCode(rapid.Byte().Draw(t, "code")), Arg: rapid.Uint64().Draw(t, "arg"),
				Key: shortBytes.Draw(t, "key"), Value: shortBytes.Draw(t, "value"),
			}
		}), 1, 8).Draw(t, "steps")
		b := batchValue(steps...)
		cut := b[:rapid.IntRange(0, len(b)-1).Draw(t, "cut")]
		for _, want := range steps {
			if len(b) < want.Size() {
				t.Fatalf("%d bytes left for a step of %d", len(b), want.Size())
			}
			var got Sub
			var err error
			if b, err = DecodeSub(b, &got); err != nil {
				t.Fatal(err)
			}
			if got.Code != want.Code || got.Arg != want.Arg || !bytes.Equal(got.Key, want.Key) ||
				!bytes.Equal(got.Value, want.Value) {
				t.Fatalf("got %+v, want %+v", got, want)
			}
			// A cut batch ends in an error or at a step's end; it never reads on.
			if len(cut) == 0 {
				continue
			}
			if len(cut) < want.Size() {
				if _, err := DecodeSub(cut, &got); !errors.Is(err, ErrInvalid) {
					t.Fatalf("%v, want ErrInvalid", err)
				}
				cut = nil
			} else {
				cut = cut[want.Size():]
			}
		}
		if len(b) != 0 {
			t.Fatalf("%d bytes left", len(b))
		}
	})
}
