// Package liveness is what one store promises another, whatever the number of shards that they share: for a stated time,
// not to vote against, nor to campaign against, a leader on the other store. It knows stores, epochs and durations, and
// passes hints about groups on; it knows nothing about raft, and never decides who leads.
//
// # The protocol
//
// B asks A for support; every body that travels is the whole state of its sender towards the receiver, numbered, so that
// losing, repeating and reordering bodies does no harm:
//
//	B  ── body n: "I ask for D; I have heard your body m" ──>  A
//	        sent at s on B's clock                             received at r on A's clock: A promises until r + D
//	B  <── body m+1: "your body n has support, epoch E" ───  A    (with A's next beat; at once if E is new)
//	        B counts on A, under E, until s + D x (1 - margin)
//
// s was before r, and D x (1 - margin) on B's clock is over before D on A's is, while the rates of the two clocks differ
// by less than the margin: so B stops to count before A stops to keep its promise. Nothing but durations on each store's
// own boot time enters; no clocks are synchronised.
//
// An epoch is one unbroken stretch of A's support of B. It ends when the promise lapses, when B comes with a new
// incarnation, or with A's process. Epochs of a store are never used twice: the high half is its incarnation, the low half
// a counter. Whoever acts on the end of a promise first ends it for all: Supports and Epoch, asked after the time was
// over, make the lapse final, even if a body that would have prolonged the promise is being taken at that moment.
//
// # Small print
//
// A supports only a store that has heard it: the request must name a body of A's that A sent within the last three quarters of D. A
// restarted A keeps the promises of its previous life by keeping quiet until QuietUntil. The time granted is the lower of
// what B asks for and A's own setting, and B takes the greater of both margins: different settings on two nodes cost
// time, not safety.
//
// Hints about groups (Release, Ask) travel in the bodies as numbered lists. A body carries the oldest that are not
// acknowledged, at most maxItems of each list; what exceeds maxPending is forgotten, oldest first. They are hints: a lost
// one delays an election until the next check.
package liveness
