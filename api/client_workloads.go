package api

import (
	"context"
	"fmt"
	"net/url"
	"time"

	"pvc.internal/cluster"
)

// Workloads lists the workloads that pass the filters (limit, node, state, kind,
// driver).
func (c *Client) Workloads(ctx context.Context, filters url.Values) ([]WorkloadView, error) {
	return fetch[[]WorkloadView](ctx, c, get, "/workloads", filters)
}

// Workload returns one workload.
func (c *Client) Workload(ctx context.Context, name string) (WorkloadView, error) {
	return fetch[WorkloadView](ctx, c, get, workloadPath(name), nil)
}

func workloadPath(name string) string { return "/workloads/" + url.PathEscape(name) }

// AddWorkload adds a workload as the values say (the arguments of POST /workloads).
func (c *Client) AddWorkload(ctx context.Context, values url.Values, wait time.Duration) (WorkloadOrder, error) {
	return c.orderWorkload(ctx, post, "/workloads", values, wait)
}

// SetWorkload changes what the values name.
func (c *Client) SetWorkload(ctx context.Context, name string, values url.Values) (WorkloadOrder, error) {
	return fetch[WorkloadOrder](ctx, c, put, workloadPath(name), values)
}

// OrderWorkload orders a workload to be moved, promoted, started, stopped or
// probed; node is where to, empty where none is meant. It returns when the order is
// written, or with wait when it has come to its end; one that is refused or
// overtaken is then an error that wraps cluster.ErrRefused.
func (c *Client) OrderWorkload(ctx context.Context, name string, op cluster.WorkloadOp, node string, wait time.Duration) (WorkloadOrder, error) {
	values := url.Values{}
	if node != "" {
		values.Set("node", node)
	}
	return c.orderWorkload(ctx, post, workloadPath(name)+"/"+string(op), values, wait)
}

// RemoveWorkload orders a workload to be removed; with destroy its last copy goes,
// too.
func (c *Client) RemoveWorkload(ctx context.Context, name string, destroy bool, wait time.Duration) (WorkloadOrder, error) {
	values := url.Values{}
	if destroy {
		values.Set("destroy", "true")
	}
	if wait > 0 {
		values.Set("wait", wait.String())
	}
	path := workloadPath(name)
	if len(values) > 0 {
		path += "?" + values.Encode() // of a DELETE no body is read
	}
	patient := *c
	patient.timeout += wait
	return fetch[WorkloadOrder](ctx, &patient, del, path, nil)
}

func (c *Client) orderWorkload(ctx context.Context, method, path string, values url.Values, wait time.Duration) (WorkloadOrder, error) {
	if wait > 0 {
		values.Set("wait", wait.String())
	}
	patient := *c
	patient.timeout += wait
	return fetch[WorkloadOrder](ctx, &patient, method, path, values)
}

// AutoReprovision returns auto-reprovision's settings and what it has spent.
func (c *Client) AutoReprovision(ctx context.Context) (AutoReprovision, error) {
	return fetch[AutoReprovision](ctx, c, get, "/settings/autoReprovision", nil)
}

// SetAutoReprovision changes auto-reprovision's settings; check has the values
// checked, and changes nothing.
func (c *Client) SetAutoReprovision(ctx context.Context, enabled bool, maxNodes string, check bool) (ReprovisionAnswer, error) {
	values := url.Values{"enabled": {fmt.Sprint(enabled)}, "maxNodes": {maxNodes}}
	if check {
		values.Set("just_validate", "1")
	}
	return fetch[ReprovisionAnswer](ctx, c, post, "/settings/autoReprovision", values)
}

// ResetReprovision orders auto-reprovision's count to be reset. With wait it
// returns when the primary has done it, or after that long.
func (c *Client) ResetReprovision(ctx context.Context, wait time.Duration) (ReprovisionAnswer, error) {
	values := url.Values{}
	if wait > 0 {
		values.Set("wait", wait.String())
	}
	patient := *c
	patient.timeout += wait
	return fetch[ReprovisionAnswer](ctx, &patient, post, "/settings/autoReprovision/resetCount", values)
}

// Rebalance returns the newest rebalance.
func (c *Client) Rebalance(ctx context.Context) (RebalanceView, error) {
	return fetch[RebalanceView](ctx, c, get, "/rebalance", nil)
}

// OrderRebalance orders a rebalance; it returns when the order is written.
func (c *Client) OrderRebalance(ctx context.Context) (RebalanceAnswer, error) {
	return fetch[RebalanceAnswer](ctx, c, post, "/rebalance", url.Values{})
}

// StopRebalance orders the running rebalance to be stopped.
func (c *Client) StopRebalance(ctx context.Context) (RebalanceAnswer, error) {
	return fetch[RebalanceAnswer](ctx, c, post, "/rebalance/stop", url.Values{})
}

// NodeDomainState returns a node's readiness for workloads.
func (c *Client) NodeDomainState(ctx context.Context, name string) (NodeDomainState, error) {
	return fetch[NodeDomainState](ctx, c, get, "/node/"+url.PathEscape(name)+"/domain-state", nil)
}
