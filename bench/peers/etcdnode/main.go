// Command etcdnode is one member of an etcd cluster at etcd's own defaults: the addresses, the directory and a quiet log are
// all that is set, and the quota of the backend, whose default of 2 GiB a long run would exceed. It is a program of its own,
// since etcd's Raft library and Shardd's register the same protobuf messages and do not fit into one.
package main

import (
	"context"
	"flag"
	"fmt"
	"net/url"
	"os"
	"os/signal"
	"syscall"

	"go.etcd.io/etcd/server/v3/embed"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "etcdnode:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	cfg := embed.NewConfig()
	cfg.LogLevel, cfg.QuotaBackendBytes = "error", 8<<30
	flag.StringVar(&cfg.Name, "name", "", "name of the member")
	flag.StringVar(&cfg.Dir, "dir", "", "data directory")
	flag.StringVar(&cfg.InitialCluster, "cluster", "", "all members, as name=url,...")
	client := flag.String("client", "", "URL for clients")
	peer := flag.String("peer", "", "URL for the other members")
	flag.Parse()
	cu, err := url.Parse(*client)
	if err != nil {
		return err
	}
	pu, err := url.Parse(*peer)
	if err != nil {
		return err
	}
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = []url.URL{*cu}, []url.URL{*cu}
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = []url.URL{*pu}, []url.URL{*pu}
	e, err := embed.StartEtcd(cfg)
	if err != nil {
		return fmt.Errorf("start etcd: %w", err)
	}
	defer e.Close()
	select {
	case err := <-e.Err():
		return err
	case <-ctx.Done():
		return nil
	}
}
