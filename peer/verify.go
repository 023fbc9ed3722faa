package peer

import (
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"pvc.internal/cluster"
)

// CertError is a certificate that is not accepted.
type CertError struct {
	File  string // of this host that the matter is about: the certificate, or the authorities it was checked against
	Found string // the name that the certificate carries, or its subject
	What  string // what is wrong
	Cure  string
}

// Error tells the name, what is wrong, the file and the cure.
func (e *CertError) Error() string {
	return fmt.Sprintf("certificate of %s: %s (file %s): %s", e.Found, e.What, e.File, e.Cure)
}

// when is how an expiry is told to people.
const when = "2006-01-02 15:04 MST"

// described names a certificate by its URI, or by its subject where it has none.
func described(cert *x509.Certificate) string {
	if name, err := NameOf(cert); err == nil {
		return name.String()
	}
	if len(cert.URIs) > 0 {
		return cert.URIs[0].String()
	}
	return fmt.Sprintf("%q", cert.Subject)
}

// verify checks the chain that a peer has shown and returns who it is.
func (m *material) verify(chain []*x509.Certificate, usage x509.ExtKeyUsage, now time.Time) (Name, error) {
	if len(chain) == 0 {
		return Name{}, &CertError{File: m.files.CA, Found: "nobody", What: "none was shown", Cure: "the other side needs peer.tls.cert and key"}
	}
	leaf := chain[0]
	inner := x509.NewCertPool()
	for _, c := range chain[1:] {
		inner.AddCert(c)
	}
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: m.roots, Intermediates: inner, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{usage}}); err != nil {
		return Name{}, m.explain(leaf, err, now)
	}
	name, err := NameOf(leaf)
	if err != nil {
		return Name{}, &CertError{File: m.files.CA, Found: described(leaf), What: err.Error(), Cure: "issue it with `pvc pki issue`"}
	}
	switch {
	case name.Cluster != m.name.Cluster:
		return name, &CertError{File: m.files.Cert, Found: name.String(), What: fmt.Sprintf("it is of cluster %q, this node of %q", name.Cluster, m.name.Cluster),
			Cure: "check the address that the node publishes, and that its certificate is of this cluster"}
	case name.Role != RoleNode:
		return name, &CertError{File: m.files.CA, Found: name.String(), What: fmt.Sprintf("its role is %q, and only %q may talk here", name.Role, RoleNode),
			Cure: "use a certificate made by `pvc pki issue`"}
	}
	return name, nil
}

// verifyNode checks that the chain is that of one expected node.
func (m *material) verifyNode(chain []*x509.Certificate, want cluster.NodeID, now time.Time) error {
	name, err := m.verify(chain, x509.ExtKeyUsageServerAuth, now)
	if err == nil && name.Node != want {
		err = &CertError{File: m.files.Cert, Found: name.String(), What: fmt.Sprintf("%s was asked and %s answers", want, name.Node),
			Cure: fmt.Sprintf("check the address that %s publishes (peer.advertise) and the certificate it uses", want)}
	}
	return err
}

// explain puts what x509 says into words with a cure.
func (m *material) explain(leaf *x509.Certificate, err error, now time.Time) error {
	e := &CertError{File: m.files.CA, Found: described(leaf), What: err.Error(), Cure: "issue a new one with `pvc pki issue`"}
	var invalid x509.CertificateInvalidError
	var unknown x509.UnknownAuthorityError
	renew := "renew it with `pvc pki renew NODE` where the authority's key is, and copy it over"
	if name, nameErr := NameOf(leaf); nameErr == nil && name.Node != "" {
		renew = fmt.Sprintf("renew it with `pvc pki renew %s` where the authority's key is, and copy it over", name.Node)
	}
	switch {
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired && now.Before(leaf.NotBefore):
		e.What = fmt.Sprintf("it is valid only from %s, and this host's clock says %s", leaf.NotBefore.UTC().Format(when), now.UTC().Format(when))
		e.Cure = "set the clocks of both hosts"
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired && now.After(leaf.NotAfter):
		e.What, e.Cure = fmt.Sprintf("it expired on %s", leaf.NotAfter.UTC().Format(when)), renew
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		e.What, e.Cure = "its authority has expired", "make a new authority with `pvc pki init` and issue all certificates anew"
	case errors.As(err, &invalid) && invalid.Reason == x509.IncompatibleUsage:
		e.What, e.Cure = "it is not for both ends of a connection (client and server authentication)", "issue it with `pvc pki issue`, which sets both"
	case errors.As(err, &unknown):
		e.What = fmt.Sprintf("it was signed by %q, which is no authority of this node", leaf.Issuer)
		e.Cure = "issue it from this cluster's authority, or add that authority to the file while you change over"
	}
	return e
}
