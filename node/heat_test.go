package node

import (
	"testing"
	"time"

	"github.com/shardd/shardd/placement/plan"
)

func TestAHeatMapOfAClusterThatNobodyHasReportedIsEmpty(t *testing.T) {
	var h heatMap
	now := time.Minute
	for range 3 {
		h.sample(plan.NewView(), now)
		now += heatLayers[0].step
	}
	if starts, _, values := h.grid(time.Hour, 8, 10, "", now); len(starts) != 0 || len(values) != 0 {
		t.Errorf("%d rows, %d cells", len(starts), len(values))
	}
}
