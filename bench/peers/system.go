package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/shardd/shardd/bench/ycsb"
	"github.com/shardd/shardd/client"
)

// system is a cluster of server processes that run started and alone may end.
type system struct {
	name    string
	procs   []*exec.Cmd
	closers []func() error
	http    []string // addresses of metrics, if it has any
	db      func(ycsb.Properties) (ycsb.DB, error)
	shardd  *client.DB // nil for others
}

// start starts one process; its output goes to a file. It dies with this process.
func (s *system) start(logPath, binary string, args ...string) error {
	log, err := os.Create(logPath)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(binary, args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", binary, err)
	}
	s.procs = append(s.procs, cmd)
	return nil
}

// wait repeats try for up to two minutes; the system is closed if it never succeeds.
func (s *system) wait(ctx context.Context, try func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	for {
		one, stop := context.WithTimeout(ctx, 5*time.Second)
		err := try(one)
		stop()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("%s does not become ready: %w", s.name, err), s.close())
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func (s *system) close() error {
	var errs []error
	for _, c := range s.closers {
		errs = append(errs, c())
	}
	for _, p := range s.procs {
		_ = p.Process.Kill()
		_ = p.Wait() // killed: its exit code says nothing
	}
	s.closers, s.procs = nil, nil
	return errors.Join(errs...)
}

// use is the processor time that all processes have spent, and the memory that they hold.
func (s *system) use() (cpu time.Duration, rss uint64, err error) {
	for _, p := range s.procs {
		c, r, err := processUse(p.Process.Pid)
		if err != nil {
			return 0, 0, fmt.Errorf("%s has ended: %w", s.name, err)
		}
		cpu, rss = cpu+c, rss+r
	}
	return cpu, rss, nil
}

// clockTick is the unit of processor times in /proc/PID/stat: USER_HZ, 100 on every Linux that Go runs on.
const clockTick = time.Second / 100

func processUse(pid int) (cpu time.Duration, rss uint64, err error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, 0, err
	}
	// The name, in brackets, may hold anything; fields 14 and 15 are user and system time.
	f := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(f) < 13 {
		return 0, 0, fmt.Errorf("/proc/%d/stat has %d fields", pid, len(f))
	}
	for _, at := range []int{11, 12} {
		n, err := strconv.ParseInt(f[at], 10, 64)
		if err != nil {
			return 0, 0, err
		}
		cpu += time.Duration(n) * clockTick
	}
	file, err := os.Open(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, 0, err
	}
	defer file.Close()
	for sc := bufio.NewScanner(file); sc.Scan(); {
		if v, ok := strings.CutPrefix(sc.Text(), "VmRSS:"); ok {
			kb, err := strconv.ParseUint(strings.TrimSpace(strings.TrimSuffix(v, "kB")), 10, 64)
			return cpu, kb << 10, err
		}
	}
	return cpu, 0, fmt.Errorf("/proc/%d/status has no VmRSS", pid)
}

// ownCPU is the processor time of this process: the clients'.
func ownCPU() time.Duration {
	cpu, _, err := processUse(os.Getpid())
	if err != nil {
		return 0
	}
	return cpu
}

func freePorts(n int) ([]string, error) {
	var out []string
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer l.Close() // held until all are known, so that none comes twice
		out = append(out, l.Addr().String())
	}
	return out, nil
}
