package placement

import (
	"context"
	"encoding/binary"
	"fmt"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
)

// MaxRules bounds the text of the placement rules, in bytes.
const MaxRules = 256 << 10

// Rules are the placement rules as people gave them. What they say is the business of package rules.
type Rules struct {
	// Revision rises with each change; 0: nothing was set, the built-in rules hold.
	Revision uint64
	YAML     string
}

// Append encodes: u8 version | u64 revision | u32 length | yaml.
func (r *Rules) Append(buf []byte) []byte {
	buf = binary.BigEndian.AppendUint64(append(buf, recordVersion), r.Revision)
	return append(binary.BigEndian.AppendUint32(buf, uint32(len(r.YAML))), r.YAML...)
}

// DecodeRules is the reverse of Append; errors wrap base.ErrCorrupt.
func DecodeRules(b []byte) (Rules, error) {
	r := newReader("rules record", b)
	out := Rules{Revision: r.u64(), YAML: string(r.bytes(r.u32()))}
	if err := r.end(); err != nil {
		return Rules{}, err
	}
	if out.Revision == 0 || len(out.YAML) > MaxRules {
		return Rules{}, fmt.Errorf("rules record: revision %d, %d bytes: %w", out.Revision, len(out.YAML), base.ErrCorrupt)
	}
	return out, nil
}

// Rules returns the placement rules; revision 0 if none were set.
func (d *Directory) Rules(ctx context.Context) (Rules, error) {
	v, ver, err := d.kv.Get(ctx, rulesKey())
	if err != nil {
		return Rules{}, fmt.Errorf("read rules: %w", err)
	}
	if ver == 0 {
		return Rules{}, nil
	}
	return DecodeRules(v)
}

// SetRules records checked rules and returns them with their revision. Setting the same again changes nothing. ErrStale:
// the rules have another revision than the one given; 0 takes any.
func (d *Directory) SetRules(ctx context.Context, yaml string, revision uint64) (Rules, error) {
	if len(yaml) > MaxRules {
		return Rules{}, fmt.Errorf("rules of %d bytes, at most %d: %w", len(yaml), MaxRules, ErrInvalid)
	}
	var out Rules
	err := d.retry(ctx, "set rules", func() ([]wire.Sub, error) {
		v, ver, err := d.kv.Get(ctx, rulesKey())
		if err != nil {
			return nil, err
		}
		out = Rules{}
		if ver != 0 {
			if out, err = DecodeRules(v); err != nil {
				return nil, err
			}
			if out.YAML == yaml {
				return nil, nil // also an earlier try, whose answer was lost
			}
		}
		if revision != 0 && revision != out.Revision {
			return nil, fmt.Errorf("they have revision %d, not %d: %w", out.Revision, revision, ErrStale)
		}
		out = Rules{Revision: out.Revision + 1, YAML: yaml}
		return []wire.Sub{
			checkVersion(rulesKey(), ver), {Code: wire.OpPut, Key: rulesKey(), Value: out.Append(nil)},
		}, nil
	})
	return out, err
}
