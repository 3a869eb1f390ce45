package plan

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"

	"github.com/shardd/shardd/internal/base"
)

// script is a cluster driven by the files in testdata/plan. Commands:
//
//	cluster                   a line for each store: n1 zone=a host=x [drain=leaders|replicas] [leaving] [removed] [silent]
//	                          [slow] [low] [disk=FREE/CAPACITY in MiB]
//	shards                    a line for each shard: s2 START END n1* n2 n3:learner n4:faulted [size=MiB] [reads=N]
//	                          [hot=KEY] [spot=KEY]; END is the next one's START if it is written as -
//	store                     lines as in cluster that change stores
//	config [off=PART] [voters=N] [operators=N] [merge-age=DURATION] ...
//	round                     plans once and prints what is proposed; nothing is started
//	run [rounds=N]            plans and carries out until at rest, prints what was done
//	pass DURATION             time passes
//	why shard=N | node=N | operator=N
//	state                     prints stores and shards
type script struct {
	w   *world
	cfg Config
}

func TestScripts(t *testing.T) {
	datadriven.Walk(t, "testdata/plan", func(t *testing.T, path string) {
		s := &script{}
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			out := s.run(t, d)
			if s.w != nil {
				if err := s.w.v.Check(); err != nil {
					t.Fatalf("%s: %v", d.Pos, err)
				}
			}
			return out
		})
	})
}

func (s *script) run(t *testing.T, d *datadriven.TestData) string {
	var b strings.Builder
	switch d.Cmd {
	case "cluster":
		s.w = newWorld(NewView(), s.cfg, 32<<20)
		s.w.now = time.Hour // well after every age that matters
		s.w.v.advance(s.w.now)
		s.stores(t, d)
	case "store":
		s.stores(t, d)
	case "shards":
		s.shards(t, d)
	case "config":
		s.config(t, d)
	case "pass":
		dur, err := time.ParseDuration(d.CmdArgs[0].Key)
		if err != nil {
			d.Fatalf(t, "%v", err)
		}
		s.w.to(s.w.now + dur)
	case "round":
		r := s.peek()
		if r.Waiting != "" {
			return "waiting: " + r.Waiting + "\n"
		}
		for _, op := range r.Ops {
			fmt.Fprintf(&b, "%s %s\n", op.Priority, op.String())
		}
		if len(r.Ops) == 0 {
			b.WriteString("nothing\n")
		}
		for i, name := range needNames {
			if n := s.w.v.needs[i].Len(); n > 0 {
				fmt.Fprintf(&b, "# %d %s\n", n, name)
			}
		}
		if r.NoRoom > 0 {
			fmt.Fprintf(&b, "# %d nodes without room\n", r.NoRoom)
		}
	case "run":
		n := 1000
		d.MaybeScanArgs(t, "rounds", &n)
		s.w.done = func(op *Operator) { fmt.Fprintln(&b, op) }
		for quiet := 0; quiet < 3 && n > 0; n-- {
			s.w.round()
			if len(s.w.running) == 0 {
				quiet++
				s.w.to(s.w.now + time.Minute)
				continue
			}
			quiet = 0
			s.w.to(max(s.w.running[0].ends, s.w.now+time.Second))
		}
		if n == 0 {
			b.WriteString("not at rest\n")
		}
	case "why":
		s.why(t, d, &b)
	case "state":
		for _, st := range s.w.v.order {
			fmt.Fprintf(&b, "%s: %d replicas, %d leaders\n", st.ID, st.Replicas, st.Leaders)
		}
		for sh := range s.w.v.Shards("") {
			fmt.Fprintf(&b, "%s [%s,%s)\n", sh, sh.Start[1:], sh.End[1:])
		}
	default:
		d.Fatalf(t, "unknown command %s", d.Cmd)
	}
	return b.String()
}

// peek plans one round of a planner that is thrown away, so that nothing is remembered of what was not started.
func (s *script) peek() *Round {
	for _, st := range s.w.v.order {
		if !s.w.dead[st.ID] && st.Known {
			st.Seen = s.w.now
		}
	}
	p := NewPlanner(s.w.now)
	p.waiting = s.w.p.waiting
	return p.Round(s.w.v, s.w.cfg, s.w.now, s.w.ops())
}

func (s *script) stores(t *testing.T, d *datadriven.TestData) {
	for _, line := range strings.Split(strings.TrimSpace(d.Input), "\n") {
		f := strings.Fields(line)
		m := Member{ID: storeID(t, f[0]), Labels: map[string]string{}}
		rep := StoreReport{Store: m.ID, Incarnation: 1, At: s.w.now}
		st := s.w.v.Store(m.ID)
		if st != nil {
			m.Labels = st.Labels
		}
		silent := false
		for _, w := range f[1:] {
			k, v, _ := strings.Cut(w, "=")
			switch k {
			case "drain":
				m.Drain = DrainLeaders
				if v == "replicas" {
					m.Drain = DrainReplicas
				}
			case "leaving":
				m.Commission = Decommissioning
			case "removed":
				m.Commission, silent = Removed, true
			case "silent":
				silent = true
			case "slow":
				rep.Slow = "its disk takes 2 s to sync"
			case "low":
				rep.Disk = DiskLow
			case "critical":
				rep.Disk = DiskCritical
			case "disk":
				fmt.Sscanf(v, "%d/%d", &rep.DiskFree, &rep.DiskCapacity)
				rep.DiskFree, rep.DiskCapacity = rep.DiskFree<<20, rep.DiskCapacity<<20
			default:
				m.Labels[k] = v
			}
		}
		s.w.v.SetMember(m, s.w.now)
		s.w.dead[m.ID] = silent
		if !silent {
			rep.Full = st == nil || !st.Full
			if _, err := s.w.v.Report(&rep); err != nil {
				d.Fatalf(t, "%v", err)
			}
		}
	}
	s.w.elect()
}

