package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/shardd/shardd/engine"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/cli"
)

// debugStore makes a store with replicas in several states, and with problems if asked to.
func debugStore(t *testing.T, dir string, problems bool) {
	t.Helper()
	e, err := engine.Open(engine.Options{Dir: dir, MemTableBytes: 1 << 20, CacheBytes: 1 << 20, ReserveBytes: -1})
	if err != nil {
		t.Fatal(err)
	}
	d := &base.Descriptor{
		Shard: 5, Start: []byte{base.SpaceUser, 'a'}, End: []byte{base.SpaceUser, 'm'},
		Epoch: base.Epoch{ConfVer: 3, Version: 2}, NextReplicaID: 4,
		Replicas: []base.ReplicaDesc{
			{Replica: 1, Store: 1, Role: base.RoleVoter}, {Replica: 3, Store: 2, Role: base.RoleLearner},
		},
	}
	b := e.NewBatch()
	b.CreateReplica(d, 1, 100, []engine.KV{{Key: []byte{base.SpaceUser, 'b'}, Value: []byte("v")}})
	b.SetMark(6, engine.ReplicaMark{ReplicaID: 2, NextReplicaID: 3})
	hard, other := engine.ReplicaState{}.Hard, engine.ReplicaState{}.Hard
	hard.Term, hard.Vote, other.Term = 8, 1, 1
	b.SetHardState(6, hard)
	b.SetMark(7, engine.ReplicaMark{NextReplicaID: 9})
	b.SetMark(8, engine.ReplicaMark{NextReplicaID: ^base.ReplicaID(0)})
	if problems {
		b.SetHardState(7, other)
		b.Put([]byte{base.SpaceUser, 'x'}, engine.ValueHeader{}, []byte("stray"))
	}
	if err := e.Commit(b, true); err != nil {
		t.Fatal(err)
	}
	b.Close()
	err = e.WriteIdent(engine.Ident{
		Cluster: base.ClusterID{1}, Store: 1, Incarnation: 3,
		Peers: []engine.PeerRecord{{Store: 2, Addr: "b:7400", Incarnation: 4}},
	})
	if err == nil {
		err = e.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
}

func runShardd(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errOut bytes.Buffer
	code = cli.Execute(t.Context(), newRoot(), args, strings.NewReader(""), &out, &errOut)
	return code, out.String(), errOut.String()
}

func TestDebugStorePrintsWhatAStoppedNodeHas(t *testing.T) {
	for name, problems := range map[string]bool{"healthy": false, "problems": true} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			debugStore(t, dir, problems)
			want := 0
			if problems {
				want = engine.ExitCorrupt
			}
			code, out, errOut := runShardd(t, "debug", "store", dir)
			if code != want || (errOut != "") != problems {
				t.Fatalf("exit code %d, want %d: %s", code, want, errOut)
			}
			out = strings.ReplaceAll(out, dir, "DIR") // then what differs from run to run
			for _, varying := range []string{"used", "free on disk"} {
				out = regexp.MustCompile(`(?m)^(`+varying+` +).*$`).ReplaceAllString(out, "${1}SIZE")
			}
			golden := filepath.Join("testdata", "debug_"+name+".txt")
			if *update {
				if err := os.WriteFile(golden, []byte(out), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			text, err := os.ReadFile(golden)
			if err != nil || string(text) != out {
				t.Fatalf("%v, printed\n%s\nwant\n%s", err, out, text)
			}

			code, out, _ = runShardd(t, "debug", "store", dir, "-o", "json")
			var v storeView
			if err := json.Unmarshal([]byte(out), &v); err != nil || code != want {
				t.Fatal(code, err)
			}
			if v.Dir != dir || v.Ident == nil || v.Ident.Store != 1 || len(v.Replicas) != 4 ||
				(len(v.Problems) > 0) != problems ||
				v.Replicas[0].Applied == nil || v.Replicas[0].Applied.Index != engine.InitialIndex ||
				v.Replicas[0].Truncated.Conf == nil || len(v.Replicas[0].Truncated.Conf.Voters) != 1 ||
				v.Replicas[1].Life != "uninitialised" || v.Replicas[1].Hard.Vote != 1 || v.Replicas[2].Life != "removed" {
				t.Fatalf("%s", out)
			}
		})
	}
}

func TestDebugStoreRefusesWhatItMustNotRead(t *testing.T) {
	dir := t.TempDir()
	code, _, errOut := runShardd(t, "debug", "store", dir)
	if code != engine.ExitCorrupt || !strings.Contains(errOut, dir) {
		t.Fatalf("an empty directory: %d, %s", code, errOut)
	}
	names, err := os.ReadDir(dir)
	if err != nil || len(names) != 0 {
		t.Fatal("something was made in it", names, err)
	}
	debugStore(t, dir, false)
	e, err := engine.Open(engine.Options{Dir: dir, ReserveBytes: -1})
	if err != nil {
		t.Fatal(err)
	}
	if code, _, errOut := runShardd(t, "debug", "store", dir); code != engine.ExitInUse {
		t.Fatalf("in use: %d, %s", code, errOut)
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	if code, _, errOut := runShardd(t, "debug", "store", dir, "-o", "xml"); code != cli.ExitUsage {
		t.Fatalf("bad format: %d, %s", code, errOut)
	}
	if code, _, errOut := runShardd(t, "debug", "store"); code != cli.ExitUsage {
		t.Fatalf("no directory: %d, %s", code, errOut)
	}
}
