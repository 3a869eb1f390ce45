package wire

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"

	"pgregory.net/rapid"

	"github.com/shardd/shardd/internal/base"
)

func TestFrameOfAnswersRoundTrips(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) Answer {
			return Answer{
				Code: Code(rapid.Byte().Draw(t, "code")), Flags: rapid.Byte().Draw(t, "flags"),
				Req: rapid.Uint64().Draw(t, "req"), Arg: rapid.Uint64().Draw(t, "arg"),
				Version: rapid.Uint64().Draw(t, "version"), Payload: shortBytes.Draw(t, "payload"),
			}
		}), 1, 8).Draw(t, "answers")
		var frame, inPlace []byte
		for i := range want {
			frame = want[i].Append(frame)
			at := len(inPlace)
			inPlace = want[i].AppendHeader(inPlace, 0)
			inPlace = append(inPlace, want[i].Payload...)
			FinishAnswer(inPlace, at)
		}
		if !bytes.Equal(frame, inPlace) {
			t.Fatal("an answer finished in place differs")
		}
		for i, w := range want {
			var got Answer
			for cut := range w.Size() {
				if _, err := DecodeAnswer(frame[:cut], &got); !errors.Is(err, ErrTruncated) {
					t.Fatalf("answer %d cut at %d: %v", i, cut, err)
				}
			}
			var err error
			if frame, err = DecodeAnswer(frame, &got); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got.Payload, w.Payload) {
				t.Fatalf("payload %x, want %x", got.Payload, w.Payload)
			}
			got.Payload, w.Payload = nil, nil
			if got.Code != w.Code || got.Flags != w.Flags || got.Req != w.Req || got.Arg != w.Arg || got.Version != w.Version {
				t.Fatalf("got %+v, want %+v", got, w)
			}
		}
		if len(frame) != 0 {
			t.Fatalf("%d bytes left", len(frame))
		}
	})
}

func TestAnswerLengthIsChecked(t *testing.T) {
	b := (&Answer{Payload: []byte("p")}).Append(nil)
	var a Answer
	for _, n := range []uint32{0, AnswerHeaderSize - 1, MaxAnswerSize + 1, 1<<32 - 1} {
		binary.BigEndian.PutUint32(b, n)
		if _, err := DecodeAnswer(b, &a); !errors.Is(err, ErrInvalid) {
			t.Errorf("length %d: %v, want ErrInvalid", n, err)
		}
	}
}

func TestRowsRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) Row {
			return Row{
				Key: shortBytes.Draw(t, "key"), Value: shortBytes.Draw(t, "value"), Version: rapid.Uint64().Draw(t, "version"),
			}
		}), 1, 8).Draw(t, "rows")
		var page []byte
		for i := range want {
			page = want[i].Append(page)
		}
		for i, w := range want {
			var got Row
			for cut := range w.Size() {
				if _, err := DecodeRow(page[:cut], &got); !errors.Is(err, ErrTruncated) {
					t.Fatalf("row %d cut at %d: %v", i, cut, err)
				}
			}
			var err error
			if page, err = DecodeRow(page, &got); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got.Key, w.Key) || !bytes.Equal(got.Value, w.Value) || got.Version != w.Version {
				t.Fatalf("got %+v, want %+v", got, w)
			}
		}
		if len(page) != 0 {
			t.Fatalf("%d bytes left", len(page))
		}
	})
}

func TestDescriptorsRoundTrip(t *testing.T) {
	var ds []*base.Descriptor
	for i := range base.ShardID(3) {
		ds = append(ds, &base.Descriptor{Shard: i + 1, Start: []byte{2, byte(i)}, End: []byte{2, byte(i) + 1}})
	}
	b := AppendDescriptors(nil, ds...)
	got, err := DecodeDescriptors(b)
	if err != nil || len(got) != 3 {
		t.Fatalf("%d descriptors, %v", len(got), err)
	}
	if !bytes.Equal(AppendDescriptors(nil, got...), b) {
		t.Fatal("descriptors changed")
	}
	if _, err := DecodeDescriptors(b[:len(b)-1]); !errors.Is(err, base.ErrCorrupt) {
		t.Fatalf("cut: %v, want ErrCorrupt", err)
	}
	if got, err := DecodeDescriptors(nil); err != nil || got != nil {
		t.Fatalf("no payload: %v, %v", got, err)
	}
}
