package api

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"time"
	"unicode"

	"pvc.internal/cluster"
)

// ErrUnreachable is what a Client's error wraps when no answer, or only that
// the store is away, could be had. A refusal wraps cluster.ErrRefused, a
// deadline cluster.ErrDeadline.
var ErrUnreachable = errors.New("unreachable")

// maxAnswerBytes bounds what a client reads of one answer.
const maxAnswerBytes = 16 << 20

// ClientConfig says where the server is and who asks.
type ClientConfig struct {
	// URL is the server's, like http://127.0.0.1:7370; several of one cluster are
	// separated by commas or blanks, and the first that can be reached answers.
	URL     string
	Key     string        // X-Api-Key; empty: none
	Timeout time.Duration // of each request; default 10 s
	TLS     TLSFiles      // Cert and Key identify the client; ClientCA is the server's authority
}

// Client asks one server, or the first of several that can be reached. It is
// safe for concurrent use.
type Client struct {
	bases   []string
	at      *atomic.Int32 // which of them answered last
	key     string
	timeout time.Duration
	http    *http.Client
}

// Error is an answer that is not a success.
type Error struct {
	Status int
	Text   string
	Last   json.RawMessage // of a 503: the last answer known, which may be wrong by now
}

// Error returns what the server said.
func (e *Error) Error() string { return e.Text }

// Unwrap returns the class: refused, unreachable or out of time.
func (e *Error) Unwrap() error {
	switch {
	case e.Status == http.StatusServiceUnavailable:
		return ErrUnreachable
	case e.Status == http.StatusGatewayTimeout:
		return cluster.ErrDeadline
	case e.Status >= 400 && e.Status < 500, e.Status == http.StatusNotImplemented:
		return cluster.ErrRefused
	}
	return nil
}

// NewClient makes a client; it does not connect yet.
func NewClient(c ClientConfig) (*Client, error) {
	bases, err := serverURLs(c.URL)
	if err != nil {
		return nil, err
	}
	if c.Timeout == 0 {
		c.Timeout = 10 * time.Second
	}
	dialing := c.Timeout
	if len(bases) > 1 {
		dialing = min(dialing, skipAfter)
	}
	security, err := c.clientTLS()
	if err != nil {
		return nil, err
	}
	transport := &http.Transport{
		DialContext:     (&net.Dialer{Timeout: dialing}).DialContext,
		TLSClientConfig: security, TLSHandshakeTimeout: dialing,
		MaxResponseHeaderBytes: maxHeaderBytes,
	}
	return &Client{bases: bases, at: &atomic.Int32{}, key: c.Key, timeout: c.Timeout, http: &http.Client{Transport: transport}}, nil
}

// skipAfter is how long a client that knows several servers tries to reach one.
const skipAfter = 1500 * time.Millisecond

// serverURLs splits and checks a list of URLs.
func serverURLs(list string) ([]string, error) {
	var bases []string
	for _, text := range strings.FieldsFunc(list, func(r rune) bool { return r == ',' || unicode.IsSpace(r) }) {
		u, err := url.Parse(text)
		if err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || (u.Scheme != "http" && u.Scheme != "https") {
			return nil, fmt.Errorf("%q is not the URL of a pvcapid: write it like http://127.0.0.1:7370", text)
		}
		bases = append(bases, strings.TrimSuffix(strings.TrimRight(text, "/"), Prefix))
	}
	if len(bases) == 0 {
		return nil, fmt.Errorf("%q is not the URL of a pvcapid: write it like http://127.0.0.1:7370", list)
	}
	return bases, nil
}

func (c ClientConfig) clientTLS() (*tls.Config, error) {
	t := &tls.Config{MinVersion: tls.VersionTLS12}
	if c.TLS.ClientCA != "" {
		pem, err := os.ReadFile(c.TLS.ClientCA)
		if err != nil {
			return nil, fmt.Errorf("read the server's authority: %w", err)
		}
		t.RootCAs = x509.NewCertPool()
		if !t.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%s holds no PEM certificate", c.TLS.ClientCA)
		}
	}
	if c.TLS.Cert != "" {
		pair, err := tls.LoadX509KeyPair(c.TLS.Cert, c.TLS.Key)
		if err != nil {
			return nil, fmt.Errorf("load the client's certificate: %w", err)
		}
		t.Certificates = []tls.Certificate{pair}
	}
	return t, nil
}

