package placement

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strconv"

	"github.com/shardd/shardd/internal/base"
)

// JobID names a job; ids are given out once in the life of a cluster.
type JobID uint64

// String returns the short form: j7.
func (j JobID) String() string { return "j" + strconv.FormatUint(uint64(j), 10) }

// JobKind is what a job does. The numbers are part of the format.
type JobKind uint8

// Kinds.
const (
	JobMove          JobKind = 1
	JobAddReplica    JobKind = 2
	JobRemoveReplica JobKind = 3
	JobPromote       JobKind = 4
	JobDrain         JobKind = 5
	JobVerify        JobKind = 6
	JobSplit         JobKind = 7
	JobMerge         JobKind = 8
	JobScatter       JobKind = 9
	JobDecommission  JobKind = 10
)

var jobKinds = [...]string{
	JobMove: "move", JobAddReplica: "add-replica", JobRemoveReplica: "remove-replica", JobPromote: "promote",
	JobDrain: "drain", JobVerify: "verify", JobSplit: "split", JobMerge: "merge", JobScatter: "scatter",
	JobDecommission: "decommission",
}

// String returns the word that the API and the command line use.
func (k JobKind) String() string { return word(jobKinds[:], int(k)) }

// ParseJobKind is the reverse of String; the error wraps ErrInvalid and lists the kinds.
func ParseJobKind(s string) (JobKind, error) {
	for k, name := range jobKinds {
		if name == s && s != "" {
			return JobKind(k), nil
		}
	}
	return 0, fmt.Errorf("unknown kind of job %.32q, want one of %q: %w", s, jobKinds[1:], ErrInvalid)
}

// JobState is where a job stands. The numbers are part of the format.
type JobState uint8

// States. A job that is Cancelling with an Error undoes itself after a failure and ends Failed, else Cancelled.
const (
	JobRunning    JobState = 1
	JobCancelling JobState = 2
	JobDone       JobState = 3
	JobFailed     JobState = 4
	JobCancelled  JobState = 5
)

var jobStates = [...]string{
	JobRunning: "running", JobCancelling: "cancelling", JobDone: "done", JobFailed: "failed", JobCancelled: "cancelled",
}

// String returns the word that the API uses.
func (s JobState) String() string { return word(jobStates[:], int(s)) }

// Ended reports whether nothing more will be done.
func (s JobState) Ended() bool { return s >= JobDone }

// StepState is where one step of a job stands. The numbers are part of the format.
type StepState uint8

// Step states.
const (
	StepWaiting StepState = 1
	StepRunning StepState = 2
	StepDone    StepState = 3
	StepSkipped StepState = 4
	StepFailed  StepState = 5
)

var stepStates = [...]string{
	StepWaiting: "waiting", StepRunning: "running", StepDone: "done", StepSkipped: "skipped", StepFailed: "failed",
}

// String returns the word that the API uses.
func (s StepState) String() string { return word(stepStates[:], int(s)) }

func word(words []string, i int) string {
	if i < len(words) && words[i] != "" {
		return words[i]
	}
	return strconv.Itoa(i)
}

// JobSpec is what was asked for. Fields that a kind does not use are zero.
type JobSpec struct {
	Kind  JobKind
	Shard base.ShardID // verify: 0 means all; split: 0 means those of the keys; scatter: 0 means those of the range
	From  base.StoreID // move, remove-replica, drain, decommission: the node that loses
	To    base.StoreID // move, add-replica, promote: the node that gets
	// Learner: add-replica stops at a learner; a move is that of a learner.
	Learner bool
	// Replicas: drain moves replicas away as well as leaderships.
	Replicas bool
	// Rate bounds what each replica reads for a verify, in bytes per second; 0 means the default.
	Rate uint64
	// Keys are the routing keys of a split, ascending; without them the leader chooses: Parts of about equal size or
	// load, as By says. Parts 0 means 2, or as many as the driver's target size makes.
	Keys  [][]byte
	Parts uint32
	By    SplitBy
	// Start and End are the routing keys of the range that a scatter spreads.
	Start, End []byte
	// Right is the right neighbour that a merge takes in.
	Right base.ShardID
	// Origin is who wants it, Reason why the driver does.
	Origin Origin
	Reason string
}

// SplitBy is what the parts of a split are to be equal in. The numbers are part of the format.
type SplitBy uint8

// Measures.
const (
	SplitBySize SplitBy = 0
	SplitByLoad SplitBy = 1
)

var splitBys = [...]string{SplitBySize: "size", SplitByLoad: "load"}

// String returns the word that the API uses: size or load.
func (b SplitBy) String() string { return word(splitBys[:], int(b)) }

