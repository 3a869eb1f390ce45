package ycsb

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

func draw(n int, g numbers) map[int64]int {
	r := rand.New(rand.NewPCG(7, 7))
	counts := map[int64]int{}
	for range n {
		counts[g.next(r)]++
	}
	return counts
}

// near fails unless a count lies within 5 standard deviations of what its probability says.
func near(t *testing.T, what string, got, draws int, p float64) {
	t.Helper()
	want := p * float64(draws)
	if slack := 5 * math.Sqrt(want*(1-p)); math.Abs(float64(got)-want) > slack {
		t.Errorf("%s: drawn %d times of %d, want %.0f +- %.0f", what, got, draws, want, slack)
	}
}

func TestUniformDrawsEveryNumberAsOften(t *testing.T) {
	const draws, lo, hi = 200_000, 10, 59
	counts := draw(draws, uniform{lo, hi})
	chi := 0.0
	for n := int64(lo); n <= hi; n++ {
		want := float64(draws) / (hi - lo + 1)
		chi += math.Pow(float64(counts[n])-want, 2) / want
	}
	// 49 degrees of freedom: mean 49, standard deviation 9.9.
	if len(counts) != hi-lo+1 || chi > 49+5*9.9 {
		t.Fatalf("chi-square %.0f over %d numbers", chi, len(counts))
	}
}

func TestZipfianFollowsItsFormula(t *testing.T) {
	const draws, items = 500_000, 1000
	counts := draw(draws, newZipfian(0, items-1))
	sum := zeta(0, items, ZipfianConstant, 0)
	// The method of Gray et al. is exact for the first two items and approximates the others.
	near(t, "item 0", counts[0], draws, 1/sum)
	near(t, "item 1", counts[1], draws, math.Pow(2, -ZipfianConstant)/sum)
	for _, upTo := range []int64{10, 100, 500} {
		got, want := 0, zeta(0, upTo, ZipfianConstant, 0)/sum
		for n := range upTo {
			got += counts[n]
		}
		if share := float64(got) / draws; math.Abs(share-want) > 0.02 {
			t.Errorf("first %d items have %.3f of the draws, want %.3f", upTo, share, want)
		}
	}
	for n := range counts {
		if n < 0 || n >= items {
			t.Errorf("item %d drawn of %d", n, items)
		}
	}
}

func TestZipfianOfFewItemsStaysWithinThem(t *testing.T) {
	for items := int64(1); items <= 4; items++ {
		for n := range draw(10_000, newZipfian(5, 5+items-1)) {
			if n < 5 || n >= 5+items {
				t.Errorf("%d drawn from 5 to %d", n, 5+items-1)
			}
		}
	}
}

func TestZipfianThatGrowsHasTheParametersOfItsNewSize(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	grown := newZipfian(0, 99)
	for items := int64(100); items <= 1000; items += 9 {
		grown.nextOf(r, items)
	}
	got, want := grown.params.Load(), newZipfian(0, 999).params.Load()
	if got.items != want.items || math.Abs(got.zeta-want.zeta) > 1e-9 || math.Abs(got.eta-want.eta) > 1e-9 {
		t.Fatalf("grown %+v, made %+v", got, want)
	}
}

func TestScrambledZetaIsThatOfTenBillionItems(t *testing.T) {
	// Euler-Maclaurin: the sum up to m, then the integral from m to n with its first correction.
	const m = 1_000_000
	s := 1 - ZipfianConstant
	tail := (math.Pow(scrambledItems, s)-math.Pow(m, s))/s + (math.Pow(scrambledItems, -0.99)-math.Pow(m, -0.99))/2
	if got := zeta(0, m, ZipfianConstant, 0) + tail; math.Abs(got-scrambledZeta) > 1e-6 {
		t.Fatalf("zeta of %d items is %.9f, the constant %.9f", scrambledItems, got, scrambledZeta)
	}
}

