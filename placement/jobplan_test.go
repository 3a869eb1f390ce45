package placement

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"

	"github.com/shardd/shardd/internal/base"
)

// script is a job with the world that its runner sees, for the scripts in testdata/next:
//
//	job KIND s12 [from=2] [to=4] [replica=2] [learner]   a new job
//	shard conf=5 leader=1 [last=100] [bytes=1000000]     how the shard is now; one line per replica:
//	  n1/1 voter [match=90] [pending=50] [dead]
//	  snapshot to=4 PHASE done=1 total=2 rate=3
//	blind WHY | disk gone|holds|silent|unknown | refused WHY | trouble WHY
//	cancel | wait 5s | takeover                          takeover: another runner goes on, from the record
//	next                                                 decide, and take it over as a runner does
type script struct {
	j     *Job
	w     World
	watch Watch
	now   time.Duration
}

func TestNextFollowsTheScripts(t *testing.T) {
	datadriven.Walk(t, "testdata/next", func(t *testing.T, path string) {
		s := &script{now: time.Hour}
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string { return s.run(t, d) })
	})
}

func (s *script) run(t *testing.T, d *datadriven.TestData) string {
	t.Helper()
	arg := func(key string) (v uint64) {
		if d.HasArg(key) {
			d.ScanArgs(t, key, &v)
		}
		return v
	}
	switch d.Cmd {
	case "job":
		kind, err := ParseJobKind(d.CmdArgs[0].Key)
		if err != nil {
			t.Fatal(err)
		}
		s.j = &Job{
			ID: 7, State: JobRunning, Replica: base.ReplicaID(arg("replica")),
			Spec: JobSpec{
				Kind: kind, Shard: 12, From: base.StoreID(arg("from")), To: base.StoreID(arg("to")), Learner: d.HasArg("learner"),
			},
		}
		s.w, s.watch = World{}, Watch{}
	case "shard":
		s.w.Shard, s.w.Why = parseShard(t, d, arg), ""
	case "blind":
		s.w.Shard, s.w.Why = nil, rest(d)
	case "disk":
		s.w.Disk = map[string]DiskState{
			"gone": DiskGone, "holds": DiskHolds, "silent": DiskSilent, "down": DiskDown, "unknown": DiskUnknown,
		}[d.CmdArgs[0].Key]
	case "refused":
		s.w.Refused, s.w.RefusedAt = rest(d), s.w.Shard.Desc.Epoch.ConfVer
	case "trouble":
		s.w.Trouble = rest(d)
	case "cancel":
		s.j.State = JobCancelling
	case "wait":
		p, err := time.ParseDuration(d.CmdArgs[0].Key)
		if err != nil {
			t.Fatal(err)
		}
		s.now += p
	case "takeover":
		s.watch = Watch{}
		j, err := DecodeJob(s.j.Append(nil))
		if err != nil {
			t.Fatal(err)
		}
		s.j = j
	case "next":
		return s.next()
	default:
		t.Fatalf("unknown command %s", d.Cmd)
	}
	return ""
}

func rest(d *datadriven.TestData) string {
	var out []string
	for _, a := range d.CmdArgs {
		out = append(out, a.String())
	}
	return strings.Join(out, " ")
}

// next decides and does with the job what a runner does.
func (s *script) next() string {
	var b strings.Builder
	w := s.w
	w.Watch, w.Now = s.watch, s.now
	if at, ask := AskDisk(s.j, w); ask {
		fmt.Fprintf(&b, "ask the disk of %s\n", at)
	} else {
		w.Disk = DiskUnknown
	}
	a := Next(s.j, w)
	s.watch = s.watch.See(a.At, s.now)
	s.w.Refused = ""
	s.j.Steps = a.Steps
	switch a.Do {
	case ActWait:
		b.WriteString("wait\n")
	case ActChange:
		fmt.Fprintf(&b, "change of %d:", a.ConfVer)
		for _, c := range a.Changes {
			fmt.Fprintf(&b, " %s %s/%d", c.Op, c.Store, c.Replica)
		}
		b.WriteString("\n")
	case ActTransfer:
		fmt.Fprintf(&b, "transfer to %s\n", a.To)
	case ActUndo:
		s.j.State, s.j.Error = JobCancelling, a.Reason
		fmt.Fprintf(&b, "undo: %s\n", a.Reason)
	case ActEnd:
		s.j.State, s.j.Error = a.State, a.Reason
		fmt.Fprintf(&b, "end %s", a.State)
		if a.Reason != "" {
			b.WriteString(": " + a.Reason)
		}
		b.WriteString("\n")
	}
	for _, st := range a.Steps {
		fmt.Fprintf(&b, "  %-7s %s", st.State, st.Name)
		if st.Bytes > 0 {
			fmt.Fprintf(&b, " %d/%d bytes", st.BytesDone, st.Bytes)
		}
		if st.Rate > 0 {
			fmt.Fprintf(&b, " %d/s", st.Rate)
		}
		if st.Lag > 0 {
			fmt.Fprintf(&b, " lag %d", st.Lag)
		}
		if st.Detail != "" {
			fmt.Fprintf(&b, " (%s)", st.Detail)
		}
		b.WriteString("\n")
	}
	return b.String()
}

func parseShard(t *testing.T, d *datadriven.TestData, arg func(string) uint64) *ShardNow {
	t.Helper()
	now := &ShardNow{
		Leader: base.StoreID(arg("leader")), Term: 6,
		Desc: &base.Descriptor{
			Shard: 12, Start: []byte("\x02a"), End: []byte("\x02b"), Epoch: base.Epoch{ConfVer: arg("conf"), Version: 1},
			NextReplicaID: 50,
		},
	}
	last := max(arg("last"), 100)
	roles := map[string]base.Role{}
	for r := base.RoleVoter; r <= base.RoleOutgoing; r++ {
		roles[r.String()] = r
	}
	for _, line := range strings.Split(strings.TrimSpace(d.Input), "\n") {
		f := strings.Fields(line)
		value := func(key string, not uint64) uint64 {
			for _, a := range f {
				if v, ok := strings.CutPrefix(a, key+"="); ok {
					n, err := strconv.ParseUint(v, 10, 64)
					if err != nil {
						t.Fatal(err)
					}
					return n
				}
			}
			return not
		}
		if f[0] == "snapshot" {
			now.Snapshot = &SnapshotNow{
				To: base.ReplicaID(value("to", 0)), Phase: f[2], Done: value("done", 0), Total: value("total", 0),
				Rate: value("rate", 0),
			}
			continue
		}
		var store, replica uint64
		if _, err := fmt.Sscanf(f[0], "n%d/%d", &store, &replica); err != nil {
			t.Fatal(err)
		}
		p := ReplicaNow{
			Replica: base.ReplicaID(replica), Store: base.StoreID(store), Role: roles[f[1]],
			Match: value("match", last), Last: last, PendingSnapshot: value("pending", 0),
			Active: !strings.Contains(line, " dead"), Bytes: arg("bytes"),
		}
		now.Progress = append(now.Progress, p)
		now.Desc.Replicas = append(now.Desc.Replicas, base.ReplicaDesc{Replica: p.Replica, Store: p.Store, Role: p.Role})
	}
	if err := now.Desc.Validate(); err != nil {
		t.Fatal(err)
	}
	return now
}
