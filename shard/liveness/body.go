package liveness

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/shardd/shardd/internal/base"
)

// A body is what one store tells another. All integers are big-endian.
//
//	  0 u8 layout version | 1 u8 flags | 2 u16 reserved (0) | 4 u32 margin of the sender's clock, in millionths
//	  8 u64 incarnation of the sender | 16 u64 incarnation of the receiver as the sender knows it, 0: not heard yet
//	 24 u64 number of this body | 32 u64 highest body of the receiver that the sender has heard
//	 40 u64 time asked for, in ns (0 unless flagAsks)
//	 48 u64 body of the receiver that is granted support, 0: none | 56 u64 epoch | 64 u64 time granted, in ns
//	 72 u64 releases of the receiver taken | 80 u64 questions of the receiver taken
//	 88 u64 number of the first release | 96 u64 number of the first question
//	104 u32 releases | 108 u32 questions
//	112 releases, then questions, each: 0 u64 shard | 8 u64 term | 16 u64 replica of the follower, 0: whichever it has
//
// Numbers of bodies and items start at 1 and belong to one incarnation of their sender.
const (
	bodyVersion = 1
	bodyFixed   = 112
	groupSize   = 24

	// maxItems bounds each of the two lists of a body.
	maxItems = 1024
	// MaxBody is the length of the longest body, in bytes.
	MaxBody = bodyFixed + 2*maxItems*groupSize
	// maxDuration bounds what may be asked for or granted: no sum with a boot time can overflow.
	maxDuration = time.Hour

	flagAsks uint8 = 1 << 0

	million = 1_000_000
)

// ErrBody marks bytes that are not a body of this protocol.
var ErrBody = errors.New("malformed liveness body")

// Group names the leadership of one shard at one term, towards one follower: a store may have a later replica of the shard
// by the time that it hears of it. 0 means whichever it has.
type Group struct {
	Shard    base.ShardID
	Term     uint64
	Follower base.ReplicaID
}

// body is a decoded body.
type body struct {
	asks              bool
	margin            uint32 // millionths
	from, to          uint64 // incarnations
	seq, heard        uint64
	promise           time.Duration
	granted, epoch    uint64
	grantedFor        time.Duration
	releasesTaken     uint64
	questionsTaken    uint64
	firstRelease      uint64
	firstQuestion     uint64
	releases, queries []Group
}

func (m *body) append(b []byte) []byte {
	var flags uint8
	if m.asks {
		flags |= flagAsks
	}
	b = append(b, bodyVersion, flags, 0, 0)
	b = binary.BigEndian.AppendUint32(b, m.margin)
	for _, v := range [...]uint64{m.from, m.to, m.seq, m.heard, uint64(m.promise), m.granted, m.epoch,
		uint64(m.grantedFor), m.releasesTaken, m.questionsTaken, m.firstRelease, m.firstQuestion} {
		b = binary.BigEndian.AppendUint64(b, v)
	}
	b = binary.BigEndian.AppendUint32(b, uint32(len(m.releases)))
	b = binary.BigEndian.AppendUint32(b, uint32(len(m.queries)))
	b = appendGroups(b, m.releases)
	return appendGroups(b, m.queries)
}

func appendGroups(b []byte, gs []Group) []byte {
	for _, g := range gs {
		b = binary.BigEndian.AppendUint64(b, uint64(g.Shard))
		b = binary.BigEndian.AppendUint64(b, g.Term)
		b = binary.BigEndian.AppendUint64(b, uint64(g.Follower))
	}
	return b
}

// parseBody decodes a body; it keeps nothing of b. There is one encoding of each body.
func parseBody(b []byte) (body, error) {
	if len(b) < bodyFixed {
		return body{}, fmt.Errorf("%d bytes, a body has at least %d: %w", len(b), bodyFixed, ErrBody)
	}
	if b[0] != bodyVersion {
		return body{}, fmt.Errorf("layout version %d, this binary knows %d: %w", b[0], bodyVersion, ErrBody)
	}
	u64 := binary.BigEndian.Uint64
	m := body{
		asks: b[1]&flagAsks != 0, margin: binary.BigEndian.Uint32(b[4:]),
		from: u64(b[8:]), to: u64(b[16:]), seq: u64(b[24:]), heard: u64(b[32:]), promise: time.Duration(u64(b[40:])),
		granted: u64(b[48:]), epoch: u64(b[56:]), grantedFor: time.Duration(u64(b[64:])),
		releasesTaken: u64(b[72:]), questionsTaken: u64(b[80:]), firstRelease: u64(b[88:]), firstQuestion: u64(b[96:]),
	}
	releases, queries := binary.BigEndian.Uint32(b[104:]), binary.BigEndian.Uint32(b[108:])
	bad := func(d time.Duration) bool { return d < 0 || d > maxDuration }
	switch {
	case b[1]&^flagAsks != 0 || b[2]|b[3] != 0:
		return body{}, fmt.Errorf("unknown flags %x: %w", b[1:4], ErrBody)
	case m.margin >= million:
		return body{}, fmt.Errorf("margin of %d millionths: %w", m.margin, ErrBody)
	case m.from == 0 || m.seq == 0:
		return body{}, fmt.Errorf("incarnation %d, number %d: %w", m.from, m.seq, ErrBody)
	case bad(m.promise) || bad(m.grantedFor) || m.asks != (m.promise > 0):
		return body{}, fmt.Errorf("asks for %s, grants %s: %w", m.promise, m.grantedFor, ErrBody)
	case (m.granted == 0) != (m.epoch == 0) || (m.granted == 0) != (m.grantedFor == 0):
		return body{}, fmt.Errorf("grants %s to body %d under epoch %d: %w", m.grantedFor, m.granted, m.epoch, ErrBody)
	case releases > maxItems || queries > maxItems:
		return body{}, fmt.Errorf("%d releases and %d questions, at most %d: %w", releases, queries, maxItems, ErrBody)
	case len(b) != bodyFixed+int(releases+queries)*groupSize:
		return body{}, fmt.Errorf("%d bytes for %d releases and %d questions: %w", len(b), releases, queries, ErrBody)
	}
	m.releases = parseGroups(b[bodyFixed:], int(releases))
	m.queries = parseGroups(b[bodyFixed+int(releases)*groupSize:], int(queries))
	return m, nil
}

func parseGroups(b []byte, n int) []Group {
	if n == 0 {
		return nil
	}
	u64 := binary.BigEndian.Uint64
	gs := make([]Group, n)
	for i := range gs {
		at := b[i*groupSize:]
		gs[i] = Group{base.ShardID(u64(at)), u64(at[8:]), base.ReplicaID(u64(at[16:]))}
	}
	return gs
}
