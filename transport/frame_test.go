package transport

import (
	"bytes"
	"encoding/hex"
	"errors"
	"flag"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/golang/snappy"
	"go.etcd.io/etcd/raft/v3/raftpb"
	"google.golang.org/grpc/mem"
	"pgregory.net/rapid"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
)

var update = flag.Bool("update", false, "rewrite the golden files")

var sendable = []raftpb.MessageType{
	raftpb.MsgApp, raftpb.MsgAppResp, raftpb.MsgVote, raftpb.MsgVoteResp, raftpb.MsgPreVote, raftpb.MsgPreVoteResp,
	raftpb.MsgHeartbeat, raftpb.MsgHeartbeatResp, raftpb.MsgTimeoutNow,
}

func drawMessage(t *rapid.T) wire.RaftMessage {
	u64 := rapid.Uint64()
	m := wire.RaftMessage{
		Shard: base.ShardID(u64.Draw(t, "shard")), From: base.ReplicaID(u64.Draw(t, "from")),
		To: base.ReplicaID(u64.Draw(t, "to")), FromStore: 3, ToStore: 4,
		Msg: raftpb.Message{
			Type: rapid.SampledFrom(sendable).Draw(t, "type"), Term: u64.Draw(t, "term"),
			LogTerm: u64.Draw(t, "log term"), Index: u64.Draw(t, "index"), Commit: u64.Draw(t, "commit"),
			RejectHint: u64.Draw(t, "hint"), Reject: rapid.Bool().Draw(t, "reject"),
		},
	}
	m.Msg.From, m.Msg.To = uint64(m.From), uint64(m.To)
	if ctx := rapid.SliceOfN(rapid.Byte(), 0, 40).Draw(t, "context"); len(ctx) > 0 {
		m.Msg.Context = ctx
	}
	if rapid.Bool().Draw(t, "stamped") {
		m.Stamp = wire.Stamp{Epoch: rapid.Uint64Min(1).Draw(t, "epoch"), Commit: u64.Draw(t, "stamp commit")}
	}
	for range rapid.IntRange(0, 4).Draw(t, "entries") {
		e := raftpb.Entry{Term: u64.Draw(t, "entry term"), Index: u64.Draw(t, "entry index"),
			Type: raftpb.EntryType(rapid.IntRange(0, 2).Draw(t, "entry type"))}
		if d := rapid.SliceOfN(rapid.Byte(), 0, 200).Draw(t, "data"); len(d) > 0 {
			e.Data = d
		}
		m.Msg.Entries = append(m.Msg.Entries, e)
	}
	return m
}

// build encodes as a lane does.
func build(msgs []wire.RaftMessage, min int) (frame []byte, packed int) {
	f := newOutgoing(kindMessages)
	for i := range msgs {
		f.add(&msgs[i])
	}
	c := compressor{min: min}
	bufs, packed := c.pack(f)
	return bufs.Materialize(), packed
}

func TestFrameRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		msgs := rapid.SliceOfN(rapid.Custom(drawMessage), 1, 6).Draw(t, "messages")
		plain, err := AppendFrame(nil, msgs)
		if err != nil {
			t.Fatal(err)
		}
		byRef, _ := build(msgs, -1)
		if !bytes.Equal(plain, byRef) && plain[1] == byte(kindMessages) {
			t.Fatalf("contiguous and by-reference encoding differ:\n%x\n%x", plain, byRef)
		}
		packed, _ := build(msgs, 0)
		for _, frame := range [][]byte{plain, byRef, packed} {
			got, refused, err := DecodeFrame(frame, 3, 4, nil)
			if err != nil || refused != 0 {
				t.Fatalf("refused %d: %v", refused, err)
			}
			if !reflect.DeepEqual(got, msgs) {
				t.Fatalf("got  %+v\nwant %+v", got, msgs)
			}
		}
	})
}

