package api

import (
	"errors"
	"fmt"
	"net"
	"time"

	"pvc.internal/cluster"
)

// AuthNone is the Config.Auth that allows everybody to do everything, from
// every address listened on.
const AuthNone = "none"

// DefaultListen is listened on where nothing is configured.
const DefaultListen = "127.0.0.1:7370"

// TLSFiles are PEM files; Cert and Key together turn TLS on, ClientCA demands
// certificates of clients that carry no key.
type TLSFiles struct{ Cert, Key, ClientCA string }

// Config is what a Server is made with. The zero value listens on loopback.
type Config struct {
	Listen         []string // host:port each
	Auth           string   // "" or AuthNone
	KeysFile       string   // lines "name:role:sha256hex"
	TLS            TLSFiles
	ProtectAll     bool           // probes, metrics and documents need a key too
	Node           cluster.NodeID // of this server, for history and logs
	ClusterName    string         // for POST /initialize without a name
	Version        string         // of the program, for pvc_version
	Profile        string         // name of the timing profile, for display
	Timing         cluster.Timing
	RequestTimeout time.Duration // of one request's work on the store; default 5 s
}

func (c Config) withDefaults() Config {
	if len(c.Listen) == 0 {
		c.Listen = []string{DefaultListen}
	}
	if c.RequestTimeout == 0 {
		c.RequestTimeout = 5 * time.Second
	}
	return c
}

// Validate refuses what cannot work, and what would let strangers in: without
// keys or client certificates only loopback addresses may be listened on,
// unless Auth is AuthNone. It reads no file.
func (c *Config) Validate() error {
	if c.Auth != "" && c.Auth != AuthNone {
		return fmt.Errorf("api.auth is %q: write \"none\" to allow everybody everything, or leave it out", c.Auth)
	}
	if c.RequestTimeout < 0 || c.RequestTimeout >= writeTimeout {
		return fmt.Errorf("api request timeout is %s: it must be above 0 and below %s", c.RequestTimeout, writeTimeout)
	}
	if err := c.checkTLS(); err != nil {
		return err
	}
	for _, address := range c.Listen {
		if err := c.checkListen(address); err != nil {
			return err
		}
	}
	return nil
}

// guarded reports whether a request has to prove who sends it.
func (c *Config) guarded() bool {
	return c.Auth != AuthNone && (c.KeysFile != "" || c.TLS.ClientCA != "")
}

func (c *Config) checkListen(address string) error {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return fmt.Errorf("api.listen %q is not host:port (write [::1]:7370 for IPv6): %w", address, err)
	}
	if c.guarded() || c.Auth == AuthNone || isLoopback(host) {
		return nil
	}
	return fmt.Errorf("api.listen %q is reachable from other hosts, and there are neither api.keys_file nor api.tls.client_ca: "+
		"add one of them, listen on 127.0.0.1, or write \"auth: none\" if everybody there may do everything", address)
}

func isLoopback(host string) bool {
	if host == "localhost" {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}

// checkTLS refuses TLS settings that make no sense together; the files are read
// by newAccess.
func (c *Config) checkTLS() error {
	switch {
	case c.TLS.Cert == "" && c.TLS.Key == "" && c.TLS.ClientCA != "":
		return errors.New("api.tls.client_ca needs api.tls.cert and api.tls.key: client certificates travel only inside TLS")
	case (c.TLS.Cert == "") != (c.TLS.Key == ""):
		return fmt.Errorf("api.tls.cert is %q and api.tls.key is %q: they belong together", c.TLS.Cert, c.TLS.Key)
	}
	return nil
}
