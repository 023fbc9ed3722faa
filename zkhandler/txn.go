package zkhandler

import (
	"context"
	"fmt"
	"path"

	"github.com/go-zookeeper/zk"

	"pvc.internal/cluster"
)

// maxRequest bounds an encoded Multi. ZooKeeper drops the connection at 1 MiB,
// which would end in a retry loop, and the library crashes near its buffer's end.
const maxRequest = 512 << 10

// Commit sends the transaction as one Multi and classifies what became of it.
// It never queues: without a live connection it is OutcomeNotSent at once. It
// is bounded by ctx and Config.RequestTimeout, whichever is shorter; unanswered
// by then, the socket is closed, the session goes on at the next server, and
// the outcome is OutcomeUnknown. A ctx that is cancelled before its deadline
// leaves the connection alone.
func (h *Handler) Commit(ctx context.Context, t cluster.Txn) cluster.TxnResult {
	result := h.commit(ctx, t)
	result.DoneAt = h.clock.Now()
	if result.Err != nil {
		result.Err = fmt.Errorf("commit %s: %w", t.Purpose, result.Err)
	}
	h.metrics.committed(t.Purpose, result)
	return result
}

func (h *Handler) commit(ctx context.Context, t cluster.Txn) cluster.TxnResult {
	ops, err := h.encodeOps(t.Ops)
	if err != nil {
		return cluster.TxnResult{Outcome: cluster.OutcomeRefused, FailedOp: -1, Err: err}
	}
	results, sent, err := h.multi(ctx, ops)
	return classify(t.Ops, results, sent, err)
}

// multi sends encoded operations. The results are valid also when one of the
// operations failed; the error is then that one's.
func (h *Handler) multi(ctx context.Context, ops []any) ([]zk.MultiResponse, sentRequest, error) {
	results, sent, err := request(ctx, h, func(c *zk.Conn) (multiAnswer, error) {
		results, err := c.Multi(ops...)
		// The operations' errors are told apart from the call's: the
		// library returns the first of them as its own.
		for _, r := range results {
			if r.Error != nil {
				return multiAnswer{results, err}, nil //nolint:nilerr // it travels in the answer
			}
		}
		return multiAnswer{results, nil}, err
	})
	if err != nil {
		return nil, sent, err
	}
	if results.err != nil {
		return results.ops, sent, translate(results.err)
	}
	if len(results.ops) != len(ops) {
		return nil, sent, failf(fateUnknown, "%w: %d results for %d operations", cluster.ErrUnknown, len(results.ops), len(ops))
	}
	sent.session.wrote(sent.at)
	return results.ops, sent, nil
}

type multiAnswer struct {
	ops []zk.MultiResponse
	err error
}

// classify fills a result. Every operation's result is looked at.
func classify(ops []cluster.Op, results []zk.MultiResponse, sent sentRequest, err error) cluster.TxnResult {
	r := cluster.TxnResult{SentAt: sent.at, FailedOp: -1, Err: err}
	switch fateOf(err) {
	case fateConflict:
		r.Outcome = cluster.OutcomeConflict
	case fateRefused:
		r.Outcome = cluster.OutcomeRefused
	case fateNotSent:
		r.Outcome = cluster.OutcomeNotSent
	case fateUnknown:
		r.Outcome = cluster.OutcomeUnknown
	case fateDone:
		r.Outcome = cluster.OutcomeOK
		r.Versions, r.Created = outcomes(ops, results)
		return r
	}
	for i, result := range results {
		if result.Error != nil && !rolledBack(result.Error) && i < len(ops) {
			r.FailedOp = i
			r.Err = fmt.Errorf("operation %d (%s): %w", i, ops[i].Key, translate(result.Error))
			break
		}
	}
	return r
}

// rolledBack recognises the result of an operation that failed only because
// another did.
func rolledBack(err error) bool { return err.Error() == "unknown error: -2" }

func outcomes(ops []cluster.Op, results []zk.MultiResponse) (versions []int32, created string) {
	versions = make([]int32, len(ops))
	for i, op := range ops {
		switch op.Kind {
		case cluster.OpSet:
			if stat := results[i].Stat; stat != nil {
				versions[i] = stat.Version
			}
		case cluster.OpCheck:
			versions[i] = op.Version
		case cluster.OpCreateSequential:
			if created == "" {
				created = path.Base(results[i].String)
			}
		}
	}
	return versions, created
}

// encodeOps turns operations into the library's requests. Only plain,
// ephemeral and sequential creates exist here: a container or TTL create in a
// Multi is applied, yet reported as an error.
func (h *Handler) encodeOps(ops []cluster.Op) ([]any, error) {
	if len(ops) == 0 {
		return nil, failf(fateRefused, "%w: a transaction without operations", cluster.ErrRefused)
	}
	requests := make([]any, 0, len(ops))
	size := 64
	for i, op := range ops {
		request, n, err := h.encodeOp(op)
		if err != nil {
			return nil, failf(fateRefused, "%w: operation %d: %w", cluster.ErrRefused, i, err)
		}
		requests = append(requests, request)
		size += n
	}
	if size > maxRequest {
		return nil, failf(fateRefused, "%w: %d bytes in %d operations", cluster.ErrTooLarge, size, len(ops))
	}
	return requests, nil
}

// opOverhead is more than what any operation takes besides path, data and ACL.
const opOverhead = 64

func (h *Handler) encodeOp(op cluster.Op) (request any, size int, err error) {
	path, err := h.schema.path(op.Key)
	if op.Kind == cluster.OpCreateSequential {
		path, err = h.schema.sequencePath(op.Key)
	}
	if err != nil {
		return nil, 0, err
	}
	size = opOverhead + len(path)
	var data []byte
	switch op.Kind {
	case cluster.OpCheck:
		return &zk.CheckVersionRequest{Path: path, Version: op.Version}, size, nil
	case cluster.OpDelete:
		return &zk.DeleteRequest{Path: path, Version: op.Version}, size, nil
	}
	if data, err = encode(op.Key.Kind, op.Value); err != nil {
		return nil, 0, err
	}
	size += len(data)
	flags := int32(zk.FlagPersistent)
	switch op.Kind {
	case cluster.OpSet:
		return &zk.SetDataRequest{Path: path, Data: data, Version: op.Version}, size, nil
	case cluster.OpCreate:
	case cluster.OpCreateEphemeral:
		flags = zk.FlagEphemeral
	case cluster.OpCreateSequential:
		flags = zk.FlagSequence
	default:
		return nil, 0, fmt.Errorf("unknown operation kind %d", op.Kind)
	}
	return &zk.CreateRequest{Path: path, Data: data, Acl: h.acl, Flags: flags}, size + h.aclSize, nil
}
