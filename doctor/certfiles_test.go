package doctor_test

import (
	"testing"
	"time"

	"pvc.internal/doctor"
)

func TestCertificatesThatEnd(t *testing.T) {
	now := time.Date(2026, 5, 1, 0, 0, 0, 0, time.UTC)
	one := func(f doctor.CertFile) []doctor.Finding {
		f.File, f.What, f.Setting = "/etc/pvc/api.pem", "pvcapid's certificate", "api.tls.cert"
		return doctor.CertFiles([]doctor.CertFile{f}, now)
	}
	says(t, "long", one(doctor.CertFile{NotAfter: now.Add(400 * 24 * time.Hour)}), doctor.OK, "400 days")
	says(t, "soon", one(doctor.CertFile{NotAfter: now.Add(8 * 24 * time.Hour)}), doctor.Warning, "2026-05-09, in 8 days", "api.tls.cert")
	says(t, "over", one(doctor.CertFile{NotAfter: now.Add(-time.Second)}), doctor.Problem, "has ended on 2026-04-30", "systemctl restart")
	says(t, "gone", one(doctor.CertFile{Trouble: "no such file"}), doctor.Problem, "cannot be used: no such file")
	says(t, "not seen", one(doctor.CertFile{Hidden: "permission denied"}), doctor.Unchecked, "run this as root")
}
