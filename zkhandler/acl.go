package zkhandler

import "github.com/go-zookeeper/zk"

// creationACL is put on every znode we make. With an identity of our own,
// digest or x509, only that may write and only the reader, if any, may read:
// nothing is ever world-writable. Without one everything is open, as ZooKeeper
// knows no other way; New warns about that.
func (c Config) creationACL() []zk.ACL {
	var acl []zk.ACL
	if c.Auth != nil {
		acl = append(acl, zk.DigestACL(zk.PermAll, c.Auth.User, c.Auth.Password)...)
	}
	if c.TLS.identifies() {
		// "auth" stands for every identity of the connection that creates:
		// by certificate alone, the certificate's.
		if c.Auth == nil {
			acl = append(acl, zk.AuthACL(zk.PermAll)...)
		}
	}
	if acl == nil {
		return zk.WorldACL(zk.PermAll)
	}
	if c.Reader != nil {
		acl = append(acl, zk.DigestACL(zk.PermRead, c.Reader.User, c.Reader.Password)...)
	}
	return acl
}

// open reports whether everybody may write what we create.
func (c Config) open() bool { return c.Auth == nil && !c.TLS.identifies() }
