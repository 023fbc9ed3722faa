package cluster

import "errors"

// The sentinels. Adapters translate to these at their boundary; the API maps
// them to statuses and the CLI to exit codes.
var (
	ErrNotLive       = errors.New("not connected to ZooKeeper")
	ErrConflict      = errors.New("changed by somebody else meanwhile")
	ErrUnknown       = errors.New("outcome unknown: the reply was lost")
	ErrNotFound      = errors.New("not found")
	ErrDuplicateNode = errors.New("another live daemon uses this node's name")
	ErrSchemaNewer   = errors.New("the tree's schema is newer than this program")
	ErrForeignTree   = errors.New("this state folder belongs to another cluster or node")
	ErrEmptyTree     = errors.New("the ZooKeeper tree is empty but this node remembers a cluster")
	ErrHalfRestored  = errors.New("the tree is only half restored: a restore is under way, or was killed")
	ErrAuth          = errors.New("ZooKeeper refused the credentials")
	ErrTooLarge      = errors.New("request exceeds the 512 KiB limit")
	ErrLockTimeout   = errors.New("lock not obtained in time")
	ErrDeadline      = errors.New("deadline passed")
	ErrStaleEpoch    = errors.New("an epoch larger than the request's has been seen")
	ErrRefused       = errors.New("refused")
	ErrRemoved       = errors.New("this node was removed from the cluster")
	ErrNotInCluster  = errors.New("not in the cluster")
)