func storeID(t *testing.T, s string) base.StoreID {
	n, err := strconv.Atoi(strings.TrimPrefix(s, "n"))
	if err != nil {
		t.Fatalf("%q is no store", s)
	}
	return base.StoreID(n)
}

func (s *script) shards(t *testing.T, d *datadriven.TestData) {
	lines := strings.Split(strings.TrimSpace(d.Input), "\n")
	for i, line := range lines {
		f := strings.Fields(line)
		id, err := strconv.Atoi(strings.TrimPrefix(f[0], "s"))
		if err != nil {
			d.Fatalf(t, "%v", err)
		}
		end := f[2]
		if end == "-" {
			end = strings.Fields(lines[i+1])[1]
		}
		space := "\x02"
		if id == 1 {
			space = "\x03"
		}
		desc := &base.Descriptor{
			Shard: base.ShardID(id), Start: []byte(space + f[1]), End: []byte(space + end), Epoch: base.Epoch{ConfVer: 1, Version: 1},
			NextReplicaID: 1,
		}
		r := ReplicaReport{Shard: desc.Shard, Desc: desc, Term: 5, Size: 1 << 20}
		var leader base.StoreID
		faulted := map[base.StoreID]bool{}
		for _, w := range f[3:] {
			if k, v, ok := strings.Cut(w, "="); ok {
				n, _ := strconv.Atoi(v)
				switch k {
				case "size":
					r.Size = uint64(n) << 20
				case "reads":
					r.Load.Reads = uint32(n)
				case "writes":
					r.Load.Writes = uint32(n)
				case "hot":
					r.HotKey = []byte(v)
				case "spot":
					r.SplitKey = []byte(v)
				case "merging":
					r.MergingInto, r.MergeID = base.ShardID(n), 1
				}
				continue
			}
			name, role, _ := strings.Cut(w, ":")
			x := base.ReplicaDesc{Replica: desc.NextReplicaID, Role: base.RoleVoter}
			desc.NextReplicaID++
			if n, ok := strings.CutSuffix(name, "*"); ok {
				name = n
				leader = storeID(t, n)
			}
			x.Store = storeID(t, name)
			switch role {
			case "learner":
				x.Role = base.RoleLearner
			case "incoming":
				x.Role = base.RoleIncoming
			case "outgoing":
				x.Role = base.RoleOutgoing
			case "faulted":
				faulted[x.Store] = true
			}
			desc.Replicas = append(desc.Replicas, x)
		}
		for _, x := range desc.Replicas {
			own := r
			own.Replica, own.Leads = x.Replica, x.Store == leader
			if faulted[x.Store] {
				own.Faulted = "a checksum differs"
			}
			if s.w.dead[x.Store] {
				continue
			}
			s.w.v.takeIn(s.w.v.store(x.Store), &own)
		}
		// As if it had been there for long.
		sh := s.w.v.Shard(desc.Shard)
		sh.Changed, sh.Cold, sh.ConfChanged, sh.Led = 0, 0, 0, 0
		s.w.ids = max(s.w.ids, sh.ID)
	}
}

func (s *script) config(t *testing.T, d *datadriven.TestData) {
	for _, a := range d.CmdArgs {
		n, _ := strconv.Atoi(a.Vals[0])
		dur, _ := time.ParseDuration(a.Vals[0])
		switch a.Key {
		case "off":
			s.cfg.Off = 0
			for _, v := range a.Vals {
				p, err := ParsePart(v)
				if err != nil && v != "none" {
					d.Fatalf(t, "%v", err)
				}
				s.cfg.Off |= p
			}
		case "voters":
			s.cfg.Voters = n
		case "operators":
			s.cfg.Operators = n
		case "grace":
			s.cfg.Grace = dur
		case "waiting":
			s.w.p = NewPlanner(s.w.now)
		default:
			d.Fatalf(t, "unknown setting %s", a.Key)
		}
	}
	if s.w != nil {
		s.w.cfg = s.cfg.WithDefaults()
	}
}

func (s *script) why(t *testing.T, d *datadriven.TestData, b *strings.Builder) {
	var id, past int
	var w *Why
	d.MaybeScanArgs(t, "past", &past)
	switch a := d.CmdArgs[0]; a.Key {
	case "shard":
		d.ScanArgs(t, "shard", &id)
		w, _ = s.w.p.WhyShard(s.w.v, s.w.cfg, base.ShardID(id), s.w.ops(), past)
	case "node":
		d.ScanArgs(t, "node", &id)
		w, _ = s.w.p.WhyNode(s.w.v, s.w.cfg, base.StoreID(id), s.w.ops(), past)
	case "operator":
		d.ScanArgs(t, "operator", &id)
		w, _ = s.w.p.WhyOperator(uint64(id), 20)
	}
	fmt.Fprintln(b, w.Summary)
	for _, l := range w.Lines {
		fmt.Fprintf(b, "  %s: %s\n", l.What, l.Detail)
	}
	show := func(when string, ds []Decision) {
		for _, x := range ds {
			fmt.Fprintf(b, "%s %s: %s\n", when, x.By, x.Outcome)
			for _, c := range x.Candidates {
				fmt.Fprintf(b, "  %s %s %s\n", c.What, c.Verdict, c.Detail)
			}
		}
	}
	show("now", w.Now)
	show("past", w.Past)
}
