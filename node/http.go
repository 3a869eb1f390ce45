package node

import (
	"fmt"
	"log/slog"
	"net/http"
	"net/http/pprof"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	pb "github.com/shardd/shardd/api/shardd/v1"
)

// newHTTP builds the HTTP server: /metrics, /livez, /readyz and, only if asked for, pprof.
func (n *Node) newHTTP() *http.Server {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(n.reg, promhttp.HandlerOpts{
		ErrorLog: slog.NewLogLogger(n.log.Handler(), slog.LevelWarn), MaxRequestsInFlight: 4,
	}))
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, r *http.Request) {
		// Waiting for others, or stopping, is alive: a restart would not help. A disk that hangs is not.
		c := &pb.HealthCheck{Name: "engine", Ok: true, Detail: "ok"}
		if err := n.engineHealthy(); err != nil {
			c.Ok, c.Detail = false, err.Error()
		}
		writeChecks(w, r, []*pb.HealthCheck{c})
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) { writeChecks(w, r, n.checks()) })
	if n.cfg.PProf {
		mux.HandleFunc("/debug/pprof/", pprof.Index)
		mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
		mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
		mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
		mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	}
	return &http.Server{
		Handler: mux, ReadHeaderTimeout: 5 * time.Second, IdleTimeout: time.Minute,
		ErrorLog: slog.NewLogLogger(n.log.Handler(), slog.LevelDebug),
	}
}

// writeChecks answers 200 or 503: with failed checks only, or with ?verbose with all of them.
func writeChecks(w http.ResponseWriter, r *http.Request, checks []*pb.HealthCheck) {
	_, verbose := r.URL.Query()["verbose"]
	var b strings.Builder
	ok := true
	for _, c := range checks {
		ok = ok && c.Ok
		switch {
		case !c.Ok:
			fmt.Fprintf(&b, "[-] %s: %s\n", c.Name, c.Detail)
		case verbose:
			fmt.Fprintf(&b, "[+] %s: %s\n", c.Name, c.Detail)
		}
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	if ok {
		b.WriteString("ok\n")
	} else {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	fmt.Fprint(w, b.String())
}
