package guard

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"pvc.internal/cluster"
)

// heldService is what a restarted guard needs to find a service again.
type heldService struct {
	Spec  cluster.ServiceSpec `json:"spec"`
	PID   int                 `json:"pid,omitempty"`
	Start uint64              `json:"start,omitempty"`
	Group string              `json:"group,omitempty"` // control group's directory
	// Up: an actions service was brought up, and is not being taken down.
	Up     bool `json:"up,omitempty"`
	Starts int  `json:"starts,omitempty"`
}

// heldRole is what a restarted guard needs to keep, or end, a role.
type heldRole struct {
	cluster.RoleDeadline
	Addresses []cluster.FloatingAddress `json:"addresses,omitempty"`
	Services  []heldService             `json:"services,omitempty"`
}

// protected is role.protected of what was written down.
func (h heldRole) protected() bool {
	return h.Owner == cluster.OwnerPrimary || h.Owner == cluster.OwnerNode && len(h.Services) > 0
}

// ledgerState is what the guard holds, as written down.
type ledgerState struct {
	BootID string     `json:"boot_id"` // instants and pids mean nothing after another boot
	Roles  []heldRole `json:"roles"`
	// NodeUntil is the last deadline of the node's own right, passed or not.
	NodeUntil    cluster.Instant   `json:"node_until,omitempty"`
	Feeding      cluster.FeedState `json:"feeding,omitzero"` // of the watchdog
	Relinquished bool              `json:"relinquished,omitempty"`
}

// slotSize is room for some hundreds of services. formerSlot is what earlier
// programs had, whose ledger is read once more when the first guard of this one
// takes over from theirs.
const (
	slotSize   = 512 << 10
	formerSlot = 128 << 10
)

// ledger is the guard's own memory over a restart: two slots of a mapped file,
// written in turn, each with a number and a checksum. Writing one is a copy in
// memory: it waits for no disk, so it may stand on the path of every Extend,
// and it survives the process, which is all that is asked (another boot voids
// it). It belongs on a tmpfs, as run_dir is.
type ledger struct {
	mem    []byte
	seq    uint64
	bootID string
	buf    bytes.Buffer
}

// openLedger maps the file and returns what its newest whole slot says; a slot
// of another boot, or none, is an empty state.
func openLedger(path string) (*ledger, ledgerState, error) {
	boot, err := bootID()
	if err != nil {
		return nil, ledgerState{}, err
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, ledgerState{}, fmt.Errorf("open the guard's ledger: %w", err)
	}
	defer f.Close()
	former := formerLedger(f)
	if err := f.Truncate(2 * slotSize); err != nil {
		return nil, ledgerState{}, fmt.Errorf("size the guard's ledger: %w", err)
	}
	// Each page now: a write to the mapping that finds the disk full is no
	// error but the end of this process (SIGBUS).
	if err := unix.Fallocate(int(f.Fd()), 0, 0, 2*slotSize); err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
		return nil, ledgerState{}, fmt.Errorf("get room for the guard's ledger %s: %w", path, err)
	}
	mem, err := unix.Mmap(int(f.Fd()), 0, 2*slotSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
	if err != nil {
		return nil, ledgerState{}, fmt.Errorf("map the guard's ledger %s: %w", path, err)
	}
	l := &ledger{mem: mem, bootID: boot}
	var newest ledgerState
	slots := [][]byte{mem[:slotSize], mem[slotSize:]}
	if former != nil {
		slots = [][]byte{former[:formerSlot], former[formerSlot:]}
	}
	for _, slot := range slots {
		if seq, s, ok := readSlot(slot); ok && seq > l.seq {
			l.seq, newest = seq, s
		}
	}
	if newest.BootID != boot {
		newest = ledgerState{}
	}
	if former != nil { // its slots lie across this one's
		clear(mem)
		if newest.BootID != "" {
			if err := l.save(newest); err != nil {
				return nil, ledgerState{}, err
			}
		}
	}
	return l, newest, nil
}

