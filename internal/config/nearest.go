package config

import "strings"

// Nearest returns the name with the fewest edits to word; underscores and capitals count for nothing.
func Nearest(names []string, word string) string {
	word = strings.ToLower(strings.ReplaceAll(word, "_", "-"))
	best, bestCost := "", -1
	for _, n := range names {
		c := edits(n, word)
		if strings.HasPrefix(n, word) || strings.HasPrefix(word, n) {
			c = min(c, 1) // "log" is nearer to log-level than to tick
		}
		if bestCost < 0 || c < bestCost {
			best, bestCost = n, c
		}
	}
	return best
}

// edits is the Levenshtein distance of two byte strings.
func edits(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		diag := row[0]
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := diag
			if a[i-1] != b[j-1] {
				cost++
			}
			diag = row[j]
			row[j] = min(cost, row[j]+1, row[j-1]+1)
		}
	}
	return row[len(b)]
}
