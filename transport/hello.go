package transport

import (
	"encoding/binary"
	"fmt"

	"github.com/shardd/shardd/internal/base"
)

// The first frame each way. It must stay readable for every later version: fields are only added, behind the address,
// and only the protocol range decides whether two binaries may talk.
//
//	body  0 8 bytes magic | 8 u32 least, 12 u32 greatest protocol version | 16 u32 cluster version | 20 u32 reserved
//	      24 cluster id | 40 u64 store | 48 u64 store that is dialled | 56 u64 incarnation | 64 u64 process
//	      72 u16 length of address | 74 address | whatever later versions add
//
// A refusal takes the place of the acceptor's Hello, or follows the dialler's if it is the dialler who refuses:
//
//	body  0 u16 reason | 2 u16 length of text | 4 cluster id of the sender | 20 u64 its store | 28 text
const (
	helloMagic   = "SHARDDpe"
	helloFixed   = 74
	refusalFixed = 28
	maxHello     = 4 << 10 // bytes of a Hello's or refusal's body

	protoMin = 1
	protoMax = 1
	// clusterVersion is the feature level that this binary offers; later versions gate formats on its minimum.
	clusterVersion = 1
)

// hello introduces a store. Process is random for each Transport: it tells two processes on one store id and
// incarnation apart.
type hello struct {
	protoMin, protoMax uint32
	clusterVersion     uint32
	cluster            base.ClusterID
	store, dest        base.StoreID
	incarnation        uint64
	process            uint64
	addr               string
}

func (h *hello) append(b []byte) []byte {
	at := len(b)
	b = append(b, make([]byte, headerSize)...)
	b = append(b, helloMagic...)
	b = binary.BigEndian.AppendUint32(b, h.protoMin)
	b = binary.BigEndian.AppendUint32(b, h.protoMax)
	b = binary.BigEndian.AppendUint32(b, h.clusterVersion)
	b = append(b, 0, 0, 0, 0)
	b = append(b, h.cluster[:]...)
	b = binary.BigEndian.AppendUint64(b, uint64(h.store))
	b = binary.BigEndian.AppendUint64(b, uint64(h.dest))
	b = binary.BigEndian.AppendUint64(b, h.incarnation)
	b = binary.BigEndian.AppendUint64(b, h.process)
	addr := h.addr[:min(len(h.addr), maxHello-helloFixed)]
	b = binary.BigEndian.AppendUint16(b, uint16(len(addr)))
	b = append(b, addr...)
	finishSmall(b, at, kindHello)
	return b
}

// finishSmall writes the header of a frame of records only that starts at offset at.
func finishSmall(b []byte, at int, k kind) {
	n := uint32(len(b) - at - headerSize)
	putHeader(b[at:], frameHeader{kind: k, records: n, body: n})
}

// parseHello reads the body of a Hello frame.
func parseHello(h frameHeader, body []byte) (hello, error) {
	if h.kind != kindHello || h.flags != 0 {
		return hello{}, fmt.Errorf("first frame has kind %d, want a hello: %w", h.kind, ErrFrame)
	}
	if len(body) < helloFixed || len(body) > maxHello {
		return hello{}, fmt.Errorf("hello of %d bytes: %w", len(body), ErrFrame)
	}
	if string(body[:len(helloMagic)]) != helloMagic {
		return hello{}, fmt.Errorf("hello without magic: %w", ErrFrame)
	}
	u32, u64 := binary.BigEndian.Uint32, binary.BigEndian.Uint64
	n := int(binary.BigEndian.Uint16(body[72:]))
	if n > len(body)-helloFixed {
		return hello{}, fmt.Errorf("hello: address of %d bytes, %d left: %w", n, len(body)-helloFixed, ErrFrame)
	}
	return hello{
		protoMin: u32(body[8:]), protoMax: u32(body[12:]), clusterVersion: u32(body[16:]),
		cluster: base.ClusterID(body[24:40]), store: base.StoreID(u64(body[40:])), dest: base.StoreID(u64(body[48:])),
		incarnation: u64(body[56:]), process: u64(body[64:]), addr: string(body[helloFixed : helloFixed+n]),
	}, nil
}

// refusal is the answer to a Hello that is not accepted.
type refusal struct {
	reason  Refusal
	cluster base.ClusterID
	store   base.StoreID
	text    string
}

func (r *refusal) append(b []byte) []byte {
	at := len(b)
	b = append(b, make([]byte, headerSize)...)
	text := r.text[:min(len(r.text), maxHello-refusalFixed)]
	b = binary.BigEndian.AppendUint16(b, uint16(r.reason))
	b = binary.BigEndian.AppendUint16(b, uint16(len(text)))
	b = append(b, r.cluster[:]...)
	b = binary.BigEndian.AppendUint64(b, uint64(r.store))
	b = append(b, text...)
	finishSmall(b, at, kindRefusal)
	return b
}

func parseRefusal(h frameHeader, body []byte) (refusal, error) {
	if h.kind != kindRefusal || h.flags != 0 || len(body) < refusalFixed || len(body) > maxHello {
		return refusal{}, fmt.Errorf("refusal of kind %d with %d bytes: %w", h.kind, len(body), ErrFrame)
	}
	n := int(binary.BigEndian.Uint16(body[2:]))
	if n > len(body)-refusalFixed {
		return refusal{}, fmt.Errorf("refusal: text of %d bytes, %d left: %w", n, len(body)-refusalFixed, ErrFrame)
	}
	return refusal{
		reason: Refusal(binary.BigEndian.Uint16(body)), cluster: base.ClusterID(body[4:20]),
		store: base.StoreID(binary.BigEndian.Uint64(body[20:])), text: string(body[refusalFixed : refusalFixed+n]),
	}, nil
}

// firstFrame reads what answers a Hello: the acceptor's own, or its refusal.
func firstFrame(frame []byte) (hello, *refusal, error) {
	h, err := parseHeader(frame)
	if err != nil {
		return hello{}, nil, err
	}
	if h.kind == kindRefusal {
		r, err := parseRefusal(h, frame[headerSize:])
		return hello{}, &r, err
	}
	peer, err := parseHello(h, frame[headerSize:])
	return peer, nil, err
}
