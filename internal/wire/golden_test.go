package wire

import (
	"testing"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/golden"
)

// steps is one of each step of a Batch.
func steps() []Sub {
	k := []byte("\x02k")
	return []Sub{
		{Code: OpCheckAbsent, Key: k},
		{Code: OpCheckPresent, Key: k},
		{Code: OpCheckVersion, Key: k, Arg: 0x0102},
		{Code: OpCheckValue, Key: k, Value: []byte("old")},
		{Code: OpPut, Key: k, Value: []byte("new")},
		{Code: OpDelete, Key: k},
		{Code: OpDeleteRange, Key: k, Value: []byte("\x02l")},
	}
}

func batchValue(steps ...Sub) []byte {
	var b []byte
	for i := range steps {
		b = steps[i].Append(b)
	}
	return b
}

// samples is one of each operation.
func samples() []Op {
	head := Op{Req: 0x1112131415161718, Shard: 0x21, Version: 0x31, Timeout: 0x41}
	with := func(code OpCode, flags uint8, arg uint64, key, value string) Op {
		o := head
		o.Code, o.Flags, o.Arg, o.Key = code, flags, arg, []byte(key)
		if value != "" {
			o.Value = []byte(value)
		}
		return o
	}
	aged := func(o Op) Op {
		o.MaxAge = 0x81828384
		return o
	}
	return []Op{
		with(OpGet, 0, 0, "\x02k", ""),
		with(OpScan, FlagReverse|FlagKeysOnly, ScanArg(100, 1<<16), "\x02a", "\x02z"),
		with(OpPut, 0, 0, "\x02k", "value"),
		with(OpPut, FlagIfVersion, 0x51, "\x02k", "value"),
		with(OpDelete, 0, 0, "\x02k", ""),
		with(OpDelete, FlagIfVersion, 0x51, "\x02k", ""),
		with(OpDeleteRange, 0, 0, "\x02a", "\x02z"),
		with(OpBatch, 0, 0, "\x02k", string(batchValue(steps()...))),
		with(OpGet, FlagFollower, 0, "\x02k", ""),
		aged(with(OpGet, FlagStale, 0, "\x02k", "")),
		aged(with(OpScan, FlagReverse|FlagStale|FlagFollower, ScanArg(100, 1<<16), "\x02a", "\x02z")),
		with(OpReadIndex, 0, 0x51, "\x02a", "0123456789abcdef"),
	}
}

func answers() []Answer {
	d := &base.Descriptor{
		Shard: 7, Start: []byte("\x02a"), End: []byte("\x02z"), Epoch: base.Epoch{ConfVer: 1, Version: 2},
	}
	rows := (&Row{Key: []byte("\x02a"), Value: []byte("one"), Version: 9}).Append(nil)
	return []Answer{
		{Code: OK, Req: 1, Arg: 0x61, Version: 2, Payload: []byte("value")},
		{Code: OK, Flags: FlagMore, Req: 2, Version: 2, Payload: rows},
		{Code: NotFound, Req: 3, Version: 2},
		{Code: ConditionFailed, Req: 4, Arg: 0x62, Version: 2, Payload: []byte{0, 0, 0, 1}},
		{Code: NotLeader, Req: 5, Arg: 3, Version: 2},
		{Code: EpochMismatch, Req: 6, Version: 2, Payload: AppendDescriptors(nil, d)},
		{Code: Busy, Req: 7, Arg: 20, Payload: []byte("store inbox")},
		{Code: DiskFull, Req: 8, Payload: []byte("why")},
	}
}

