package zkhandler

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"pvc.internal/cluster"
)

// ReadActivities returns the records of all activities of all nodes, by id; of a
// tree without them none. One that cannot be read has Err set and nothing but its
// ID in its Value. What disappears meanwhile is left out.
func (h *Handler) ReadActivities(ctx context.Context) ([]cluster.Versioned[cluster.ActivityRecord], error) {
	dir := h.schema.root + activityDir
	names, err := h.children(ctx, dir)
	if errors.Is(err, cluster.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the activities: %w", err)
	}
	slices.Sort(names)
	paths := make([]string, len(names))
	for i, name := range names {
		paths[i] = "/" + name
	}
	found, err := h.getAll(ctx, dir, paths)
	if err != nil {
		return nil, fmt.Errorf("read the activities: %w", err)
	}
	var records []cluster.Versioned[cluster.ActivityRecord]
	for i, d := range found {
		if d != nil {
			records = append(records, h.activity(cluster.ActivityID(names[i]), *d))
		}
	}
	return records, nil
}

// ReadActivity returns one activity's record as ReadActivities does; an absent
// one is not present and no error.
func (h *Handler) ReadActivity(ctx context.Context, id cluster.ActivityID) (cluster.Versioned[cluster.ActivityRecord], error) {
	path, err := h.schema.path(cluster.Key{Kind: cluster.KeyActivity, Name: string(id)})
	if err != nil {
		return cluster.Versioned[cluster.ActivityRecord]{}, fmt.Errorf("read activity %s: %w", id, err)
	}
	d, err := h.get(ctx, path)
	if errors.Is(err, cluster.ErrNotFound) {
		return cluster.Versioned[cluster.ActivityRecord]{SeenAt: h.clock.Now()}, nil
	}
	if err != nil {
		return cluster.Versioned[cluster.ActivityRecord]{}, fmt.Errorf("read activity %s: %w", id, err)
	}
	return h.activity(id, d), nil
}

func (h *Handler) activity(id cluster.ActivityID, d datum) cluster.Versioned[cluster.ActivityRecord] {
	v := cluster.Versioned[cluster.ActivityRecord]{
		Present: true, Version: d.stat.Version, Mzxid: d.stat.Mzxid, SeenAt: h.clock.Now(), WrittenMS: d.stat.Mtime,
	}
	if v.Value, v.Err = decodeActivity(d.data); v.Err == nil && v.Value.ID != id {
		v.Err = fmt.Errorf("it lies at %s and is about %s", id, v.Value.ID)
	}
	if v.Err != nil {
		v.Value = cluster.ActivityRecord{Activity: cluster.Activity{ID: id}}
	}
	return v
}
