package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/shardd/shardd/bench/ycsb"
	"github.com/shardd/shardd/client"
	"github.com/shardd/shardd/client/admin"
)

// startShardd starts three nodes with so many shards over the records that will be loaded, at the product's defaults.
func startShardd(ctx context.Context, binary, dir string, shards int, p ycsb.Properties, flags []string) (*system, error) {
	ports, err := freePorts(6)
	if err != nil {
		return nil, err
	}
	splits, err := ycsb.Splits(p, shards)
	if err != nil {
		return nil, err
	}
	return startSharddAt(ctx, binary, dir, ports, splits, flags)
}

// startSharddAt starts three nodes on ports, the first three for clients and the others for HTTP, with the data that dir
// has from before, if any.
func startSharddAt(ctx context.Context, binary, dir string, ports []string, splits [][]byte, flags []string) (*system, error) {
	s := &system{name: "shardd", http: ports[3:]}
	for i := range 3 {
		args := append([]string{"start", "--data-dir", fmt.Sprintf("%s/n%d", dir, i), "--listen", ports[i],
			"--http", ports[3+i]}, flags...)
		if err := s.start(fmt.Sprintf("%s/n%d.log", dir, i), binary, args...); err != nil {
			return nil, errors.Join(err, s.close())
		}
	}
	endpoints := ports[:3]
	a, err := admin.Open(endpoints)
	if err != nil {
		return nil, errors.Join(err, s.close())
	}
	defer a.Close()
	if err := s.wait(ctx, func(ctx context.Context) error {
		_, err := a.Init(ctx, endpoints, splits)
		return err
	}); err != nil {
		return nil, err
	}
	if err := s.wait(ctx, func(ctx context.Context) error {
		st, err := a.ClusterStatus(ctx)
		if err == nil && (len(st.GetNodes()) < 3 || st.GetShardsCreating()+st.GetShardsWithoutLeader()+st.GetShardsUnderReplicated() > 0) {
			err = errors.New("not all shards have their replicas and a leader: " + strings.Join(endpoints, " "))
		}
		return err
	}); err != nil {
		return nil, err
	}
	db, err := client.Open(ctx, endpoints)
	if err != nil {
		return nil, errors.Join(err, s.close())
	}
	s.closers = append(s.closers, db.Close)
	s.shardd = db
	s.db = func(p ycsb.Properties) (ycsb.DB, error) { return ycsb.NewClient(db, p) }
	return s, nil
}
