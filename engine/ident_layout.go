package engine

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"time"

	"github.com/shardd/shardd/internal/base"
)

// Stored layouts of the store span. They carry a checksum of their own, CRC-32C over all bytes before it: what says who
// we are must not come from a block that merely decoded.
//
//	ident  u8 version | 16 cluster | u64 store | u64 incarnation | u32 format | u32 Pebble format | u64 promise in ns
//	       | u32 crc
//	peer   u8 version | u64 incarnation | u16 length | address | u32 crc      (the store is in the key)
//	meta   u8 version | descriptor | u32 crc
const (
	identLen     = 1 + 16 + 8 + 8 + 4 + 4 + 8 + 4
	peerFixedLen = 1 + 8 + 2 + 4
	maxAddrLen   = 1 << 10
	crcLen       = 4
)

func sealCRC(b []byte) []byte {
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
}

// openCRC checks and cuts off the checksum.
func openCRC(what string, b []byte) ([]byte, error) {
	if len(b) < crcLen {
		return nil, fmt.Errorf("%s: %d bytes: %w", what, len(b), ErrCorrupt)
	}
	body := b[:len(b)-crcLen]
	if binary.BigEndian.Uint32(b[len(body):]) != crc32.Checksum(body, crc32.MakeTable(crc32.Castagnoli)) {
		return nil, fmt.Errorf("%s: checksum mismatch: %w", what, ErrCorrupt)
	}
	return body, nil
}

func appendIdent(b []byte, id *Ident) []byte {
	start := len(b)
	b = append(b, layoutV1)
	b = append(b, id.Cluster[:]...)
	b = binary.BigEndian.AppendUint64(b, uint64(id.Store))
	b = binary.BigEndian.AppendUint64(b, id.Incarnation)
	b = binary.BigEndian.AppendUint32(b, id.Format)
	b = binary.BigEndian.AppendUint32(b, id.FormatMajor)
	b = binary.BigEndian.AppendUint64(b, uint64(id.LongestPromise))
	return append(b[:start], sealCRC(b[start:])...)
}

// errNewerLayout marks bytes that are whole by their checksum, but of a layout version above ours.
var errNewerLayout = fmt.Errorf("layout version newer than this binary")

// decodeIdent reads the fixed part; Peers and Meta are in their own records.
func decodeIdent(b []byte) (Ident, error) {
	const what = "store ident"
	body, err := openCRC(what, b)
	if err != nil {
		return Ident{}, err
	}
	if len(body) > 0 && body[0] > layoutV1 {
		return Ident{}, fmt.Errorf("%s: layout version %d: %w", what, body[0], errNewerLayout)
	}
	if err := checkLayout(what, body, identLen-crcLen, true); err != nil {
		return Ident{}, err
	}
	id := Ident{
		Store: base.StoreID(u64at(body, 17)), Incarnation: u64at(body, 25),
		Format: binary.BigEndian.Uint32(body[33:]), FormatMajor: binary.BigEndian.Uint32(body[37:]),
		LongestPromise: time.Duration(u64at(body, 41)),
	}
	copy(id.Cluster[:], body[1:17])
	if id.Cluster.IsZero() || id.Store == 0 || id.LongestPromise < 0 {
		return Ident{}, fmt.Errorf("%s: cluster %s, store %s, promise %s: %w",
			what, id.Cluster, id.Store, id.LongestPromise, ErrCorrupt)
	}
	return id, nil
}

func appendPeer(b []byte, p *PeerRecord) []byte {
	start := len(b)
	b = append(b, layoutV1)
	b = binary.BigEndian.AppendUint64(b, p.Incarnation)
	b = binary.BigEndian.AppendUint16(b, uint16(len(p.Addr)))
	b = append(b, p.Addr...)
	return append(b[:start], sealCRC(b[start:])...)
}

func decodePeer(store base.StoreID, b []byte) (PeerRecord, error) {
	const what = "peer record"
	body, err := openCRC(what, b)
	if err != nil {
		return PeerRecord{}, err
	}
	if err := checkLayout(what, body, peerFixedLen-crcLen, false); err != nil {
		return PeerRecord{}, err
	}
	n := int(binary.BigEndian.Uint16(body[9:]))
	if n > maxAddrLen || len(body) != peerFixedLen-crcLen+n {
		return PeerRecord{}, fmt.Errorf("%s of %s: %d bytes for an address of %d: %w",
			what, store, len(b), n, ErrCorrupt)
	}
	return PeerRecord{Store: store, Addr: string(body[11:]), Incarnation: u64at(body, 1)}, nil
}

func appendMeta(b []byte, d *base.Descriptor) []byte {
	start := len(b)
	b = d.Append(append(b, layoutV1))
	return append(b[:start], sealCRC(b[start:])...)
}

func decodeMeta(b []byte) (*base.Descriptor, error) {
	const what = "meta descriptor"
	body, err := openCRC(what, b)
	if err != nil {
		return nil, err
	}
	if err := checkLayout(what, body, 1, false); err != nil {
		return nil, err
	}
	d, rest, err := base.DecodeDescriptor(body[1:])
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	if len(rest) != 0 {
		return nil, fmt.Errorf("%s: %d bytes after the descriptor: %w", what, len(rest), ErrCorrupt)
	}
	return d, nil
}
