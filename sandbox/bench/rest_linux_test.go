package bench

import (
	"bufio"
	"strings"
	"testing"
)

func TestParseWrk(t *testing.T) {
	const text = `Running 10s test @ http://127.0.0.1:7390/api/v1/node
  2 threads and 16 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     1.39ms    1.61ms  28.85ms   92.51%
    Req/Sec     7.11k     0.87k    9.42k    71.00%
  Latency Distribution
     50%    0.98ms
     75%    1.54ms
     90%    2.41ms
     99%    8.66ms
  141540 requests in 10.01s, 9.91GB read
  Socket errors: connect 0, read 1, write 0, timeout 2
  Non-2xx or 3xx responses: 4
Requests/sec:  14142.57
Transfer/sec:      0.99GB
`
	got, err := parseWrk(text)
	if err != nil || got.Rate != 14142.57 || got.P99 != 8.66 || got.Errors != 7 {
		t.Errorf("%+v %v", got, err)
	}
	if _, err := parseWrk("unable to connect to 127.0.0.1:7390 Connection refused"); err == nil {
		t.Error("nothing at all was taken for a result")
	}
}

func TestReadAnswer(t *testing.T) {
	for text, want := range map[string]bool{
		"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc": true,
		"HTTP/1.1 503 Away\r\ncontent-length: 0\r\n\r\n":  false,
		"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc": false,
		"HTTP/1.1 200 OK\r\n\r\nabc":                      false,
	} {
		if err := readAnswer(bufio.NewReader(strings.NewReader(text))); (err == nil) != want {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestAtLeast(t *testing.T) {
	for _, c := range []struct {
		values []float64
		want   Verdict
	}{{[]float64{3000, 9000}, Met}, {[]float64{2999, 9000}, Missed}, {nil, Missed}} {
		if f := figure("x", "", c.values, atLeast(3000)); f.Verdict != c.want || len(c.values) > 0 && f.Worst != c.values[0] {
			t.Errorf("%v: %+v", c.values, f)
		}
	}
}
