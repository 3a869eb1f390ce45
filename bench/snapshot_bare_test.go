package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"
	"github.com/cockroachdb/pebble/v2/sstable"
	"google.golang.org/grpc"

	sharddv1 "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/transport"
)

// bareBench copies a shard with Pebble and gRPC alone: tables of 16 MiB built from the rows, with the options that the
// engine's have, sent as 1 MiB messages of one stream, written and synced at the other end, and ingested at once in place
// of what was there. Nothing is checked on the way, limited, counted, or can be resumed.
type bareBench struct {
	client sharddv1.SnapshotServiceClient
	sink   *bareSink
}

func newBareBench(b testing.TB) *bareBench {
	b.Helper()
	dir := b.TempDir()
	db, err := pebble.Open(filepath.Join(dir, "db"), &pebble.Options{
		FormatMajorVersion: pebble.FormatValueSeparation, Logger: quietPebble{b},
	})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := db.Close(); err != nil {
			b.Error(err)
		}
	})
	x := &bareBench{sink: &bareSink{dir: dir, db: db}}
	x.client = sharddv1.NewSnapshotServiceClient(serve(b, transport.DialOptions(), func(r grpc.ServiceRegistrar) {
		sharddv1.RegisterSnapshotServiceServer(r, x.sink)
	}))
	return x
}

// quietPebble drops what Pebble says of its work.
type quietPebble struct{ tb testing.TB }

func (quietPebble) Infof(string, ...any)           {}
func (q quietPebble) Errorf(f string, args ...any) { q.tb.Errorf(f, args...) }
func (q quietPebble) Fatalf(f string, args ...any) { q.tb.Fatalf(f, args...) }

// copy sends all rows of the shard and returns once they are ingested.
func (x *bareBench) copy(ctx context.Context, s *snapshotBench) error {
	view, err := s.source.OpenView(s.desc.Shard)
	if err != nil {
		return err
	}
	defer view.Close()
	stream, err := x.client.Stream(ctx)
	if err != nil {
		return err
	}
	it, err := view.NewIter(s.desc.Start, s.desc.End)
	if err != nil {
		return err
	}
	table := &memTable{}
	var w *sstable.Writer
	size := 0
	send := func() error {
		if err := w.Close(); err != nil {
			return err
		}
		w, size = nil, 0
		for left := table.Bytes(); len(left) > 0; {
			n := min(1<<20, len(left))
			part := &sharddv1.SnapshotPart{Data: left[:n], Last: n == len(left)}
			if err := stream.Send(&sharddv1.StreamRequest{Frame: &sharddv1.StreamRequest_Part{Part: part}}); err != nil {
				return err
			}
			left = left[n:]
		}
		table.Reset()
		return nil
	}
	for ; err == nil && it.Valid(); it.Next() {
		if w == nil {
			w = sstable.NewWriter(table, sstable.WriterOptions{
				Comparer: pebble.DefaultComparer, TableFormat: pebble.FormatValueSeparation.MaxTableFormat(),
				Compression: sstable.FastestCompression, BlockSize: 32 << 10, IndexBlockSize: 256 << 10,
				FilterPolicy: bloom.FilterPolicy(10), FilterType: pebble.TableFilter, DisableValueBlocks: true,
			})
		}
		key, value := it.Key(), it.Value()
		if err = w.Set(key, value); err == nil {
			if size += len(key) + len(value); size >= benchChunk {
				err = send()
			}
		}
	}
	if err == nil && w != nil {
		err = send()
	}
	if err = errors.Join(err, it.Close()); err != nil {
		return err
	}
	if err := stream.CloseSend(); err != nil {
		return err
	}
	_, err = stream.Recv()
	return err
}

// memTable is a table being built. Pebble may scribble over what it hands to Write.
type memTable struct{ bytes.Buffer }

func (t *memTable) Write(p []byte) error { _, err := t.Buffer.Write(p); return err }
func (t *memTable) Finish() error        { return nil }
func (t *memTable) Abort()               {}

// bareSink takes the stream.
type bareSink struct {
	sharddv1.UnimplementedSnapshotServiceServer
	dir  string
	db   *pebble.DB
	next int
}

// Stream writes the tables to files and ingests them at the end.
func (x *bareSink) Stream(ss sharddv1.SnapshotService_StreamServer) error {
	var paths []string
	var f *os.File
	for {
		m, err := ss.Recv()
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		if f == nil {
			x.next++
			paths = append(paths, filepath.Join(x.dir, fmt.Sprintf("%06d.sst", x.next)))
			if f, err = os.Create(paths[len(paths)-1]); err != nil {
				return err
			}
		}
		if _, err := f.Write(m.GetPart().GetData()); err != nil {
			return err
		}
		if m.GetPart().GetLast() {
			if err := errors.Join(f.Sync(), f.Close()); err != nil {
				return err
			}
			f = nil
		}
	}
	all := pebble.KeyRange{Start: []byte{0}, End: []byte{0xff}}
	if _, err := x.db.IngestAndExcise(ss.Context(), paths, nil, nil, all); err != nil {
		return err
	}
	for _, p := range paths { // Pebble has links of its own
		if err := os.Remove(p); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return ss.Send(&sharddv1.StreamResponse{Frame: &sharddv1.StreamResponse_Installed{
		Installed: &sharddv1.SnapshotInstalled{}}})
}

// rows counts what is there.
func (x *bareSink) rows() (n int, err error) {
	it, err := x.db.NewIter(nil)
	if err != nil {
		return 0, err
	}
	for ok := it.First(); ok; ok = it.Next() {
		n++
	}
	return n, errors.Join(it.Error(), it.Close())
}