func beatMessage(shard base.ShardID, resp bool) wire.RaftMessage {
	m := wire.RaftMessage{Shard: shard, From: 1, To: 2, FromStore: 3, ToStore: 4, Msg: raftpb.Message{
		Type: raftpb.MsgHeartbeat, From: 1, To: 2, Term: 9, Commit: 77}}
	if resp {
		m.Msg.Type, m.Msg.Commit = raftpb.MsgHeartbeatResp, 0
	}
	return m
}

func TestHeartbeatsTakeFortyOneBytesEach(t *testing.T) {
	msgs := []wire.RaftMessage{beatMessage(1, false), beatMessage(2, true), beatMessage(3, false)}
	frame, err := AppendFrame(nil, msgs)
	if err != nil || len(frame) != headerSize+3*41 {
		t.Fatalf("%d bytes, %v", len(frame), err)
	}
	got, _, err := DecodeFrame(frame, 3, 4, nil)
	if err != nil || !reflect.DeepEqual(got, msgs) {
		t.Errorf("got %+v, %v", got, err)
	}
	msgs[1].Msg.Context = []byte("read")
	if frame, err = AppendFrame(nil, msgs); err != nil || frame[1] != byte(kindMessages) {
		t.Errorf("a heartbeat with context went compact: %v", err)
	}
}

func stampedBeat(shard base.ShardID) wire.RaftMessage {
	m := beatMessage(shard, true)
	m.Stamp = wire.Stamp{Epoch: 3<<32 | 7, Commit: 76}
	return m
}