func TestBytesAreGolden(t *testing.T) {
	var ops, subs, ans, entries golden.File
	for _, o := range samples() {
		if err := o.Validate(); err != nil {
			t.Fatal(err)
		}
		name := o.Code.String()
		if o.Flags&FlagIfVersion != 0 {
			name += " if version"
		}
		if o.Flags&FlagFollower != 0 {
			name += " at any replica"
		}
		if o.Flags&FlagStale != 0 {
			name += " stale"
		}
		ops.Add(name, o.Append(nil))
	}
	for _, s := range steps() {
		subs.Add(s.Code.String(), s.Append(nil))
	}
	for _, a := range answers() {
		ans.Add(a.Code.String(), a.Append(nil))
	}
	ans.Add("row", (&Row{Key: []byte("\x02key"), Value: []byte("value"), Version: 0x71}).Append(nil))
	h := EntryHeader{Kind: EntryData, Count: 2, Proposal: 0x8182838485868788, Stamp: 0x91}
	put := samples()[2]
	entries.Add("header", h.Append(nil))
	entries.Add("two puts", put.Append(put.Append(h.Append(nil))))
	v := EntryHeader{Kind: EntryVerify, Proposal: 0x8182838485868788}
	entries.Add("verify", (&Verify{ID: 0xa1a2a3a4a5a6a7a8, BytesPerSecond: 1 << 20}).Append(v.Append(nil)))
	sp := EntryHeader{Kind: EntrySplit, Proposal: 0x8182838485868788}
	entries.Add("split", split().Append(sp.Append(nil)))
	ops.Check(t, "ops.golden")
	subs.Check(t, "steps.golden")
	ans.Check(t, "answers.golden")
	entries.Check(t, "entries.golden")
}

// TestNumbersAreFixed pins the numbers that are stored or sent, so that reordering the constants is noticed.
func TestNumbersAreFixed(t *testing.T) {
	codes := []struct {
		got, want uint8
		name      string
	}{
		{uint8(OpGet), 1, OpGet.String()}, {uint8(OpScan), 2, OpScan.String()}, {uint8(OpPut), 3, OpPut.String()},
		{uint8(OpDelete), 4, OpDelete.String()}, {uint8(OpDeleteRange), 5, OpDeleteRange.String()},
		{uint8(OpBatch), 6, OpBatch.String()}, {uint8(OpCheckAbsent), 16, OpCheckAbsent.String()},
		{uint8(OpCheckPresent), 17, OpCheckPresent.String()}, {uint8(OpCheckVersion), 18, OpCheckVersion.String()},
		{uint8(OpCheckValue), 19, OpCheckValue.String()},
		{FlagIfVersion, 1, "if-version"}, {FlagReverse, 2, "reverse"}, {FlagKeysOnly, 4, "keys-only"}, {FlagMore, 1, "more"},
		{uint8(OK), 0, "ok"}, {uint8(NotFound), 1, "not-found"}, {uint8(ConditionFailed), 2, "condition-failed"},
		{uint8(NotLeader), 3, "not-leader"}, {uint8(EpochMismatch), 4, "epoch-mismatch"},
		{uint8(ShardNotFound), 5, "shard-not-found"}, {uint8(Busy), 6, "busy"}, {uint8(Ambiguous), 7, "ambiguous"},
		{uint8(Invalid), 8, "invalid"}, {uint8(Unavailable), 9, "unavailable"}, {uint8(TimedOut), 10, "timed-out"},
		{uint8(Failed), 11, "failed"}, {uint8(DiskFull), 12, "disk-full"}, {uint8(EntryData), 1, "entry-data"},
		{uint8(EntryVerify), 2, "entry-verify"}, {uint8(EntryFreeze), 4, "entry-freeze"}, {uint8(EntryThaw), 5, "entry-thaw"},
		{uint8(EntryCommitMerge), 6, "entry-commit-merge"}, {uint8(EntryAbortMerge), 7, "entry-abort-merge"}, {uint8(EntrySplit), 3, "entry-split"},
	}
	for _, c := range codes {
		if c.got != c.want {
			t.Errorf("%s is %d, must stay %d", c.name, c.got, c.want)
		}
	}
	for c := OK; c <= DiskFull; c++ {
		if want := codes[14+int(c)].name; c.String() != want {
			t.Errorf("code %d prints %q, want %q", c, c, want)
		}
	}
	if OpCode(99).String() != "op(99)" || Code(99).String() != "code(99)" {
		t.Error("unknown numbers must print as numbers")
	}
}
