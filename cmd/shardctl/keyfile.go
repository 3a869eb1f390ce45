package main

import (
	"bufio"
	"bytes"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/shardd/shardd/internal/cli"
)

// Files of keys: one a line as shardctl prints them, or CSV for samples of data.

// openInput opens a file that a flag names; - is standard input.
func openInput(flag, name string, in io.Reader) (io.ReadCloser, error) {
	if name == "-" {
		return io.NopCloser(in), nil
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, cli.Usagef("--%s: %w", flag, err)
	}
	return f, nil
}

// readKey reads a key as shardctl prints it, or its hex digits.
func readKey(text string, isHex bool) ([]byte, error) {
	if isHex {
		return cli.Key(text, true)
	}
	return cli.Unquote(text)
}

// readKeys reads the keys of a file, one a line; blank lines are left out.
func readKeys(flag, name string, in io.Reader, isHex bool) ([][]byte, error) {
	f, err := openInput(flag, name, in)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return scanKeys(f, flag, name, isHex)
}

func scanKeys(in io.Reader, flag, name string, isHex bool) ([][]byte, error) {
	var keys [][]byte
	lines := bufio.NewScanner(in)
	for n := 1; lines.Scan(); n++ {
		line := bytes.TrimSpace(lines.Bytes())
		if len(line) == 0 {
			continue
		}
		k, err := readKey(string(line), isHex)
		if err != nil {
			return nil, cli.Usagef("--%s %s line %d: %w", flag, name, n, err)
		}
		keys = append(keys, k)
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	return keys, nil
}

// readSample reads the keys of a sample, CSV if its name says so.
func (s *splitFlags) readSample(in io.Reader) ([][]byte, error) {
	f, err := openInput("sample", s.sample, in)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if !strings.HasSuffix(strings.ToLower(s.sample), ".csv") {
		return scanKeys(f, "sample", s.sample, s.hex)
	}
	if s.column < 1 {
		return nil, cli.Usagef("--column %d: want 1 or more", s.column)
	}
	var keys [][]byte
	rows := csv.NewReader(f)
	rows.FieldsPerRecord, rows.ReuseRecord = -1, true
	for {
		row, err := rows.Read()
		if errors.Is(err, io.EOF) {
			return keys, nil
		}
		if err != nil {
			return nil, cli.Usagef("--sample %s: %w", s.sample, err)
		}
		line, _ := rows.FieldPos(0)
		if len(row) < s.column {
			return nil, cli.Usagef("--sample %s line %d has %d columns, the keys are to be in column %d", s.sample, line,
				len(row), s.column)
		}
		text := row[s.column-1] // CSV has its own quotes: what is between them is the key itself
		if text == "" {
			continue
		}
		k, err := cli.Key(text, s.hex)
		if err != nil {
			return nil, cli.Usagef("--sample %s line %d: %w", s.sample, line, err)
		}
		keys = append(keys, bytes.Clone(k))
	}
}

// quantiles returns the parts-1 keys that divide a sample into parts of equal number. A key that is in the sample so
// often that it would be the start of two parts makes one; a sample with too few different keys is refused.
func quantiles(sample [][]byte, parts int) ([][]byte, error) {
	slices.SortFunc(sample, bytes.Compare)
	different := slices.CompactFunc(slices.Clone(sample), bytes.Equal)
	if len(different) < parts {
		return nil, cli.Usagef("the sample has %d different keys, too few for %d parts", len(different), parts)
	}
	var keys [][]byte
	for i := 1; i < parts; i++ {
		k := sample[i*len(sample)/parts]
		if bytes.Equal(k, sample[0]) || len(keys) > 0 && bytes.Equal(k, keys[len(keys)-1]) {
			continue
		}
		keys = append(keys, k)
	}
	return keys, nil
}
