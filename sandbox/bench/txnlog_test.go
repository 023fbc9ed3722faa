package bench

import (
	"bytes"
	"encoding/binary"
	"testing"
	"time"
)

func long(v int64) []byte         { return binary.BigEndian.AppendUint64(nil, uint64(v)) }
func short(v int32) []byte        { return binary.BigEndian.AppendUint32(nil, uint32(v)) }
func buffer(b []byte) []byte      { return append(short(int32(len(b))), b...) }
func join(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

func record(zxid, at int64, kind int32, body []byte) []byte {
	raw := join(long(7), short(1), long(zxid), long(at), short(kind), body)
	return join(long(0), buffer(raw), []byte{'B'})
}

func set(path, data string) []byte { return join(buffer([]byte(path)), buffer([]byte(data)), short(3)) }

func TestAServersLogIsRead(t *testing.T) {
	multi := join(short(2), short(txnSet), buffer(set("/nodes/hv1/keepalive", "1")), short(txnSet), buffer(set(leasePath, "{}")))
	failed := join(short(1), short(txnError), buffer(short(-103)))
	log := join([]byte("ZKLG"), short(2), long(0),
		record(1, 1000, -10, short(6000)),
		record(2, 1100, txnMulti, multi),
		record(3, 2103, txnMulti, multi),
		record(4, 2200, txnMulti, failed),
		record(5, 2300, txnSet, set("/nodes/hv1/keepalive", "2")),
		make([]byte, 64))
	all, err := readLog(bytes.NewReader(log))
	if err != nil {
		t.Fatal(err)
	}
	if len(all) != 5 {
		t.Fatalf("%d transactions, not 5: %+v", len(all), all)
	}
	if all[1].keepaliveNode() != "hv1" || all[0].keepaliveNode() != "" || !all[3].failed {
		t.Errorf("misread: %+v", all)
	}
	if _, ok := all[1].sets(leasePath); !ok {
		t.Error("the lease's write within the Multi was not seen")
	}
	got := intervals(all, "/nodes/hv1/keepalive")
	if len(got) != 2 || got[0] != 1003*time.Millisecond || got[1] != 197*time.Millisecond {
		t.Errorf("intervals %v", got)
	}
	if data, ok := all[4].sets("/nodes/hv1/keepalive"); !ok || string(data) != "2" {
		t.Errorf("the single write reads %q", data)
	}
}

func TestADamagedLogIsAnError(t *testing.T) {
	if _, err := readLog(bytes.NewReader([]byte("something else entirely"))); err == nil {
		t.Error("rubbish was taken for a log")
	}
	torn := join([]byte("ZKLG"), short(2), long(0), record(1, 1, txnSet, set("/a", "b"))[:30])
	if all, err := readLog(bytes.NewReader(torn)); err != nil || len(all) != 0 {
		t.Errorf("a record being written: %v, %v", all, err)
	}
}
