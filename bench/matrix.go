package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/shardd/shardd/bench/ycsb"
)

// MatrixConfig says what a matrix of measurements covers.
type MatrixConfig struct {
	// Endpoints are the gRPC addresses (host:port) of one or more nodes. Required.
	Endpoints []string
	// Dir is where the results are, one JSON file for each cell. Required; made if missing.
	Dir string
	// Workloads defaults to a, b, c, f, d, e: YCSB's order, with the workloads that insert last.
	Workloads []string
	// Clients are the numbers of concurrent clients; default 64 and 256.
	Clients []int
	// Records is how many are loaded; default 100,000.
	Records int64
	// Duration is measured for each cell, after Warmup; defaults 30 s and 5 s.
	Duration, Warmup time.Duration
	// LoadClients is how many clients load; default 64.
	LoadClients int
	// Overrides are further properties, as key=value, over those of the workload.
	Overrides []string
	// AnyCluster accepts cells of the same settings that were measured on another cluster, for clusters that are made
	// anew for each run; the records are loaded again.
	AnyCluster bool
	// Progress, if set, is told what goes on, a line at a time.
	Progress func(string)
}

func (c MatrixConfig) withDefaults() MatrixConfig {
	if len(c.Workloads) == 0 {
		c.Workloads = []string{"a", "b", "c", "f", "d", "e"}
	}
	if len(c.Clients) == 0 {
		c.Clients = []int{64, 256}
	}
	if c.Records == 0 {
		c.Records = 100_000
	}
	if c.Duration == 0 {
		c.Duration = 30 * time.Second
	}
	if c.Warmup == 0 {
		c.Warmup = 5 * time.Second
	}
	if c.LoadClients == 0 {
		c.LoadClients = 64
	}
	if c.Progress == nil {
		c.Progress = func(string) {}
	}
	return c
}

// validate finds what would only show hours later.
func (c MatrixConfig) validate() error {
	if c.Dir == "" {
		return errors.New("matrix: Dir is missing")
	}
	for _, w := range c.Workloads {
		for _, n := range c.Clients {
			p, err := c.properties(w, n)
			if err == nil {
				err = p.Validate()
			}
			if err != nil {
				return fmt.Errorf("matrix: workload %s with %d clients: %w", w, n, err)
			}
		}
	}
	return nil
}

