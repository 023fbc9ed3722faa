package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"pvc.internal/cluster"
)

// Tasks are what runs, or was ordered and has not begun, by the node that does
// it. A task that a moment is set for does not exist yet: nothing is scheduled.
type Tasks struct {
	Active    map[string][]Task `json:"active"`   // it runs, or is being ended
	Reserved  map[string][]Task `json:"reserved"` // it waits for a condition, or for its node
	Scheduled map[string][]Task `json:"scheduled"`
}

// Task is one task as PVC's clients know it, with what we know beside.
type Task struct {
	ID        string            `json:"id"`
	Name      string            `json:"name"`
	Args      []string          `json:"args"`
	Kwargs    map[string]string `json:"kwargs"`
	Type      string            `json:"type"` // activity, switch, fence, fence_order, member_order, workload_order, move, drain, rebalance, reset
	Hostname  string            `json:"hostname"`
	TimeStart float64           `json:"time_start"` // unix seconds
	// State is PENDING, RUNNING, COMPLETED or FAILED.
	State string `json:"state"`
	// Status says the same for people, and why.
	Status string `json:"status"`
}

// The states of a task.
const (
	TaskPending   = "PENDING"
	TaskRunning   = "RUNNING"
	TaskCompleted = "COMPLETED"
	TaskFailed    = "FAILED"
)

// switchTask names the wish of this version as a task.
func switchTask(wishVersion int32) string { return "switch-" + strconv.Itoa(int(wishVersion)) }

func (s *Server) getTasks(r *request) (answer, error) {
	return s.facts(r.ctx, func(st state) (any, error) {
		out := Tasks{Active: map[string][]Task{}, Reserved: map[string][]Task{}, Scheduled: map[string][]Task{}}
		tasks, err := s.tasks(r.ctx, st)
		if err != nil {
			return nil, err
		}
		for _, t := range tasks {
			if t.State == TaskRunning {
				out.Active[t.Hostname] = append(out.Active[t.Hostname], t)
			} else {
				out.Reserved[t.Hostname] = append(out.Reserved[t.Hostname], t)
			}
		}
		return out, nil
	})
}

// tasks are all that run or wait; while the store is away those of the snapshot.
func (s *Server) tasks(ctx context.Context, st state) ([]Task, error) {
	tasks := st.tasks()
	if st.away > 0 {
		return tasks, nil
	}
	records, err := s.deps.Details.ReadActivities(ctx)
	if err != nil {
		return nil, fmt.Errorf("read the activities: %w", err)
	}
	for _, a := range records {
		if a.Err == nil && a.Present {
			tasks = append(tasks, activityTask(a.Value))
		}
	}
	return tasks, nil
}

// tasks are those that the snapshot shows.
func (st state) tasks() []Task {
	var tasks []Task
	leader := string(st.holder())
	if t := st.snap.Transition; t.Present && t.Err == nil && t.Value.Running() {
		tasks = append(tasks, transitionTask(t.Value))
	}
	for _, name := range st.names() {
		n := st.snap.Nodes[name]
		if f := n.Fence; f.Present && f.Err == nil && f.Value.ID != "" && !f.Value.Ended() {
			tasks = append(tasks, fenceTask(f.Value))
		}
		if o := n.Order; o.Present && o.Err == nil {
			tasks = append(tasks, orderTask(o.Value.ID, "fence_order", o.Value.Action, leader, string(name), o.Value.By, o.Value.UnixMS))
		}
	}
	tasks = append(tasks, st.workloadTasks(leader)...)
	if o := st.snap.MemberOrder; o.Present && o.Err == nil {
		tasks = append(tasks, orderTask(o.Value.ID, "member_order", o.Value.Action, leader, string(o.Value.Node), o.Value.By, o.Value.UnixMS))
	}
	return tasks
}

func newTask(id, kind, name, host string, unixMS int64) Task {
	return Task{ID: id, Type: kind, Name: name, Hostname: host, Args: []string{}, Kwargs: map[string]string{}, TimeStart: float64(unixMS) / 1000}
}

