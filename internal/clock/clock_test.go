package clock

import (
	"testing"
	"testing/synctest"
	"time"
)

func TestSystemBootTimeNeverGoesBack(t *testing.T) {
	c := System()
	last := c.Boot()
	if last <= 0 {
		t.Fatalf("boot time %s", last)
	}
	for range 1000 {
		now := c.Boot()
		if now < last {
			t.Fatalf("%s after %s", now, last)
		}
		last = now
	}
	if w := c.Wall(); w.IsZero() {
		t.Fatal("no wall time")
	}
}

func TestProcessClockFollowsVirtualTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := Process()
		wall := c.Wall()
		if c.Boot() != 0 {
			t.Fatalf("starts at %s", c.Boot())
		}
		time.Sleep(time.Hour)
		if c.Boot() != time.Hour || c.Wall().Sub(wall) != time.Hour {
			t.Fatalf("boot %s, wall %s after an hour", c.Boot(), c.Wall().Sub(wall))
		}
	})
}