// Nodes lists the nodes that pass the filters (limit, daemon_state,
// coordinator_state, domain_state).
func (c *Client) Nodes(ctx context.Context, filters url.Values) ([]Node, error) {
	return fetch[[]Node](ctx, c, get, "/node", filters)
}

// Node returns one node.
func (c *Client) Node(ctx context.Context, name string) (Node, error) {
	return fetch[Node](ctx, c, get, "/node/"+url.PathEscape(name), nil)
}

// NodeLog returns a node's newest log lines.
func (c *Client) NodeLog(ctx context.Context, name string, lines int) (NodeLog, error) {
	return fetch[NodeLog](ctx, c, get, "/node/"+url.PathEscape(name)+"/log", url.Values{"lines": {fmt.Sprint(lines)}})
}

// Status returns the cluster's health and counts.
func (c *Client) Status(ctx context.Context) (Status, error) {
	return fetch[Status](ctx, c, get, "/status", nil)
}

// Cluster returns everything the page shows.
func (c *Client) Cluster(ctx context.Context) (ClusterView, error) {
	return fetch[ClusterView](ctx, c, get, "/cluster", nil)
}

// Timing returns the intervals and the worst cases that follow.
func (c *Client) Timing(ctx context.Context) (TimingView, error) {
	return fetch[TimingView](ctx, c, get, "/timing", nil)
}

// History returns at most limit events of the kind ("" all), newest first.
func (c *Client) History(ctx context.Context, limit int, kind string) ([]cluster.Event, error) {
	return fetch[[]cluster.Event](ctx, c, get, "/history", url.Values{"limit": {fmt.Sprint(limit)}, "kind": {kind}})
}

// SetDomainState asks to move a node's workloads away ("flush") or back
// ("ready").
func (c *Client) SetDomainState(ctx context.Context, name, state string) (Message, error) {
	return c.AwaitDomainState(ctx, name, state, 0)
}

// AwaitDomainState is SetDomainState that returns once the node has done it. One
// that has not within wait is an error that wraps cluster.ErrDeadline; the wish
// stands.
func (c *Client) AwaitDomainState(ctx context.Context, name, state string, wait time.Duration) (Message, error) {
	values := url.Values{"state": {state}}
	if wait > 0 {
		values.Set("wait", wait.String())
	}
	patient := *c
	patient.timeout += wait
	return fetch[Message](ctx, &patient, post, "/node/"+url.PathEscape(name)+"/domain-state", values)
}

// Faults returns the faults, newest first.
func (c *Client) Faults(ctx context.Context) ([]Fault, error) {
	return fetch[[]Fault](ctx, c, get, "/faults", nil)
}

// AcknowledgeFault acknowledges a fault; "" all.
func (c *Client) AcknowledgeFault(ctx context.Context, id string) (Message, error) {
	return fetch[Message](ctx, c, put, faultPath(id), nil)
}

// DeleteFault deletes a fault; "" all.
func (c *Client) DeleteFault(ctx context.Context, id string) (Message, error) {
	return fetch[Message](ctx, c, del, faultPath(id), nil)
}

func faultPath(id string) string {
	if id == "" {
		return "/faults"
	}
	return "/faults/" + url.PathEscape(id)
}

// Fences returns what is known of fences, with at most limit events of the
// history; 0 is the server's own limit. A node's name leaves out all others.
func (c *Client) Fences(ctx context.Context, node string, limit int) (FencesView, error) {
	values := url.Values{}
	if limit > 0 {
		values.Set("limit", fmt.Sprint(limit))
	}
	path := "/fences"
	if node != "" {
		path = fencePath(node)
	}
	return fetch[FencesView](ctx, c, get, path, values)
}

// OrderFence writes an operator's order about a node's fence: cluster.OrderFence,
// OrderConfirm, OrderCancel or OrderTest. It returns when the order is written,
// not when it is carried out.
func (c *Client) OrderFence(ctx context.Context, node, action, reason string) (FenceAnswer, error) {
	return fetch[FenceAnswer](ctx, c, post, fencePath(node), url.Values{"action": {action}, "reason": {reason}})
}

// FenceUnsafe orders a fence whose first try needs no majority of the node
// leases; the reason must not be empty.
func (c *Client) FenceUnsafe(ctx context.Context, node, reason string) (FenceAnswer, error) {
	return fetch[FenceAnswer](ctx, c, post, fencePath(node), url.Values{"action": {cluster.OrderFence}, "reason": {reason}, "unsafe": {"true"}})
}

