package engine

import (
	"errors"
	"reflect"
	"testing"

	"github.com/shardd/shardd/internal/base"
)

func testRecovery() *Recovery {
	return &Recovery{
		ID: 0x0102030405060708, Coordinator: 3, Stage: RecoveryShards, Token: [32]byte{1, 2, 31: 9},
		Failed: []base.StoreID{1, 2}, Survivors: []base.StoreID{3, 4, 5},
	}
}

func TestFencesAndRecoveriesSurviveACrashAndFollowTheirOrder(t *testing.T) {
	fs := NewMemFS()
	e := mustOpen(t, testOptions(t, fs))
	if err := e.ChangeFences(FenceChange{Add: []Fence{{Store: 2}}}); err == nil {
		t.Fatal("a store was fenced before there was an ident")
	}
	if err := e.WriteIdent(testIdent()); err != nil { // store 4
		t.Fatal(err)
	}
	if err := e.ChangeFences(FenceChange{Add: []Fence{{Store: 4}}}); err == nil {
		t.Fatal("a store has fenced itself")
	}
	first := testRecovery()
	for _, c := range []FenceChange{
		{Add: []Fence{{Store: 9, Recovery: 7}, {Store: 2, Recovery: 7}}, Recovery: first},
		{Add: []Fence{{Store: 2, Recovery: 8}, {Store: 3}}},
		{Lift: []base.StoreID{9, 77}},
	} {
		if err := e.ChangeFences(c); err != nil {
			t.Fatal(err)
		}
	}
	older := testRecovery()
	older.ID--
	var stale *StaleRecoveryError
	err := e.ChangeFences(FenceChange{Add: []Fence{{Store: 11}}, Recovery: older})
	if !errors.As(err, &stale) || stale.Have != first.ID {
		t.Fatalf("an earlier recovery: %v", err)
	}
	bad := testRecovery()
	bad.Failed = []base.StoreID{2, 1}
	if err := e.ChangeFences(FenceChange{Recovery: bad}); err == nil {
		t.Fatal("stores out of order were recorded")
	}
	wantFences := []Fence{{Store: 2, Recovery: 7}, {Store: 3}}
	check := func(e *Engine) {
		t.Helper()
		id, _ := e.Ident()
		if !reflect.DeepEqual(id.Fences, wantFences) || !reflect.DeepEqual(id.Recovery, first) {
			t.Fatalf("fences %v, recovery %+v", id.Fences, id.Recovery)
		}
	}
	check(e)
	crashed := fs.CrashClone(0, 1)
	mustClose(t, e)
	for _, f := range []*FS{fs, crashed} {
		e := mustOpen(t, testOptions(t, f))
		check(e)
		if err := e.WriteIdent(testIdent()); err != nil { // an ident that is written again gives nothing free
			t.Fatal(err)
		}
		check(e)
		mustClose(t, e)
		e = mustOpen(t, testOptions(t, f))
		check(e)
		mustClose(t, e)
	}
}

func TestStagesHaveNames(t *testing.T) {
	for s, want := range map[RecoveryStage]string{
		RecoveryFence: "fence", RecoveryDone: "done", RecoveryCancelled: "cancelled", RecoveryStopped: "stopped", 0: "stage(0)", 9: "stage(9)",
	} {
		if s.String() != want || s.Ended() != (s >= RecoveryDone) {
			t.Errorf("%d is %s, ended %t", s, s, s.Ended())
		}
	}
}
