package config

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"
)

// EnvFile names the settings file when --config is not given.
const EnvFile = "SHARDD_CONFIG"

// BadSettingError is a setting that is unknown or whose value cannot be read.
type BadSettingError struct {
	Where   string // file and line, variable or flag
	Name    string
	Nearest string // the known name that is closest, if the name is unknown
	Err     error  // what is wrong with the value; nil if the name is unknown
}

// Error names the place, the setting and the remedy.
func (e *BadSettingError) Error() string {
	if e.Err != nil {
		return fmt.Sprintf("%s: %s: %v", e.Where, e.Name, e.Err)
	}
	return fmt.Sprintf("%s: unknown setting %q; did you mean %q? (`shardd config dump` lists all)", e.Where, e.Name,
		e.Nearest)
}

// Unwrap returns what is wrong with the value.
func (e *BadSettingError) Unwrap() error { return e.Err }

// AddFlags gives fs one flag for each setting, and --config.
func AddFlags(flags *pflag.FlagSet) {
	flags.String("config", "", "YAML file of settings ("+EnvFile+")")
	for _, s := range Table(&Config{}) {
		// pflag takes what stands between backquotes for the name of the value.
		f := flags.VarPF(s.Value, s.Name, "", strings.ReplaceAll(s.Doc, "`", `"`))
		if b, ok := s.Value.(interface{ IsBoolFlag() bool }); ok && b.IsBoolFlag() {
			f.NoOptDefVal = "true"
		}
	}
}

// Load gives each setting its value from the flags that were set, else the environment, else the file, else its
// default, and checks them all. environ is os.Environ(). The table is returned for display, also when Validate fails.
func Load(flags *pflag.FlagSet, environ []string) (*Config, []*Setting, error) {
	c := &Config{}
	table := Table(c)
	env := map[string]string{}
	for _, kv := range environ {
		k, v, _ := strings.Cut(kv, "=")
		env[k] = v
	}
	file, _ := flags.GetString("config")
	if file == "" {
		file = env[EnvFile]
	}
	if file != "" {
		if err := fromFile(table, file); err != nil {
			return nil, nil, err
		}
	}
	if err := fromEnv(table, environ); err != nil {
		return nil, nil, err
	}
	for _, s := range table {
		f := flags.Lookup(s.Name)
		if f == nil || !f.Changed {
			continue
		}
		if err := s.Value.Set(f.Value.String()); err != nil {
			return nil, nil, &BadSettingError{Where: "--" + s.Name, Name: s.Name, Err: err}
		}
		s.From = FromFlag
	}
	return c, table, c.Validate()
}

func fromFile(table []*Setting, path string) error {
	f, err := os.Open(path)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("settings file %s does not exist", path)
		}
		return fmt.Errorf("open settings file: %w", err)
	}
	defer f.Close()
	return fromYAML(table, path, f)
}

func fromYAML(table []*Setting, path string, r io.Reader) error {
	dec := yaml.NewDecoder(r)
	var doc yaml.Node
	if err := dec.Decode(&doc); err != nil {
		if errors.Is(err, io.EOF) {
			return nil // an empty file sets nothing
		}
		return fmt.Errorf("settings file %s: %w", path, err)
	}
	if err := dec.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return fmt.Errorf("settings file %s: more than one YAML document", path)
	}
	root := doc.Content[0]
	if root.Kind == yaml.ScalarNode && root.Tag == "!!null" {
		return nil
	}
	if root.Kind != yaml.MappingNode {
		return fmt.Errorf("settings file %s: want `name: value` lines", path)
	}
	seen := map[string]bool{}
	for i := 0; i+1 < len(root.Content); i += 2 {
		key, val := root.Content[i], root.Content[i+1]
		where := fmt.Sprintf("%s:%d", path, key.Line)
		s := find(table, key.Value)
		if s == nil {
			return &BadSettingError{Where: where, Name: key.Value, Nearest: nearest(table, key.Value)}
		}
		if seen[key.Value] {
			return &BadSettingError{Where: where, Name: key.Value, Err: errors.New("given twice")}
		}
		seen[key.Value] = true
		text, err := val.Value, error(nil)
		if val.Kind != yaml.ScalarNode {
			text, err = "", fmt.Errorf("want one %s", s.Value.Type())
			if c, ok := s.Value.(interface {
				compound(*yaml.Node) (string, error)
			}); ok {
				text, err = c.compound(val)
			}
		} else if val.Tag == "!!null" {
			continue // `name:` with nothing after it keeps the default
		}
		if err == nil {
			err = s.Value.Set(text)
		}
		if err != nil {
			return &BadSettingError{Where: where, Name: s.Name, Err: err}
		}
		s.From = FromFile
	}
	return nil
}

func fromEnv(table []*Setting, environ []string) error {
	for _, kv := range environ {
		k, v, _ := strings.Cut(kv, "=")
		if !strings.HasPrefix(k, "SHARDD_") || k == EnvFile {
			continue
		}
		name := strings.ToLower(strings.ReplaceAll(strings.TrimPrefix(k, "SHARDD_"), "_", "-"))
		s := find(table, name)
		if s == nil {
			near := find(table, nearest(table, name))
			return &BadSettingError{Where: "environment", Name: k, Nearest: near.Env()}
		}
		if v == "" {
			continue // as good as unset, which some supervisors cannot say
		}
		if err := s.Value.Set(v); err != nil {
			return &BadSettingError{Where: k, Name: s.Name, Err: err}
		}
		s.From = FromEnv
	}
	return nil
}

func find(table []*Setting, name string) *Setting {
	for _, s := range table {
		if s.Name == name {
			return s
		}
	}
	return nil
}

func nearest(table []*Setting, name string) string {
	names := make([]string, len(table))
	for i, s := range table {
		names[i] = s.Name
	}
	return Nearest(names, name)
}
