// Prometheus exports what an Upgrader knows as metrics for Prometheus, beside
// the application's own, on /metrics; and the same as JSON on /debug/vars.
//
// # What there is
//
//	handover_generation                      1 for the first process
//	handover_upgrades_total{result=…}        upgraded, failed, rolled back
//	handover_killed_total                    generations that had not drained in time
//	handover_processes{state=…}              serving, draining, on probation …
//	handover_connections{generation=…}       open, for each generation that says so
//	handover_last_upgrade_timestamp_seconds  with the verdict as a label
//	handover_last_upgrade_duration_seconds
//
// The counters go on from generation to generation: an upgrade does not set them
// back to 0, as it does with the counters of the Prometheus library itself.
//
// # How it drains
//
// As any server with httpgrace. During the drain a scrape on a kept connection is
// answered by the process that serves, where the connection has gone.
package main

import (
	"context"
	"expvar"
	"flag"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/go-handover/handover/httpgrace"
	"github.com/go-handover/handover/upgrader"
)

func main() {
	listen := flag.String("listen", "127.0.0.1:9090", "`address` to serve on")
	pidfile := flag.String("pidfile", "", "`file` that names the process that serves")
	probation := flag.Duration("probation", upgrader.DefaultProbation, "how long the old process can take the service back")
	flag.Parse()
	log := slog.New(slog.NewJSONHandler(os.Stderr, nil))
	if err := run(*listen, upgrader.Options{PIDFile: *pidfile, Probation: *probation, Logger: log}, log); err != nil {
		log.Error("failed", "pid", os.Getpid(), "err", err)
		os.Exit(1)
	}
}

func run(listen string, o upgrader.Options, log *slog.Logger) error {
	up, err := upgrader.New(o)
	if err != nil {
		return err
	}
	if err := up.HandleSignals(context.Background(), upgrader.Signals{}); err != nil {
		return err
	}
	ln, err := up.Listen(context.Background(), "http", "tcp", listen)
	if err != nil {
		return err
	}
	log.Info("listening", "pid", os.Getpid(), "addr", ln.Addr().String())

	registry := prometheus.NewRegistry()
	registry.MustRegister(collector{up})
	expvar.Publish("upgrader", up.Var())
	mux := http.NewServeMux()
	mux.Handle("/metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	mux.Handle("/debug/vars", expvar.Handler())
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, up.Generation()) })
	srv := &httpgrace.Server{Server: &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}, Hurry: up.Hurry()}
	up.CountConnections(func() int { return srv.Stats().Total() })

	served := make(chan error, 1)
	go func() { served <- srv.ServeUntil(up.Done(), ln) }()
	if err := up.Ready(); err != nil {
		return err
	}
	err = <-served
	log.Info("drained", "pid", os.Getpid())
	up.Wait()
	return err
}

// collector asks for the status at each scrape, so that nothing is kept twice.
type collector struct{ up *upgrader.Upgrader }

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("handover_"+name, help, labels, nil)
}

var (
	generation  = desc("generation", "Generation of the process that answers.")
	upgrades    = desc("upgrades_total", "Upgrades of the service, by how they have ended.", "result")
	killed      = desc("killed_total", "Generations that had not drained when they were ended.")
	processes   = desc("processes", "Processes of the service, by state.", "state")
	connections = desc("connections", "Open connections.", "generation")
	lastTime    = desc("last_upgrade_timestamp_seconds", "When the latest upgrade has ended.", "result", "phase")
	lastTook    = desc("last_upgrade_duration_seconds", "How long the latest upgrade has taken.")
)

// Describe implements prometheus.Collector.
func (collector) Describe(c chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{generation, upgrades, killed, processes, connections, lastTime, lastTook} {
		c <- d
	}
}

// Collect implements prometheus.Collector.
func (k collector) Collect(c chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		c <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	count := func(d *prometheus.Desc, v int, labels ...string) {
		c <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	s := k.up.Status()
	gauge(generation, float64(k.up.Generation()))
	count(upgrades, s.Counters.Upgrades, string(upgrader.Upgraded))
	count(upgrades, s.Counters.Failures, string(upgrader.Failed))
	count(upgrades, s.Counters.Rollbacks, string(upgrader.RolledBack))
	count(killed, s.Counters.Killed)
	states := make(map[string]int)
	for _, p := range s.Processes {
		states[p.State]++
		if p.Connections != nil {
			gauge(connections, float64(*p.Connections), strconv.Itoa(p.Generation))
		}
	}
	for state, n := range states {
		gauge(processes, float64(n), state)
	}
	if s.Last != nil {
		gauge(lastTime, float64(s.Last.Ended.Unix()), string(s.Last.Result), string(s.Last.Phase))
		gauge(lastTook, s.Last.Duration.Seconds())
	}
}
