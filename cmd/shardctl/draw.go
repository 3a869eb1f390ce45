package main

import (
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	sharddv1 "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/client/admin"
	"github.com/shardd/shardd/internal/cli"
)

// drawing draws a job again and again. A step that only says how far behind a replica is gets a bar as well: of the
// longest way that was seen.
type drawing struct {
	farthest map[string]uint64 // entries, by step
}

// lines is the job as a block for a terminal of that many columns: a title, a line per step with its bar and figures,
// and what is wrong with the watching, if anything.
func (d *drawing) lines(j *sharddv1.Job, elapsed time.Duration, trouble string, width int) []string {
	head := fmt.Sprintf("%s  %s: %s", jobName(j.GetJobId()), jobTitle(j.GetSpec()), j.GetState())
	lines := []string{head + "  " + clockFace(elapsed)}
	nameWidth, stateWidth := 0, 0
	for _, s := range j.GetSteps() {
		nameWidth = max(nameWidth, utf8.RuneCountInString(s.GetName()))
		stateWidth = max(stateWidth, len(s.GetState()))
	}
	nameWidth = min(nameWidth, max(10, width/2-stateWidth))
	for _, s := range j.GetSteps() {
		line := fmt.Sprintf("  %s  %-*s", pad(s.GetName(), nameWidth), stateWidth, s.GetState())
		if part, ok := d.progress(s); ok {
			if cells := barCells(width - len(line)); cells > 0 {
				line += "  " + bar(part, cells)
			}
			line += fmt.Sprintf("  %3d %%", int(part*100))
		}
		text := figures(s, true)
		if utf8.RuneCountInString(line+"  "+text) > width {
			text = figures(s, false)
		}
		lines = append(lines, line+"  "+text)
	}
	for _, f := range j.GetFindings() {
		lines = append(lines, "  "+f)
	}
	if trouble != "" {
		lines = append(lines, "  "+trouble)
	}
	for i, l := range lines {
		lines[i] = cli.Cut(l, width)
	}
	return lines
}

func (d *drawing) progress(s *sharddv1.JobStep) (part float64, ok bool) {
	lag := s.GetLag()
	if part, ok = progress(s); ok || lag == 0 || s.GetState() != stepRunning {
		return part, ok
	}
	if d.farthest == nil {
		d.farthest = map[string]uint64{}
	}
	d.farthest[s.GetName()] = max(d.farthest[s.GetName()], lag)
	return 1 - float64(lag)/float64(d.farthest[s.GetName()]), true
}

// pad cuts or fills text to a width in columns.
func pad(s string, width int) string {
	s = cli.Cut(s, width)
	return s + strings.Repeat(" ", max(0, width-utf8.RuneCountInString(s)))
}

// progress is the part of a step that is done, if the step says so. A total that was an estimate may be exceeded.
func progress(s *sharddv1.JobStep) (part float64, ok bool) {
	if s.GetState() == stepWaiting {
		return 0, false
	}
	done, total := s.GetBytesDone(), s.GetBytesTotal()
	if total == 0 {
		done, total = s.GetDone(), s.GetTotal()
	}
	if total == 0 {
		return 0, false
	}
	return min(float64(done)/float64(total), 1), true
}

// barCells is the length of a bar where left columns are free: figures come first.
func barCells(left int) int {
	const figuresWidth = 50
	switch {
	case left >= figuresWidth+24:
		return 20
	case left >= figuresWidth:
		return 10
	}
	return 0
}

func bar(part float64, cells int) string {
	full := int(part * float64(cells))
	b := strings.Repeat("=", full)
	if full < cells {
		b += ">" + strings.Repeat(" ", cells-full-1)
	}
	return "[" + b + "]"
}

// figures is what a step says in numbers and words; timeLeft adds how long its bytes will take at this rate.
func figures(s *sharddv1.JobStep, timeLeft bool) string {
	var parts []string
	running := s.GetState() == stepRunning
	switch done, total, rate := s.GetBytesDone(), s.GetBytesTotal(), s.GetBytesPerSecond(); {
	case s.GetState() == stepWaiting && total > 0:
		parts = append(parts, "about "+cli.Bytes(total))
	case running && total > 0:
		parts = append(parts, partOf(done, total))
		if rate > 0 {
			parts = append(parts, cli.Bytes(rate)+"/s")
		}
		if rate > 0 && total > done && timeLeft {
			parts = append(parts, clockFace(time.Duration(float64(total-done)/float64(rate)*float64(time.Second)))+" left")
		}
	case done > 0:
		parts = append(parts, cli.Bytes(done))
		if rate > 0 {
			parts = append(parts, cli.Bytes(rate)+"/s")
		}
	}
	if s.GetTotal() > 0 {
		parts = append(parts, fmt.Sprintf("%d of %d", s.GetDone(), s.GetTotal()))
	}
	if running && s.GetLag() > 0 {
		parts = append(parts, fmt.Sprintf("%d entries behind", s.GetLag()))
	}
	if d := strings.TrimSpace(s.GetDetail()); d != "" {
		parts = append(parts, d)
	}
	return strings.Join(parts, ", ")
}

// partOf is "3.0 of 12.0 MiB": the unit once if it is the same.
func partOf(done, total uint64) string {
	a, b := cli.Bytes(done), cli.Bytes(total)
	if n, unit, _ := strings.Cut(a, " "); strings.HasSuffix(b, " "+unit) {
		a = n
	}
	return a + " of " + b
}

// jobLines says what has changed from one look at a job to the next, a line per change, for output that is no terminal.
// A step's figures alone make a line only when another tenth of it is done.
func jobLines(before, now *sharddv1.Job, elapsed time.Duration) []string {
	var lines []string
	add := func(format string, args ...any) {
		text := fmt.Sprintf("%s %s  ", jobName(now.GetJobId()), clockFace(elapsed)) + fmt.Sprintf(format, args...)
		lines = append(lines, cli.Cut(text, 1<<16))
	}
	if before == nil {
		add("%s: %s", jobTitle(now.GetSpec()), now.GetState())
	}
	for i, s := range now.GetSteps() {
		var last *sharddv1.JobStep
		if before != nil && i < len(before.GetSteps()) && before.GetSteps()[i].GetName() == s.GetName() {
			last = before.GetSteps()[i]
		}
		if !worthALine(last, s) {
			continue
		}
		text := s.GetName() + ": " + s.GetState()
		if f := figures(s, true); f != "" {
			text += ", " + f
		}
		add("%s", text)
	}
	known := len(before.GetFindings())
	for _, f := range now.GetFindings()[min(known, len(now.GetFindings())):] {
		add("%s", f)
	}
	if before != nil && before.GetState() != now.GetState() && !admin.Ended(now) {
		add("%s: %s", jobTitle(now.GetSpec()), now.GetState())
	}
	return lines
}

func worthALine(last, s *sharddv1.JobStep) bool {
	if last == nil {
		return s.GetState() != stepWaiting
	}
	if last.GetState() != s.GetState() || last.GetDetail() != s.GetDetail() {
		return true
	}
	a, _ := progress(last)
	b, _ := progress(s)
	return int(a*10) != int(b*10)
}
