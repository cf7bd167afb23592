package main

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/go-handover/handover/upgrader"
)

// writeStatus writes s for people, as of now.
func writeStatus(w io.Writer, s upgrader.Status, now time.Time) {
	var b bytes.Buffer
	writeProcesses(&b, s.Processes, now)
	if len(s.Sockets) > 0 {
		b.WriteByte('\n')
		writeSockets(&b, s.Sockets)
	}
	b.WriteByte('\n')
	writeLast(&b, s.Last, now)
	c := s.Counters
	fmt.Fprintf(&b, "upgrades      %d done, %d failed, %d rolled back\n", c.Upgrades, c.Failures, c.Rollbacks)
	if c.Killed > 0 {
		fmt.Fprintf(&b, "killed        %d that had not drained when they were ended\n", c.Killed)
	}
	if s.Log != "" {
		fmt.Fprintf(&b, "log           %s\n", s.Log)
	}
	// What a write has not taken is not ours to mend.
	_, _ = io.WriteString(w, printable(b.String()))
}

func writeProcesses(w io.Writer, processes []upgrader.Process, now time.Time) {
	rows := [][]string{{"GENERATION", "PID", "VERSION", "REVISION", "STATE", "SINCE", "CONNECTIONS", "DEADLINE"}}
	for _, p := range processes {
		rows = append(rows, []string{
			fmt.Sprint(p.Generation), fmt.Sprint(p.PID), p.Version, shortRevision(p.Revision), p.State,
			moment(p.Since, now), number(p.Connections), deadline(p.Deadline, now),
		})
	}
	writeTable(w, rows)
}

func writeSockets(w io.Writer, sockets []upgrader.Socket) {
	rows := [][]string{{"SOCKET", "KIND", "NETWORK", "ADDRESS"}}
	for _, s := range sockets {
		rows = append(rows, []string{s.Name, s.Kind, s.Network, s.Address})
	}
	writeTable(w, rows)
}

// writeTable aligns the columns. An empty cell is "-", so that each row has as
// many words as the first.
func writeTable(w io.Writer, rows [][]string) {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, row := range rows {
		for i, cell := range row {
			row[i] = cmp.Or(strings.Join(strings.Fields(cell), " "), "-")
		}
		fmt.Fprintln(tw, strings.Join(row, "\t"))
	}
	_ = tw.Flush() // into memory
}

func writeLast(w io.Writer, v *upgrader.Verdict, now time.Time) {
	if v == nil {
		fmt.Fprintln(w, "last upgrade  none")
		return
	}
	fmt.Fprintf(w, "last upgrade  %s", v.Result)
	if v.PID != 0 {
		fmt.Fprintf(w, ", process %d", v.PID)
	}
	if v.Phase != "" {
		fmt.Fprintf(w, ", in phase %s", v.Phase)
	}
	if v.Duration > 0 {
		fmt.Fprintf(w, ", after %.3f s", v.Duration.Seconds())
	}
	fmt.Fprintf(w, ", at %s\n", moment(v.Ended, now))
	if v.Reason != "" {
		fmt.Fprintf(w, "  reason      %s\n", lines(reason(v.Reason)))
	}
	if v.Text != "" {
		fmt.Fprintf(w, "  it said     %s\n", lines(v.Text))
	}
}

// lines has the further lines of text under the first one.
func lines(text string) string {
	return strings.ReplaceAll(strings.TrimSpace(text), "\n", "\n              ")
}

// moment is when, and how long ago that is.
func moment(t, now time.Time) string {
	if t.IsZero() {
		return ""
	}
	layout := "2006-01-02 15:04:05"
	t = t.In(now.Location())
	if t.Format(time.DateOnly) == now.Format(time.DateOnly) {
		layout = time.TimeOnly
	}
	return fmt.Sprintf("%s (%s ago)", t.Format(layout), short(now.Sub(t)))
}

func deadline(t, now time.Time) string {
	switch {
	case t.IsZero():
		return ""
	case !t.After(now):
		return "now"
	}
	return "in " + short(t.Sub(now))
}

// short has two units at most, as an operator reads them: 3d4h, 3m12s, 9s.
func short(d time.Duration) string {
	d = max(d, 0)
	day := 24 * time.Hour
	switch {
	case d >= day:
		return fmt.Sprintf("%dd%dh", d/day, d%day/time.Hour)
	case d >= time.Hour:
		return fmt.Sprintf("%dh%dm", d/time.Hour, d%time.Hour/time.Minute)
	case d >= time.Minute:
		return fmt.Sprintf("%dm%ds", d/time.Minute, d%time.Minute/time.Second)
	}
	return fmt.Sprintf("%ds", d/time.Second)
}

// number is "" for what is not known.
func number(n *int) string {
	if n == nil {
		return ""
	}
	return fmt.Sprint(*n)
}

// shortRevision is as much of a hash as tells one from another.
func shortRevision(revision string) string {
	const enough = 12
	return revision[:min(len(revision), enough)]
}
