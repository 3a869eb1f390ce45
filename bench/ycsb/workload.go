package ycsb

import (
	"context"
	"math/rand/v2"
	"time"
)

// workload is what all workers of a load or run share.
type workload struct {
	set          *settings
	db           DB
	keys         numbers
	scanLengths  numbers
	fieldLengths numbers
	inserts      *counter // record numbers of the inserts of a run
	distance     bool     // keys are distances back from the newest record
	shares       [numOperations]float64
}

func newWorkload(set *settings, db DB) *workload {
	w := &workload{set: set, db: db, inserts: newCounter(set.records)}
	sum := 0.0
	for i, share := range set.shares {
		sum += share
		w.shares[i] = sum
	}
	for i := range w.shares {
		w.shares[i] /= sum
	}
	w.fieldLengths = lengths(set.fieldLengths, set.minFieldLength, set.fieldLength)
	return w
}

// chooseFrom sets up what a run picks from, which a load does not need and which takes time for many records.
func (w *workload) chooseFrom() {
	w.keys = w.keyNumbers()
	w.scanLengths = lengths(w.set.scanLengths, w.set.minScan, w.set.maxScan)
}

func lengths(distribution string, lo, hi int) numbers {
	switch distribution {
	case "zipfian":
		return newZipfian(int64(lo), int64(hi))
	case "uniform":
		return uniform{int64(lo), int64(hi)}
	default:
		return constant(hi)
	}
}

// keyNumbers makes the request distribution, as CoreWorkload does.
func (w *workload) keyNumbers() numbers {
	s := w.set
	insertShare := w.shares[opInsert] - w.shares[opInsert-1]
	first, last := s.insertStart, s.insertStart+s.insertCount-1
	switch s.request {
	case "zipfian":
		// The hash is taken modulo the number of records, so that number must not change while inserts go on: it is
		// the number expected in the end, twice over as YCSB has it, and choices that do not exist yet are made
		// again. A run bounded by time alone expects to insert no more than was loaded.
		expected := s.insertCount
		if s.operations > 0 {
			expected = int64(float64(s.operations) * insertShare * 2)
		} else if insertShare == 0 {
			expected = 0
		}
		return newScrambled(first, last+1+expected)
	case "latest":
		return newLatest(first, w.inserts)
	case "hotspot":
		hot := int64(float64(s.insertCount) * s.hotData)
		return hotspot{lo: first, hotCount: hot, coldCount: s.insertCount - hot, hotOperations: s.hotOperations}
	case "sequential":
		return &sequential{lo: first, hi: last}
	case "exponential":
		w.distance = true
		return newExponential(s.expPercentile, float64(s.records)*s.expFrac)
	default:
		return uniform{first, last}
	}
}

// pick chooses an existing record.
func (w *workload) pick(r *rand.Rand) int64 {
	for {
		newest := w.inserts.last()
		n := w.keys.next(r)
		if w.distance {
			n = newest - n
		}
		if n >= 0 && n <= newest {
			return n
		}
	}
}

// chooseOperation draws from the mix.
func (w *workload) chooseOperation(r *rand.Rand) operation {
	u := r.Float64()
	for op, share := range w.shares {
		if u < share {
			return operation(op)
		}
	}
	return opRead // not reached: the last share is 1
}

// worker is one client of the store. Its buffers are reused, so that the driver allocates nothing for an operation.
type worker struct {
	*workload
	rnd    *rand.Rand
	key    []byte
	record []byte
	rec    recorder
	live   *live                // for the status; nil if nobody asks
	caller context.Context      // of Load or Run
	clock  func() time.Duration // since the start of the run
	open   bool                 // open loop

	visit   func(key, record []byte)
	scanErr error
	rows    int64
	bytes   int64
}

func newWorker(w *workload, id int, clock func() time.Duration) *worker {
	k := &worker{workload: w, rnd: rand.New(rand.NewPCG(w.set.seed, uint64(id))), clock: clock, open: w.set.target > 0}
	k.visit = func(key, record []byte) {
		k.rows++
		k.bytes += int64(len(record))
		if w.set.integrity && k.scanErr == nil {
			k.scanErr = w.verify(key, record)
		}
	}
	return k
}

