package zktest

import (
	"encoding/binary"
	"errors"
)

// Operation codes of the wire protocol.
const (
	codeCreate          int32 = 1
	codeDelete          int32 = 2
	codeExists          int32 = 3
	codeGetData         int32 = 4
	codeSetData         int32 = 5
	codeGetACL          int32 = 6
	codeSetACL          int32 = 7
	codeGetChildren     int32 = 8
	codeSync            int32 = 9
	codePing            int32 = 11
	codeGetChildren2    int32 = 12
	codeCheck           int32 = 13
	codeMulti           int32 = 14
	codeCreate2         int32 = 15
	codeCreateContainer int32 = 19
	codeAuth            int32 = 100
	codeSetWatches      int32 = 101
	codeError           int32 = -1
	codeClose           int32 = -11
	codeConnect         int32 = -10 // ours: a connect request has no header
)

// Error codes of the wire protocol.
const (
	errOK                   int32 = 0
	errRuntimeInconsistency int32 = -2
	errUnimplemented        int32 = -6
	errBadArguments         int32 = -8
	errNoNode               int32 = -101
	errNoAuth               int32 = -102
	errBadVersion           int32 = -103
	errNoChildrenForEph     int32 = -108
	errNodeExists           int32 = -110
	errNotEmpty             int32 = -111
	errInvalidACL           int32 = -114
	errAuthFailed           int32 = -115
)

// Xids that stand for something else than a request.
const (
	xidWatchEvent int32 = -1
	xidPing       int32 = -2
)

// Watch event types.
const (
	eventCreated         int32 = 1
	eventDeleted         int32 = 2
	eventDataChanged     int32 = 3
	eventChildrenChanged int32 = 4
)

// stateSyncConnected is the state that every watch event carries.
const stateSyncConnected int32 = 3

// maxFrame is the default jute.maxbuffer: a longer frame drops the connection.
const maxFrame = 0xfffff

// opNames are the names that OpInfo and HistoryEntry use.
var opNames = map[int32]string{
	codeCreate: "create", codeCreate2: "create", codeCreateContainer: "create",
	codeDelete: "delete", codeExists: "exists", codeGetData: "get",
	codeSetData: "set", codeGetACL: "getACL", codeSetACL: "setACL",
	codeGetChildren: "children", codeGetChildren2: "children", codeSync: "sync",
	codePing: "ping", codeCheck: "check", codeMulti: "multi", codeAuth: "auth",
	codeSetWatches: "setWatches", codeClose: "close", codeConnect: "connect",
}

// errMalformed ends the connection of a client that sent what cannot be read.
var errMalformed = errors.New("malformed request")

// decoder reads jute; the first failure sticks and every later read is zero.
type decoder struct {
	buf []byte
	err error
}

func (d *decoder) take(n int) []byte {
	if d.err != nil || n < 0 || n > len(d.buf) {
		d.err = errMalformed
		return make([]byte, max(0, min(n, 8)))
	}
	taken := d.buf[:n]
	d.buf = d.buf[n:]
	return taken
}

func (d *decoder) bool() bool { return d.take(1)[0] != 0 }

func (d *decoder) int32() int32 { return int32(binary.BigEndian.Uint32(d.take(4))) }

func (d *decoder) int64() int64 { return int64(binary.BigEndian.Uint64(d.take(8))) }

func (d *decoder) bytes() []byte {
	n := int(d.int32())
	if n < 0 || d.err != nil {
		return nil
	}
	return append([]byte{}, d.take(n)...)
}

func (d *decoder) string() string { return string(d.bytes()) }

func (d *decoder) strings() []string {
	n := int(d.int32())
	var list []string
	for i := 0; i < n && d.err == nil; i++ {
		list = append(list, d.string())
	}
	return list
}

func (d *decoder) acl() []ACL {
	n := int(d.int32())
	var list []ACL
	for i := 0; i < n && d.err == nil; i++ {
		list = append(list, ACL{Perms: d.int32(), Scheme: d.string(), ID: d.string()})
	}
	return list
}

// encoder appends jute.
type encoder struct{ buf []byte }

func (e *encoder) bool(v bool) {
	if v {
		e.buf = append(e.buf, 1)
		return
	}
	e.buf = append(e.buf, 0)
}

func (e *encoder) int32(v int32) { e.buf = binary.BigEndian.AppendUint32(e.buf, uint32(v)) }

func (e *encoder) int64(v int64) { e.buf = binary.BigEndian.AppendUint64(e.buf, uint64(v)) }