func fencePath(node string) string { return "/fence/" + url.PathEscape(node) }

// Secrets lists the sealed passwords of fence devices.
func (c *Client) Secrets(ctx context.Context) ([]SecretView, error) {
	return fetch[[]SecretView](ctx, c, get, "/secrets", nil)
}

// SetSecret stores what fencing.Seal made.
func (c *Client) SetSecret(ctx context.Context, name, sealed string) (Message, error) {
	return fetch[Message](ctx, c, post, secretPath(name), url.Values{"sealed": {sealed}})
}

// RemoveSecret removes a sealed password.
func (c *Client) RemoveSecret(ctx context.Context, name string) (Message, error) {
	return fetch[Message](ctx, c, del, secretPath(name), nil)
}

func secretPath(name string) string { return "/secret/" + url.PathEscape(name) }

// Explain returns the evidence for a node, or for "primary".
func (c *Client) Explain(ctx context.Context, what string) (Explanation, error) {
	return fetch[Explanation](ctx, c, get, "/explain/"+url.PathEscape(what), nil)
}

// Initialize makes the tree of a new cluster.
func (c *Client) Initialize(ctx context.Context, name string, overwrite bool) (Message, error) {
	return fetch[Message](ctx, c, post, "/initialize", url.Values{"name": {name}, "overwrite": {fmt.Sprint(overwrite)}, "yes-i-really-mean-it": {"true"}})
}

// Switch asks that the node to ("none": the best other candidate) hold the
// primary role; with from it is refused unless that node holds it now. It
// returns when the wish is written.
func (c *Client) Switch(ctx context.Context, to, from string, dryRun bool) (SwitchAnswer, error) {
	return fetch[SwitchAnswer](ctx, c, post, "/switch", url.Values{"to": {to}, "from": {from}, "dry_run": {fmt.Sprint(dryRun)}})
}

// AutoFailover returns the automatic failover's settings.
func (c *Client) AutoFailover(ctx context.Context) (AutoFailover, error) {
	return fetch[AutoFailover](ctx, c, get, "/settings/autoFailover", nil)
}

// SetAutoFailover changes the settings that are not empty; with justValidate
// it only has them checked.
func (c *Client) SetAutoFailover(ctx context.Context, enabled, timeout, maxCount string, justValidate bool) (SettingsAnswer, error) {
	values := url.Values{"enabled": {enabled}, "timeout": {timeout}, "maxCount": {maxCount}}
	if justValidate {
		values.Set("just_validate", "1")
	}
	return fetch[SettingsAnswer](ctx, c, post, "/settings/autoFailover", values)
}

// ResetFailoverCount gives the automatic failover its whole budget back.
func (c *Client) ResetFailoverCount(ctx context.Context) (SettingsAnswer, error) {
	return fetch[SettingsAnswer](ctx, c, post, "/settings/autoFailover/resetCount", nil)
}

// MaintenanceOrder is a wish to turn maintenance on or off.
type MaintenanceOrder struct {
	On      bool
	Owner   string        // empty: the key's name
	Reason  string        // may be empty
	Expires string        // a duration after which it ends by itself; empty: never
	Wait    time.Duration // for every live node's confirmation, at most 2 min; 0: none
}

// Maintenance turns maintenance on or off. Nodes that have not confirmed it
// within the order's wait are named by an error that wraps
// cluster.ErrDeadline; the switch stays.
func (c *Client) Maintenance(ctx context.Context, o MaintenanceOrder) (MaintenanceAnswer, error) {
	values := url.Values{"state": {fmt.Sprint(o.On)}, "owner": {o.Owner}, "reason": {o.Reason}, "expires": {o.Expires}}
	if o.Wait > 0 {
		values.Set("wait", o.Wait.String())
	}
	patient := *c
	patient.timeout += o.Wait
	return fetch[MaintenanceAnswer](ctx, &patient, post, "/maintenance", values)
}

// MaintenanceNow returns whether maintenance is on, by whom, why and until when.
func (c *Client) MaintenanceNow(ctx context.Context) (MaintenanceView, error) {
	return fetch[MaintenanceView](ctx, c, get, "/maintenance", nil)
}

// fetch is one request with its deadline, decoded.
func fetch[T any](ctx context.Context, c *Client, method, path string, values url.Values) (T, error) {
	var into T
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	raw, err := c.ask(ctx, method, path, values)
	if err != nil || raw == nil {
		return into, err
	}
	if err := json.Unmarshal(raw, &into); err != nil {
		return into, fmt.Errorf("%s did not answer as a pvcapid does: %w", c.base(), err)
	}
	return into, nil
}

