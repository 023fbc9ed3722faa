package zkhandler

import (
	"fmt"
	"maps"

	"pvc.internal/cluster"
)

// workloadSlot is one workload as it is watched.
type workloadSlot struct {
	slot *slot
	view cluster.Versioned[cluster.Workload]
}

// observeWorkloads makes the watched workloads those that have a record. A
// directory that is missing has none; one that cannot be read says nothing of
// those that are known.
func (m *mirror) observeWorkloads(r reading) (changed bool) {
	if r.err != nil {
		return false
	}
	present := map[string]bool{}
	for _, name := range r.names {
		if checkSegment(name) == nil {
			present[name] = true
			if m.workloads[name] == nil {
				m.addWorkload(name)
			}
		}
	}
	for name, known := range m.workloads {
		if !present[name] {
			m.unwatch(known.slot)
			delete(m.workloads, name)
			m.soiled[name] = true
			changed = true
		}
	}
	return changed
}

// addWorkload watches one workload's record. It is in no snapshot before it was
// read: until then a name is all that is known of it.
func (m *mirror) addWorkload(name string) {
	w := &workloadSlot{}
	w.slot = watchKeyed(m, cluster.Key{Kind: cluster.KeyWorkload, Name: name}, false, &w.view, func(data []byte) (cluster.Workload, error) {
		return namedWorkload(name, data)
	})
	if w.slot == nil {
		return
	}
	m.workloads[name] = w
	w.slot.many = true
	store := w.slot.store
	w.slot.store = func(r reading) bool {
		if !store(r) {
			return false
		}
		m.soiled[name] = true
		return true
	}
}

// namedWorkload decodes the record that lies at a name.
func namedWorkload(name string, data []byte) (cluster.Workload, error) {
	w, err := decodeWorkload(data)
	if err == nil && w.Name != name {
		return cluster.Workload{}, fmt.Errorf("it lies at %q and is about %q", name, w.Name)
	}
	return w, err
}

// shareWorkloads makes the map that the next snapshot has. It is copied where a
// workload has changed, and shared with the earlier snapshots else: keepalives
// of nodes cost nothing here, however many workloads there are.
func (m *mirror) shareWorkloads() {
	if len(m.soiled) == 0 {
		return
	}
	shared := maps.Clone(m.shared)
	for name := range m.soiled {
		if known := m.workloads[name]; known != nil && known.view.Present {
			shared[name] = known.view
		} else {
			delete(shared, name)
		}
	}
	m.shared = shared
	clear(m.soiled)
}
