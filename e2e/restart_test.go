package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shardd/shardd/bench/ycsb"
	"github.com/shardd/shardd/client"
	"github.com/shardd/shardd/e2e/harness"
)

// restartTimes is one start of a store, in seconds since the process was started.
type restartTimes struct {
	Open      float64 `json:"open_seconds"`       // the port answers: the engine is open
	Loaded    float64 `json:"loaded_seconds"`     // the health check of the store is there: all replicas are loaded
	Ready     float64 `json:"ready_seconds"`      // /readyz says ok
	FirstRead float64 `json:"first_read_seconds"` // a linearizable read of one shard
	AllReads  float64 `json:"all_reads_seconds"`  // of every shard
	RSS       float64 `json:"rss_mib"`            // then
	CPU       float64 `json:"cpu_seconds"`        // until then
}

// restartCell is one store.
type restartCell struct {
	Command  string         `json:"command"`
	Machine  ycsb.Machine   `json:"machine"`
	Replicas int            `json:"replicas"` // of user shards; the meta shard comes on top
	MiB      int            `json:"mib"`
	Disk     float64        `json:"disk_mib"`
	Starts   []restartTimes `json:"starts"`
}

// The time from the start of a process to its first answers, for stores of more and more replicas and data, all of it
// ingested. Each start follows a SIGKILL and finds none of the store's files in the page cache.
func TestFiguresOfRestart(t *testing.T) {
	dir, full := figures(t, "restart")
	replicas, sizes, starts := []int{1, 100}, []int{0, 16}, 1
	if full {
		replicas, sizes, starts = []int{1, 500, 1000, 2000}, []int{0, 1024, 2048}, 5
	}
	var cells []restartCell
	for _, n := range replicas {
		var s *restartStore
		for _, mb := range sizes {
			path := filepath.Join(dir, fmt.Sprintf("r%d-m%d.json", n, mb))
			cell := restartCell{Command: figuresCommand(t), Machine: ycsb.DescribeMachine(), Replicas: n, MiB: mb}
			if !readResult(t, path, &cell) {
				if s == nil {
					s = newRestartStore(t, n)
				}
				s.ingest(mb)
				cell.Disk = s.disk()
				for range starts {
					r := s.restart()
					t.Logf("%d replicas, %d MiB: %+v", n, mb, r)
					cell.Starts = append(cell.Starts, r)
				}
				putResult(t, path, cell)
			}
			cells = append(cells, cell)
		}
		if s != nil {
			s.close()
		}
	}
	fit := fitRestart(cells)
	putResult(t, filepath.Join(dir, "slopes.json"), fit)
	putText(t, filepath.Join(dir, "table.md"), restartTable(cells, fit))
}

// restartStore is a cluster of one node with so many shards.
type restartStore struct {
	t      *testing.T
	c      *harness.Cluster
	shards int
}

func newRestartStore(t *testing.T, shards int) *restartStore {
	t.Helper()
	s := &restartStore{t: t, c: harness.New(t, binaries(t), 1), shards: shards}
	var splits [][]byte
	for i := 1; i < shards; i++ {
		splits = append(splits, s.key(i))
	}
	s.c.Start(0)
	s.c.InitOn(splits, 0)
	s.c.StopAll()
	return s
}

// key is the lowest key of user shard i, but for the first one, which begins below it.
func (s *restartStore) key(i int) []byte { return fmt.Appendf(nil, "%06d", i) }

// close gives the space back before the next store is made.
func (s *restartStore) close() {
	s.t.Helper()
	if err := os.RemoveAll(s.c.Nodes[0].Dir); err != nil {
		s.t.Fatal(err)
	}
}

func (s *restartStore) ingest(mb int) {
	s.t.Helper()
	if mb == 0 {
		return
	}
	began := time.Now()
	if err := ingestEvenly(s.c.Nodes[0].Dir, s.t.TempDir(), mb); err != nil {
		s.t.Fatal(err)
	}
	s.t.Logf("%d shards filled with %d MiB in %s", s.shards, mb, time.Since(began).Round(time.Millisecond))
}

// disk is the size of the store's files, in MiB.
func (s *restartStore) disk() (total float64) {
	s.t.Helper()
	s.files(func(path string, size int64) error {
		total += float64(size) / mib
		return nil
	})
	return total
}

