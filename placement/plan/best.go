package plan

// bestKey asks how well n voters could be placed under a rule.
type bestKey struct {
	rule Rule
	n    int
}

// best returns about the best fit that n voters could have under a rule with the stores that there are: stores are taken
// one by one, each time the one with which the placement so far is best. Where groups of constraints make that too
// hopeful, shards ask for better places in vain, and wait longer each time.
func (v *View) best(rule Rule, n int) Fit {
	key := bestKey{rule, n}
	fit, ok := v.bests[key]
	if !ok {
		fit = v.findBest(rule, n)
		v.bests[key] = fit
	}
	return fit
}

// renewBests works the best fits out anew if other stores may have replicas than before. If one has changed, every
// shard may want other places.
func (v *View) renewBests() {
	key := mix(v.labelled)
	for _, s := range v.order {
		key = mix(key ^ uint64(s.ID)<<1 ^ uint64(bit(s.takesReplicas(), 1)))
	}
	if key == v.bestsOf {
		return
	}
	v.bestsOf = key
	changed := false
	for k, was := range v.bests {
		if now := v.findBest(k.rule, k.n); now != was {
			v.bests[k], changed = now, true
		}
	}
	if changed {
		for _, sh := range v.shards {
			v.touch(sh)
		}
	}
}

func (v *View) findBest(rule Rule, n int) Fit {
	var placed []Placed
	var fit Fit
	for range n {
		var pick *Store
		for _, s := range v.order {
			if !s.takesReplicas() || holdsStore(placed, s) {
				continue
			}
			if ok, _ := rule.Allows(s); !ok {
				continue
			}
			if f := rule.Fit(append(placed, Placed{Store: s})); pick == nil || f.Compare(fit) > 0 {
				pick, fit = s, f
			}
		}
		if pick == nil {
			return Fit{} // there is no room for so many: nothing better can be promised
		}
		placed = append(placed, Placed{Store: pick})
	}
	return fit
}

func holdsStore(placed []Placed, s *Store) bool {
	for _, p := range placed {
		if p.Store == s {
			return true
		}
	}
	return false
}

// takesReplicas reports whether a store may get replicas at all, room, health and limits aside.
func (s *Store) takesReplicas() bool {
	return s.Listed && s.Commission == Active && s.Drain == DrainNone && !s.down
}
