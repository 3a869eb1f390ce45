// Command shardd runs a node of a Shardd cluster, or a whole demonstration cluster in one process. It turns flags, a
// settings file and the environment into a node.Config, and signals into a graceful stop; it decides nothing else.
package main

import (
	"context"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/shardd/shardd/internal/cli"
)

func main() {
	ctx, stop := untilSignal(os.Stderr)
	code := cli.Execute(ctx, newRoot(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// untilSignal returns a context that the first SIGINT or SIGTERM ends; a second one ends the process at once.
func untilSignal(errOut io.Writer) (context.Context, func()) {
	ctx, cancel := context.WithCancel(context.Background())
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	go func() {
		if _, ok := <-signals; !ok {
			return
		}
		cancel()
		if sig, ok := <-signals; ok {
			_, _ = io.WriteString(errOut, "shardd: second signal, ending at once\n")
			os.Exit(128 + int(sig.(syscall.Signal)))
		}
	}()
	return ctx, func() {
		signal.Stop(signals)
		close(signals)
		cancel()
	}
}

const exitHelp = `Exit codes:
   0  stopped as asked
   1  failed
   2  bad flag, argument or setting
  10  the data directory is used by another process
  11  the data directory or a peer belongs to another cluster
  12  the data directory belongs to another node or to one that was removed, or an older copy of it came back
  13  the data is corrupt
  14  no space left on the disk
  15  the data was written by a newer version`

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "shardd",
		Short: "Shardd, a sharded and replicated key-value store",
		Long: `Shardd is a sharded key-value store: thousands of Raft groups share one storage engine, one transport and one
pool of workers per node.

  shardd demo                             a cluster in this process, loaded and measured
  shardd start --data-dir n1              one node; shardctl init makes a cluster of it

` + exitHelp,
		CompletionOptions: cobra.CompletionOptions{DisableDefaultCmd: true},
	}
	root.AddCommand(newStart(), newDemo(), newConfig(), newDebug(), newVersion())
	return root
}
