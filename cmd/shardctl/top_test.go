package main

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	tea "charm.land/bubbletea/v2"

	sharddv1 "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/client/admin"
)

// aBusyCluster has more nodes and shards than a small screen.
func aBusyCluster(nodes, shards int) *sharddv1.TopResponse {
	t := &sharddv1.TopResponse{ShardCount: uint64(shards), Total: &sharddv1.Load{Reads: 1234567, Writes: 9999.4,
		ReadBytes: 3 << 30, WriteBytes: 20 << 20}}
	for i := range nodes {
		t.Nodes = append(t.Nodes, &sharddv1.NodeInfo{NodeId: uint64(i + 1), Alive: i != 1, LastSeenMs: uint64(i) * 61000,
			MetaLeader: i == 0, Replicas: 120, Leaders: 40, ShardBytes: 30 << 30, DiskFreeBytes: 200 << 30, DiskLevel: "ok",
			CpuMillis: uint64(100 * i), Load: &sharddv1.Load{Reads: float64(1000 * i), CpuMicros: float64(1e5 * (nodes - i))}})
	}
	for i := range shards {
		t.Shards = append(t.Shards, &sharddv1.ShardInfo{ShardId: uint64(i + 2), Leader: uint64(i%nodes + 1),
			Start: fmt.Appendf(nil, "\x02user%08d", i), End: fmt.Appendf(nil, "\x02user%08d", i+1), SizeBytes: 256 << 20,
			Load: &sharddv1.Load{Reads: 1e6 / float64(i+1), ReadBytes: 1e9 / float64(i+1), CpuMicros: 1e5}})
	}
	return t
}

func TestTopFitsItsScreen(t *testing.T) {
	at := time.Unix(1000, 0)
	for _, size := range [][2]int{{120, 30}, {80, 24}, {40, 12}, {20, 4}, {1, 1}} {
		s := topScreen{by: admin.ByRequests, width: size[0], height: size[1], last: aBusyCluster(5, 40), at: at}
		if size[0] == 80 {
			s.last, s.by, s.trouble = aBusyCluster(30, 40), admin.ByCPU, errors.New("no answer")
		}
		lines := s.lines(at.Add(7 * time.Second))
		if len(lines) > size[1] && size[1] > 1 {
			t.Errorf("%d lines on a screen of %d", len(lines), size[1])
		}
		for _, l := range lines {
			if n := utf8.RuneCountInString(l); n > size[0] {
				t.Errorf("a line of %d columns on a screen of %d: %q", n, size[0], l)
			}
		}
		if size[0] >= 80 {
			checkGolden(t, fmt.Sprintf("top%d.txt", size[0]), strings.Join(lines, "\n")+"\n")
		}
	}
}

// topUnderTest records what is asked.
func topUnderTest() (*topModel, *[]string) {
	var asked []string
	m := &topModel{now: func() time.Time { return time.Unix(1000, 0) },
		topScreen: topScreen{by: admin.ByRequests, every: time.Second, width: 80, height: 24}}
	m.ask = func(by string, _ uint32) (*sharddv1.TopResponse, error) {
		asked = append(asked, by)
		return aBusyCluster(3, 3), nil
	}
	return m, &asked
}

func press(m *topModel, keys string) tea.Cmd {
	_, cmd := m.Update(tea.KeyPressMsg{Code: rune(keys[0]), Text: keys})
	return cmd
}

func TestAKeyChangesTheOrderOfTopAtOnce(t *testing.T) {
	m, asked := topUnderTest()
	first := m.question()
	if m.question() != nil {
		t.Error("asks twice at once")
	}
	if cmd := press(m, "c"); m.by != admin.ByCPU || cmd != nil {
		t.Errorf("by %s while a question is out", m.by)
	}
	_, cmd := m.Update(first()) // in the old order: asked again
	if cmd == nil || m.last != nil {
		t.Fatal("an answer in the old order was taken")
	}
	m.Update(cmd())
	if m.last == nil || strings.Join(*asked, " ") != "requests cpu" {
		t.Errorf("asked %v", *asked)
	}
	if press(m, "x") != nil || press(m, "c") != nil {
		t.Error("a key without meaning asks")
	}
}

func TestTopBearsSilenceAndEndsOnWhatNoRepeatingMends(t *testing.T) {
	m, _ := topUnderTest()
	m.Update(m.question()())
	m.Update(topAnswer{by: m.by, err: &admin.Error{Call: "top", Kind: admin.ErrUnreachable}})
	m.now = func() time.Time { return time.Unix(1008, 0) }
	if v := m.View().Content; !strings.Contains(v, "no answer for 0:08, asking again") || !strings.Contains(v, "n3") {
		t.Errorf("view %s", v)
	}
	_, cmd := m.Update(topAnswer{by: m.by, err: &admin.Error{Call: "top", Kind: admin.ErrUnsupported}})
	if cmd == nil || m.fatal == nil {
		t.Error("asks a node that does not know the call for ever")
	}
	if _, ok := press(m, "q")().(tea.QuitMsg); !ok {
		t.Error("q does not end it")
	}
	press(m, " ")
	if !m.held || m.View().AltScreen != true {
		t.Error("blank does not hold it")
	}
}
