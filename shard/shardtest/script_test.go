package shardtest

import (
	"fmt"
	"sort"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/datadriven"
	"go.etcd.io/etcd/raft/v3/raftpb"

	"github.com/shardd/shardd/engine"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
	"github.com/shardd/shardd/shard"
)

// TestScripts runs the scripts of testdata. What a command prints is all that happened while it ran: messages as they
// leave a store (not as they arrive), leaders as they are seen, answers. "(disk held)" marks what left a store whose
// disk stands still, so before the sync of anything new. -rewrite writes the files anew.
//
//	stores n=3 [entry-bytes=n] [msg-bytes=n] [reads=n] [messages=no]
//	                                                     starts stores; msg-bytes=1 gives one entry a message
//	shard id=7 on=(1,2,3) [learners=(3)]                 creates a shard; nobody campaigns
//	campaign n=1                                         orders a replica to stand for election, then settles
//	settle, step                                         moves all that needs no tick; step: stores only, no message
//	deliver [count=n]                                    delivers messages, one by one, without a store moving
//	tick [n=(1,2)] [count=n]                             ticks and settles
//	change n=1 [ver=n] [add=(5)] [promote=(4)] [demote=(1)] [remove=(4)]
//	                                                     asks a leader to change replicas; nothing moves yet
//	transfer n=1 to=2                                    asks a leader to hand over; nothing moves yet
//	members                                              one line per store: the applied descriptor, or the mark
//	put n=1 key=a value=x [timeout=1s], get n=1 key=a    asks a store; nothing moves yet
//	cut from=1 to=2, isolate n=1, heal                   the network
//	withhold [n=1] [entries-of=term] [type=MsgVote]      drops what stores send: by type, or entries from a term on;
//	                                                     type=commit: what only tells a commit index
//	sync-hold n=1, sync-release n=1                      the disk stands still, and goes on
//	crash n=1 keep=0, restart n=1                        power loss that keeps a share of what is not synced
//	status                                               one line per store
//	log n=1                                              the entries on disk after the first state
//	local n=1 key=a                                      what a store has applied
//
// A script has one shard.
func TestScripts(t *testing.T) {
	datadriven.Walk(t, "testdata", func(t *testing.T, path string) {
		synctest.Test(t, func(t *testing.T) {
			sc := &script{t: t}
			defer func() {
				if sc.s != nil {
					sc.s.lookAll()
					sc.s.stopAll()
				}
			}()
			datadriven.RunTest(t, path, sc.run)
		})
	})
}

type script struct {
	t  *testing.T
	s  *sim
	id base.ShardID
}

func (sc *script) run(t *testing.T, d *datadriven.TestData) string {
	if sc.s == nil && d.Cmd != "stores" {
		d.Fatalf(t, "the first command must be stores")
	}
	out := ""
	switch d.Cmd {
	case "stores":
		sc.stores(d)
	case "shard":
		sc.shard(d)
	case "put", "get":
		sc.request(d)
	case "cut", "isolate", "heal", "withhold":
		sc.network(d)
	case "change", "transfer":
		sc.membership(d)
	case "members":
		out = sc.members()
	case "status":
		out = sc.status()
	case "log":
		out = sc.log(sc.node(d))
	case "local":
		a := sc.s.local(sc.node(d), sc.id, arg(d, "key"))
		out = strings.TrimSpace(fmt.Sprintf("%s %s", a.Code, a.Payload))
	default:
		sc.move(d)
	}
	synctest.Wait() // whoever waits for a change has said what became of it
	if sc.s != nil && sc.s.trace.on {
		out = strings.TrimSpace(sc.s.takeTrace() + "\n" + out)
	}
	if out == "" {
		return "ok"
	}
	return out
}

func arg(d *datadriven.TestData, key string) string {
	a, ok := d.Arg(key)
	if !ok || len(a.Vals) == 0 {
		return ""
	}
	return a.Vals[0]
}

func number(t testing.TB, d *datadriven.TestData, key string, otherwise int) int {
	d.MaybeScanArgs(t, key, &otherwise)
	return otherwise
}

func (sc *script) node(d *datadriven.TestData) *node {
	id := 0
	d.ScanArgs(sc.t, "n", &id)
	return sc.s.node(base.StoreID(id))
}

func (sc *script) nodes(d *datadriven.TestData, key string) (out []*node) {
	a, _ := d.Arg(key)
	for i := range a.Vals {
		id := 0
		a.Scan(sc.t, i, &id)
		out = append(out, sc.s.node(base.StoreID(id)))
	}
	return out
}

func (sc *script) stores(d *datadriven.TestData) {
	sc.s = newSim(sc.t, 1, newObserver(sc.t), func(c *shard.Config) {
		c.CommitNotice = -1 // every message has its line
		if n := number(sc.t, d, "msg-bytes", 0); n > 0 {
			c.MaxSizePerMsg = uint64(n)
		}
		c.EntryBytes = number(sc.t, d, "entry-bytes", 0)
		c.Limits.GroupReads = int64(number(sc.t, d, "reads", 0))
	})
	for range number(sc.t, d, "n", 3) {
		sc.s.add(engine.NewMemFS(), 0)
	}
	sc.s.trace.on, sc.s.trace.terse = true, arg(d, "messages") == "no"
}