// properties are those of a workload in this matrix.
func (c MatrixConfig) properties(workload string, clients int) (ycsb.Properties, error) {
	p, err := ycsb.Workload(workload)
	if err != nil {
		return nil, err
	}
	p["recordcount"] = strconv.FormatInt(c.Records, 10)
	p["threadcount"] = strconv.Itoa(clients)
	p.Bound(0, c.Duration)
	for _, o := range c.Overrides {
		if err := p.Override(o); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// Matrix measures every workload with every number of clients on a running cluster, which it loads first. A cell that
// Dir holds already is not measured again, so that a matrix that was interrupted goes on where it stopped; a cell that
// was measured on another cluster or with other settings is refused. At the end table.md in Dir shows all of it.
func Matrix(ctx context.Context, cfg MatrixConfig) ([]Cell, error) {
	cfg = cfg.withDefaults()
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	c, err := dial(ctx, cfg.Endpoints)
	if err != nil {
		return nil, err
	}
	cells, err := measureAll(ctx, cfg, c)
	return cells, errors.Join(err, c.close())
}

func measureAll(ctx context.Context, cfg MatrixConfig, c cluster) ([]Cell, error) {
	if err := os.MkdirAll(cfg.Dir, 0o755); err != nil {
		return nil, fmt.Errorf("make directory of results: %w", err)
	}
	id, err := c.id(ctx)
	if err != nil {
		return nil, err
	}
	if err := load(ctx, cfg, c, id); err != nil {
		return nil, err
	}
	var cells []Cell
	for _, clients := range cfg.Clients {
		for _, workload := range cfg.Workloads {
			cell, err := measureOnce(ctx, cfg, c, id, workload, clients)
			if err != nil {
				return cells, fmt.Errorf("workload %s with %d clients: %w", workload, clients, err)
			}
			cells = append(cells, *cell)
		}
	}
	return cells, writeFile(filepath.Join(cfg.Dir, "table.md"), []byte(Table(cells)))
}

// loadMark is kept beside the cells once the records are there. Its Properties are those that shape the records.
type loadMark struct {
	Cluster    string          `json:"cluster"`
	Properties ycsb.Properties `json:"properties"`
	Report     *ycsb.Report    `json:"report"`
}

// shapes are the properties that the records loaded depend on.
func shapes(p ycsb.Properties) ycsb.Properties {
	out := ycsb.Properties{}
	for _, key := range []string{"recordcount", "insertstart", "insertcount", "insertorder", "zeropadding", "keyprefix",
		"table", "fieldcount", "fieldlength", "minfieldlength", "fieldlengthdistribution"} {
		out[key] = p.Get(key)
	}
	return out
}

func load(ctx context.Context, cfg MatrixConfig, c cluster, id string) error {
	p, err := cfg.properties("a", cfg.LoadClients)
	if err != nil {
		return err
	}
	path := filepath.Join(cfg.Dir, "load.json")
	var mark loadMark
	if found, err := readFile(path, &mark); err != nil {
		return err
	} else if found {
		same := sameProperties(mark.Properties, shapes(p))
		if !same || mark.Cluster != id && !cfg.AnyCluster {
			return fmt.Errorf("%s is of cluster %s with %v, not of %s with %v: use another directory",
				path, mark.Cluster, mark.Properties, id, shapes(p))
		}
		if mark.Cluster == id || cfg.complete() {
			return nil
		}
	}
	cfg.Progress(fmt.Sprintf("load %d records with %d clients", cfg.Records, cfg.LoadClients))
	p["target"] = "0" // the overrides' rate is of the runs
	db, err := c.open(p)
	if err != nil {
		return err
	}
	report, err := ycsb.Load(ctx, ycsb.Config{DB: db, Name: "load", Properties: p, Status: cfg.status("load")})
	if err != nil {
		return err
	}
	return writeJSON(path, loadMark{Cluster: id, Properties: shapes(p), Report: report})
}

func measureOnce(ctx context.Context, cfg MatrixConfig, c cluster, id, workload string, clients int) (*Cell, error) {
	p, err := cfg.properties(workload, clients)
	if err != nil {
		return nil, err
	}
	label := fmt.Sprintf("%s, %d clients", workload, clients)
	path := cfg.cellPath(workload, clients)
	var old Cell
	if found, err := readFile(path, &old); err != nil {
		return nil, err
	} else if found {
		if old.Report == nil || (old.Cluster != id && !cfg.AnyCluster) || !sameProperties(old.Report.Properties, p) {
			return nil, fmt.Errorf("%s was measured on another cluster or with other settings: use another directory", path)
		}
		cfg.Progress(label + ": done before")
		return &old, nil
	}
	db, err := c.open(p)
	if err != nil {
		return nil, err
	}
	// The warm-up is a run of its own, so that what the nodes used belongs to the operations measured.
	warm := p.Clone()
	warm.Bound(0, cfg.Warmup)
	warm["seed"] = "2"
	run := ycsb.Config{DB: db, Name: workload, Properties: warm, Status: cfg.status(label + " warm-up")}
	if _, err := ycsb.Run(ctx, run); err != nil {
		return nil, fmt.Errorf("warm-up: %w", err)
	}
	before, err := c.use(ctx)
	if err != nil {
		return nil, err
	}
	cpu := ownCPU()
	run.Properties, run.Status = p, cfg.status(label)
	report, err := ycsb.Run(ctx, run)
	if err != nil {
		return nil, err
	}
	cpu = ownCPU() - cpu
	after, err := c.use(ctx)
	if err != nil {
		return nil, err
	}
	cell := newCell(id, workload, clients, report, cpu, before, after)
	return cell, writeJSON(path, cell)
}

func (c MatrixConfig) cellPath(workload string, clients int) string {
	return filepath.Join(c.Dir, fmt.Sprintf("%s-c%d.json", workload, clients))
}

// complete reports whether every cell has been measured.
func (c MatrixConfig) complete() bool {
	for _, n := range c.Clients {
		for _, w := range c.Workloads {
			if _, err := os.Stat(c.cellPath(w, n)); err != nil {
				return false
			}
		}
	}
	return true
}

func (c MatrixConfig) status(what string) func(ycsb.Status) {
	return func(s ycsb.Status) { c.Progress(what + ": " + s.String()) }
}

func sameProperties(a, b ycsb.Properties) bool {
	return !slices.ContainsFunc(ycsb.Keys(), func(k ycsb.Key) bool { return a.Get(k.Name) != b.Get(k.Name) })
}
