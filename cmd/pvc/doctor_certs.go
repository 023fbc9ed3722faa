package main

import (
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"pvc.internal/cluster"
	"pvc.internal/cmd/settings"
	"pvc.internal/doctor"
)

// certFilesOf are the certificates that the settings name beside those between
// nodes; pvcapid's where its settings stand beside this node's.
func certFilesOf(file string, s settings.Node) []doctor.CertFile {
	var files []doctor.CertFile
	add := func(path, what, setting string) {
		if path == "" {
			return
		}
		f := doctor.CertFile{File: path, What: what, Setting: setting}
		end, err := endOf(path)
		f.NotAfter = end
		f.Trouble, f.Hidden = troubleOf(err)
		files = append(files, f)
	}
	add(s.ZooKeeper.TLS.Cert, "this node's certificate towards ZooKeeper", "zookeeper.tls.cert")
	add(s.ZooKeeper.TLS.CA, "the authority of ZooKeeper's servers", "zookeeper.tls.ca")
	other := filepath.Join(filepath.Dir(file), "pvcapid.yaml")
	if s.Node.Mode != cluster.Coordinator || !isThere(other) {
		return files
	}
	a, err := settings.LoadAPI(other)
	if err != nil {
		return files // which is said of the file
	}
	add(a.API.TLS.Cert, "pvcapid's certificate", "api.tls.cert")
	add(a.API.TLS.ClientCA, "the authority of pvcapid's clients", "api.tls.client_ca")
	return files
}

// endOf is when the first of a PEM file's certificates to end does.
func endOf(path string) (time.Time, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return time.Time{}, err
	}
	var end time.Time
	for block, rest := pem.Decode(raw); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return time.Time{}, fmt.Errorf("%s: %w", path, err)
		}
		if end.IsZero() || c.NotAfter.Before(end) {
			end = c.NotAfter
		}
	}
	if end.IsZero() {
		return end, fmt.Errorf("%s holds no PEM certificate", path)
	}
	return end, nil
}