func (s *restartStore) files(visit func(path string, size int64) error) {
	s.t.Helper()
	err := filepath.WalkDir(s.c.Nodes[0].Dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		return visit(path, info.Size())
	})
	if err != nil {
		s.t.Fatal(err)
	}
}

// forget drops the store's files from the page cache.
func (s *restartStore) forget() {
	s.t.Helper()
	s.files(func(path string, _ int64) error {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := f.Sync(); err != nil { // what is dirty stays
			return err
		}
		return unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
	})
}

// restart measures one start and kills the node again.
func (s *restartStore) restart() (r restartTimes) {
	s.t.Helper()
	s.forget()
	ctx, cancel := context.WithTimeout(s.t.Context(), harness.Patience)
	defer cancel()
	n := s.c.Nodes[0]
	began := time.Now()
	s.c.Launch(0)
	since := func() float64 { return time.Since(began).Seconds() }
	s.poll(ctx, "listen", func() error {
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", n.Addr)
		if err == nil {
			err = conn.Close()
		}
		return err
	})
	r.Open = since()
	var both sync.WaitGroup
	both.Go(func() {
		s.poll(ctx, "loaded", func() error {
			if body, _ := readyz(ctx, n.HTTP); !strings.Contains(body, "[+] store: ") {
				return errors.New("not yet: " + body)
			}
			return nil
		})
		r.Loaded = since()
		s.poll(ctx, "ready", func() error {
			_, err := readyz(ctx, n.HTTP)
			return err
		})
		r.Ready = since()
	})
	both.Go(func() {
		db, err := client.Open(ctx, []string{n.Addr}, client.WithTimeout(harness.Patience))
		if err != nil {
			s.t.Error(err)
			return
		}
		defer db.Close()
		s.read(ctx, db, s.shards-1)
		r.FirstRead = since()
		s.readAll(ctx, db)
		r.AllReads = since()
	})
	both.Wait()
	use := scrape(s.t, n.HTTP)
	r.RSS, r.CPU = use["process_resident_memory_bytes"]/mib, use["process_cpu_seconds_total"]
	s.c.Kill(0)
	if s.t.Failed() {
		s.t.FailNow()
	}
	return r
}

// poll tries every few milliseconds: what it waits for is what is measured.
func (s *restartStore) poll(ctx context.Context, what string, try func() error) {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		err := try()
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			s.t.Errorf("%s: %v", what, err)
			return
		case <-s.c.Nodes[0].Proc.Done():
			s.t.Errorf("%s: the node has ended:\n%s", what, harness.Tail(s.c.Nodes[0].LogPath, 15))
			return
		case <-tick.C:
		}
	}
}

// readyz returns what the node says of each of its checks, and an error unless all pass.
func readyz(ctx context.Context, addr string) (body string, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+"/readyz?verbose", nil)
	if err != nil {
		return "", err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = errors.New(resp.Status)
	}
	return string(b), err
}

// read reads one key of user shard i, which may be absent, until it has an answer. It asks anew all the time: the pauses
// of a client that waits for a leader are not what is measured.
func (s *restartStore) read(ctx context.Context, db *client.DB, i int) {
	s.poll(ctx, fmt.Sprint("read shard ", i), func() error {
		try, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
		defer cancel()
		_, err := db.All().Get(try, s.key(i))
		if errors.Is(err, client.ErrNotFound) {
			return nil
		}
		return err
	})
}

// readAll reads every shard, some at a time.
func (s *restartStore) readAll(ctx context.Context, db *client.DB) {
	const readers = 64
	var wg sync.WaitGroup
	for k := range readers {
		wg.Go(func() {
			for i := k; i < s.shards && !s.t.Failed(); i += readers {
				s.read(ctx, db, i)
			}
		})
	}
	wg.Wait()
}

// of is the median of one figure of a cell's starts.
func (c *restartCell) of(get func(r restartTimes) float64) float64 {
	var all []float64
	for _, r := range c.Starts {
		all = append(all, get(r))
	}
	return median(all)
}

// slopes is the plane that fits a figure of all cells best (least squares).
type slopes struct {
	Base        float64 `json:"base_seconds"`
	PerThousand float64 `json:"seconds_per_1000_replicas"`
	PerGiB      float64 `json:"seconds_per_gib"`
}

