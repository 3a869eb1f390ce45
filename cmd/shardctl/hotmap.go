package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	sharddv1 "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/client/admin"
	"github.com/shardd/shardd/internal/cli"
)

type hotMapFlags struct {
	back    time.Duration
	by      string
	columns uint32
	rows    uint32
}

func newHotMap(o *conn) *cobra.Command {
	var f hotMapFlags
	by := []string{admin.ByRequests, admin.ByBytes, admin.ByCPU}
	c := &cobra.Command{
		Use:   "map",
		Short: "Draw the load of the key space over time",
		Long: `Draw the load of the key space over time: a row for each range of keys, a column for each span of time, the
darker (on a terminal with colours: the hotter) the busier. Each shade is several times the one before, as the legend
says. A dot is a span that nothing is known of, a blank one without load. A horizontal line is a key range that is
busy all the time, one that climbs a load that walks through the keys, a vertical one a burst.

The older, the coarser.`,
		Example: `  shardctl hot map
  shardctl hot map --back 24h --by bytes`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			asJSON, err := o.json()
			if err != nil {
				return err
			}
			if err := checkMeasure(f.by, by); err != nil {
				return err
			}
			if f.back < time.Minute {
				return cli.Usagef("--back %s: want a minute or more", f.back)
			}
			return o.withAdmin(c, func(ctx context.Context, a *admin.Client) error {
				width, req := f.fit(cli.Size(c.OutOrStdout()))
				m, err := a.HotMap(ctx, req)
				if err != nil {
					return err
				}
				if asJSON {
					return cli.JSON(c.OutOrStdout(), toHotMapJSON(m))
				}
				for _, l := range drawHotMap(m, width, cli.Terminal(c.OutOrStdout())) {
					if _, err := fmt.Fprintln(c.OutOrStdout(), l); err != nil {
						return err
					}
				}
				return nil
			})
		},
	}
	fl := c.Flags()
	fl.DurationVar(&f.back, "back", time.Hour, "how far back")
	fl.StringVar(&f.by, "by", admin.ByRequests, strings.Join(by, ", "))
	fl.Uint32Var(&f.columns, "columns", 0, "spans of time; 0: as many as the terminal has room for")
	fl.Uint32Var(&f.rows, "rows", 0, "ranges of keys; 0: as many as the terminal has room for")
	return c
}

// Columns and rows of a map that are not cells.
const (
	mapLabel   = 20 // longest key that is shown
	mapNow     = 8  // the latest figure of each row
	mapMargins = 6  // title, time axis, legend, prompt
)

// fit is the width to draw for and the request for a map that fits in it; columns and rows are 0 off a terminal.
func (f *hotMapFlags) fit(columns, rows int) (width int, req *sharddv1.HotMapRequest) {
	if columns == 0 {
		columns, rows = 100, 30
	}
	req = &sharddv1.HotMapRequest{BackMs: uint64(f.back.Milliseconds()), By: f.by, Columns: f.columns, Rows: f.rows}
	if req.Columns == 0 {
		req.Columns = uint32(max(columns-mapLabel-mapNow-3, 10))
	}
	if req.Rows == 0 {
		req.Rows = uint32(min(max(rows-mapMargins, 5), 48))
	}
	return columns, req
}

// hotMapJSON has a row of cells for each range of keys, a cell for each span of time, null where nothing is known.
type hotMapJSON struct {
	Unit   string       `json:"unit"`
	Bounds []string     `json:"bounds"` // of the rows, one more than there are
	Times  []string     `json:"times"`  // ends of the columns, RFC 3339
	Cells  [][]*float64 `json:"cells"`
}

func toHotMapJSON(m *sharddv1.HotMapResponse) hotMapJSON {
	out := hotMapJSON{Unit: m.GetUnit(), Bounds: []string{}, Times: []string{}, Cells: [][]*float64{}}
	for _, b := range m.GetBounds() {
		out.Bounds = append(out.Bounds, mapKey(b))
	}
	for _, t := range m.GetTimes() {
		out.Times = append(out.Times, rfc3339(t))
	}
	for _, row := range mapRows(m) {
		cells := make([]*float64, len(row))
		for i := range row {
			if row[i] >= 0 {
				cells[i] = &row[i]
			}
		}
		out.Cells = append(out.Cells, cells)
	}
	return out
}

// mapRows are the cells row by row; a response that is cut short has fewer.
func mapRows(m *sharddv1.HotMapResponse) [][]float64 {
	var rows [][]float64
	n := len(m.GetTimes())
	for i := 0; n > 0 && i+1 < len(m.GetBounds()) && (i+1)*n <= len(m.GetCells()); i++ {
		rows = append(rows, m.GetCells()[i*n:(i+1)*n])
	}
	return rows
}

// mapKey is a row's bound: "" is either end of the user's keys.
func mapKey(k []byte) string {
	if len(k) > 1 && k[0] == spaceSystem {
		return "system " + cli.Quote(k[1:])
	}
	return userKey(k)
}
