package main

import (
	"time"

	"github.com/spf13/cobra"

	"github.com/shardd/shardd/client"
	"github.com/shardd/shardd/internal/cli"
)

// readFlags say from where get and scan read.
type readFlags struct {
	follower bool
	stale    time.Duration
	labels   map[string]string
}

func (f *readFlags) add(c *cobra.Command) {
	fl := c.Flags()
	fl.BoolVar(&f.follower, "follower", false, "read at the nearest replica, preferably a follower; as fresh as at the leader")
	fl.DurationVar(&f.stale, "stale", 0, "read at the nearest replica and accept a state of up to this age, such as 2s")
	fl.StringToStringVar(&f.labels, "labels", nil,
		"where you are, as nodes label themselves (zone=a,rack=3); the replica that shares the most is the nearest")
}

// options returns what the flags ask for. It also tells o where the caller is.
func (f *readFlags) options(c *cobra.Command, o *conn) ([]client.ReadOption, error) {
	var out []client.ReadOption
	if f.follower {
		out = append(out, client.AtFollower())
	}
	if c.Flags().Changed("stale") {
		if f.stale < time.Millisecond {
			return nil, cli.Usagef("--stale %s: want 1ms or more", f.stale)
		}
		out = append(out, client.Stale(f.stale))
	}
	if len(f.labels) > 0 && len(out) == 0 {
		return nil, cli.Usagef("--labels says which replica is near, and without --follower or --stale the leader is read")
	}
	o.labels = f.labels
	return out, nil
}