// ParseSplitBy is the reverse of String; empty means size. The error wraps ErrInvalid.
func ParseSplitBy(s string) (SplitBy, error) {
	switch s {
	case "", splitBys[SplitBySize]:
		return SplitBySize, nil
	case splitBys[SplitByLoad]:
		return SplitByLoad, nil
	}
	return 0, fmt.Errorf("split by %.32q: want size or load: %w", s, ErrInvalid)
}

// Origin is who started a job. The numbers are part of the format.
type Origin uint8

// Origins.
const (
	OriginUser   Origin = 0
	OriginDriver Origin = 1
)

// String returns the word that the API uses: user or driver.
func (o Origin) String() string { return word([]string{"user", "driver"}, int(o)) }

// Job is the record of one job. It is a value of the meta shard; whoever runs it holds a copy.
type Job struct {
	ID JobID
	// Rev rises by one with every save: a copy that is behind cannot be saved.
	Rev uint64
	// Owner is the term of the meta leader that runs it.
	Owner uint64
	Spec  JobSpec
	// Replica is the one on From when the job started: a later one on the same node is none of the job's business.
	Replica base.ReplicaID
	State   JobState
	// Error is why it failed and what to do, or the reason for which it undoes itself.
	Error string
	Steps []Step
	// Moves are the replicas that a drain is moving now.
	Moves []Move
	// Done and Total count what a drain has moved or a verify has compared.
	Done, Total uint64
	// Cursor is the routing key from which a verify goes on.
	Cursor []byte
	// Findings are what a verify has found, one line each.
	Findings []string
	// Version is that of the shard's epoch when a split or a merge began: a higher one says that it was done.
	Version uint64
	// Merge names the merge.
	Merge uint64
	// Wall times of the meta leader in Unix milliseconds, for people only; 0 if not yet.
	Started, Updated, Ended uint64
}

// Step is one line of a job's progress; it is for people, nothing is decided from it but what the comments say.
type Step struct {
	Name      string
	State     StepState
	Detail    string
	BytesDone uint64
	Bytes     uint64 // total
	Rate      uint64 // bytes per second
	Lag       uint64 // entries that the replica lacks
	Done      uint64
	Total     uint64
}

// Move is one replica that a drain, a scatter or a merge moves: a job of its own, kept inside that one.
type Move struct {
	Shard   base.ShardID
	From    base.StoreID   // 0: the node of the job
	Replica base.ReplicaID // on that node
	To      base.StoreID
	Learner bool
	State   JobState
	Error   string
	// Steps lives in memory only.
	Steps []Step
}

// Limits of what a record holds; longer texts and lists are cut.
const (
	maxJobText  = 1024 // bytes
	maxSteps    = 64
	maxMoves    = 16
	maxFindings = 200
	// MaxJobKeys and maxKeyBytes bound the keys of one split.
	MaxJobKeys  = 4096
	maxKeyBytes = 512 << 10
)

// jobVersion is the layout version of a job record. Version 1 ended with the findings.
const jobVersion = 2

