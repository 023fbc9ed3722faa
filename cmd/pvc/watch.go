package main

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/urfave/cli/v2"

	"pvc.internal/api"
)

// nodeWatch redraws a table on a terminal, prints a line for each change into
// a pipe, one JSON object for each view with -o json and one document with -o yaml.
func (t *terminal) nodeWatch(c *cli.Context) error {
	if _, err := names(c); err != nil {
		return err
	}
	shape, err := format(c)
	if err != nil {
		return err
	}
	ask, err := client(c)
	if err != nil {
		return err
	}
	w := &watcher{t: t, shape: shape, redraw: isTerminal(t.out)}
	return ask.Watch(c.Context, func(e api.WatchEvent) bool { return w.see(e) == nil })
}

type watcher struct {
	t      *terminal
	shape  string
	redraw bool
	view   *api.ClusterView // the last
	ages   api.Ages
	lost   error
}

// see returns an error only when nobody reads the output any more.
func (w *watcher) see(e api.WatchEvent) error {
	before := w.view
	if e.View != nil {
		w.view, w.lost = e.View, nil
	}
	if e.Ages != nil {
		w.ages = e.Ages
	}
	if e.Lost != nil {
		w.lost = e.Lost
	}
	switch {
	case w.shape != formatTable && e.View == nil:
		return nil
	case w.shape == formatJSON:
		return json.NewEncoder(w.t.out).Encode(e.View)
	case w.shape == formatYAML:
		if _, err := fmt.Fprintln(w.t.out, "---"); err != nil {
			return err
		}
		return writeYAML(w.t.out, e.View)
	case w.redraw:
		return w.draw()
	case e.Lost != nil:
		return w.line("connection lost: %s", e.Lost)
	case e.View != nil:
		return w.changes(before, e.View)
	}
	return nil
}

func (w *watcher) line(format string, more ...any) error {
	_, err := fmt.Fprintf(w.t.out, "%s  %s\n", time.Now().Format("15:04:05.000"), fmt.Sprintf(format, more...))
	return err
}

// changes prints what differs between two views, a line each.
func (w *watcher) changes(before, now *api.ClusterView) error {
	for _, text := range differences(before, now) {
		if err := w.line("%s", text); err != nil {
			return err
		}
	}
	return nil
}

func differences(before, now *api.ClusterView) []string {
	if before == nil {
		before = &api.ClusterView{}
	}
	var lines []string
	changed := func(what, from, to string) {
		if from == to {
			return
		}
		if from == "" {
			from = "–"
		}
		if to == "" {
			to = "–"
		}
		lines = append(lines, fmt.Sprintf("%s: %s → %s", what, from, to))
	}
	changed("store", storeWord(before), storeWord(now))
	changed("maintenance", fmt.Sprint(before.Maintenance.On), fmt.Sprint(now.Maintenance.On))
	changed("primary", before.PrimaryNode, now.PrimaryNode)
	changed("primary wanted", before.PrimaryWanted, now.PrimaryWanted)
	changed("transition", transitionWord(before), transitionWord(now))
	old := map[string]api.NodeSummary{}
	for _, n := range before.Nodes {
		old[string(n.Name)] = n
	}
	for _, n := range now.Nodes {
		was := old[string(n.Name)]
		changed(string(n.Name)+" daemon", daemonWord(string(was.DaemonState), was.Settling), daemonWord(string(n.DaemonState), n.Settling))
		changed(string(n.Name)+" coordinator", string(was.CoordinatorState), string(n.CoordinatorState))
		changed(string(n.Name)+" domain", string(was.DomainState), string(n.DomainState))
		changed(string(n.Name)+" session", sessionWord(was), sessionWord(n))
	}
	return lines
}

func storeWord(v *api.ClusterView) string {
	switch {
	case v.Version == "":
		return ""
	case v.Store.Live:
		return "live"
	}
	return "away"
}

func sessionWord(n api.NodeSummary) string {
	if n.Alive {
		return "alive"
	}
	return "gone"
}

func transitionWord(v *api.ClusterView) string {
	t := v.Transition
	if t == nil {
		return ""
	}
	word := fmt.Sprintf("%s→%s %s phase %s", nobodyIfEmpty(t.From), t.To, t.State, t.Phase)
	if t.Error != "" {
		word += " (" + t.Error + ")"
	}
	return word
}

// draw clears the screen and shows the present.
func (w *watcher) draw() error {
	if _, err := fmt.Fprint(w.t.out, "\x1b[H\x1b[2J"); err != nil {
		return err
	}
	v, paint := w.view, w.t.painter()
	if v == nil {
		return nil
	}
	w.t.say("cluster %s   primary %s   wanted %s   maintenance %t   %s", v.ClusterName, v.PrimaryNode, v.PrimaryWanted, v.Maintenance.On, time.Now().Format("15:04:05"))
	if w.lost != nil {
		w.t.say("! connection lost, this is old: %s", w.lost)
	}
	if v.Stale {
		w.t.say("! ZooKeeper is away, this is old")
	}
	g := w.t.grid("name", "daemon", "coordinator", "domain", "session", "keepalive")
	for _, n := range v.Nodes {
		g.AppendRow(table.Row{n.Name, paint.state(daemonWord(string(n.DaemonState), n.Settling)), paint.state(string(n.CoordinatorState)), paint.state(string(n.DomainState)),
			sessionWord(n), w.age(n)})
	}
	g.Render()
	if word := transitionWord(v); word != "" {
		w.t.say("\nlast hand-over: %s", word)
	}
	return nil
}

func (w *watcher) age(n api.NodeSummary) string {
	if age, known := w.ages[string(n.Name)]; known {
		return fmt.Sprintf("%.1f s ago", age)
	}
	if n.KeepaliveAge != nil {
		return fmt.Sprintf("%.1f s ago", *n.KeepaliveAge)
	}
	return "never"
}
