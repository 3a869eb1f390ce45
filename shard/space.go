package shard

import (
	"errors"

	"go.etcd.io/etcd/raft/v3"

	"github.com/shardd/shardd/engine"
	"github.com/shardd/shardd/internal/wire"
)

// A store that runs out of space, or is being drained. Low space: leaders refuse what adds bytes and give their
// leaderships away, snapshots are declined, logs are cut down to their floor. Critical: followers also drop appended
// entries before they reach the log; what frees space still passes. All of it ends by itself when the level goes back.
// A drained store gives its leaderships away whenever it gets one, and stands for election only where nobody else does.

// quietElections is for how many election timeouts a store that is being drained leaves an election to the others.
const quietElections = 5

// SetSpace tells the store how much room its disk has; it acts on it at once and on every later tick.
func (s *Store) SetSpace(level engine.SpaceLevel) {
	if level == engine.SpaceOK {
		s.declineSnapshots.Store(nil)
	} else {
		why := "the disk of the receiver is short of space"
		s.declineSnapshots.Store(&why)
	}
	if old := engine.SpaceLevel(s.space.Swap(uint32(level))); old != level {
		s.log.Warn("disk space", "level", level.String(), "was", old.String())
		s.rouse()
	}
}

func (s *Store) spaceLevel() engine.SpaceLevel { return engine.SpaceLevel(s.space.Load()) }

// PauseLeading hands all leaderships over, now and whenever one is gained, and keeps the replicas here from standing
// for election unless a shard has had no leader for several election timeouts. A shard without another fit voter is
// still led here. PauseLeading(false) ends it.
func (s *Store) PauseLeading(paused bool) {
	if s.paused.Swap(paused) != paused {
		s.log.Info("leading", "paused", paused)
		s.rouse()
	}
}

// refuseForSpace says why a write may not be proposed on a disk that is short of space; empty if it may.
func (s *Store) refuseForSpace(op *wire.Op) string {
	if s.spaceLevel() == engine.SpaceOK || !addsBytes(op) {
		return ""
	}
	return "the leader's disk is short of space; deletes and reads are served, free space or add nodes"
}

// addsBytes reports whether a valid write stores a value.
func addsBytes(op *wire.Op) bool {
	switch op.Code {
	case wire.OpPut:
		return true
	case wire.OpBatch:
		var step wire.Sub
		for b := op.Value; len(b) > 0; {
			rest, err := wire.DecodeSub(b, &step)
			if err != nil {
				return true // Validate has refused it before
			}
			if step.Code == wire.OpPut {
				return true
			}
			b = rest
		}
	}
	return false
}

// tickShed gives a leadership away that this store should not have. A transfer stops writes while it lasts, so one that
// failed is not tried again at once.
func (w *worker) tickShed(r *replica, ticks int) {
	rw, s := &r.worker, w.store
	rw.shedWait -= ticks
	paused := s.paused.Load()
	if rw.transfer != nil || rw.shedWait > 0 || (!paused && s.spaceLevel() == engine.SpaceOK) ||
		rw.rn.BasicStatus().RaftState != raft.StateLeader {
		return
	}
	// Room may be short on every store: then leaderships must not go round in circles.
	rw.shedWait = 60 * s.cfg.ElectionTick
	if paused {
		rw.shedWait = 3 * s.cfg.ElectionTick
	}
	w.startTransfer(r, transferRequest{fit: s.cfg.MayLead, done: func(_ uint64, err error) {
		var not *NotLeaderError
		if err != nil && !errors.As(err, &not) {
			s.log.Debug("leadership stays", "replica", r.String(), "reason", err)
		}
	}})
}
