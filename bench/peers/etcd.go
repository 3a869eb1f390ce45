package main

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"

	"github.com/shardd/shardd/bench/ycsb"
)

// etcdCommand is one member of an etcd cluster at etcd's own defaults: the addresses, the directory and a quiet log are
// all that is set, and the quota of the backend, whose default of 2 GiB a long run would exceed.
func etcdCommand() *cobra.Command {
	var name, dir, client, peer, cluster string
	c := &cobra.Command{Use: "etcd", Short: "Run one embedded etcd member", Hidden: true, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg := embed.NewConfig()
			cfg.Name, cfg.Dir, cfg.InitialCluster = name, dir, cluster
			cfg.LogLevel, cfg.QuotaBackendBytes = "error", 8<<30
			cu, pu, err := parseBoth(client, peer)
			if err != nil {
				return err
			}
			cfg.ListenClientUrls, cfg.AdvertiseClientUrls = cu, cu
			cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = pu, pu
			e, err := embed.StartEtcd(cfg)
			if err != nil {
				return fmt.Errorf("start etcd: %w", err)
			}
			defer e.Close()
			select {
			case err := <-e.Err():
				return err
			case <-cmd.Context().Done():
				return nil
			}
		}}
	f := c.Flags()
	f.StringVar(&name, "name", "", "name of the member")
	f.StringVar(&dir, "dir", "", "data directory")
	f.StringVar(&client, "client", "", "URL for clients")
	f.StringVar(&peer, "peer", "", "URL for the other members")
	f.StringVar(&cluster, "cluster", "", "all members, as name=url,...")
	return c
}

func parseBoth(client, peer string) (cu, pu []url.URL, err error) {
	c, err := url.Parse(client)
	if err != nil {
		return nil, nil, err
	}
	p, err := url.Parse(peer)
	if err != nil {
		return nil, nil, err
	}
	return []url.URL{*c}, []url.URL{*p}, nil
}

// etcdDB is etcd for the YCSB driver: linearizable reads, one key a record. The clients share a few connections to each
// member, as etcd's own benchmark does with --conns.
type etcdDB struct {
	clients []*clientv3.Client
	next    chan *clientv3.Client
}

const etcdConns = 8

func openEtcd(endpoints []string) (*etcdDB, error) {
	d := &etcdDB{next: make(chan *clientv3.Client, etcdConns)}
	for range etcdConns {
		c, err := clientv3.New(clientv3.Config{Endpoints: endpoints, DialTimeout: 10 * time.Second})
		if err != nil {
			return nil, errors.Join(err, d.close())
		}
		d.clients = append(d.clients, c)
		d.next <- c
	}
	return d, nil
}

func (d *etcdDB) close() error {
	var errs []error
	for _, c := range d.clients {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}

// client takes turns.
func (d *etcdDB) client() *clientv3.Client {
	c := <-d.next
	d.next <- c
	return c
}

func (d *etcdDB) Read(ctx context.Context, key []byte) ([]byte, error) {
	r, err := d.client().Get(ctx, string(key))
	if err != nil {
		return nil, err
	}
	if len(r.Kvs) == 0 {
		return nil, fmt.Errorf("key %q is not there", key)
	}
	return r.Kvs[0].Value, nil
}

func (d *etcdDB) Insert(ctx context.Context, key, record []byte) error {
	_, err := d.client().Put(ctx, string(key), string(record))
	return err
}

func (d *etcdDB) Update(ctx context.Context, key, record []byte) error {
	return d.Insert(ctx, key, record)
}

func (d *etcdDB) Scan(ctx context.Context, start []byte, count int, visit func(key, record []byte)) error {
	r, err := d.client().Get(ctx, string(start), clientv3.WithFromKey(), clientv3.WithLimit(int64(count)))
	if err != nil {
		return err
	}
	for _, kv := range r.Kvs {
		visit(kv.Key, kv.Value)
	}
	return nil
}

var _ ycsb.DB = (*etcdDB)(nil)

// startEtcd starts three members and waits until they answer.
func startEtcd(ctx context.Context, self, dir string) (*system, error) {
	ports, err := freePorts(6)
	if err != nil {
		return nil, err
	}
	var members, endpoints []string
	for i := range 3 {
		members = append(members, fmt.Sprintf("m%d=http://%s", i, ports[3+i]))
		endpoints = append(endpoints, "http://"+ports[i])
	}
	s := &system{name: "etcd"}
	for i := range 3 {
		err := s.start(fmt.Sprintf("%s/m%d.log", dir, i), self, "etcd", "--name", fmt.Sprintf("m%d", i),
			"--dir", fmt.Sprintf("%s/m%d", dir, i), "--client", endpoints[i], "--peer", "http://"+ports[3+i],
			"--cluster", strings.Join(members, ","))
		if err != nil {
			return nil, errors.Join(err, s.close())
		}
	}
	db, err := openEtcd(endpoints)
	if err != nil {
		return nil, errors.Join(err, s.close())
	}
	s.db, s.closers = func(ycsb.Properties) (ycsb.DB, error) { return db, nil }, append(s.closers, db.close)
	return s, s.wait(ctx, func(ctx context.Context) error {
		_, err := db.clients[0].Put(ctx, "ready", "yes")
		return err
	})
}
