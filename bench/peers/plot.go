package main

import (
	"fmt"
	"image/color"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
)

// plot draws the throughput of Shardd over that of etcd, a bar for each cell.
func (r *results) plot(path string) error {
	var ratios plotter.Values
	var names []string
	for _, w := range r.Rows {
		if w.Ratio.Median == 0 || w.Clients == 1 {
			continue
		}
		ratios = append(ratios, w.Ratio.Median)
		names = append(names, fmt.Sprintf("%s\n%d", label(w.Workload), w.Clients))
	}
	if len(ratios) == 0 {
		return nil // nothing to compare
	}
	p := plot.New()
	p.Title.Text = fmt.Sprintf("Throughput: Shardd over etcd %s (1 = the same), %s", r.Etcd, r.Date)
	p.Y.Label.Text = "ratio of medians"
	p.Y.Min = 0
	bars, err := plotter.NewBarChart(ratios, vg.Points(28))
	if err != nil {
		return err
	}
	bars.Color = color.RGBA{R: 66, G: 133, B: 180, A: 255}
	bars.LineStyle.Width = 0
	one := plotter.NewFunction(func(float64) float64 { return 1 })
	one.Dashes = []vg.Length{vg.Points(4), vg.Points(3)}
	p.Add(plotter.NewGrid(), bars, one)
	p.NominalX(names...)
	return p.Save(26*vg.Centimeter, 12*vg.Centimeter, path)
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
