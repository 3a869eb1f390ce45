package placement

import (
	"fmt"

	"github.com/shardd/shardd/internal/base"
)

// The progress of a replica change as lines for people. Nothing is decided from them.

func (r *replicas) act(do ActionKind, at Progress, detail string) Action {
	return Action{Do: do, At: at, Steps: r.steps(at.Phase, detail, 0)}
}

func (r *replicas) wait(at Progress, detail string) Action { return r.act(ActWait, at, detail) }

func (r *replicas) change(at Progress, detail string, changes ...Change) Action {
	if r.w.Trouble != "" {
		detail = r.w.Trouble
	}
	a := r.act(ActChange, at, detail)
	a.Changes, a.ConfVer = changes, r.now.Desc.Epoch.ConfVer
	return a
}

func (r *replicas) end(at Progress, state JobState, reason string) Action {
	a := Action{Do: ActEnd, At: at, State: state, Reason: reason}
	if state == JobDone {
		a.Steps = r.steps(phaseDone, "", state)
		if reason != "" {
			last := &a.Steps[len(a.Steps)-1]
			last.State, last.Detail = StepSkipped, reason
		}
		a.Reason = ""
		return a
	}
	a.Steps = r.steps(at.Phase, "", state)
	return a
}

// phases lists those that the kind goes through.
func (r *replicas) phases() []int {
	var out []int
	if r.undoable() {
		out = append(out, phaseAdd, phaseSnapshot)
	}
	if r.adds {
		out = append(out, phaseCatchUp)
	}
	if r.voter {
		out = append(out, phaseJoint, phaseLeave)
	}
	if r.drops {
		out = append(out, phaseRemove, phaseGone)
	}
	return out
}

func (r *replicas) stepName(phase int) string {
	to, from := r.j.Spec.To, r.j.Spec.From
	switch phase {
	case phaseAdd:
		return "add learner " + to.String()
	case phaseSnapshot:
		return "snapshot"
	case phaseCatchUp:
		return "catch up"
	case phaseJoint:
		switch {
		case r.adds && r.drops:
			return fmt.Sprintf("joint: promote %s, demote %s", to, from)
		case r.adds:
			return "joint: promote " + to.String()
		}
		return "joint: demote " + from.String()
	case phaseLeave:
		return "leave joint"
	case phaseRemove:
		return "remove " + from.String()
	case phaseGone:
		return "gone from " + from.String()
	}
	return "undo"
}

// steps draws all steps with the one of the phase running. ended: the job is over, in that state.
func (r *replicas) steps(phase int, detail string, ended JobState) []Step {
	if phase == phaseAsk || phase >= undone {
		return r.oldSteps(phase, detail, ended)
	}
	var out []Step
	for _, p := range r.phases() {
		s := Step{Name: r.stepName(p), State: StepWaiting}
		old := r.old(s.Name)
		switch {
		case p < phase:
			s.State, s.Detail = StepDone, ""
			s.BytesDone, s.Bytes, s.Rate = old.Bytes, old.Bytes, 0
		case p == phase && ended != 0:
			s = old
			s.Name, s.State, s.Rate = r.stepName(p), StepFailed, 0
			if ended == JobCancelled {
				s.State = StepSkipped
			}
		case p == phase:
			s.State, s.Detail = StepRunning, detail
			if r.j.State == JobCancelling && r.passed() {
				s.Detail = join(detail, "the cancel came too late, the job goes on to its end")
			}
		case ended != 0:
			s.State = StepSkipped
		}
		if p == phaseSnapshot && p >= phase {
			r.snapshotStep(&s, old)
		}
		if p == phaseCatchUp && p == phase && ended == 0 {
			s.Lag = r.lag()
		}
		out = append(out, s)
	}
	return out
}

func (r *replicas) snapshotStep(s *Step, old Step) {
	s.Bytes = max(old.Bytes, r.now.Bytes())
	if st := r.stream(); st != nil {
		s.BytesDone, s.Bytes, s.Rate = st.Done, max(st.Total, st.Done), st.Rate
		if s.State == StepRunning && s.Detail == "" {
			s.Detail = st.Phase
		}
	} else if s.State == StepRunning && s.Detail == "" {
		s.Detail = "waits for the leader to send one"
	}
}

// old returns the step of a name as it was.
func (r *replicas) old(name string) Step {
	for _, s := range r.j.Steps {
		if s.Name == name {
			return s
		}
	}
	return Step{}
}

// oldSteps keeps the steps as they were: while the shard cannot be asked, and while a job is undone.
func (r *replicas) oldSteps(phase int, detail string, ended JobState) []Step {
	var out []Step
	stopped := StepSkipped
	if r.j.Error != "" || ended == JobFailed {
		stopped = StepFailed
	}
	first := true
	for _, p := range r.phases() {
		s := r.old(r.stepName(p))
		if s.Name == "" {
			s = Step{Name: r.stepName(p), State: StepWaiting}
		}
		s.Rate = 0
		switch {
		case s.State == StepDone, s.State == StepFailed:
		case phase >= undone && p == phaseAdd && r.hasTo:
			s.State, s.Detail = StepDone, ""
		case phase == phaseAsk && ended == 0:
			if first {
				s.Detail = detail
			}
			first = false
		case phase >= undone && ended == 0 && r.begunStep(p):
			// Stays running: it says that a change may be on its way.
		case s.State == StepRunning:
			s.State = stopped
			if stopped == StepSkipped {
				s.Detail = ""
			}
		default:
			s.State, s.Detail = StepSkipped, ""
		}
		out = append(out, s)
	}
	if phase >= undone && r.undoable() {
		s := Step{Name: "undo: remove learner " + r.j.Spec.To.String(), State: StepRunning, Detail: detail}
		switch ended {
		case JobCancelled:
			s.State = StepDone
		case JobFailed:
			s.State = StepDone
			if r.hasTo && r.to.Role == base.RoleLearner {
				s.State = StepFailed
			}
		}
		out = append(out, s)
	}
	return out
}

func (r *replicas) begunStep(phase int) bool {
	late := phase == phaseJoint || phase == phaseRemove
	return (phase == phaseAdd || late && !(r.undoable() && r.hasTo)) &&
		r.old(r.stepName(phase)).State == StepRunning
}
