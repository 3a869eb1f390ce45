package main

import (
	"fmt"
	"image/color"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
)

// plot draws the throughput of Shardd over that of etcd: the median of each cell with the least and largest of any repeat.
// The scale is logarithmic, so that twice as fast looks the same everywhere.
func (r *results) plot(path string) error {
	var medians ratioPoints
	var names []string
	for _, w := range r.Rows {
		if w.Ratio.Median == 0 || w.Clients == 1 {
			continue
		}
		x := float64(len(names))
		medians.XYs = append(medians.XYs, plotter.XY{X: x, Y: w.Ratio.Median})
		medians.YErrors = append(medians.YErrors, struct{ Low, High float64 }{
			Low: w.Ratio.Median - w.Ratio.Min, High: w.Ratio.Max - w.Ratio.Median,
		})
		names = append(names, fmt.Sprintf("%s\n%d", label(w.Workload), w.Clients))
	}
	if len(names) == 0 {
		return nil // nothing to compare
	}
	p := plot.New()
	p.Title.Text = fmt.Sprintf("Throughput: Shardd over etcd %s (1 = the same), %s", r.Etcd, r.Date)
	p.Y.Label.Text = "ratio of medians, least to largest of a repeat"
	p.Y.Scale = plot.LogScale{}
	p.Y.Tick.Marker = plot.ConstantTicks{
		{Value: 0.5, Label: "0.5"}, {Value: 1, Label: "1"}, {Value: 2, Label: "2"}, {Value: 5, Label: "5"},
		{Value: 10, Label: "10"}, {Value: 20, Label: "20"}, {Value: 50, Label: "50"}, {Value: 100, Label: "100"},
	}
	blue := color.RGBA{R: 66, G: 133, B: 180, A: 255}
	points, err := plotter.NewScatter(medians.XYs)
	if err != nil {
		return err
	}
	points.GlyphStyle = draw.GlyphStyle{Color: blue, Radius: vg.Points(5), Shape: draw.CircleGlyph{}}
	spread, err := plotter.NewYErrorBars(medians)
	if err != nil {
		return err
	}
	spread.LineStyle.Color, spread.LineStyle.Width = blue, vg.Points(2)
	one := plotter.NewFunction(func(float64) float64 { return 1 })
	one.Dashes = []vg.Length{vg.Points(4), vg.Points(3)}
	p.Add(plotter.NewGrid(), spread, points, one)
	p.NominalX(names...)
	p.X.Min, p.X.Max = -0.5, float64(len(names))-0.5
	p.Y.Min = min(p.Y.Min, 0.9)
	return p.Save(26*vg.Centimeter, 12*vg.Centimeter, path)
}

// ratioPoints are medians with their spreads.
type ratioPoints struct {
	plotter.XYs
	plotter.YErrors
}

// plotRates draws the operations of each second.
func plotRates(all []*bigFile, path string) error {
	p := plot.New()
	p.Title.Text = fmt.Sprintf("Operations in each second on %.1f GiB, three copies, %s",
		float64(all[0].State.Records)*recordBytes/(1<<30), all[0].Started.Format("2006-01-02"))
	p.X.Label.Text, p.Y.Label.Text = "seconds", "operations per second"
	p.Y.Min = 0
	p.Legend.Top = true
	p.Add(plotter.NewGrid())
	for i, f := range all {
		points := make(plotter.XYs, len(f.Rates))
		for s, r := range f.Rates {
			points[s] = plotter.XY{X: float64(s + 1), Y: r}
		}
		line, err := plotter.NewLine(points)
		if err != nil {
			return err
		}
		line.Color = []color.Color{color.RGBA{R: 66, G: 133, B: 180, A: 255}, color.RGBA{R: 200, G: 110, B: 40, A: 255}}[i%2]
		p.Add(line)
		p.Legend.Add(label(f.Cell.Workload), line)
	}
	return p.Save(26*vg.Centimeter, 12*vg.Centimeter, path)
}
