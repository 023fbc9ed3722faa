package fencing

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// The bounds of an exchange with a redfish controller.
const (
	redfishBody    = 1 << 20  // of an answer, bytes
	redfishHeaders = 64 << 10 // bytes
	// A request gets a third of the attempt, at least this: a controller that
	// hangs in one answer is asked again while there is time.
	redfishPatience = 5 * time.Second
	maxAuthorities  = 4 << 20 // of ca_file, bytes
)

// redfishConn sends requests to one controller and nowhere else.
type redfishConn struct {
	device   Device
	password Secret
	client   *http.Client
	patience time.Duration
	token    Secret // of the session
	session  string // its path, to be deleted
	basic    bool
}

// redfishReply is an answer that arrived as a whole.
type redfishReply struct {
	status   int
	location string // a path on this controller, or nothing
	token    Secret
	body     []byte
}

// dialer opens connections; tests replace it.
type dialer func(ctx context.Context, network, address string) (net.Conn, error)

func newRedfishConn(d Device, password Secret, dial dialer) (*redfishConn, error) {
	verify, err := d.tlsConfig()
	if err != nil {
		return nil, faulty(FaultMisconfigured, fmt.Errorf("device %q: %w", d.Name, err))
	}
	transport := &http.Transport{
		DialContext: dial, TLSClientConfig: verify, TLSHandshakeTimeout: redfishPatience,
		MaxResponseHeaderBytes: redfishHeaders, MaxConnsPerHost: 1, DisableCompression: true,
		// No Proxy: credentials go to the controller and nowhere else.
	}
	refuse := func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return &redfishConn{
		device: d, password: password, basic: d.Auth == RedfishBasic,
		client: &http.Client{Transport: transport, CheckRedirect: refuse}, patience: max(d.Timeout/3, redfishPatience),
	}, nil
}

// tlsConfig says which certificate is taken: one of the given authorities, the
// one with the fingerprint, or any where the settings say so in as many words.
func (d Device) tlsConfig() (*tls.Config, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	switch {
	case d.Fingerprint != "":
		want, err := parseFingerprint(d.Fingerprint)
		if err != nil {
			return nil, err
		}
		config.InsecureSkipVerify = true // the pin below is stricter than any authority
		config.VerifyConnection = func(state tls.ConnectionState) error {
			got := sha256.Sum256(state.PeerCertificates[0].Raw)
			if subtle.ConstantTimeCompare(got[:], want) == 1 {
				return nil
			}
			return faulty(FaultMisconfigured, fmt.Errorf("the certificate has fingerprint %s, not the one in the settings; if the controller was renewed, compare and set it, else somebody else answers", hex.EncodeToString(got[:])))
		}
	case d.Insecure:
		config.InsecureSkipVerify = true
	case d.CAFile != "":
		pem, err := secretFiles.read(context.Background(), d.CAFile, maxAuthorities)
		if err != nil {
			return nil, fmt.Errorf("read ca_file: %w", err)
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(pem.data) {
			return nil, fmt.Errorf("ca_file %s holds no certificate in PEM", d.CAFile)
		}
	}
	return config, nil
}

func parseFingerprint(text string) ([]byte, error) {
	raw, err := hex.DecodeString(strings.NewReplacer(":", "", " ", "").Replace(text))
	if err != nil || len(raw) != sha256.Size {
		return nil, fmt.Errorf("fingerprint %q is not the SHA-256 of a certificate: want 64 hexadecimal digits", text)
	}
	return raw, nil
}

// do makes one exchange. An answer of any status is no error; in decides what
// it means.
func (c *redfishConn) do(ctx context.Context, method, path string, body any) (redfishReply, error) {
	ctx, cancel := context.WithTimeout(ctx, c.patience)
	defer cancel()
	reply, err := c.exchange(ctx, method, path, body)
	if err != nil {
		return reply, c.explain(fmt.Errorf("%s %s: %w", method, path, err))
	}
	return reply, nil
}

func (c *redfishConn) exchange(ctx context.Context, method, path string, body any) (redfishReply, error) {
	var reply redfishReply
	var content io.Reader
	if body != nil {
		data, err := json.Marshal(body)
		if err != nil {
			return reply, fmt.Errorf("encode the request: %w", err)
		}
		content = bytes.NewReader(data)
	}
	request, err := http.NewRequestWithContext(ctx, method, "https://"+c.device.Address+path, content)
	if err != nil {
		return reply, fmt.Errorf("make the request: %w", err)
	}
	c.sign(request, body != nil)
	answer, err := c.client.Do(request)
	if err != nil {
		return reply, bare(err)
	}
	defer answer.Body.Close()
	reply.status, reply.token = answer.StatusCode, NewSecret(answer.Header.Get("X-Auth-Token"))
	reply.location = c.local(answer.Header.Get("Location"))
	reply.body, err = io.ReadAll(io.LimitReader(answer.Body, redfishBody+1))
	switch {
	case err != nil:
		return reply, fmt.Errorf("read the answer: %w", err)
	case len(reply.body) > redfishBody:
		return reply, fmt.Errorf("the answer has more than %d bytes", redfishBody)
	}
	return reply, nil
}

func (c *redfishConn) sign(request *http.Request, body bool) {
	request.Header.Set("Accept", "application/json")
	request.Header.Set("OData-Version", "4.0")
	if body {
		request.Header.Set("Content-Type", "application/json")
	}
	switch {
	case !c.token.Empty():
		request.Header.Set("X-Auth-Token", c.token.Reveal())
	case c.basic:
		request.SetBasicAuth(c.device.User, c.password.Reveal())
	}
}

// bare takes the request's address off an error, which is told already.
func bare(err error) error {
	if wrapped := (*url.Error)(nil); errors.As(err, &wrapped) {
		return wrapped.Err
	}
	return err
}

// explain gives a failed exchange its kind: an untrusted certificate is the
// settings' fault, not the network's.
func (c *redfishConn) explain(err error) error {
	var certificate *tls.CertificateVerificationError
	var record tls.RecordHeaderError
	known := (*faultError)(nil)
	switch {
	case errors.As(err, &known):
		return err
	case errors.As(err, &certificate):
		return faulty(FaultMisconfigured, fmt.Errorf("%w; give ca_file, or fingerprint: %s once it was compared", err, fingerprintOf(certificate.UnverifiedCertificates)))
	case errors.As(err, &record), errors.Is(err, http.ErrSchemeMismatch):
		return faulty(FaultMisconfigured, fmt.Errorf("%w; the port does not speak TLS", err))
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return faulty(FaultUnreachable, err)
	}
	return err
}

func fingerprintOf(chain []*x509.Certificate) string {
	if len(chain) == 0 {
		return "(none was shown)"
	}
	sum := sha256.Sum256(chain[0].Raw)
	return hex.EncodeToString(sum[:])
}

// local returns a link's path if it leads to this very controller, else
// nothing: the token is not sent where an answer says.
func (c *redfishConn) local(link string) string {
	u, err := url.Parse(link)
	if err != nil || link == "" {
		return ""
	}
	if u.Host != "" && !strings.EqualFold(u.Host, c.device.Address) && !strings.EqualFold(u.Hostname(), hostOf(c.device.Address)) {
		return ""
	}
	path := u.EscapedPath()
	if !strings.HasPrefix(path, "/") || strings.HasPrefix(path, "//") {
		return ""
	}
	if u.RawQuery != "" {
		path += "?" + u.RawQuery
	}
	return path
}

func hostOf(address string) string {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return address
	}
	return host
}

