// Command shardctl makes, inspects and uses a Shardd cluster from the command line. Each verb is one call or a few of
// the public client and admin packages; it keeps no state and decides nothing that the cluster should decide.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/shardd/shardd/client"
	"github.com/shardd/shardd/client/admin"
	"github.com/shardd/shardd/internal/cli"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	code := cli.Execute(ctx, newRoot(os.Getenv), os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

const defaultEndpoint = "127.0.0.1:7400"

// conn is what every verb needs to reach a cluster.
type conn struct {
	getenv    func(string) string
	endpoints []string
	timeout   time.Duration
	output    string
	labels    map[string]string // where the caller is; nil: not said
}

func newRoot(getenv func(string) string) *cobra.Command {
	o := &conn{getenv: getenv}
	root := &cobra.Command{
		Use:   "shardctl",
		Short: "Make, inspect and use a Shardd cluster",
		Long: `Make, inspect and use a Shardd cluster.

Any node of the cluster can be asked; several endpoints let shardctl go on while one is down. Nodes are named n1, n2
and so on, shards s1, s2, jobs j1, j2; the plain number works too.

Exit codes:
   0  ok
   1  failed
   2  usage: bad flag, argument, key or value
   3  not found
   4  unhealthy
   5  timed out
   6  conflict: a condition did not hold, nothing was written
   7  unreachable: no endpoint answered
   8  the job was cancelled
 130  Ctrl-C while a job was watched; the job goes on`,
		PersistentPreRunE: func(*cobra.Command, []string) error { return o.check() },
	}
	f := root.PersistentFlags()
	f.StringSliceVar(&o.endpoints, "endpoints", nil,
		"addresses of nodes, separated by commas (SHARDCTL_ENDPOINTS; default "+
			defaultEndpoint+")")
	f.DurationVar(&o.timeout, "timeout", 10*time.Second, "longest time that the command takes; a job is followed "+
		"without limit unless this is given")
	f.StringVarP(&o.output, "output", "o", "text", "text or json")
	root.AddCommand(newInit(o), newStatus(o), newHealth(o), newVersion(o), newPut(o), newGet(o), newDel(o), newScan(o),
		newCAS(o), newNodes(o), newShards(o), newJobs(o), newVerify(o), newSnapshots(o), newBench(o),
		newWhy(o), newBalance(o), newZones(o), newHot(o), newTop(o), newUnsafe(o), newDebug(o))
	root.InitDefaultCompletionCmd()
	return root
}

func (o *conn) check() error {
	if len(o.endpoints) == 0 {
		for _, e := range strings.Split(o.getenv("SHARDCTL_ENDPOINTS"), ",") {
			if e = strings.TrimSpace(e); e != "" {
				o.endpoints = append(o.endpoints, e)
			}
		}
	}
	if len(o.endpoints) == 0 {
		o.endpoints = []string{defaultEndpoint}
	}
	for _, e := range o.endpoints {
		if !strings.Contains(e, ":") {
			return cli.Usagef("endpoint %q is not host:port (such as %s)", e, defaultEndpoint)
		}
	}
	if o.timeout <= 0 {
		return cli.Usagef("--timeout %s: want more than 0", o.timeout)
	}
	return nil
}

// format checks -o against the forms that a verb has.
func (o *conn) format(forms ...string) error {
	for _, f := range forms {
		if o.output == f {
			return nil
		}
	}
	return cli.Usagef("-o %s: want %s", o.output, strings.Join(forms, " or "))
}

// json reports whether the output is JSON, after checking that it is that or text.
func (o *conn) json() (bool, error) { return o.output == "json", o.format("text", "json") }

// withAdmin runs f with an admin client, within the time-out.
func (o *conn) withAdmin(c *cobra.Command, f func(ctx context.Context, a *admin.Client) error) error {
	ctx, cancel := context.WithTimeout(c.Context(), o.timeout)
	defer cancel()
	a, err := admin.Open(o.endpoints)
	if err != nil {
		return o.explain(ctx, err)
	}
	defer a.Close()
	return o.explain(ctx, f(ctx, a))
}

// withDB runs f with a client, within the time-out.
func (o *conn) withDB(c *cobra.Command, f func(ctx context.Context, db *client.DB) error) error {
	ctx, cancel := context.WithTimeout(c.Context(), o.timeout)
	defer cancel()
	db, err := o.open(ctx)
	if err != nil {
		return err
	}
	defer db.Close()
	return o.explain(ctx, f(ctx, db))
}

// open connects to the cluster. Its error has its exit code.
func (o *conn) open(ctx context.Context) (*client.DB, error) {
	db, err := client.Open(ctx, o.endpoints, client.WithTimeout(o.timeout), client.WithLabels(o.labels))
	if err != nil {
		return nil, o.unreachable(err)
	}
	return db, nil
}

// unreachable says why no endpoint could serve a call. An endpoint that answered, but could not serve it, is more to the
// point than those where nobody listens.
func (o *conn) unreachable(err error) error {
	text := err.Error()
	var e *admin.Error
	if errors.As(err, &e) && e.Err != nil {
		text = e.Err.Error() // a line for each endpoint
	}
	var said []string
	for l := range strings.Lines(text) {
		if l = strings.TrimSpace(l); l != "" && dialReason(l) == l && !slices.Contains(said, l) {
			said = append(said, l)
		}
	}
	if e != nil && len(said) > 0 {
		return cli.Fail(cli.ExitUnreachable, "`shardctl health` shows what is wrong. Most nodes must run; if they are "+
			"lost for ever, see docs/runbooks/quorum-loss.md.", "no endpoint could "+
			"serve it: %s", strings.Join(said, "; "))
	}
	return cli.Fail(cli.ExitUnreachable, "Is a node running there? --endpoints or SHARDCTL_ENDPOINTS name others; "+
		"`shardctl init` makes a cluster of fresh nodes.", "no answer from %s: %s", strings.Join(o.endpoints, ", "),
		dialReason(text))
}

// dialReason is the part of a dialling error that says something to a person, all of it if there is no such part.
func dialReason(text string) string {
	for _, reason := range []string{"connection refused", "no such host", "i/o timeout", "network is unreachable",
		"no route to host"} {
		if strings.Contains(text, reason) {
			return reason
		}
	}
	return text
}

// explain gives an error of the client its exit code and advice.
func (o *conn) explain(ctx context.Context, err error) error {
	var done *cli.Error
	if err == nil || errors.As(err, &done) {
		return err
	}
	code, next := cli.ExitFailed, ""
	switch {
	case errors.Is(err, client.ErrNotFound), errors.Is(err, admin.ErrNotFound):
		code = cli.ExitNotFound
	case errors.Is(err, admin.ErrConflict):
		code = cli.ExitConflict
	case errors.Is(err, client.ErrConflict):
		code, next = cli.ExitConflict, "Nothing was written. `shardctl get -o json KEY` shows the version to expect."
	case errors.Is(err, client.ErrInvalid), errors.Is(err, client.ErrOutOfRange), errors.Is(err, client.ErrCrossShard),
		errors.Is(err, admin.ErrInvalid):
		code = cli.ExitUsage
	case errors.Is(err, client.ErrAmbiguous):
		next = "The write may or may not have happened: read before you write again."
		if errors.Is(ctx.Err(), context.DeadlineExceeded) || errors.Is(err, context.DeadlineExceeded) {
			code = cli.ExitTimeout
		}
	case errors.Is(err, client.ErrOverloaded):
		next = "The cluster is busy. Nothing was written; try again."
	case errors.Is(err, client.ErrDiskFull):
		next = "Nothing was written. `shardctl nodes list` shows whose disk is full; deletes still work."
	case errors.Is(err, admin.ErrUnreachable):
		return o.unreachable(err)
	case errors.Is(err, client.ErrUnavailable), errors.Is(err, context.DeadlineExceeded),
		errors.Is(err, admin.ErrTimedOut):
		code, next = cli.ExitTimeout, "`shardctl health` shows what is wrong; --timeout gives it longer."
	}
	return &cli.Error{Code: code, Err: err, Next: next}
}

// number reads an id with or without its letter: n4, s12, 12.
func number(what, letter, arg string) (uint64, error) {
	var n uint64
	digits := strings.TrimPrefix(strings.ToLower(arg), letter)
	if _, err := fmt.Sscanf(digits+" ", "%d ", &n); err != nil || fmt.Sprint(n) != digits || n == 0 {
		return 0, cli.Usagef("%q is not a %s: want %s1, %s2, ...", arg, what, letter, letter)
	}
	return n, nil
}