func (sc *script) shard(d *datadriven.TestData) {
	sc.id = base.ShardID(number(sc.t, d, "id", 7))
	var on []base.StoreID
	for _, n := range sc.nodes(d, "on") {
		on = append(on, n.id)
	}
	de := desc(sc.id, "", "", on...)
	for _, n := range sc.nodes(d, "learners") {
		for i := range de.Replicas {
			if de.Replicas[i].Store == n.id {
				de.Replicas[i].Role = base.RoleLearner
			}
		}
	}
	sc.s.create(de, false)
	sc.s.settle()
}

func (sc *script) request(d *datadriven.TestData) {
	var timeout time.Duration
	if v := arg(d, "timeout"); v != "" {
		var err error
		if timeout, err = time.ParseDuration(v); err != nil {
			d.Fatalf(sc.t, "timeout: %v", err)
		}
	}
	if d.Cmd == "put" {
		sc.s.put(sc.node(d), sc.id, arg(d, "key"), arg(d, "value"), timeout)
	} else {
		sc.s.get(sc.node(d), sc.id, arg(d, "key"), timeout)
	}
}

func (sc *script) network(d *datadriven.TestData) {
	switch d.Cmd {
	case "cut":
		for _, from := range sc.nodes(d, "from") {
			for _, to := range sc.nodes(d, "to") {
				sc.s.net.Cut(from.id, to.id)
			}
		}
	case "isolate":
		sc.s.net.Isolate(sc.node(d).id)
	case "heal":
		sc.s.net.HealAll()
		for _, n := range sc.s.nodes {
			n.filter = nil
		}
	case "withhold":
		term, typ := uint64(number(sc.t, d, "entries-of", 0)), arg(d, "type")
		nodes := sc.nodes(d, "n")
		if len(nodes) == 0 {
			nodes = sc.s.live()
		}
		for _, n := range nodes {
			n.filter = func(m *wire.RaftMessage) bool { return pass(m, term, typ) }
		}
	}
}

// pass drops a type of message, and the entries of a term and what follows them, as a network that delivers only the
// first of many messages would.
func pass(m *wire.RaftMessage, term uint64, typ string) bool {
	if m.Msg.Type.String() == typ {
		return false
	}
	if typ == "commit" && (m.Msg.Type == raftpb.MsgHeartbeat || m.Msg.Type == raftpb.MsgApp && len(m.Msg.Entries) == 0) {
		return false
	}
	if term == 0 || m.Msg.Type != raftpb.MsgApp || len(m.Msg.Entries) == 0 {
		return true
	}
	n := sort.Search(len(m.Msg.Entries), func(i int) bool { return m.Msg.Entries[i].Term >= term })
	m.Msg.Entries = m.Msg.Entries[:n]
	return true
}

// move runs the commands that let something happen.
func (sc *script) move(d *datadriven.TestData) {
	s := sc.s
	switch d.Cmd {
	case "campaign":
		s.campaign(sc.node(d), sc.id)
		s.settle()
	case "settle":
		s.settle()
	case "step":
		s.drainStores()
	case "deliver":
		for range number(sc.t, d, "count", 1) {
			s.net.Step()
		}
	case "tick":
		nodes := sc.nodes(d, "n")
		for range number(sc.t, d, "count", 1) {
			s.tick(nodes...)
		}
	case "sync-hold":
		sc.node(d).hold()
	case "sync-release":
		sc.node(d).free()
		s.settle()
	case "crash":
		s.crash(sc.node(d), number(sc.t, d, "keep", 0))
	case "restart":
		s.start(sc.node(d))
		s.settle()
	default:
		d.Fatalf(sc.t, "unknown command %q", d.Cmd)
	}
}

func (sc *script) status() string {
	var b strings.Builder
	for _, n := range sc.s.nodes {
		if n.store == nil {
			fmt.Fprintf(&b, "%s down\n", n.id)
			continue
		}
		st, ok := n.store.Status(sc.id)
		if !ok {
			continue
		}
		role := "follows nobody"
		switch {
		case st.Faulted != "":
			role = "faulted: " + st.Faulted
		case st.Leads:
			role = "leads"
		case st.Leader != 0:
			role = "follows " + st.Leader.String()
		}
		fmt.Fprintf(&b, "%s term %d %s, commit %d, applied %d, log up to %d\n",
			n.id, st.Term, role, st.Commit, st.Applied, st.LastIndex)
	}
	return b.String()
}

func (sc *script) log(n *node) string {
	logs, err := readLogs(n.eng)
	if err != nil {
		sc.t.Fatal(err)
	}
	d := logs[sc.id]
	ents, err := d.entries(d.st.Truncated.Index+1, d.last+1)
	if err != nil {
		sc.t.Fatal(err)
	}
	var b strings.Builder
	for i := range ents {
		fmt.Fprintln(&b, describeEntry(&ents[i]))
	}
	return b.String()
}
