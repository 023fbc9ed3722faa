package lease

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pvc.internal/cluster"
)

var servedA = Record{Epoch: 5, EpochOf: "a", Held: true, Holder: cluster.NodeLeaseID{Holder: "a", Start: "s", Epoch: 5}, Period: 5 * time.Second}

func TestFileKeepsWhatWasWritten(t *testing.T) {
	f := NewFile(t.TempDir(), nil)
	if got := f.Read(); got.Kind != FoundNothing {
		t.Errorf("a new folder says %+v", got)
	}
	left := servedA
	left.Clean, left.Left = true, 4*time.Second
	for _, r := range []Record{servedA, left, {Epoch: 7, EpochOf: "b"}, {Held: true, Period: time.Second}} {
		if err := f.Write(r); err != nil {
			t.Fatal(err)
		}
		if got := f.Read(); got.Kind != FoundRecord || got.Record != r {
			t.Errorf("%+v comes back as %+v", r, got)
		}
	}
	if info, err := os.Stat(f.Path()); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the file's mode is %v (%v)", info.Mode(), err)
	}
	if got := f.Counters(); got != (FileCounters{Writes: 4, Syncs: 8}) {
		t.Errorf("counted %+v", got)
	}
	for range 2 { // L19; again it is no error
		if err := f.Remove(); err != nil {
			t.Fatal(err)
		}
	}
	if got := f.Read(); got.Kind != FoundNothing {
		t.Errorf("after the removal: %+v", got)
	}
}

// What cannot be believed is somebody's lease, never nobody's; and it is left
// as it is until a record replaces it.
func TestFileThatCannotBeBelieved(t *testing.T) {
	good, err := EncodeRecord(servedA)
	if err != nil {
		t.Fatal(err)
	}
	cases := map[string][]byte{
		"empty": nil, "truncated": good[:len(good)/2], "zeros": make([]byte, len(good)),
		"newer":     []byte(`{"v":2,"held":false,"sum":1}`),
		"no object": []byte(`[]`), "no sum": []byte(`{"v":1,"held":false}`),
		"edited": []byte(strings.Replace(string(good), `"start":"s"`, `"start":"t"`, 1)),
		"flipped": func() []byte {
			b := append([]byte{}, good...)
			b[len(b)/2] ^= 1
			return b
		}(),
		"long": append(append([]byte{}, good...), make([]byte, maxRecord)...),
	}
	for name, raw := range cases {
		f := NewFile(t.TempDir(), nil)
		if err := os.WriteFile(f.Path(), raw, 0o600); err != nil {
			t.Fatal(err)
		}
		if got := f.Read(); got.Kind != FoundUnreadable || got.Detail == "" {
			t.Errorf("%s: read as %+v", name, got)
		}
		if left, err := os.ReadFile(f.Path()); err != nil || string(left) != string(raw) {
			t.Errorf("%s: reading changed the file (%v)", name, err)
		}
		if err := f.Write(servedA); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if got := f.Read(); got.Kind != FoundRecord {
			t.Errorf("%s: after a write %+v", name, got)
		}
	}
	f := NewFile(t.TempDir(), nil)
	if err := os.Mkdir(f.Path(), 0o700); err != nil {
		t.Fatal(err)
	}
	if got := f.Read(); got.Kind != FoundUnreadable {
		t.Errorf("a folder: read as %+v", got)
	}
	if got := NewFile(filepath.Join(t.TempDir(), "gone"), nil).Read(); got.Kind != FoundUnreadable {
		t.Errorf("without the state folder: read as %+v", got)
	}
}

// A write that fails leaves the record of before, whole (L3), and nothing lying about.
func TestFileWriteFails(t *testing.T) {
	full := errors.New("no space left on device")
	fail := false
	f := NewFile(t.TempDir(), func(point string) error {
		if fail && point == FaultPersist {
			return full
		}
		return nil
	})
	if err := f.Write(servedA); err != nil {
		t.Fatal(err)
	}
	fail = true
	if err := f.Write(Record{}); !errors.Is(err, full) {
		t.Errorf("it says %v", err)
	}
	if err := f.Remove(); !errors.Is(err, full) {
		t.Errorf("the removal says %v", err)
	}
	if got := f.Read(); got.Record != servedA {
		t.Errorf("the disk says %+v", got)
	}
	if got := f.Counters(); got.Failed != 2 || got.Writes != 3 {
		t.Errorf("counted %+v", got)
	}
}

// A crash within a write leaves a temporary file, which the next start sweeps.
func TestFileAfterACrash(t *testing.T) {
	f := NewFile(t.TempDir(), nil)
	if err := f.Write(servedA); err != nil {
		t.Fatal(err)
	}
	half := f.Path() + ".123.tmp"
	if err := os.WriteFile(half, []byte(`{"v":1`), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := f.Read(); got.Record != servedA {
		t.Errorf("the disk says %+v", got)
	}
	if _, err := os.Stat(half); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the unfinished write lies there still (%v)", err)
	}
}

// An extended lease costs no write: a minute of renewals syncs twice in all.
func TestRenewalsWriteNothing(t *testing.T) {
	f := NewFile(t.TempDir(), nil)
	g, now := NewGranter(NewGranterConfig("n", "life", cluster.ProfileLAN())), began
	g, _ = g.Step(Input{Kind: InputStart, Found: f.Read()}, now)
	id := cluster.NodeLeaseID{Holder: "a", Start: "s", Epoch: 5}
	for n := range uint64(60) {
		now = now.Add(time.Second)
		var effects []Effect
		g, effects = g.Step(Input{Kind: InputRequest, Member: true, From: "a", Ticket: n + 1, Request: cluster.NodeLeaseRequest{Op: cluster.LeaseGrant, ID: id, N: n + 1}}, now)
		for _, e := range effects {
			if e.Kind == EffectPersist {
				if err := f.Write(e.Record); err != nil {
					t.Fatal(err)
				}
				g, _ = g.Step(Input{Kind: InputPersisted, Seq: e.Seq}, now)
			}
		}
	}
	if got := f.Counters(); got.Syncs != 2 || got.Writes != 1 {
		t.Errorf("counted %+v", got)
	}
	if v := g.View(now); v.Counters.Extended != 59 || v.State != StateActive {
		t.Errorf("the granter says %+v", v)
	}
}

func FuzzDecodeRecord(f *testing.F) {
	good, _ := EncodeRecord(servedA)
	f.Add(good)
	f.Add([]byte(`{"v":1,"held":true,"period_ns":5000000000,"left_ns":4,"sum":0}`))
	f.Add([]byte(`{"v":9}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		r, err := DecodeRecord(raw)
		if err != nil {
			return
		}
		again, err := EncodeRecord(r)
		if err != nil {
			t.Fatal(err)
		}
		if back, err := DecodeRecord(again); err != nil || back != r {
			t.Errorf("%+v comes back as %+v (%v)", r, back, err)
		}
		if r.Left < 0 || r.Left > r.Period || r.Period > cluster.MaxNodeLeaseWait || (r.Held && r.Period <= 0) {
			t.Errorf("believed %+v", r)
		}
		g, _ := NewGranter(NewGranterConfig("n", "l", cluster.ProfileLAN())).Step(Input{Kind: InputStart, Found: Found{Kind: FoundRecord, Record: r}}, began)
		if v := g.View(began); v.State != StateNone && v.State != StateActive && v.State != StateExpiring {
			t.Errorf("the granter is %s", v.State)
		}
	})
}
