package history

import (
	"fmt"
	"sort"
	"strings"
	"sync"
)

// Ledger remembers writes of keys that are written once and never again: those that were acknowledged must be found
// for ever, with their value; those of unknown outcome may be found or not, but with no other value. Safe for
// concurrent use; the zero value is not usable, see NewLedger.
type Ledger struct {
	mu    sync.Mutex
	acked map[string]string
	maybe map[string]string
}

// NewLedger returns an empty ledger.
func NewLedger() *Ledger { return &Ledger{acked: map[string]string{}, maybe: map[string]string{}} }

// Acked records an acknowledged write.
func (l *Ledger) Acked(key, value string) {
	l.mu.Lock()
	l.acked[key] = value
	l.mu.Unlock()
}

// Maybe records a write whose outcome is not known.
func (l *Ledger) Maybe(key, value string) {
	l.mu.Lock()
	l.maybe[key] = value
	l.mu.Unlock()
}

// Len is the number of acknowledged writes.
func (l *Ledger) Len() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.acked)
}

// Compare judges everything that the cluster holds of the ledger's keys. It returns nil, or an error that names the
// first keys that are lost, changed or were never written.
func (l *Ledger) Compare(found map[string]string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	var bad []string
	for k, want := range l.acked {
		got, ok := found[k]
		switch {
		case !ok:
			bad = append(bad, fmt.Sprintf("%q: acknowledged, lost", k))
		case got != want:
			bad = append(bad, fmt.Sprintf("%q: acknowledged as %q, found %q", k, want, got))
		}
	}
	for k, got := range found {
		if _, ok := l.acked[k]; ok {
			continue
		}
		if want, ok := l.maybe[k]; !ok || want != got {
			bad = append(bad, fmt.Sprintf("%q: found %q, which nobody wrote", k, got))
		}
	}
	if len(bad) == 0 {
		return nil
	}
	sort.Strings(bad)
	return fmt.Errorf("%d of %d acknowledged writes are wrong:\n%s", len(bad), len(l.acked),
		strings.Join(bad[:min(20, len(bad))], "\n"))
}