func (e *encoder) bytes(v []byte) {
	if v == nil {
		e.int32(-1)
		return
	}
	e.int32(int32(len(v)))
	e.buf = append(e.buf, v...)
}

func (e *encoder) string(v string) {
	e.int32(int32(len(v)))
	e.buf = append(e.buf, v...)
}

func (e *encoder) strings(v []string) {
	e.int32(int32(len(v)))
	for _, s := range v {
		e.string(s)
	}
}

func (e *encoder) acl(v []ACL) {
	e.int32(int32(len(v)))
	for _, a := range v {
		e.int32(a.Perms)
		e.string(a.Scheme)
		e.string(a.ID)
	}
}

func (e *encoder) stat(s Stat) {
	e.int64(s.Czxid)
	e.int64(s.Mzxid)
	e.int64(s.Ctime)
	e.int64(s.Mtime)
	e.int32(s.Version)
	e.int32(s.Cversion)
	e.int32(s.Aversion)
	e.int64(s.EphemeralOwner)
	e.int32(s.DataLength)
	e.int32(s.NumChildren)
	e.int64(s.Pzxid)
}

// frame returns the bytes with their length in front.
func (e *encoder) frame() []byte {
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(e.buf))), e.buf...)
}

// multiHeader precedes every operation and result of a multi.
func (e *encoder) multiHeader(kind int32, done bool, code int32) {
	e.int32(kind)
	e.bool(done)
	e.int32(code)
}

// request is any request, decoded; which fields mean something depends on code.
type request struct {
	xid     int32
	code    int32
	path    string
	data    []byte
	acl     []ACL
	flags   int32
	version int32
	watch   bool
	scheme  string
	ops     []request

	relativeZxid                  int64
	dataPaths, existPaths, childs []string

	timeoutMS int32
	session   int64
	password  []byte
	readOnly  bool // the client knows of read-only servers and expects the flag back
}

// writes reports whether the request must be ordered by the leader.
func (r *request) writes() bool {
	switch r.code {
	case codeCreate, codeCreate2, codeCreateContainer, codeDelete, codeSetData, codeSetACL,
		codeMulti, codeCheck, codeSync, codeClose, codeConnect:
		return true
	}
	return false
}

// parseConnect decodes the first frame of a connection.
func parseConnect(frame []byte) (*request, error) {
	d := &decoder{buf: frame}
	r := &request{code: codeConnect}
	d.int32() // protocol version
	r.relativeZxid = d.int64()
	r.timeoutMS = d.int32()
	r.session = d.int64()
	r.password = d.bytes()
	r.readOnly = d.err == nil && len(d.buf) > 0
	return r, d.err
}

// parseRequest decodes every later frame.
func parseRequest(frame []byte) (*request, error) {
	d := &decoder{buf: frame}
	r := &request{xid: d.int32(), code: d.int32()}
	if d.err == nil {
		r.parseBody(d)
	}
	return r, d.err
}

func (r *request) parseBody(d *decoder) {
	switch r.code {
	case codeCreate, codeCreate2, codeCreateContainer:
		r.path, r.data, r.acl, r.flags = d.string(), d.bytes(), d.acl(), d.int32()
	case codeDelete, codeCheck:
		r.path, r.version = d.string(), d.int32()
	case codeSetData:
		r.path, r.data, r.version = d.string(), d.bytes(), d.int32()
	case codeSetACL:
		r.path, r.acl, r.version = d.string(), d.acl(), d.int32()
	case codeExists, codeGetData, codeGetChildren2:
		r.path, r.watch = d.string(), d.bool()
	case codeGetChildren:
		r.path = d.string()
		r.watch = len(d.buf) > 0 && d.bool()
	case codeGetACL, codeSync:
		r.path = d.string()
	case codeAuth:
		d.int32()
		r.scheme, r.data = d.string(), d.bytes()
	case codeSetWatches:
		r.relativeZxid = d.int64()
		r.dataPaths, r.existPaths, r.childs = d.strings(), d.strings(), d.strings()
	case codeMulti:
		r.parseMulti(d)
	}
}

func (r *request) parseMulti(d *decoder) {
	for d.err == nil {
		kind, done := d.int32(), d.bool()
		d.int32()
		if done || d.err != nil {
			return
		}
		switch kind {
		case codeCreate, codeCreate2, codeCreateContainer, codeDelete, codeSetData, codeCheck:
			op := request{code: kind}
			op.parseBody(d)
			r.ops = append(r.ops, op)
		default:
			d.err = errMalformed
		}
	}
}
