package sim_test

import (
	"testing"
	"time"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/placement/plan"
	"github.com/shardd/shardd/placement/rules"
	"github.com/shardd/shardd/placement/sim"
)

// TestWhatIsForetoldComesTrue compares what plan.Simulate says of a change with what happens once it is made.
func TestWhatIsForetoldComesTrue(t *testing.T) {
	pinned, err := rules.Parse("zones", []byte("defaults: {constraints: {prohibited: [zone=c]}}"))
	must(t, err)
	for _, tc := range []struct {
		name  string
		trial plan.Trial
		make  func(c *sim.Cluster)
	}{
		{"add", plan.Trial{Add: []map[string]string{{"zone": "a"}, {"zone": "b"}, {"zone": "c"}}}, func(c *sim.Cluster) {
			for _, z := range []string{"a", "b", "c"} {
				c.AddNode(map[string]string{"zone": z}, 0)
			}
		}},
		{"remove", plan.Trial{Remove: []base.StoreID{2}}, func(c *sim.Cluster) { c.Commission(2, plan.Decommissioning) }},
		{"lose", plan.Trial{Lose: []base.StoreID{3, 4}}, func(c *sim.Cluster) {
			c.Lose(3)
			c.Lose(4)
		}},
		{"rules", plan.Trial{Rules: rules.NewPlanner(pinned)}, func(c *sim.Cluster) {
			cfg := c.Config()
			cfg.Rules = rules.NewPlanner(pinned)
			c.SetConfig(cfg)
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := sim.New(plan.Config{}, sim.Options{Seed: 3})
			for i := range 6 {
				c.AddNode(map[string]string{"zone": string("aabbcc"[i])}, 0)
			}
			c.AddShards(90, 64<<20, func(int) []base.StoreID { return []base.StoreID{1, 3, 5} })
			if !c.Settle(100, time.Hour) {
				t.Fatal("it does not come to rest")
			}
			c.ResetStats()
			said := plan.Simulate(c.View(), c.Config(), tc.trial)
			if c.Run(20 * time.Second); c.Stats().Quiet < c.Stats().Rounds {
				t.Fatal("asking has changed the view")
			}
			tc.make(c)
			began := c.Now()
			c.Run(c.Config().DownAfter + time.Minute)
			if !c.Settle(100, 4*time.Hour) {
				t.Fatal("it does not come to rest")
			}
			if said.Unfinished || len(said.Problems) > 0 {
				t.Errorf("foretold: unfinished %t, %q", said.Unfinished, said.Problems)
			}
			done := c.Stats()
			if n := done.Done[plan.OpMove] + done.Done[plan.OpAdd]; n > 0 && (done.Bytes > 2*said.Bytes || said.Bytes > 2*done.Bytes) {
				t.Errorf("foretold %d bytes to be copied, it were %d", said.Bytes, done.Bytes)
			}
			for i, n := range c.Counts() {
				was := said.Nodes[i]
				if was.ID != n.Node || far(was.After.Replicas, n.Replicas, 3) || far(was.After.Leaders, n.Leaders, 3) {
					t.Errorf("%s: foretold %+v, has %+v", n.Node, was.After, n)
				}
			}
			t.Logf("foretold %d operators in %s, %d MiB; it took %s at most, %d MiB", said.Total, said.Took, said.Bytes>>20,
				c.Now()-began, done.Bytes>>20)
		})
	}
}

func far(a, b, tol int) bool { return a-b > tol || b-a > tol }