func TestAStampCostsSixteenBytesInAHeartbeatToo(t *testing.T) {
	msgs := []wire.RaftMessage{beatMessage(1, true), stampedBeat(2), beatMessage(3, false), stampedBeat(4)}
	frame, err := AppendFrame(nil, msgs)
	if err != nil || frame[1] != byte(kindHeartbeats) || len(frame) != headerSize+4*41+2*16 {
		t.Fatalf("kind %d, %d bytes, %v", frame[1], len(frame), err)
	}
	f := newOutgoing(kindHeartbeats)
	for i := range msgs {
		f.add(&msgs[i])
	}
	if byRef := f.finish().Materialize(); !bytes.Equal(byRef, frame) {
		t.Errorf("contiguous and by-reference encoding differ:\n%x\n%x", frame, byRef)
	}
	if got, _, err := DecodeFrame(frame, 3, 4, nil); err != nil || !reflect.DeepEqual(got, msgs) {
		t.Errorf("got %+v, %v", got, err)
	}
	for name, spoil := range map[string]func([]byte) []byte{
		"epoch 0":    func(b []byte) []byte { clear(b[headerSize+2*41 : headerSize+2*41+8]); return b },
		"cut":        func(b []byte) []byte { return b[:len(b)-16] },
		"no flag":    func(b []byte) []byte { b[headerSize+41+40] = beatResponse; return b },
		"other flag": func(b []byte) []byte { b[headerSize+40] |= 1 << 2; return b },
	} {
		b := spoil(bytes.Clone(frame))
		h := frameHeader{kind: kindHeartbeats, count: 4, records: uint32(len(b) - headerSize), body: uint32(len(b) - headerSize)}
		putHeader(b, h)
		if _, _, err := DecodeFrame(b, 3, 4, nil); !errors.Is(err, ErrFrame) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func goldenMessages() []wire.RaftMessage {
	return []wire.RaftMessage{
		{Shard: 12, From: 3, To: 5, FromStore: 3, ToStore: 4, Msg: raftpb.Message{Type: raftpb.MsgApp, From: 3, To: 5,
			Term: 7, LogTerm: 6, Index: 100, Commit: 99, Entries: []raftpb.Entry{
				{Term: 6, Index: 101, Data: []byte("first")}, {Term: 7, Index: 102},
				{Term: 7, Index: 103, Type: raftpb.EntryConfChangeV2, Data: []byte("cc")}}}},
		{Shard: 13, From: 1, To: 2, FromStore: 3, ToStore: 4, Msg: raftpb.Message{Type: raftpb.MsgAppResp, From: 1, To: 2,
			Term: 7, Index: 100, Reject: true, RejectHint: 42}},
		{Shard: 14, From: 1, To: 2, FromStore: 3, ToStore: 4, Msg: raftpb.Message{Type: raftpb.MsgHeartbeat, From: 1, To: 2,
			Term: 8, Commit: 5, Context: []byte("ctx")}},
	}
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	text := hex.Dump(got)
	if *update {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil || text != string(want) {
		t.Errorf("%s (%v): the bytes on the wire have changed:\n%s", name, err, text)
	}
}

func goldenHello() hello {
	return hello{protoMin: 1, protoMax: 2, clusterVersion: 3, cluster: base.ClusterID{1, 2, 15: 16}, store: 4, dest: 5,
		incarnation: 6, process: 7, addr: "host:1234"}
}

func TestGoldenBytes(t *testing.T) {
	frame, err := AppendFrame(nil, goldenMessages())
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "messages.hex", frame)
	stamped := goldenMessages()
	stamped[1].Stamp, stamped[2].Stamp = wire.Stamp{Epoch: 3<<32 | 7, Commit: 99}, wire.Stamp{Epoch: 1}
	if frame, err = AppendFrame(nil, stamped); err != nil {
		t.Fatal(err)
	}
	golden(t, "stamped-messages.hex", frame)
	beats, err := AppendFrame(nil, []wire.RaftMessage{beatMessage(1, false), beatMessage(2, true)})
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "heartbeats.hex", beats)
	if beats, err = AppendFrame(nil, []wire.RaftMessage{stampedBeat(1), beatMessage(2, true)}); err != nil {
		t.Fatal(err)
	}
	golden(t, "stamped-heartbeats.hex", beats)
	golden(t, "liveness.hex", livenessFrame([]byte("one store's word")).finish().Materialize())
	h := goldenHello()
	golden(t, "hello.hex", h.append(nil))
	golden(t, "refusal.hex", (&refusal{reason: RefusedStale, cluster: h.cluster, store: 5, text: "too old"}).append(nil))
	golden(t, "ping.hex", smallFrame(kindPing).Materialize())
	golden(t, "ops-preamble.hex", appendPreamble(nil))
}

func TestHelloAndRefusalRoundTrip(t *testing.T) {
	want := goldenHello()
	frame := append(want.append(nil), "a later version's field"...)
	h, _ := parseHeader(want.append(nil))
	got, err := parseHello(h, frame[headerSize:])
	if err != nil || got != want {
		t.Errorf("got %+v, %v", got, err)
	}
	ref := refusal{reason: RefusedTwice, cluster: want.cluster, store: 9, text: strings.Repeat("x", 2*maxHello)}
	_, r, err := firstFrame(ref.append(nil))
	if err != nil || r == nil || r.reason != RefusedTwice || r.store != 9 || len(r.text) != maxHello-refusalFixed {
		t.Errorf("got %+v, %v", r, err)
	}
}

func TestTypesOffTheAllowListAreNeitherSentNorTaken(t *testing.T) {
	for n := range raftpb.MessageType_name {
		typ := raftpb.MessageType(n)
		msgs := goldenMessages()
		msgs[0].Msg.Type = typ
		frame, _ := build(msgs, -1) // as a peer without scruples would
		got, refused, err := DecodeFrame(frame, 3, 4, nil)
		_, sendErr := AppendFrame(nil, msgs)
		allowed := Sendable(typ)
		if err != nil || (refused == 0) != allowed || (sendErr == nil) != allowed || allowed != (len(got) == 3) {
			t.Errorf("%s: %d messages, %d refused, %v, %v", typ, len(got), refused, err, sendErr)
		}
	}
	for _, typ := range []raftpb.MessageType{raftpb.MsgSnap, raftpb.MsgProp, raftpb.MsgTransferLeader} {
		if Sendable(typ) {
			t.Errorf("%s may travel", typ)
		}
	}
}

func TestDecompressionIsBounded(t *testing.T) {
	zeros := snappy.Encode(nil, make([]byte, maxBody))
	claim := func(body uint32, b []byte) []byte {
		frame := make([]byte, headerSize)
		putHeader(frame, frameHeader{kind: kindMessages, flags: flagSnappy, body: body})
		return append(frame, b...)
	}
	huge := snappy.Encode(nil, make([]byte, maxBody+1))
	for name, frame := range map[string][]byte{
		"past the limit":         claim(maxBody+1, huge),
		"more than header says":  claim(100, zeros),
		"claim without bytes":    claim(maxBody, zeros[:100]),
		"length prefix only":     claim(maxBody, zeros[:4]),
		"not snappy":             claim(40, []byte{40, 0xff, 0xff, 0xff}),
		"empty":                  claim(40, nil),
		"impossible compression": claim(maxBody, append(zeros[:4:4], make([]byte, 1000)...)),
	} {
		if _, _, err := DecodeFrame(frame, 1, 2, nil); !errors.Is(err, ErrFrame) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestCompressionStopsTryingWhereItDoesNotPay(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	frame := func(random bool) *outgoing {
		data := make([]byte, 20000)
		if random {
			for i := range data {
				data[i] = byte(rng.Uint32())
			}
		}
		f := newOutgoing(kindMessages)
		f.add(&wire.RaftMessage{Msg: raftpb.Message{Type: raftpb.MsgApp, Entries: []raftpb.Entry{{Data: data}}}})
		return f
	}
	c := compressor{min: 10000}
	if bufs, packed := c.pack(frame(false)); packed == 0 || bufs.Len() > 2000 {
		t.Errorf("zeros: %d bytes", bufs.Len())
	}
	tried := 0
	for range 2000 {
		if c.skip == 0 {
			tried++
		}
		if bufs, packed := c.pack(frame(true)); packed != 0 || bufs.Len() < 20000 {
			t.Fatal("random data went compressed")
		}
	}
	if tried > 20 {
		t.Errorf("tried %d of 2000 incompressible frames", tried)
	}
	c.skip = 0
	if _, packed := c.pack(frame(false)); packed == 0 || c.penalty != 0 {
		t.Error("does not recover")
	}
}

func FuzzDecodeFrame(f *testing.F) {
	stamped := goldenMessages()
	stamped[0].Stamp = wire.Stamp{Epoch: 9, Commit: 9}
	frame, _ := AppendFrame(nil, stamped)
	packed, _ := build(append(goldenMessages(), goldenMessages()...), 0)
	beats, _ := AppendFrame(nil, []wire.RaftMessage{beatMessage(1, false), stampedBeat(2)})
	for _, b := range [][]byte{frame, packed, beats, smallFrame(kindPing).Materialize(), nil} {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		msgs, _, err := DecodeFrame(bytes.Clone(b), 3, 4, nil)
		if err != nil {
			if !errors.Is(err, ErrFrame) {
				t.Fatalf("untyped error %v", err)
			}
			return
		}
		again, err := AppendFrame(nil, msgs)
		if err != nil {
			t.Fatal(err)
		}
		got, _, err := DecodeFrame(again, 3, 4, nil)
		if err != nil || len(got) != len(msgs) || len(msgs) > 0 && !reflect.DeepEqual(got, msgs) {
			t.Fatalf("%v\n%+v\n%+v", err, got, msgs)
		}
	})
}

func FuzzFirstFrame(f *testing.F) {
	h := goldenHello()
	f.Add(h.append(nil))
	f.Add((&refusal{reason: RefusedStale, text: "too old"}).append(nil))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		h, ref, err := firstFrame(b)
		switch {
		case err != nil:
			if !errors.Is(err, ErrFrame) {
				t.Fatalf("untyped error %v", err)
			}
		case ref == nil:
			if again, _, err := firstFrame(h.append(nil)); err != nil || again != h {
				t.Fatalf("%+v %+v %v", again, h, err)
			}
		}
	})
}