// runOne does one operation of a run. Unless measured it leaves no trace in the recorder.
func (k *worker) runOne(ctx context.Context, s sample, measured bool) {
	op := k.chooseOperation(k.rnd)
	k.rows, k.bytes = 0, 0
	var err error
	switch op {
	case opRead:
		k.key = k.set.appendKey(k.key[:0], k.pick(k.rnd))
		_, err = k.read(ctx)
	case opUpdate:
		k.key = k.set.appendKey(k.key[:0], k.pick(k.rnd))
		k.makeUpdate()
		s.start = k.clock() // making the record is not the store's time
		err = k.db.Update(ctx, k.key, k.record)
	case opInsert:
		s.start, err = k.insertNext(ctx)
	case opScan:
		k.key = k.set.appendKey(k.key[:0], k.pick(k.rnd))
		k.scanErr = nil
		err = k.db.Scan(ctx, k.key, int(k.scanLengths.next(k.rnd)), k.visit)
		if err == nil {
			err = k.scanErr
		}
	case opModify:
		err = k.readModifyWrite(ctx, &s, measured)
	}
	s.end = k.clock()
	k.finish(op, s, measured, err)
}

// finish records an operation and gives up its buffers if it failed (see DB). An operation that the caller cut short
// says nothing about the store and is left out.
func (k *worker) finish(op operation, s sample, measured bool, err error) {
	if err != nil {
		k.key, k.record = nil, nil
		if k.caller.Err() != nil {
			return
		}
	}
	if measured {
		k.rec.add(op, s, k.open, err)
		if err == nil {
			k.rec.rows += k.rows
			k.rec.bytes += k.bytes
		}
	}
	if k.live != nil {
		k.live.add(op, s.end-s.intended, err != nil)
	}
}

func (k *worker) read(ctx context.Context) ([]byte, error) {
	record, err := k.db.Read(ctx, k.key)
	if err != nil {
		return nil, err
	}
	k.bytes += int64(len(record))
	if k.set.integrity {
		return record, k.verify(k.key, record)
	}
	return record, nil
}

func (k *worker) makeUpdate() {
	if k.set.integrity {
		k.record = k.appendInserted(k.record[:0], k.key)
		return
	}
	k.record = k.appendRandom(k.record[:0], k.rnd)
}

// insertNext inserts the next record of a run. It counts as there even if it failed, as in YCSB: otherwise no later
// one could ever be read.
func (k *worker) insertNext(ctx context.Context) (start time.Duration, err error) {
	number := k.inserts.next()
	k.key = k.set.appendKey(k.key[:0], number)
	k.record = k.appendInserted(k.record[:0], k.key)
	start = k.clock()
	err = k.db.Insert(ctx, k.key, k.record)
	if ackErr := k.inserts.acknowledge(number); err == nil {
		err = ackErr
	}
	return start, err
}

// readModifyWrite records its parts itself.
func (k *worker) readModifyWrite(ctx context.Context, s *sample, measured bool) error {
	k.key = k.set.appendKey(k.key[:0], k.pick(k.rnd))
	s.start = k.clock()
	record, err := k.read(ctx)
	part := *s
	part.end = k.clock()
	k.finishPart(partRead, part, measured, err)
	if err != nil {
		return err
	}
	if k.set.writeAll || k.set.integrity {
		k.makeUpdate()
	} else {
		k.record = k.appendModified(k.record[:0], record, k.rnd)
	}
	part.start = k.clock()
	part.intended = part.start
	err = k.db.Update(ctx, k.key, k.record)
	part.end = k.clock()
	k.finishPart(partUpdate, part, measured, err)
	return err
}

func (k *worker) finishPart(op operation, s sample, measured bool, err error) {
	if measured && (err == nil || k.caller.Err() == nil) {
		k.rec.add(op, s, k.open, err)
	}
}
