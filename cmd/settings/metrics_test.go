package settings

import (
	"strings"
	"testing"
)

func TestMetricsAreTheHostsOwnUnlessWrittenOtherwise(t *testing.T) {
	for _, c := range []struct{ yaml, listen, refused, warned string }{
		{"", "127.0.0.1:7372", "", ""},
		{`metrics: {listen: ""}`, "", "", ""},
		{`metrics: {listen: "[::1]:9"}`, "[::1]:9", "", ""},
		{`metrics: {listen: "localhost:9"}`, "localhost:9", "", ""},
		{`metrics: {listen: "10.0.0.1:9"}`, "10.0.0.1:9", "", "whoever reaches 10.0.0.1:9"},
		{`metrics: {listen: "0.0.0.0:9"}`, "0.0.0.0:9", "", "whoever reaches 0.0.0.0:9"},
		{`metrics: {listen: ":9"}`, "", "names no host", ""},
		{`metrics: {listen: "127.0.0.1"}`, "", "is not host:port", ""},
		{`metrics: {listen: "127.0.0.1:0"}`, "", "no port", ""},
		{`metrics: {listen: "127.0.0.1:http"}`, "", "no port", ""},
		{`metrics: {port: 9}`, "", "metrics.port", ""},
	} {
		n, err := LoadNode(write(t, "node: {name: hv1}\ncluster: {name: demo}\nzookeeper: {servers: [a:1]}\n"+c.yaml+"\n"))
		switch {
		case c.refused != "":
			if err == nil || !strings.Contains(err.Error(), c.refused) {
				t.Errorf("%s: %v", c.yaml, err)
			}
		case err != nil:
			t.Errorf("%s: %v", c.yaml, err)
		case n.Metrics.Listen != c.listen || strings.Contains(strings.Join(n.Warnings, "\n"), "metrics.listen") != (c.warned != "") || !strings.Contains(strings.Join(n.Warnings, "\n"), c.warned):
			t.Errorf("%s: %q, warnings %q", c.yaml, n.Metrics.Listen, n.Warnings)
		}
	}
}
