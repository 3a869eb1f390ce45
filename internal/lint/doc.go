// Package lint holds, as tests, the rules of the repository that the compiler does not check: the import floors, what
// may not be imported or called where, the shape of source files, and texts that must not name a machine. It has no
// code of its own and nothing imports it.
//
// A new package needs a line in the table of floors_test.go.
package lint
