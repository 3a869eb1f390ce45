// Package harness runs clusters of real shardd processes for tests: it builds the binaries, gives out ports and
// directories, starts, kills, pauses and resumes processes by their own pid, and keeps logs and data when a test fails.
// It never signals a process that it did not start.
package harness

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Binaries are the built commands.
type Binaries struct{ Shardd, Shardctl string }

// Build compiles both commands, without cgo, into dir.
func Build(dir string) (Binaries, error) {
	root, err := ModuleRoot()
	if err != nil {
		return Binaries{}, err
	}
	cmd := exec.Command("go", "build", "-o", dir+string(filepath.Separator), "./cmd/shardd", "./cmd/shardctl")
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return Binaries{}, fmt.Errorf("build the commands: %w\n%s", err, out)
	}
	return Binaries{Shardd: filepath.Join(dir, "shardd"), Shardctl: filepath.Join(dir, "shardctl")}, nil
}

// ModuleRoot is the top folder of the checkout.
func ModuleRoot() (string, error) {
	out, err := exec.Command("go", "env", "GOMOD").Output()
	if err != nil {
		return "", fmt.Errorf("find the module: %w", err)
	}
	return filepath.Dir(strings.TrimSpace(string(out))), nil
}

// Proc is one process. Its methods may be called from any goroutine.
type Proc struct {
	Name string
	cmd  *exec.Cmd
	log  *os.File
	done chan struct{} // closed once the process has been waited for
}

// StartProc starts a process whose output is appended to logPath. The environment has no SHARDD_ variables of ours.
func StartProc(name, logPath, binary string, args ...string) (*Proc, error) {
	log, err := os.OpenFile(logPath, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	fmt.Fprintf(log, "--- %s %s %s\n", time.Now().Format("15:04:05.000"), filepath.Base(binary), strings.Join(args, " "))
	p := &Proc{Name: name, cmd: exec.Command(binary, args...), log: log, done: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = log, log
	p.cmd.Env = cleanEnv()
	// A test binary that dies (go test's own time-out panics) takes its processes with it.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		log.Close()
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	go func() {
		_ = p.cmd.Wait() // the exit code says it all
		log.Close()
		close(p.done)
	}()
	return p, nil
}

func cleanEnv() []string {
	var env []string
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "SHARDD_") && !strings.HasPrefix(kv, "SHARDCTL_") {
			env = append(env, kv)
		}
	}
	return env
}

// Signal sends a signal to the process, if it still runs.
func (p *Proc) Signal(sig syscall.Signal) error {
	err := p.cmd.Process.Signal(sig)
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	return err
}

// Done is closed once the process has ended.
func (p *Proc) Done() <-chan struct{} { return p.done }

// Running reports whether the process has not ended.
func (p *Proc) Running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// Kill ends the process with SIGKILL and waits for it.
func (p *Proc) Kill() {
	_ = p.Signal(syscall.SIGKILL)
	<-p.done
}

// Stop asks the process to end and waits; it returns the exit code, or an error after the time given.
func (p *Proc) Stop(wait time.Duration) (int, error) {
	if err := p.Signal(syscall.SIGTERM); err != nil {
		return -1, err
	}
	return p.Wait(wait)
}

// Wait waits for the end and returns the exit code, -1 if a signal ended it.
func (p *Proc) Wait(wait time.Duration) (int, error) {
	if p.Running() {
		timer := time.NewTimer(wait)
		defer timer.Stop()
		select {
		case <-p.done:
		case <-timer.C:
			return -1, fmt.Errorf("%s still runs after %s", p.Name, wait)
		}
	}
	return p.cmd.ProcessState.ExitCode(), nil
}

// Run runs a command to its end and returns its output and exit code.
func Run(t testing.TB, stdin, binary string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), binary, args...)
	var out, errOut strings.Builder
	cmd.Stdin, cmd.Stdout, cmd.Stderr, cmd.Env = strings.NewReader(stdin), &out, &errOut, cleanEnv()
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("run %s: %v", binary, err)
	}
	return out.String(), errOut.String(), cmd.ProcessState.ExitCode()
}
