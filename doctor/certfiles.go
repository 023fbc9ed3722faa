package doctor

import (
	"strings"
	"time"
)

// CertFile are the facts about a certificate that is not for talking between
// nodes: pvcapid's own, those towards ZooKeeper, and authorities.
type CertFile struct {
	File     string
	What     string // what it is for
	Setting  string // the key that names it
	Trouble  string // why it is not taken; empty: it is
	Hidden   string // why that could not be found out; empty: it was
	NotAfter time.Time
}

// certSoon is how long before its end a certificate is worth a word.
const certSoon = 30 * 24 * time.Hour

// CertFiles judges when each of them ends.
func CertFiles(files []CertFile, now time.Time) []Finding {
	l := &list{check: CheckCerts}
	for _, f := range files {
		cure := "put a new one in its place, and `systemctl restart` what uses it (" + f.Setting + ")"
		switch left := f.NotAfter.Sub(now); {
		case f.Hidden != "":
			l.unchecked(f.File, "run this as root", "%s: %s", f.What, f.Hidden)
		case f.Trouble != "":
			l.problem(f.File, cure, "%s cannot be used: %s", f.What, strings.TrimPrefix(f.Trouble, f.File+": "))
		case left <= 0:
			l.problem(f.File, cure, "%s has ended on %s: connections by it are refused", f.What, f.NotAfter.UTC().Format(time.DateOnly))
		case left < certSoon:
			l.warn(f.File, cure, "%s ends on %s, in %d days", f.What, f.NotAfter.UTC().Format(time.DateOnly), int(left/(24*time.Hour)))
		default:
			l.ok(f.File, "%s, %d days left", f.What, int(left/(24*time.Hour)))
		}
	}
	return l.findings
}
