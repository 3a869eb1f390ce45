package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/shardd/shardd/bench/ycsb"
)

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

// startEtcd starts three members (the program in etcdnode) and waits until they answer.
func startEtcd(ctx context.Context, binary, dir string) (*system, error) {
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
		err := s.start(fmt.Sprintf("%s/m%d.log", dir, i), binary, "--name", fmt.Sprintf("m%d", i),
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