func TestScrambledSpreadsItsHitsAndKeepsTheSkew(t *testing.T) {
	const draws, items = 500_000, 10_000
	counts := draw(draws, newScrambled(100, 100+items-1))
	hottest := 100 + hash64(0)%items
	second := 100 + hash64(1)%items
	// The first two items, plus whatever else the hash puts on their places: at most a thousandth here.
	for place, p := range map[int64]float64{hottest: 1 / scrambledZeta, second: math.Pow(2, -0.99) / scrambledZeta} {
		if share := float64(counts[place]) / draws; share < p-0.002 || share > p+0.004 {
			t.Errorf("record %d has %.4f of the draws, want about %.4f", place, share, p)
		}
	}
	perTenth := make([]int, 10)
	top := make([]int, 0, len(counts))
	for n, c := range counts {
		if n < 100 || n >= 100+items {
			t.Fatalf("record %d drawn", n)
		}
		perTenth[(n-100)*10/items]++
		top = append(top, c)
	}
	for i, distinct := range perTenth {
		if distinct < items/10*8/10 {
			t.Errorf("tenth %d of the records: only %d of %d drawn", i, distinct, items/10)
		}
	}
	slices.Sort(top)
	hot := 0
	for _, c := range top[len(top)-100:] {
		hot += c
	}
	if share := float64(hot) / draws; share < 0.15 || share > 0.35 {
		t.Errorf("the hottest 100 records have %.3f of the draws", share)
	}
}

func TestHashIsYCSBs(t *testing.T) {
	// The first keys of a hashed YCSB load.
	for n, want := range map[int64]int64{0: 6284781860667377211, 1: 8517097267634966620, 2: 1820151046732198393} {
		if got := hash64(n); got != want {
			t.Errorf("hash of %d is %d, want %d", n, got, want)
		}
	}
}

func TestLatestFavoursTheNewestAcknowledgedRecord(t *testing.T) {
	const draws = 300_000
	ack := newCounter(1000)
	l := newLatest(0, ack)
	counts := draw(draws, l)
	sum := zeta(0, 1000, ZipfianConstant, 0)
	near(t, "newest", counts[999], draws, 1/sum)
	near(t, "one before", counts[998], draws, math.Pow(2, -ZipfianConstant)/sum)

	for range 500 {
		n := ack.next()
		if n%2 == 0 { // the odd ones later
			if err := ack.acknowledge(n); err != nil {
				t.Fatal(err)
			}
		}
	}
	for n := range draw(1000, l) {
		if n > 1000 {
			t.Fatalf("record %d drawn while 1001 is not acknowledged", n)
		}
	}
	for n := int64(1001); n < 1500; n += 2 {
		if err := ack.acknowledge(n); err != nil {
			t.Fatal(err)
		}
	}
	near(t, "newest after inserts", draw(draws, l)[1499], draws, 1/zeta(0, 1500, ZipfianConstant, 0))
}

func TestHotspotSequentialAndExponential(t *testing.T) {
	const draws = 200_000
	hot := 0
	for n, c := range draw(draws, hotspot{lo: 100, hotCount: 20, coldCount: 80, hotOperations: 0.8}) {
		if n < 100 || n >= 200 {
			t.Errorf("hotspot drew %d", n)
		}
		if n < 120 {
			hot += c
		}
	}
	near(t, "hot set", hot, draws, 0.8)

	for n, c := range draw(30, &sequential{lo: 3, hi: 5}) {
		if n < 3 || n > 5 || c != 10 {
			t.Errorf("sequential drew %d %d times", n, c)
		}
	}

	within := 0
	for n, c := range draw(draws, newExponential(95, 1000)) {
		if n < 1000 {
			within += c
		}
	}
	near(t, "exponential within its span", within, draws, 0.95)
}

func TestCounterRefusesToLoseAnInsertThatLags(t *testing.T) {
	c := newCounter(0)
	c.next()
	for n := int64(1); n < counterWindow; n++ {
		if err := c.acknowledge(n); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.acknowledge(counterWindow); err == nil {
		t.Fatal("acknowledged past the window")
	}
	if c.last() != -1 {
		t.Fatalf("last is %d before record 0 is there", c.last())
	}
	if err := c.acknowledge(0); err != nil || c.last() != counterWindow-1 {
		t.Fatalf("last is %d after all: %v", c.last(), err)
	}
}