// ask returns the answer's body, nil where it has none. A question that a server
// cannot answer, since it hangs or has lost the store, is asked of the others, too.
func (c *Client) ask(ctx context.Context, method, path string, values url.Values) ([]byte, error) {
	var failed error // of the first that could not
	for i := range c.bases {
		at := c.at.Load()
		others := method == get && i < len(c.bases)-1
		raw, err := c.askOne(ctx, method, path, values, others)
		if err == nil {
			return raw, nil
		}
		if failed == nil {
			failed = err
		}
		if !others || ctx.Err() != nil || !couldNot(err) {
			return nil, failed
		}
		c.next(at)
	}
	return nil, failed
}

// couldNot reports whether the server has answered in vain, or not in time:
// another one may know.
func couldNot(err error) bool {
	var answer *Error
	return errors.Is(err, cluster.ErrDeadline) || errors.As(err, &answer) && answer.Status == http.StatusServiceUnavailable
}

// askOne is one request, of which little patience is had where others can be asked.
func (c *Client) askOne(ctx context.Context, method, path string, values url.Values, others bool) ([]byte, error) {
	patient := *c
	if others {
		patient.timeout = min(c.timeout, 2*skipAfter)
	}
	ctx, cancel := context.WithTimeout(ctx, patient.timeout)
	defer cancel()
	response, err := patient.send(ctx, method, path, values, "application/json")
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(response.Body, maxAnswerBytes))
	switch {
	case err != nil:
		return nil, patient.classify(ctx, err)
	case response.StatusCode >= 300:
		return nil, errorFrom(response.StatusCode, raw)
	case response.StatusCode == http.StatusNoContent:
		return nil, nil
	}
	return raw, nil
}

// base is the server that answered last, or is asked first.
func (c *Client) base() string { return c.bases[c.at.Load()] }

// next has the server after that one asked first, unless somebody else has
// chosen one meanwhile.
func (c *Client) next(at int32) { c.at.CompareAndSwap(at, (at+1)%int32(len(c.bases))) }

// send sends a request to the first server that can be reached. One that was
// reached is not left for another: it may have carried the request out (I8).
func (c *Client) send(ctx context.Context, method, path string, values url.Values, accept string) (*http.Response, error) {
	var err error
	for range c.bases {
		at := c.at.Load()
		var response *http.Response
		if response, err = c.sendTo(ctx, c.bases[at], method, path, values, accept); err == nil {
			return response, nil
		}
		if !neverSent(err) || ctx.Err() != nil {
			break
		}
		c.next(at)
	}
	return nil, c.classify(ctx, err)
}

// neverSent reports whether there was no connection to send anything over.
func neverSent(err error) bool {
	var dialing *net.OpError
	return errors.As(err, &dialing) && dialing.Op == "dial"
}

