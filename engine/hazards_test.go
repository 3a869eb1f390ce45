package engine

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

const helperFault = "SHARDD_ENGINE_TEST_FAULT"

// TestHelperLosesItsDisk is the process of the next test.
func TestHelperLosesItsDisk(t *testing.T) {
	fault := os.Getenv(helperFault)
	if fault == "" {
		t.Skip("not called as a helper")
	}
	fs := NewMemFS()
	o := testOptions(t, fs)
	o.Fatal = nil // as in production
	e := mustOpen(t, o)
	commit(t, e, true, func(b *Batch) { b.Put(userKey(0), ValueHeader{}, nil) })
	fmt.Println("acknowledged before")
	if fault == "sync" {
		fs.FailSyncs(errors.New("the disk lost a page"))
	} else {
		fs.FailWrites(syscall.ENOSPC)
	}
	b := e.NewBatch()
	b.Put(userKey(1), ValueHeader{}, nil)
	e.CommitAsync(b, func() { fmt.Println("acknowledged after") })
	select {}
}

// cockroach#37102, tikv#10562: the process ends on the first error of its disk, with a reason and before anything more
// is acknowledged.
func TestTheProcessEndsOnTheFirstErrorOfItsDisk(t *testing.T) {
	for fault, reason := range map[string]string{"sync": "the disk lost a page", "space": syscall.ENOSPC.Error()} {
		t.Run(fault, func(t *testing.T) {
			cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestHelperLosesItsDisk$", "-test.timeout=30s")
			cmd.Env = append(os.Environ(), helperFault+"="+fault)
			b, err := cmd.CombinedOutput()
			out := string(b)
			var ee *exec.ExitError
			if !errors.As(err, &ee) || ee.ExitCode() != 1 {
				t.Fatalf("%v\n%s", err, out)
			}
			for _, want := range []string{"acknowledged before", "shardd: store stopped: ", reason} {
				if !strings.Contains(out, want) {
					t.Errorf("no %q in\n%s", want, out)
				}
			}
			if strings.Contains(out, "acknowledged after") || strings.Contains(out, "goroutine ") {
				t.Errorf("it did not end cleanly:\n%s", out)
			}
		})
	}
}