type restartFit struct {
	Open      slopes `json:"open"`
	Loaded    slopes `json:"loaded"`
	Ready     slopes `json:"ready"`
	FirstRead slopes `json:"first_read"`
	AllReads  slopes `json:"all_reads"`
}

func fitRestart(cells []restartCell) restartFit {
	fit := func(get func(r restartTimes) float64) slopes { return fitPlane(cells, get) }
	return restartFit{
		Open:      fit(func(r restartTimes) float64 { return r.Open }),
		Loaded:    fit(func(r restartTimes) float64 { return r.Loaded }),
		Ready:     fit(func(r restartTimes) float64 { return r.Ready }),
		FirstRead: fit(func(r restartTimes) float64 { return r.FirstRead }),
		AllReads:  fit(func(r restartTimes) float64 { return r.AllReads }),
	}
}

// fitPlane solves the normal equations of seconds = base + a*replicas + b*bytes by Cramer's rule.
func fitPlane(cells []restartCell, get func(r restartTimes) float64) slopes {
	var m [3][3]float64
	var v [3]float64
	for i := range cells {
		x := [3]float64{1, float64(cells[i].Replicas) / 1000, float64(cells[i].MiB) / 1024}
		y := cells[i].of(get)
		for a := range x {
			for b := range x {
				m[a][b] += x[a] * x[b]
			}
			v[a] += x[a] * y
		}
	}
	det := func(m [3][3]float64) float64 {
		return m[0][0]*(m[1][1]*m[2][2]-m[1][2]*m[2][1]) - m[0][1]*(m[1][0]*m[2][2]-m[1][2]*m[2][0]) +
			m[0][2]*(m[1][0]*m[2][1]-m[1][1]*m[2][0])
	}
	var out [3]float64
	if whole := det(m); whole != 0 {
		for col := range out {
			n := m
			for row := range n {
				n[row][col] = v[row]
			}
			out[col] = det(n) / whole
		}
	}
	return slopes{Base: out[0], PerThousand: out[1], PerGiB: out[2]}
}

// restartTable is the result as text.
func restartTable(cells []restartCell, fit restartFit) string {
	var b strings.Builder
	fmt.Fprintf(&b, "One `shardd` process that was killed is started again, on %s; its files are not in the page cache. "+
		"Seconds from the start of the process, medians of %d: until its port answers (the engine is open), until all "+
		"replicas are loaded, until /readyz says ok, until a linearizable read of one shard has succeeded, and of every shard. One "+
		"voter per shard; the data, ingested tables of 1 KiB rows that do not compress, is spread evenly over the shards. "+
		"`%s`\n\n", cells[0].Machine, len(cells[0].Starts), cells[0].Command)
	b.WriteString("| replicas | data MiB | disk MiB | open | loaded | ready | first read | all shards read | CPU s | RSS MiB |\n")
	b.WriteString("|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n")
	for _, c := range cells {
		fmt.Fprintf(&b, "| %d | %d | %.0f | %.2f s | %.2f s | %.2f s | %.2f s | %.2f s | %.2f | %.0f |\n", c.Replicas, c.MiB, c.Disk,
			c.of(func(r restartTimes) float64 { return r.Open }), c.of(func(r restartTimes) float64 { return r.Loaded }),
			c.of(func(r restartTimes) float64 { return r.Ready }),
			c.of(func(r restartTimes) float64 { return r.FirstRead }), c.of(func(r restartTimes) float64 { return r.AllReads }),
			c.of(func(r restartTimes) float64 { return r.CPU }), c.of(func(r restartTimes) float64 { return r.RSS }))
	}
	b.WriteString("\n| least squares | base | per 1,000 replicas | per GiB |\n|---|--:|--:|--:|\n")
	for _, f := range []struct {
		name string
		s    slopes
	}{
		{"open", fit.Open}, {"loaded", fit.Loaded}, {"ready", fit.Ready}, {"first read", fit.FirstRead},
		{"all read", fit.AllReads},
	} {
		fmt.Fprintf(&b, "| %s | %.3f s | %.3f s | %.3f s |\n", f.name, f.s.Base, f.s.PerThousand, f.s.PerGiB)
	}
	return b.String()
}