func (c *Client) sendTo(ctx context.Context, base, method, path string, values url.Values, accept string) (*http.Response, error) {
	for name, value := range values {
		if len(value) == 1 && value[0] == "" {
			values.Del(name)
		}
	}
	target, body := base+Prefix+path, io.Reader(nil)
	if method == get && len(values) > 0 {
		target += "?" + values.Encode()
	} else if len(values) > 0 {
		body = strings.NewReader(values.Encode())
	}
	request, err := http.NewRequestWithContext(ctx, method, target, body)
	if err != nil {
		return nil, err
	}
	if body != nil {
		request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	request.Header.Set("Accept", accept)
	if c.key != "" {
		request.Header.Set("X-Api-Key", c.key)
	}
	return c.http.Do(request)
}

// classify tells "no answer in time" from "nobody there".
func (c *Client) classify(ctx context.Context, err error) error {
	var slow net.Error
	if errors.Is(ctx.Err(), context.DeadlineExceeded) || errors.As(err, &slow) && slow.Timeout() {
		return fmt.Errorf("%s did not answer within %s: %w", c.servers(), c.timeout, cluster.ErrDeadline)
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	var urlError *url.Error
	if errors.As(err, &urlError) {
		err = urlError.Err
	}
	return fmt.Errorf("%s is %w: %w; is pvcapid running there? (--api, PVC_API or `pvc connection` name another)", c.servers(), ErrUnreachable, err)
}

// servers names whom it asks, for people.
func (c *Client) servers() string {
	if len(c.bases) == 1 {
		return c.bases[0]
	}
	return "each of " + strings.Join(c.bases, ", ")
}

func errorFrom(status int, raw []byte) error {
	e := &Error{Status: status}
	var body struct {
		Message json.RawMessage   `json:"message"`
		Last    json.RawMessage   `json:"last"`
		Errors  map[string]string `json:"errors"`
	}
	broken := json.Unmarshal(raw, &body) != nil
	if len(body.Errors) > 0 {
		e.Text = argumentText(body.Errors)
		return e
	}
	if broken || len(body.Message) == 0 {
		e.Text = fmt.Sprintf("%d %s: %.200s", status, http.StatusText(status), bytes.TrimSpace(raw))
		return e
	}
	e.Last = body.Last
	var byName map[string]string
	if json.Unmarshal(body.Message, &e.Text) == nil {
		return e
	}
	if json.Unmarshal(body.Message, &byName) == nil {
		e.Text = argumentText(byName)
	} else {
		e.Text = string(body.Message)
	}
	return e
}

func argumentText(byName map[string]string) string {
	var lines []string
	for name, text := range byName {
		lines = append(lines, name+": "+text)
	}
	slices.Sort(lines)
	return strings.Join(lines, "; ")
}

// WatchEvent is one thing a watch brings; exactly one field is set.
type WatchEvent struct {
	View *ClusterView
	Ages Ages
	Lost error // the connection was lost and is being made again
}

// The patience of a watch.
const (
	watchSilence = 10 * time.Second // a server sends something each second
	watchRetry   = 500 * time.Millisecond
)

// errStop ends a watch without an error.
var errStop = errors.New("stop")

// Watch calls see with the present view and every change after it, until see
// returns false or ctx ends. A connection lost on the way is made again; no
// change that still shows is missed, since each event is the whole view. The
// first connection must succeed.
func (c *Client) Watch(ctx context.Context, see func(WatchEvent) bool) error {
	since := ""
	for first := true; ; first = false {
		err := c.watchOnce(ctx, &since, see)
		switch {
		case errors.Is(err, errStop):
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		case first && since == "", errors.Is(err, cluster.ErrRefused):
			return err
		case !see(WatchEvent{Lost: err}):
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(watchRetry):
		}
	}
}

func (c *Client) watchOnce(ctx context.Context, since *string, see func(WatchEvent) bool) error {
	outer := ctx
	ctx, cancel := context.WithCancel(outer)
	defer cancel()
	silence := time.AfterFunc(watchSilence, cancel)
	defer silence.Stop()
	at := c.at.Load()
	response, err := c.send(ctx, get, "/watch", url.Values{"since": {*since}}, "text/event-stream")
	if err != nil {
		if ctx.Err() != nil && outer.Err() == nil { // the silence has ended it
			c.next(at)
			return fmt.Errorf("%s did not answer within %v: %w", c.bases[at], watchSilence, cluster.ErrDeadline)
		}
		return err
	}
	at = c.at.Load()
	defer c.next(at) // a watch that ends goes on at the next server
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		raw, _ := io.ReadAll(io.LimitReader(response.Body, maxAnswerBytes))
		return errorFrom(response.StatusCode, raw)
	}
	lines := bufio.NewScanner(response.Body)
	lines.Buffer(make([]byte, 0, 64<<10), maxAnswerBytes)
	event := ""
	for lines.Scan() {
		silence.Reset(watchSilence)
		name, value, _ := strings.Cut(lines.Text(), ": ")
		switch name {
		case "event":
			event = value
		case "data":
			if err := deliver(event, value, since, see); err != nil {
				return err
			}
		}
	}
	if err := lines.Err(); err != nil && ctx.Err() == nil {
		return fmt.Errorf("%s: %w: %w", c.bases[at], ErrUnreachable, err)
	}
	return fmt.Errorf("%s ended the watch: %w", c.bases[at], ErrUnreachable)
}

func deliver(event, data string, since *string, see func(WatchEvent) bool) error {
	var e WatchEvent
	var into any
	switch event {
	case "cluster":
		e.View = &ClusterView{}
		into = e.View
	case "ages":
		into = &e.Ages
	default:
		return nil
	}
	if err := json.Unmarshal([]byte(data), into); err != nil {
		return fmt.Errorf("read a watch event: %w", err)
	}
	if e.View != nil {
		*since = e.View.Version
	}
	if !see(e) {
		return errStop
	}
	return nil
}