func TestBuffersReturnWhatTheyPromise(t *testing.T) {
	for _, n := range []int{0, 1, 4096, 4097, 1 << 20, 4 << 20, 4<<20 + 1, 20 << 20} {
		b := GetBuffer(n)
		if len(b) != 0 || cap(b) < n {
			t.Errorf("GetBuffer(%d): len %d cap %d", n, len(b), cap(b))
		}
		PutBuffer(b[:cap(b)])
	}
	PutBuffer(nil)
	PutBuffer(make([]byte, 5000)) // a foreign size must not come back as more than it holds
	for range 100 {
		if b := GetBuffer(8192); cap(b) < 8192 {
			t.Fatalf("cap %d", cap(b))
		}
	}
	h := buffers.Get(10)
	*h = append((*h)[:0], "0123456789"...)
	buffers.grow(h, 100000)
	if string(*h) != "0123456789" || cap(*h)-len(*h) < 100000 {
		t.Errorf("grow: %q cap %d", *h, cap(*h))
	}
}

func TestCodecKeepsUncountedBuffersAndCopiesPooledOnes(t *testing.T) {
	c := newCodec()
	var in inFrame
	small := mem.SliceBuffer("abc")
	if err := c.Unmarshal(mem.BufferSlice{small}, &in); err != nil || &in.b[0] != &small[0] {
		t.Errorf("copied a buffer that nobody owns: %v", err)
	}
	h := buffers.Get(5000)
	copy(*h, "abc")
	pooled := mem.BufferSlice{mem.NewBuffer(h, &buffers)}
	if err := c.Unmarshal(pooled, &in); err != nil || len(in.b) != 5000 || &in.b[0] == &(*h)[0] {
		t.Errorf("kept a pooled buffer: %v", err)
	}
	pooled.Free()
	if _, err := c.Marshal(&in); err == nil {
		t.Error("an inbound frame went out")
	}
	if _, err := c.Marshal(struct{}{}); err == nil {
		t.Error("a struct is no protobuf")
	}
}

