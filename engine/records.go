package engine

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// Pebble's record format, for manifests and write-ahead logs. Records are cut into chunks, none across a border of 32
// KiB, little-endian:
//
//	u32 crc | u16 length | u8 type | payload                                        types 1-4: manifests
//	u32 crc | u16 length | u8 type | u32 log number | payload                       types 5-8
//	u32 crc | u16 length | u8 type | u32 log number | u64 synced offset | payload   types 9-12: logs
//
// The crc covers everything from the type on. Of each four types the first is a whole record, the others its first,
// middle and last part. What is too short for a header at the end of a block is zero. The synced offset is a promise:
// when the chunk was written, the log was synced at least up to there.
const (
	chunkHeader = 7
	chunkPad    = 19 // a zero rest of a block below this is padding: the longest header
	chunkBlock  = 32 << 10
	sector      = 512 // what a disk writes whole or not at all

	chunkFull  = 1
	chunkFirst = 2
	chunkLast  = 4
)

// chunk is one that checks.
type chunk struct {
	part   byte // chunkFull, chunkFirst, middle, chunkLast
	logNum uint32
	synced uint64
	end    int // position behind it
}

// chunkAt reads the chunk at a position.
func chunkAt(b []byte, at int) (c chunk, ok bool) {
	if at+chunkHeader > len(b) {
		return chunk{}, false
	}
	typ, header := b[at+6], chunkHeader
	if typ == 0 || typ > 12 {
		return chunk{}, false
	}
	kind := (typ - 1) / 4
	header += int([...]int{0, 4, 12}[kind])
	c = chunk{part: (typ-1)%4 + 1, end: at + header + int(binary.LittleEndian.Uint16(b[at+4:]))}
	if c.end > len(b) || at/chunkBlock != (c.end-1)/chunkBlock || !chunkCRC(b[at:c.end]) {
		return chunk{}, false
	}
	if kind > 0 {
		c.logNum = binary.LittleEndian.Uint32(b[at+7:])
	}
	if kind > 1 {
		c.synced = binary.LittleEndian.Uint64(b[at+11:])
	}
	return c, true
}

// chunkCRC checks a chunk's bytes against the crc in front of them.
func chunkCRC(chunk []byte) bool {
	return pebbleCRC(chunk[6:]) == binary.LittleEndian.Uint32(chunk)
}

// pebbleCRC is CRC-32C as LevelDB masks it.
func pebbleCRC(b []byte) uint32 {
	c := crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli))
	return (c>>15 | c<<17) + 0xa282ead8
}

// padding returns how much of a block's zero end to skip at a position, 0 if it is not padding.
func padding(b []byte, at int) int {
	rest := chunkBlock - at%chunkBlock
	if rest < chunkHeader || (rest < chunkPad && isZero(b[at:min(len(b), at+rest)])) {
		return rest
	}
	return 0
}

// checkRecords looks through a file in which every record was synced before the next was written. A crash tears at most
// the last one, and leaves its missing part as the end of the file or as zeros by whole sectors; all else is damage.
func checkRecords(b []byte) error {
	at, records := 0, 0
	for at < len(b) {
		if n := padding(b, at); n > 0 {
			at += n
			continue
		}
		c, ok := chunkAt(b, at)
		if !ok {
			break
		}
		if c.part == chunkFull || c.part == chunkLast {
			records++
		}
		at = c.end
	}
	if at < len(b) {
		if !tornAt(b, at) {
			return fmt.Errorf("record %d, at byte %d, is damaged: %w", records, at, ErrCorrupt)
		}
		for next := at + 1; next < len(b); next++ {
			if c, ok := chunkAt(b, next); ok && (c.part == chunkFull || c.part == chunkFirst) {
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

// checkLog looks through a write-ahead log, in which only some records were synced, and which may go over an older
// log's bytes. A bad chunk is damage if a later one of the same log promises that it had been synced.
func checkLog(b []byte, num uint32) error {
	at := 0
	for at < len(b) {
		if n := padding(b, at); n > 0 {
			at += n
			continue
		}
		c, ok := chunkAt(b, at)
		if ok && c.logNum == num+1 {
			return nil // the trailer of a log that was closed
		}
		if !ok || c.logNum != num {
			break
		}
		at = c.end
	}
	for next := at + 1; next+chunkHeader+12 <= len(b); next++ {
		if binary.LittleEndian.Uint32(b[next+7:]) != num || binary.LittleEndian.Uint64(b[next+11:]) <= uint64(at) {
			continue // cheaper than the crc
		}
		if c, ok := chunkAt(b, next); ok && c.logNum == num && c.synced > uint64(at) {
			return fmt.Errorf("the record at byte %d is damaged, which had been synced before the one at byte %d: %w",
				at, next, ErrCorrupt)
		}
	}
	return nil
}

// The end of a blob file, 38 bytes, little-endian: u32 crc of the rest | ... | u8 format, at 21 | ... | magic, at 30.
const (
	blobFooterLen = 38
	blobFormat    = 1
	blobMagic     = "\xf0\x9f\xaa\xb3\xf0\x9f\xa6\x80"
)

// checkBlobFooter checks what Pebble would check in opening a blob file.
func checkBlobFooter(file vfs.File) error {
	info, err := file.Stat()
	if err != nil {
		return err
	}
	if info.Size() < blobFooterLen {
		return fmt.Errorf("%d bytes, too short for its footer: %w", info.Size(), ErrCorrupt)
	}
	var b [blobFooterLen]byte
	if _, err := file.ReadAt(b[:], info.Size()-blobFooterLen); err != nil && err != io.EOF {
		return err
	}
	if pebbleCRC(b[4:]) != binary.LittleEndian.Uint32(b[:]) || b[21] != blobFormat || string(b[30:]) != blobMagic {
		return fmt.Errorf("damaged footer: %w", ErrCorrupt)
	}
	return nil
}

func isZero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}
