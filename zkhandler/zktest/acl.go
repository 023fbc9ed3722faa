package zktest

import (
	"crypto/sha1"
	"encoding/base64"
	"strings"
)

// Permissions of an ACL entry, as bits.
const (
	PermRead   int32 = 1
	PermWrite  int32 = 2
	PermCreate int32 = 4
	PermDelete int32 = 8
	PermAdmin  int32 = 16
	PermAll    int32 = 31
)

// ACL is one entry of a znode's access list.
type ACL struct {
	Perms  int32
	Scheme string // world, auth or digest
	ID     string // anyone, "", or user:base64(sha1(user:password))
}

// OpenACL lets everybody do everything.
func OpenACL() []ACL { return []ACL{{Perms: PermAll, Scheme: "world", ID: "anyone"}} }

// identity is what a connection has proven to be.
type identity struct{ scheme, id string }

// digestIdentity is what the digest scheme makes of "user:password".
func digestIdentity(credentials []byte) identity {
	user, _, _ := strings.Cut(string(credentials), ":")
	sum := sha1.Sum(credentials)
	return identity{scheme: "digest", id: user + ":" + base64.StdEncoding.EncodeToString(sum[:])}
}

// allowed reports whether the identities have one of the permissions.
func allowed(acl []ACL, who []identity, perms int32) bool {
	for _, a := range acl {
		if a.Perms&perms == 0 {
			continue
		}
		if a.Scheme == "world" && a.ID == "anyone" {
			return true
		}
		for _, i := range who {
			if i.scheme == a.Scheme && i.id == a.ID {
				return true
			}
		}
	}
	return false
}

// fixupACL resolves "auth" entries to the connection's identities and refuses
// what names nobody.
func fixupACL(acl []ACL, who []identity) ([]ACL, int32) {
	var fixed []ACL
	for _, a := range acl {
		switch {
		case a.Scheme == "world" && a.ID == "anyone":
			fixed = append(fixed, a)
		case a.Scheme == "auth":
			if len(who) == 0 {
				return nil, errInvalidACL
			}
			for _, i := range who {
				fixed = append(fixed, ACL{Perms: a.Perms, Scheme: i.scheme, ID: i.id})
			}
		case a.Scheme == "digest" && strings.Count(a.ID, ":") == 1:
			fixed = append(fixed, a)
		default:
			return nil, errInvalidACL
		}
	}
	if len(fixed) == 0 {
		return nil, errInvalidACL
	}
	return fixed, errOK
}

// maskACL hides the digests from readers that may not administer the znode.
func maskACL(acl []ACL) []ACL {
	masked := make([]ACL, len(acl))
	for i, a := range acl {
		if user, _, ok := strings.Cut(a.ID, ":"); ok && a.Scheme == "digest" {
			a.ID = user + ":x"
		}
		masked[i] = a
	}
	return masked
}