func benchMessages(entries, size int) []wire.RaftMessage {
	msgs := make([]wire.RaftMessage, 64)
	for i := range msgs {
		msgs[i] = wire.RaftMessage{Shard: base.ShardID(i), From: 1, To: 2, Msg: raftpb.Message{Type: raftpb.MsgApp, Term: 5}}
		for j := range entries {
			msgs[i].Msg.Entries = append(msgs[i].Msg.Entries, raftpb.Entry{Term: 5, Index: uint64(j), Data: make([]byte, size)})
		}
	}
	return msgs
}

func benchCases() map[string][]wire.RaftMessage {
	return map[string][]wire.RaftMessage{"append-2KiB": benchMessages(1, 2048), "no-entries": benchMessages(0, 0)}
}

func BenchmarkFrameEncode(b *testing.B) {
	for name, msgs := range benchCases() {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				f := newOutgoing(kindMessages)
				for i := range msgs {
					f.add(&msgs[i])
				}
				bufs := f.finish()
				b.SetBytes(int64(bufs.Len()))
				bufs.Free()
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(msgs)), "ns/msg")
		})
	}
}

func BenchmarkFrameDecode(b *testing.B) {
	for name, msgs := range benchCases() {
		b.Run(name, func(b *testing.B) {
			frame, _ := AppendFrame(nil, msgs)
			b.ReportAllocs()
			b.SetBytes(int64(len(frame)))
			var out []wire.RaftMessage
			for b.Loop() {
				var err error
				if out, _, err = DecodeFrame(frame, 1, 2, out[:0]); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(msgs)), "ns/msg")
		})
	}
}