// decode reads an answer of status 200 into v.
func (r redfishReply) decode(v any) error {
	if err := json.Unmarshal(r.body, v); err != nil {
		return fmt.Errorf("it is no JSON of the expected form: %w", err)
	}
	return nil
}

// refusal turns an answer that is no success into an error, with the
// controller's own words. It is nil for a status of 2xx.
func (r redfishReply) refusal() error {
	switch {
	case r.status >= 200 && r.status < 300:
		return nil
	case r.status == http.StatusUnauthorized:
		return faulty(FaultDenied, fmt.Errorf("the login is refused (401)%s", r.words()))
	case r.status == http.StatusForbidden:
		return faulty(FaultDenied, fmt.Errorf("the account may not do this (403)%s", r.words()))
	case r.status >= 300 && r.status < 400:
		return fmt.Errorf("it redirects (%d), which is not followed; give the address it means", r.status)
	}
	return fmt.Errorf("status %d%s", r.status, r.words())
}

// words are the messages of the extended error information, or nothing.
func (r redfishReply) words() string {
	type message struct {
		Message    string `json:"Message"`
		MessageID  string `json:"MessageId"`
		Resolution string `json:"Resolution"`
	}
	var extended struct {
		Error struct {
			Message string    `json:"message"`
			Info    []message `json:"@Message.ExtendedInfo"`
		} `json:"error"`
		Info     []message `json:"@Message.ExtendedInfo"`
		Messages []message `json:"Messages"` // of a task
	}
	if json.Unmarshal(r.body, &extended) != nil {
		return ""
	}
	var said []string
	for _, m := range append(append(extended.Error.Info, extended.Info...), extended.Messages...) {
		text := strings.TrimSpace(m.Message + " " + m.Resolution)
		if text == "" {
			text = m.MessageID
		}
		if text != "" && len(said) < 3 {
			said = append(said, text)
		}
	}
	if len(said) == 0 && extended.Error.Message != "" {
		said = append(said, extended.Error.Message)
	}
	if len(said) == 0 {
		return ""
	}
	return ": " + clip(strings.Join(said, " "))
}
