package engine

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// checkManifest refuses a damaged manifest. Pebble reads one up to the first record that does not check and takes the
// rest as never written. That is right for a write that a crash tore, but after damage it loses tables, and the
// acknowledged data in them. A directory without a database passes.
func checkManifest(fs vfs.FS, dir string) error {
	desc, err := pebble.Peek(dir, fs)
	if err != nil {
		return err
	}
	if !desc.Exists {
		return nil
	}
	file, err := fs.Open(desc.ManifestFilename)
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("manifest: %w: %w", err, ErrCorrupt)
	}
	if err != nil {
		return err
	}
	b, err := io.ReadAll(file)
	if err = errors.Join(err, file.Close()); err != nil {
		return fmt.Errorf("read manifest: %w", err)
	}
	if err := checkRecords(b); err != nil {
		return fmt.Errorf("manifest %s: %w", fs.PathBase(desc.ManifestFilename), err)
	}
	return nil
}

// Chunks of Pebble's record format, as manifests have them: u32 crc | u16 length | u8 type | payload, little-endian,
// none across a border of 32 KiB; what is too short for a header at the end of a block is zero. The crc covers type and
// payload.
const (
	chunkHeader = 7
	chunkPad    = 19 // a zero rest of a block below this is padding: the longest header of any kind
	chunkBlock  = 32 << 10
	sector      = 512 // what a disk writes whole or not at all

	chunkFull   = 1
	chunkFirst  = 2
	chunkLast   = 4
	chunkTypes  = 4  // per encoding
	chunkMaxTyp = 12 // three encodings
)

// checkRecords tells damage from a torn end. Every edit is synced before the next is written, so a crash tears at most
// the last record, and leaves its missing part as the end of the file or as zeros by whole sectors.
func checkRecords(b []byte) error {
	at, records := 0, 0
	for at < len(b) {
		rest := chunkBlock - at%chunkBlock
		if rest < chunkHeader || (rest < chunkPad && isZero(b[at:min(len(b), at+rest)])) {
			at += rest
			continue
		}
		typ, end, ok := chunkAt(b, at)
		if !ok {
			break
		}
		if typ == chunkFull || typ == chunkLast {
			records++
		}
		at = end
	}
	if at < len(b) {
		if torn := tornAt(b, at); !torn {
			return fmt.Errorf("record %d, at byte %d, is damaged: %w", records, at, ErrCorrupt)
		}
		for next := at + 1; next < len(b); next++ {
			if typ, _, ok := chunkAt(b, next); ok && (typ == chunkFull || typ == chunkFirst) {
				return fmt.Errorf("record %d, at byte %d, is damaged, but a later one, at byte %d, is whole: %w",
					records, at, next, ErrCorrupt)
			}
		}
	}
	if records == 0 {
		return fmt.Errorf("no whole record: %w", ErrCorrupt)
	}
	return nil
}

// chunkAt reads the chunk at a position; typ is reduced to the first encoding.
func chunkAt(b []byte, at int) (typ byte, end int, ok bool) {
	if at+chunkHeader > len(b) {
		return 0, 0, false
	}
	typ = b[at+6]
	end = at + chunkHeader + int(binary.LittleEndian.Uint16(b[at+4:]))
	if typ == 0 || typ > chunkMaxTyp || end > len(b) || at/chunkBlock != (end-1)/chunkBlock {
		return 0, 0, false
	}
	if !chunkCRC(b[at:end]) {
		return 0, 0, false
	}
	return (typ-1)%chunkTypes + 1, end, true
}

// chunkCRC checks a chunk's bytes against the crc in front of them.
func chunkCRC(chunk []byte) bool {
	c := crc32.Checksum(chunk[6:], crc32.MakeTable(crc32.Castagnoli))
	return (c>>15|c<<17)+0xa282ead8 == binary.LittleEndian.Uint32(chunk)
}

// tornAt reports whether the bad chunk at a position can be what is left of an unfinished write.
func tornAt(b []byte, at int) bool {
	if at+chunkHeader > len(b) {
		return true
	}
	if isZero(b[at:min(len(b), at+sector-at%sector)]) {
		return true // begins with a sector that was never written
	}
	if chunkCRC(b[at:]) {
		return false // whole but for its length
	}
	end := at + chunkHeader + int(binary.LittleEndian.Uint16(b[at+4:]))
	if at/chunkBlock != (end-1)/chunkBlock {
		return false // no writer makes this length
	}
	if end > len(b) {
		return true
	}
	for s := at; s < end; s += sector - s%sector {
		if isZero(b[s:min(end, s+sector-s%sector)]) {
			return true
		}
	}
	return false
}

func isZero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}