// Append encodes:
//
//	u8 version | u64 id | u64 rev | u64 owner
//	u8 kind | u64 shard | u64 from | u64 to | u8 flags (1: learner, 2: replicas) | u64 rate | u64 replica
//	u8 state | text error | u64 done | u64 total | text cursor | u64 started | u64 updated | u64 ended
//	u16 steps x { text name | u8 state | text detail | u64 bytes done | bytes | rate | lag | done | total }
//	u16 moves x { u64 shard | u64 replica | u64 to | u8 flags (1: learner) | u8 state | text error }
//	u16 findings x text
//	u16 keys x text | u32 parts | u8 by | text start | text end | u64 right | u8 origin | text reason
//	u64 version | u64 merge | moves x u64 from
func (j *Job) Append(buf []byte) []byte {
	u64 := binary.BigEndian.AppendUint64
	buf = append(buf, jobVersion)
	buf = u64(u64(u64(buf, uint64(j.ID)), j.Rev), j.Owner)
	buf = append(buf, byte(j.Spec.Kind))
	buf = u64(u64(u64(buf, uint64(j.Spec.Shard)), uint64(j.Spec.From)), uint64(j.Spec.To))
	buf = append(buf, bit(j.Spec.Learner, flagLearner)|bit(j.Spec.Replicas, flagReplicas))
	buf = u64(u64(buf, j.Spec.Rate), uint64(j.Replica))
	buf = appendText(append(buf, byte(j.State)), clip(j.Error))
	buf = appendText(u64(u64(buf, j.Done), j.Total), string(j.Cursor))
	buf = u64(u64(u64(buf, j.Started), j.Updated), j.Ended)
	steps := j.Steps[:min(len(j.Steps), maxSteps)]
	buf = binary.BigEndian.AppendUint16(buf, uint16(len(steps)))
	for i := range steps {
		s := &steps[i]
		buf = appendText(append(appendText(buf, clip(s.Name)), byte(s.State)), clip(s.Detail))
		buf = u64(u64(u64(buf, s.BytesDone), s.Bytes), s.Rate)
		buf = u64(u64(u64(buf, s.Lag), s.Done), s.Total)
	}
	buf = binary.BigEndian.AppendUint16(buf, uint16(len(j.Moves)))
	for i := range j.Moves {
		m := &j.Moves[i]
		buf = u64(u64(u64(buf, uint64(m.Shard)), uint64(m.Replica)), uint64(m.To))
		buf = appendText(append(buf, bit(m.Learner, flagLearner), byte(m.State)), clip(m.Error))
	}
	findings := j.Findings[:min(len(j.Findings), maxFindings)]
	buf = binary.BigEndian.AppendUint16(buf, uint16(len(findings)))
	for _, f := range findings {
		buf = appendText(buf, clip(f))
	}
	buf = binary.BigEndian.AppendUint16(buf, uint16(len(j.Spec.Keys)))
	for _, k := range j.Spec.Keys {
		buf = appendText(buf, string(k))
	}
	buf = append(binary.BigEndian.AppendUint32(buf, j.Spec.Parts), byte(j.Spec.By))
	buf = appendText(appendText(buf, string(j.Spec.Start)), string(j.Spec.End))
	buf = append(u64(buf, uint64(j.Spec.Right)), byte(j.Spec.Origin))
	buf = appendText(buf, clip(j.Spec.Reason))
	buf = u64(u64(buf, j.Version), j.Merge)
	for i := range j.Moves {
		buf = u64(buf, uint64(j.Moves[i].From))
	}
	return buf
}

const (
	flagLearner  = 1
	flagReplicas = 2
)

func bit(on bool, b byte) byte {
	if on {
		return b
	}
	return 0
}

// clip cuts a text to what a record holds.
func clip(s string) string {
	if len(s) > maxJobText {
		return s[:maxJobText-3] + "..."
	}
	return s
}

// DecodeJob is the reverse of Append; errors wrap base.ErrCorrupt.
func DecodeJob(b []byte) (*Job, error) {
	r, version := newReaderOf("job record", b, jobVersion)
	j := &Job{ID: JobID(r.u64()), Rev: r.u64(), Owner: r.u64()}
	j.Spec = JobSpec{
		Kind: JobKind(r.u8()), Shard: base.ShardID(r.u64()), From: base.StoreID(r.u64()), To: base.StoreID(r.u64()),
	}
	flags := r.flags(flagLearner | flagReplicas)
	j.Spec.Learner, j.Spec.Replicas = flags&flagLearner != 0, flags&flagReplicas != 0
	j.Spec.Rate, j.Replica = r.u64(), base.ReplicaID(r.u64())
	j.State, j.Error = JobState(r.u8()), r.text()
	j.Done, j.Total = r.u64(), r.u64()
	if c := r.text(); c != "" {
		j.Cursor = []byte(c)
	}
	j.Started, j.Updated, j.Ended = r.u64(), r.u64(), r.u64()
	for i := r.u16(); i > 0 && r.err == nil; i-- {
		j.Steps = append(j.Steps, Step{
			Name: r.text(), State: StepState(r.u8()), Detail: r.text(), BytesDone: r.u64(), Bytes: r.u64(),
			Rate: r.u64(), Lag: r.u64(), Done: r.u64(), Total: r.u64(),
		})
	}
	for i := r.u16(); i > 0 && r.err == nil; i-- {
		m := Move{Shard: base.ShardID(r.u64()), Replica: base.ReplicaID(r.u64()), To: base.StoreID(r.u64())}
		m.Learner = r.flags(flagLearner) != 0
		m.State, m.Error = JobState(r.u8()), r.text()
		j.Moves = append(j.Moves, m)
	}
	for i := r.u16(); i > 0 && r.err == nil; i-- {
		j.Findings = append(j.Findings, r.text())
	}
	if version > 1 {
		r.jobTail(j)
	}
	if err := r.end(); err != nil {
		return nil, err
	}
	if err := j.Validate(); err != nil {
		return nil, fmt.Errorf("%w: %w", err, base.ErrCorrupt)
	}
	return j, nil
}

