package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/shardd/shardd/client"
	"github.com/shardd/shardd/e2e/harness"
	"github.com/shardd/shardd/engine"
)

// Two of three nodes are lost for ever, and with them the quorum of every shard, the system's own included. shardctl
// plans, is given the phrase, and follows it to its end; what the last node had is there, it serves alone, a lost node that
// comes back is refused, and the cluster grows again.
func TestTwoOfThreeNodesAreLostForEver(t *testing.T) {
	const shards, rows = 6, 50
	c := harness.New(t, binaries(t), 4)
	for i := range 3 {
		c.Start(i)
	}
	c.InitOn(splitsOf(shards), 0, 1, 2)
	c.WaitHealthy()
	db := c.DB(client.WithTimeout(20 * time.Second))
	key := func(s, n int) []byte { return fmt.Appendf(nil, "%02d-%03d", s, n) }
	for s := range shards {
		for n := range rows {
			if _, err := db.All().Put(t.Context(), key(s, n), key(n, s)); err != nil {
				t.Fatal(err)
			}
		}
	}
	c.Verify() // at one index all replicas are equal: nothing that was acknowledged is missing on any of them
	ids := []uint64{c.ID(0), c.ID(1)}
	failed := fmt.Sprintf("n%d,n%d", min(ids[0], ids[1]), max(ids[0], ids[1]))
	c.Kill(0)
	c.Kill(1)
	phrase := fmt.Sprintf("give up %s and recover %d shards", strings.ReplaceAll(failed, ",", " "), shards+1)
	from := time.Now()
	for {
		out, errOut, code := c.Ctl("unsafe", "recover-quorum", "--failed", failed, "--confirm", phrase)
		if code == 0 {
			t.Logf("recovered after %s:\n%s", time.Since(from).Round(time.Millisecond), out)
			break
		}
		// The last leaders have to notice first that nobody follows.
		if time.Since(from) > harness.Patience {
			t.Fatalf("exit code %d\n%s%s", code, out, errOut)
		}
		time.Sleep(200 * time.Millisecond)
	}
	for s := range shards {
		for n := range rows {
			got, err := db.All().Get(t.Context(), key(s, n))
			if err != nil || string(got.Bytes) != string(key(n, s)) {
				t.Fatalf("%s is %q: %v", key(s, n), got.Bytes, err)
			}
		}
	}
	if _, err := db.All().Put(t.Context(), []byte("after"), []byte("x")); err != nil {
		t.Fatal(err)
	}
	c.Launch(0)
	if code, err := c.Nodes[0].Proc.Wait(harness.Patience); err != nil || code != engine.ExitOtherStore {
		t.Errorf("a lost node that is back ends with %d, %v", code, err)
	}
	if !strings.Contains(harness.Tail(c.Nodes[0].LogPath, 5), "removed from the cluster") {
		t.Errorf("it does not say why:\n%s", harness.Tail(c.Nodes[0].LogPath, 5))
	}
	c.Join(3)
	if out, errOut, code := c.Ctl("nodes", "list"); code != 0 || strings.Count(out, "removed") != 2 {
		t.Errorf("nodes: %d\n%s%s", code, out, errOut)
	}
}