func transitionTask(t cluster.Transition) Task {
	task := newTask(t.ID, "switch", "switch", string(t.To), t.Started)
	task.Kwargs["from"], task.Kwargs["to"], task.Kwargs["cause"] = string(t.From), string(t.To), string(t.Cause)
	switch {
	case t.Running():
		task.State, task.Status = TaskRunning, fmt.Sprintf("the primary role is being handed to node %s, phase %s", t.To, t.Phase)
	case t.State == cluster.TransitionDone:
		task.State, task.Status = TaskCompleted, fmt.Sprintf("node %s has the primary role", t.To)
	default:
		task.State, task.Status = TaskFailed, "the hand-over was aborted: "+t.Error
	}
	return task
}

func fenceTask(f cluster.FenceRecord) Task {
	task := newTask(f.ID, "fence", "fence", string(f.By), f.StartedMS)
	task.Kwargs["node"], task.Kwargs["incarnation"] = string(f.Node), string(f.Incarnation)
	task.State, task.Status = TaskRunning, fmt.Sprintf("node %s is being fenced, stage %s: %s", f.Node, f.Stage, f.Reason)
	if f.Ended() {
		task.State, task.Status = TaskCompleted, fmt.Sprintf("the fence of node %s has ended in stage %s: %s", f.Node, f.Stage, f.Result)
	}
	return task
}

func orderTask(id, kind, action, leader, about, by string, unixMS int64) Task {
	if leader == "" {
		leader = cluster.NoNode
	}
	task := newTask(id, kind, action, leader, unixMS)
	task.Kwargs["node"], task.Kwargs["by"] = about, by
	task.State, task.Status = TaskPending, "the primary has not carried it out yet"
	return task
}

func activityTask(a cluster.ActivityRecord) Task {
	task := newTask(string(a.ID), "activity", a.Name, string(a.Node), a.Since)
	task.Args = append(task.Args, a.Running...)
	task.Kwargs["domain"], task.Kwargs["quorum"] = string(a.Domain), a.Quorum
	task.State, task.Status = TaskRunning, string(a.State)
	if a.State == cluster.ActivityWaiting {
		task.State = TaskPending
	}
	if a.Waits != nil {
		task.Status += ": " + a.Waits.Detail
	} else if a.Detail != "" {
		task.Status += ": " + a.Detail
	}
	return task
}

func (s *Server) getTask(r *request) (answer, error) {
	id := r.http.PathValue("task")
	return s.facts(r.ctx, func(st state) (any, error) {
		tasks, err := s.tasks(r.ctx, st)
		if err != nil {
			return nil, err
		}
		if at := slices.IndexFunc(tasks, func(t Task) bool { return t.ID == id }); at >= 0 {
			return tasks[at], nil
		}
		if t, known := st.switchTask(id); known {
			return t, nil
		}
		if st.away > 0 {
			return nil, errors.New("what is over cannot be read while ZooKeeper is away")
		}
		return s.pastTask(r.ctx, id)
	})
}

// switchTask is the wish of that name, as far as the present records tell.
func (st state) switchTask(id string) (Task, bool) {
	text, is := strings.CutPrefix(id, "switch-")
	version, err := strconv.ParseInt(text, 10, 32)
	p := st.snap.PrimaryNode
	if !is || err != nil || !p.Present || version > int64(p.Version) || version < 0 {
		return Task{}, false
	}
	task := newTask(id, "switch", "switch", string(st.holder()), 0)
	if t := st.snap.Transition; t.Present && t.Err == nil && t.Value.ID != "" && t.Value.Cause == cluster.CauseSwitch &&
		(int64(t.Value.WishVersion) == version || int64(t.Value.WishVersion) == version+1) {
		task = transitionTask(t.Value)
		task.ID = id
		return task, true
	}
	switch {
	case version == int64(p.Version) && p.Value == string(st.holder()):
		task.State, task.Status = TaskCompleted, fmt.Sprintf("node %s holds the primary role", p.Value)
	case version == int64(p.Version):
		task.State, task.Status = TaskPending, fmt.Sprintf("%q shall hold the primary role; no hand-over has begun for it", p.Value)
	default:
		task.State, task.Status = TaskFailed, fmt.Sprintf("another wish or a failover came after it: primary_node is %q now; `pvc history` says why", p.Value)
	}
	return task, true
}

