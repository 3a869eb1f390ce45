package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	sharddv1 "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/client/admin"
	"github.com/shardd/shardd/internal/cli"
)

// Watching a job: ask, show, wait, ask again. The job runs in the cluster; whatever happens here, it goes on. A node
// that stops answering, or a meta shard that changes its leader, only means to ask again, until silence has lasted
// too long.

const (
	askEvery   = 250 * time.Millisecond
	askLimit   = 10 * time.Second // one question, at all endpoints together
	maxSilence = time.Minute
)

// watcher follows one job to its end.
type watcher struct {
	get     func(ctx context.Context) (*sharddv1.Job, error)
	view    jobView
	pause   func(ctx context.Context, d time.Duration) // returns early when ctx ends
	now     func() time.Time
	silence time.Duration // how long no answer is borne; 0: maxSilence
}

// jobView shows a job as it stands. trouble is why the last question got no answer, "" if it got one.
type jobView interface {
	show(j *sharddv1.Job, elapsed time.Duration, trouble string) error
}

// follow shows the job until it has ended and returns it as it was then. It fails with the context's error, with that
// of a question that no repeating mends, or with the last one when silence has lasted too long.
func (w *watcher) follow(ctx context.Context, last *sharddv1.Job) (*sharddv1.Job, error) {
	limit := w.silence
	if limit == 0 {
		limit = maxSilence
	}
	answered := w.now()
	var base time.Duration // how long the job had run at the first look
	first, seen := answered, last != nil
	if seen {
		base = took(last)
	}
	for ctx.Err() == nil {
		one, cancel := context.WithTimeout(ctx, askLimit)
		j, err := w.get(one)
		cancel()
		now := w.now()
		trouble := ""
		switch {
		case err == nil:
			if !seen {
				base, seen = took(j), true
			}
			answered, last = now, j
		case ctx.Err() != nil:
			return last, ctx.Err()
		case !askAgain(err):
			return last, err
		case now.Sub(answered) > limit:
			return last, err
		default:
			trouble = fmt.Sprintf("no answer for %s, asking again", clockFace(now.Sub(answered)))
		}
		if last != nil {
			elapsed := base + now.Sub(first)
			if admin.Ended(last) {
				elapsed = took(last)
			}
			if err := w.view.show(last, elapsed, trouble); err != nil {
				return last, err
			}
			if admin.Ended(last) {
				return last, nil
			}
		}
		w.pause(ctx, askEvery)
	}
	return last, ctx.Err()
}

// askAgain reports whether another node, or the same one a moment later, may answer what this one could not.
func askAgain(err error) bool {
	return errors.Is(err, admin.ErrUnreachable) || errors.Is(err, admin.ErrTimedOut)
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// barsView redraws the job in place on a terminal.
type barsView struct {
	screen *cli.Screen
	drawing
}

func (v *barsView) show(j *sharddv1.Job, elapsed time.Duration, trouble string) error {
	return v.screen.Draw(v.lines(j, elapsed, trouble, v.screen.Width()))
}

// linesView writes a line per change.
type linesView struct {
	w       io.Writer
	last    *sharddv1.Job
	trouble bool
}

func (v *linesView) show(j *sharddv1.Job, elapsed time.Duration, trouble string) error {
	lines := jobLines(v.last, j, elapsed)
	if trouble != "" && !v.trouble { // once, not with every question
		lines = append(lines, jobName(j.GetJobId())+" "+clockFace(elapsed)+"  "+trouble)
	}
	v.last, v.trouble = j, trouble != ""
	for _, l := range lines {
		if _, err := fmt.Fprintln(v.w, l); err != nil {
			return err
		}
	}
	return nil
}

// quietView shows nothing: the result alone is wanted.
type quietView struct{}

func (quietView) show(*sharddv1.Job, time.Duration, string) error { return nil }

// newView is the view for the output of a command: nothing for JSON, bars on a terminal, lines elsewhere.
func newView(w io.Writer, asJSON bool) jobView {
	if asJSON {
		return quietView{}
	}
	if s := cli.NewScreen(w); s != nil {
		return &barsView{screen: s}
	}
	return &linesView{w: w}
}

// watchJob follows a job and gives its end as text or JSON and as the exit code. --timeout bounds it only if given.
func (o *conn) watchJob(c *cobra.Command, a *admin.Client, id uint64, last *sharddv1.Job, asJSON bool) error {
	ctx := c.Context()
	if c.Flags().Changed("timeout") {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, o.timeout)
		defer cancel()
	}
	w := &watcher{get: func(ctx context.Context) (*sharddv1.Job, error) { return a.GetJob(ctx, id) },
		view: newView(c.OutOrStdout(), asJSON), pause: pause, now: time.Now}
	j, err := w.follow(ctx, last)
	name := jobName(id)
	switch {
	case c.Context().Err() != nil:
		return cli.Fail(cli.ExitInterrupted, fmt.Sprintf("It goes on: `shardctl jobs watch %s` shows it again, "+
			"`shardctl jobs cancel %[1]s` ends it.", name), "no longer watching job %s", name)
	case errors.Is(err, context.DeadlineExceeded) && ctx.Err() != nil:
		return cli.Fail(cli.ExitTimeout, fmt.Sprintf("It goes on: `shardctl jobs watch %s` shows it again; --timeout "+
			"gives it longer.", name), "job %s had not ended after %s", name, o.timeout)
	case err != nil && askAgain(err):
		return cli.Fail(cli.ExitUnreachable, fmt.Sprintf("The job goes on as soon as most nodes run: `shardctl health`, "+
			"then `shardctl jobs watch %s`.", name), "nothing heard of job %s for %s: %w", name, maxSilence, err)
	case err != nil:
		return err
	}
	return endJob(c, j, asJSON)
}

// endJob prints a job that has ended and returns what its end means.
func endJob(c *cobra.Command, j *sharddv1.Job, asJSON bool) error {
	if asJSON {
		if err := cli.JSON(c.OutOrStdout(), toJobJSON(j)); err != nil {
			return err
		}
		return jobEnd(j)
	}
	if err := jobEnd(j); err != nil {
		return err
	}
	_, err := fmt.Fprintf(c.OutOrStdout(), "job %s done in %s: %s\n", jobName(j.GetJobId()), clockFace(took(j)),
		jobTitle(j.GetSpec()))
	return err
}
