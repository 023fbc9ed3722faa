package api_test

import (
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"pvc.internal/api"
	"pvc.internal/cluster"
)

// counted is a server that answers so and counts what it is asked.
func counted(t *testing.T, status int, body string) (url string, asked *atomic.Int32) {
	t.Helper()
	asked = &atomic.Int32{}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		w.WriteHeader(status)
		_, _ = w.Write([]byte(body))
	}))
	t.Cleanup(s.Close)
	return s.URL, asked
}

// nobody is where nothing listens.
func nobody(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return "http://" + l.Addr().String()
}

func clientOf(t *testing.T, urls ...string) *api.Client {
	t.Helper()
	c, err := api.NewClient(api.ClientConfig{URL: strings.Join(urls, ", "), Timeout: 10 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// Of several servers the first that can be reached answers, and goes on to be
// asked first.
func TestClientSkipsWhoCannotBeReached(t *testing.T) {
	good, asked := counted(t, http.StatusOK, "[]")
	hung, err := net.Listen("tcp", "127.0.0.1:0") // the kernel takes connections, nobody reads
	if err != nil {
		t.Fatal(err)
	}
	defer hung.Close()
	c := clientOf(t, "http://"+hung.Addr().String(), nobody(t), good)
	for range 3 {
		if _, err := c.Nodes(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
	}
	if asked.Load() != 3 {
		t.Errorf("three answers of %d", asked.Load())
	}
	_, err = clientOf(t, nobody(t), nobody(t)).Nodes(t.Context(), nil)
	if !errors.Is(err, api.ErrUnreachable) || !strings.Contains(err.Error(), "each of http://") {
		t.Errorf("nobody there: %v", err)
	}
}

// A server without its store is left for one that has it by who only asks; an
// order that has reached a server is never given to another.
func TestClientNeverGivesAnOrderTwice(t *testing.T) {
	for status, class := range map[int]error{http.StatusServiceUnavailable: api.ErrUnreachable, http.StatusGatewayTimeout: cluster.ErrDeadline, http.StatusConflict: cluster.ErrRefused} {
		bad, _ := counted(t, status, `{"message": "no"}`)
		good, asked := counted(t, http.StatusOK, "{}")
		if _, err := clientOf(t, bad, good).Switch(t.Context(), "hv2", "", false); !errors.Is(err, class) || asked.Load() != 0 {
			t.Errorf("%d: %v, the other was asked %d times", status, err, asked.Load())
		}
	}
	hangsUp := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }))
	defer hangsUp.Close()
	good, asked := counted(t, http.StatusOK, "{}")
	if _, err := clientOf(t, hangsUp.URL, good).Switch(t.Context(), "hv2", "", false); !errors.Is(err, api.ErrUnreachable) || asked.Load() != 0 {
		t.Errorf("a lost answer: %v, the other was asked %d times", err, asked.Load())
	}
	away, _ := counted(t, http.StatusServiceUnavailable, `{"message": "no store"}`)
	if _, err := clientOf(t, away, good).Status(t.Context()); err != nil || asked.Load() != 1 {
		t.Errorf("a question: %v, %d", err, asked.Load())
	}
	if _, err := clientOf(t, away, nobody(t)).Status(t.Context()); !errors.Is(err, api.ErrUnreachable) || err.Error() != "no store" {
		t.Errorf("none has its store: %v", err)
	}
}

func TestClientRefusesWhatIsNoURL(t *testing.T) {
	for _, bad := range []string{"", "hv1:7370", "http://", "ftp://hv1", "http://key@hv1", "http://hv1?x=1", "http://hv1, hv2"} {
		if _, err := api.NewClient(api.ClientConfig{URL: bad}); err == nil || !strings.Contains(err.Error(), "write it like") {
			t.Errorf("%q: %v", bad, err)
		}
	}
}