// formerLedger is the whole of a ledger with the former slots; nil: it is none.
func formerLedger(f *os.File) []byte {
	info, err := f.Stat()
	if err != nil || info.Size() != 2*formerSlot {
		return nil
	}
	all := make([]byte, 2*formerSlot)
	if _, err := f.ReadAt(all, 0); err != nil {
		return nil
	}
	return all
}

func readSlot(slot []byte) (seq uint64, s ledgerState, ok bool) {
	seq = binary.LittleEndian.Uint64(slot)
	length, sum := binary.LittleEndian.Uint32(slot[8:]), binary.LittleEndian.Uint32(slot[12:])
	if seq == 0 || int(length) > len(slot)-16 {
		return 0, s, false
	}
	body := slot[16:][:length]
	if crc32.ChecksumIEEE(body) != sum || json.Unmarshal(body, &s) != nil {
		return 0, s, false
	}
	return seq, s, true
}

// save writes the state into the slot that is not the newest. A process killed
// in its middle leaves the other.
func (l *ledger) save(s ledgerState) error {
	l.buf.Reset()
	s.BootID = l.bootID
	if err := json.NewEncoder(&l.buf).Encode(s); err != nil {
		return fmt.Errorf("write the guard's ledger: %w", err)
	}
	body := l.buf.Bytes()
	if len(body) > slotSize-16 {
		return fmt.Errorf("write the guard's ledger: %d bytes do not fit; a restarted guard would not find its services", len(body))
	}
	l.seq++
	slot := l.mem[int(l.seq%2)*slotSize:][:slotSize]
	binary.LittleEndian.PutUint64(slot, 0) // not valid meanwhile
	copy(slot[16:], body)
	binary.LittleEndian.PutUint32(slot[8:], uint32(len(body)))
	binary.LittleEndian.PutUint32(slot[12:], crc32.ChecksumIEEE(body))
	binary.LittleEndian.PutUint64(slot, l.seq)
	return nil
}

func (l *ledger) close() { _ = unix.Munmap(l.mem) }

func bootID() (string, error) {
	raw, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("read the boot id: %w", err)
	}
	return string(bytes.TrimSpace(raw)), nil
}

// epochFile is the largest epoch seen of each line, kept over reboots (I2).
type epochFile struct {
	Version int                      `json:"v"`
	Max     map[string]cluster.Epoch `json:"max_epochs"`
}

// readEpochs reads the state file; none is an empty one. One that cannot be
// read is an error: a guard that has forgotten its epochs could serve an old
// holder.
func readEpochs(path string) (map[string]cluster.Epoch, error) {
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return map[string]cluster.Epoch{}, nil
	}
	var f epochFile
	if err == nil {
		err = json.Unmarshal(raw, &f)
	}
	if err == nil && f.Version != 1 {
		err = fmt.Errorf("its version is %d, this program knows 1", f.Version)
	}
	if err != nil || f.Max == nil {
		return nil, fmt.Errorf("read the guard's epochs from %s: %w; no role is served until it is readable, or removed after making sure that no other node is primary", path, err)
	}
	return f.Max, nil
}

// writeEpochs replaces the state file by temp, fsync, rename, fsync of the folder.
func writeEpochs(path string, epochs map[string]cluster.Epoch) error {
	raw, err := json.Marshal(epochFile{Version: 1, Max: epochs})
	if err != nil {
		return fmt.Errorf("write the guard's epochs: %w", err)
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), ".guard-epochs-*")
	if err != nil {
		return fmt.Errorf("write the guard's epochs: %w", err)
	}
	defer os.Remove(tmp.Name()) // gone by then unless a step failed
	_, err = tmp.Write(append(raw, '\n'))
	err = errors.Join(err, tmp.Sync(), tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err == nil {
		err = syncDir(filepath.Dir(path))
	}
	if err != nil {
		return fmt.Errorf("write the guard's epochs: %w", err)
	}
	return nil
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