// jobTail reads what came with version 2.
func (r *reader) jobTail(j *Job) {
	key := func() []byte {
		if k := r.text(); k != "" {
			return []byte(k)
		}
		return nil
	}
	for i := r.u16(); i > 0 && r.err == nil; i-- {
		j.Spec.Keys = append(j.Spec.Keys, key())
	}
	j.Spec.Parts, j.Spec.By = uint32(r.u32()), SplitBy(r.u8())
	j.Spec.Start, j.Spec.End = key(), key()
	j.Spec.Right, j.Spec.Origin, j.Spec.Reason = base.ShardID(r.u64()), Origin(r.u8()), r.text()
	j.Version, j.Merge = r.u64(), r.u64()
	for i := range j.Moves {
		j.Moves[i].From = base.StoreID(r.u64())
	}
}

// flags reads a byte of flags and refuses those that are not known.
func (r *reader) flags(known byte) byte {
	f := r.u8()
	if r.err == nil && f&^known != 0 {
		r.err = fmt.Errorf("%s: unknown flags %#x: %w", r.what, f, base.ErrCorrupt)
	}
	return f
}

// Validate checks what every stored job must satisfy; the error names the field.
func (j *Job) Validate() error {
	switch {
	case j.ID == 0:
		return fmt.Errorf("job id 0")
	case j.Spec.Kind < JobMove || j.Spec.Kind > JobDecommission:
		return fmt.Errorf("job %s: unknown kind %d", j.ID, j.Spec.Kind)
	case j.State < JobRunning || j.State > JobCancelled:
		return fmt.Errorf("job %s: unknown state %d", j.ID, j.State)
	case len(j.Moves) > maxMoves:
		return fmt.Errorf("job %s: %d moves, at most %d", j.ID, len(j.Moves), maxMoves)
	case len(j.Cursor) > base.MaxKeySize+1:
		return fmt.Errorf("job %s: cursor of %d bytes", j.ID, len(j.Cursor))
	case j.Spec.By > SplitByLoad || j.Spec.Origin > OriginDriver:
		return fmt.Errorf("job %s: split by %d, origin %d", j.ID, j.Spec.By, j.Spec.Origin)
	case len(j.Spec.Start) > base.MaxKeySize+1 || len(j.Spec.End) > base.MaxKeySize+1:
		return fmt.Errorf("job %s: range of keys of %d and %d bytes", j.ID, len(j.Spec.Start), len(j.Spec.End))
	}
	if err := checkKeys(j.Spec.Keys); err != nil {
		return fmt.Errorf("job %s: %w", j.ID, err)
	}
	for _, s := range j.Steps {
		if s.State < StepWaiting || s.State > StepFailed {
			return fmt.Errorf("job %s: step %q in unknown state %d", j.ID, s.Name, s.State)
		}
	}
	for _, m := range j.Moves {
		if m.Shard == 0 || m.To == 0 || m.State < JobRunning || m.State > JobCancelled {
			return fmt.Errorf("job %s: move of %s to %s in state %d", j.ID, m.Shard, m.To, m.State)
		}
	}
	return nil
}

// checkKeys checks the number, size and order of the keys of a split.
func checkKeys(keys [][]byte) error {
	if len(keys) > MaxJobKeys {
		return fmt.Errorf("%d keys, at most %d: split in several steps", len(keys), MaxJobKeys)
	}
	sum := 0
	for i, k := range keys {
		sum += len(k)
		switch {
		case len(k) == 0 || len(k) > maxIndexEnd:
			return fmt.Errorf("key %x of %d bytes, want 1 to %d", k, len(k), maxIndexEnd)
		case i > 0 && bytes.Compare(keys[i-1], k) >= 0:
			return fmt.Errorf("key %x is out of order", k)
		}
	}
	if sum > maxKeyBytes {
		return fmt.Errorf("keys of %d bytes, at most %d: split in several steps", sum, maxKeyBytes)
	}
	return nil
}

// Clone returns a copy that shares nothing that changes.
func (j *Job) Clone() *Job {
	c := *j
	c.Steps = append([]Step(nil), j.Steps...)
	c.Moves = append([]Move(nil), j.Moves...)
	for i := range c.Moves {
		c.Moves[i].Steps = append([]Step(nil), j.Moves[i].Steps...)
	}
	c.Findings = append([]string(nil), j.Findings...)
	c.Cursor = append([]byte(nil), j.Cursor...)
	return &c
}

// AddFinding adds a line to the findings; past a limit only one line says that there are more.
func (j *Job) AddFinding(line string) {
	switch n := len(j.Findings); {
	case n < maxFindings-1:
		j.Findings = append(j.Findings, clip(line))
	case n == maxFindings-1:
		j.Findings = append(j.Findings, "more was found than is kept here: verify shards one by one")
	}
}
