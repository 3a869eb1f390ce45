package liveness

import (
	"cmp"
	"slices"
	"time"

	"github.com/shardd/shardd/internal/base"
)

// Peer is what is between us and another store at one moment, for people.
type Peer struct {
	Store       base.StoreID
	Incarnation uint64        // 0: never heard
	Listed      bool          // it shares a group with us, as far as we know
	Heard       time.Duration // since its last body; -1: never

	// Our support of it: Epoch is 0 if there is none.
	Epoch uint64
	Left  time.Duration // until it lapses unless prolonged

	// Its support of us: HeldEpoch is 0 if we count on none.
	HeldEpoch uint64
	HeldLeft  time.Duration

	Pending int // releases and questions that it has not acknowledged
}

// Status returns the state towards all stores that are peers, or were heard of lately, by id.
func (m *Monitor) Status(now time.Duration) []Peer {
	m.mu.Lock()
	defer m.unlock()
	var out []Peer
	for _, p := range *m.peers.Load() {
		v := Peer{
			Store: p.store, Incarnation: p.incarnation, Listed: p.listed, Heard: -1,
			Pending: len(p.releases.items) + len(p.questions.items),
		}
		if p.incarnation != 0 {
			v.Heard = max(now-p.heardAt, 0)
		}
		if pr := p.promise.Load(); pr.binds(now) {
			v.Epoch, v.Left = pr.epoch, pr.until-now
		}
		if h := p.held.Load(); h != nil && h.Until > now {
			v.HeldEpoch, v.HeldLeft = h.Epoch, h.Until-now
		}
		if m.wantedLocked(p, now) || v.Epoch != 0 || v.HeldEpoch != 0 {
			out = append(out, v)
		}
	}
	slices.SortFunc(out, func(a, b Peer) int { return cmp.Compare(a.Store, b.Store) })
	return out
}
