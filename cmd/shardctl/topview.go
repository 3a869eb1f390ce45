package main

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	tea "charm.land/bubbletea/v2"

	sharddv1 "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/client/admin"
	"github.com/shardd/shardd/internal/cli"
)

// The live view of "shardctl top": ask, draw, wait, ask again, until the user ends it. The drawing is a function of what
// was last answered, so that a test can look at it without a terminal.

// topScreen is what the view shows.
type topScreen struct {
	by            string
	every         time.Duration
	width, height int
	last          *sharddv1.TopResponse // nil before the first answer
	at            time.Time             // of the last answer
	trouble       error                 // why the last question got none
	held          bool
}

// topModel is a topScreen that asks and listens.
type topModel struct {
	topScreen
	ask    func(by string, shards uint32) (*sharddv1.TopResponse, error)
	now    func() time.Time
	asking bool
	fatal  error // what no repeating mends; ends the view
}

type (
	topAnswer struct {
		by  string
		t   *sharddv1.TopResponse
		err error
	}
	topTick struct{}
)

func (m *topModel) Init() tea.Cmd { return tea.Batch(m.question(), m.tick()) }

// question asks once, unless the last question is still out.
func (m *topModel) question() tea.Cmd {
	if m.asking {
		return nil
	}
	m.asking = true
	by, shards := m.by, uint32(max(m.height, 20))
	return func() tea.Msg {
		t, err := m.ask(by, shards)
		return topAnswer{by, t, err}
	}
}

func (m *topModel) tick() tea.Cmd {
	return tea.Tick(m.every, func(time.Time) tea.Msg { return topTick{} })
}

func (m *topModel) Update(msg tea.Msg) (tea.Model, tea.Cmd) {
	switch msg := msg.(type) {
	case tea.WindowSizeMsg:
		m.width, m.height = msg.Width, msg.Height
	case topTick:
		if m.held {
			return m, m.tick()
		}
		return m, tea.Batch(m.question(), m.tick())
	case topAnswer:
		m.asking = false
		switch {
		case msg.err != nil && !askAgain(msg.err):
			m.fatal = msg.err
			return m, tea.Quit
		case msg.err != nil:
			m.trouble = msg.err
		case msg.by != m.by:
			return m, m.question() // the order was changed in between
		default:
			m.last, m.at, m.trouble = msg.t, m.now(), nil
		}
	case tea.KeyPressMsg:
		return m, m.key(msg.String())
	}
	return m, nil
}

func (m *topModel) key(k string) tea.Cmd {
	switch k {
	case "q", "esc", "ctrl+c":
		return tea.Quit
	case "space":
		m.held = !m.held
		return nil
	}
	for _, by := range measures {
		if k == by[:1] && by != m.by {
			m.by = by
			return m.question()
		}
	}
	return nil
}

func (m *topModel) View() tea.View {
	v := tea.NewView(strings.Join(m.lines(m.now()), "\n"))
	v.AltScreen = true
	return v
}

// lines is the screen, at most height lines of at most width columns. Nodes have at most half of it, the busiest if
// there is no room for all.
func (s *topScreen) lines(now time.Time) []string {
	head, foot := s.frame(now)
	lines := []string{head, ""}
	if s.last == nil {
		text := "asking ..."
		if s.trouble != nil {
			text = s.trouble.Error()
		}
		return s.cut(append(lines, text), foot)
	}
	room := s.height - 6 // head, blank, two headers, blank, foot
	nodes := slices.Clone(s.last.GetNodes())
	if most := max(room/2, 3); len(nodes) > most {
		slices.SortStableFunc(nodes, func(a, b *sharddv1.NodeInfo) int { return busier(a, b, s.by) })
		nodes = nodes[:most]
	}
	lines = append(lines, tableLines(topNodeHeader, topNodeRows(nodes))...)
	lines = append(lines, "")
	shards := s.last.GetShards()
	if most := max(room-len(nodes), 1); len(shards) > most {
		shards = shards[:most]
	}
	lines = append(lines, tableLines(hotHeader, hotRows(shards))...)
	return s.cut(lines, foot)
}

// frame is the first and the last line.
func (s *topScreen) frame(now time.Time) (head, foot string) {
	head = "shardd"
	if s.last != nil {
		head = topSum(s.last)
	}
	state := "live"
	switch {
	case s.held:
		state = "held"
	case s.trouble != nil && s.last != nil:
		state = fmt.Sprintf("no answer for %s, asking again", clockFace(now.Sub(s.at)))
	}
	return head, fmt.Sprintf("%s by %s   r requests  b bytes  c cpu  s size   blank hold  q quit", state, s.by)
}

// cut fits lines to the screen, the foot on its last line.
func (s *topScreen) cut(lines []string, foot string) []string {
	if most := max(s.height-1, 1); len(lines) > most {
		lines = lines[:most]
	}
	for len(lines) < s.height-1 {
		lines = append(lines, "")
	}
	lines = append(lines, foot)
	for i, l := range lines {
		lines[i] = cli.Cut(l, s.width)
	}
	return lines
}

// busier orders nodes by load, the busier first.
func busier(a, b *sharddv1.NodeInfo, by string) int {
	value := func(n *sharddv1.NodeInfo) float64 {
		switch l := n.GetLoad(); by {
		case admin.ByBytes:
			return l.GetReadBytes() + l.GetWriteBytes()
		case admin.ByCPU:
			return float64(n.GetCpuMillis())
		case admin.BySize:
			return float64(n.GetShardBytes())
		default:
			return l.GetReads() + l.GetWrites()
		}
	}
	return cmp.Compare(value(b), value(a))
}

// tableLines is a table as lines.
func tableLines(header []string, rows [][]string) []string {
	var b strings.Builder
	_ = cli.Table(&b, header, rows) // a strings.Builder takes everything
	return strings.Split(strings.TrimSuffix(b.String(), "\n"), "\n")
}