// taskFields are those of a history entry that may name a task.
var taskFields = []string{"activity", "order", "fence", "id", "withdrawal"}

// refusedKinds are the history's entries for what was not carried out.
var refusedKinds = []string{cluster.EventOrderRefused, cluster.EventMemberRefused, cluster.EventActivityRefused}

// pastTask is what the history knows of a task that is over.
func (s *Server) pastTask(ctx context.Context, id string) (Task, error) {
	events, err := s.deps.Details.ReadHistory(ctx, eventsLooked)
	if err != nil {
		return Task{}, fmt.Errorf("read the history: %w", err)
	}
	for _, e := range slices.Backward(events) {
		for _, field := range taskFields {
			if id == "" || e.Fields[field] != id {
				continue
			}
			task := newTask(id, e.Kind, e.Kind, string(e.Node), e.UnixMS)
			task.State, task.Status = TaskCompleted, e.Text
			if slices.Contains(refusedKinds, e.Kind) || e.Fields["cause"] != "" || e.Fields["state"] == string(cluster.ActivityRefused) {
				task.State = TaskFailed
			}
			return task, nil
		}
	}
	return Task{}, refuse(http.StatusNotFound, fmt.Sprintf("There is no task %q, and the newest %d entries of the history do not know of one.", cut(id), eventsLooked))
}

// workloadTasks are what is ordered of workloads, the moves that are not finished,
// the rebalance, and a reset of auto-reprovision's count.
func (st state) workloadTasks(leader string) []Task {
	var tasks []Task
	for _, name := range st.workloads() {
		w := st.snap.Workloads[name].Value
		if o := w.Request; o != nil {
			t := orderTask(o.ID, "workload_order", string(o.Op), leader, string(o.Node), o.By, o.AtMS)
			t.Args = append(t.Args, name)
			tasks = append(tasks, t)
		}
		if m := w.Next; m != nil {
			t := newTask(m.ID, "move", m.Cause, leader, w.SinceMS)
			t.Args, t.State = append(t.Args, name), TaskRunning
			t.Status = fmt.Sprintf("workload %s is being moved to %s%s, because of %s", name, chainText(m.Chain), liveText(m.Live), m.Cause)
			tasks = append(tasks, t)
		}
	}
	for _, node := range st.names() {
		if is := st.snap.Nodes[node].Domain.Value; is == cluster.DomainFlush || is == cluster.DomainUnflush {
			t := newTask("drain-"+string(node), "drain", string(is), string(node), 0)
			t.Args, t.State, t.Status = append(t.Args, st.drainLeft(node, is)...), TaskRunning, fmt.Sprintf("node %s is in domain state %q", node, is)
			tasks = append(tasks, t)
		}
	}
	if v := st.snap.Rebalance; v.Present && v.Err == nil && !v.Value.Ended() {
		t := orderTask(v.Value.ID, "rebalance", "rebalance", leader, "", v.Value.By, v.Value.AtMS)
		if v.Value.State == cluster.RebalanceRunning {
			t.State, t.Status = TaskRunning, fmt.Sprintf("%d of %d moves are done", v.Value.Done, v.Value.Total)
		}
		tasks = append(tasks, t)
	}
	if v := st.snap.Reprovision; v.Present && v.Err == nil && v.Value.Reset != "" {
		tasks = append(tasks, orderTask(v.Value.Reset, "reset", "reset of auto-reprovision's count", leader, "", "", 0))
	}
	return tasks
}
