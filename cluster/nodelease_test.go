package cluster

import (
	"strings"
	"testing"
	"time"
)

var leaseID = NodeLeaseID{Holder: "hv1", Start: "8a1f", Epoch: 7}

func TestNodeLeaseMessages(t *testing.T) {
	raw, err := EncodeNodeLeaseRequest(NodeLeaseRequest{Op: LeaseExtend, ID: leaseID, N: 3})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := DecodeNodeLeaseRequest(raw); err != nil || got != (NodeLeaseRequest{V: 1, Op: LeaseExtend, ID: leaseID, N: 3}) {
		t.Errorf("%s comes back as %+v (%v)", raw, got, err)
	}
	answer := NodeLeaseAnswer{N: 3, Code: RefuseLeaseAcquired, Detail: strings.Repeat("x", 5000), Left: 1500 * time.Millisecond, Chain: "c.1", Held: time.Nanosecond, Epoch: 8}
	if raw, err = EncodeNodeLeaseAnswer(answer); err != nil {
		t.Fatal(err)
	}
	answer.V, answer.Detail = 1, strings.Repeat("x", 1000)
	if got, err := DecodeNodeLeaseAnswer(raw); err != nil || got != answer {
		t.Errorf("%s comes back as %+v (%v)", raw, got, err)
	}
	if raw, err = EncodeNodeLeaseNotice(NodeLeaseNotice{To: leaseID}); err != nil {
		t.Fatal(err)
	}
	if got, err := DecodeNodeLeaseNotice(raw); err != nil || got.To != leaseID {
		t.Errorf("%s comes back as %+v (%v)", raw, got, err)
	}
}

func TestNodeLeaseMessagesThatAreWrong(t *testing.T) {
	id := `"id":{"holder":"a","start":"s","epoch":1}`
	for text, want := range map[string]string{
		``: "JSON object", `[]`: "JSON object", `null`: "JSON object", `{`: "read lease message",
		`{"v":2,"op":"grant",` + id + `,"n":1}`:                                                "version 2",
		`{"op":"grant",` + id + `,"n":1}`:                                                      "version 0",
		`{"v":1,"op":"dance",` + id + `,"n":1}`:                                                "not known",
		`{"v":1,"op":"grant",` + id + `}`:                                                      "no number",
		`{"v":1,"op":"grant",` + id + `,"n":-1}`:                                               "read lease message",
		`{"v":1,"op":"grant","n":1}`:                                                           "no node's name",
		`{"v":1,"op":"grant","n":1,"id":{"holder":"a","epoch":1}}`:                             "start",
		`{"v":1,"op":"grant","n":1,"id":{"holder":"a","start":"s","epoch":0}}`:                 "epoch",
		`{"v":1,"op":"grant","n":1,"id":{"holder":"a","start":"s","epoch":99007199254740992}}`: "epoch",
		`{"v":1` + strings.Repeat(" ", 17000) + `}`:                                            "longer than",
	} {
		if _, err := DecodeNodeLeaseRequest([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.80s: %v", text, err)
		}
	}
	for text, want := range map[string]string{
		`{"v":1,"n":0,"left_ns":1}`:                                "no number",
		`{"v":1,"n":1,"left_ns":-1}`:                               "not between",
		`{"v":1,"n":1,"left_ns":600000000001}`:                     "not between",
		`{"v":1,"n":1,"left_ns":1,"held_ns":-1}`:                   "not believable",
		`{"v":1,"n":1,"left_ns":1,"epoch":-1}`:                     "epoch",
		`{"v":1,"n":1,"chain":"` + strings.Repeat("c", 300) + `"}`: "too long",
	} {
		if _, err := DecodeNodeLeaseAnswer([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.80s: %v", text, err)
		}
	}
	if _, err := DecodeNodeLeaseNotice([]byte(`{"v":1}`)); err == nil {
		t.Error("a notice to nobody is taken")
	}
	if _, err := EncodeNodeLeaseRequest(NodeLeaseRequest{Op: LeaseGrant, ID: leaseID}); err == nil {
		t.Error("a question without a number is sent")
	}
}

func TestWhichRefusalsRevoke(t *testing.T) {
	for _, c := range []RefusalCode{RefuseLeaseAcquired, RefuseLeaseLost, RefuseLeaseMember, RefuseLeaseStale} {
		if !c.Revokes() {
			t.Errorf("%s leaves the belief", c)
		}
	}
	for _, c := range []RefusalCode{"", RefuseNoAnswer, RefuseLeaseNotKept, RefuseLeaseStopping, RefuseLeaseReplayed, RefuseLeaseBusy, RefuseLeaseMalformed} {
		if c.Revokes() {
			t.Errorf("%q ends the belief", c)
		}
	}
}

func FuzzNodeLeaseRequest(f *testing.F) {
	raw, _ := EncodeNodeLeaseRequest(NodeLeaseRequest{Op: LeaseExtend, ID: leaseID, N: 3})
	f.Add(raw)
	f.Fuzz(func(t *testing.T, raw []byte) {
		r, err := DecodeNodeLeaseRequest(raw)
		if err != nil {
			return
		}
		again, err := EncodeNodeLeaseRequest(r)
		if err != nil {
			t.Fatal(err)
		}
		if back, err := DecodeNodeLeaseRequest(again); err != nil || back != r {
			t.Errorf("%+v comes back as %+v (%v)", r, back, err)
		}
	})
}

func FuzzNodeLeaseAnswer(f *testing.F) {
	raw, _ := EncodeNodeLeaseAnswer(NodeLeaseAnswer{N: 3, Left: time.Second, Chain: "c"})
	f.Add(raw)
	f.Fuzz(func(t *testing.T, raw []byte) {
		a, err := DecodeNodeLeaseAnswer(raw)
		if err != nil {
			return
		}
		again, err := EncodeNodeLeaseAnswer(a)
		if err != nil {
			t.Fatal(err)
		}
		if back, err := DecodeNodeLeaseAnswer(again); err != nil || back != a {
			t.Errorf("%+v comes back as %+v (%v)", a, back, err)
		}
	})
}
