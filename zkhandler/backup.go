package zkhandler

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"pvc.internal/cluster"
)

// backupFormat and backupVersion begin every backup.
const (
	backupFormat  = "pvc-cluster-backup"
	backupVersion = 1
)

// MaxBackup bounds an encoded backup, in bytes: a thousand nodes make some
// megabytes.
const MaxBackup = 256 << 20

// Backup is one consistent view of a cluster's tree, as a file holds it. What
// ends with a session (alive records, locks), what each node tells anew at once
// (views, node leases, the text of logs) and what runs (activities) is not in
// it. Secrets are in it as the tree has them: sealed.
type Backup struct {
	Format  string `json:"format"`
	Version int    `json:"v"`
	Cluster string `json:"cluster"` // its name
	MadeMS  int64  `json:"made_ms"` // unix milliseconds of the maker's clock, for people
	By      string `json:"by,omitempty"`
	Program string `json:"program,omitempty"` // version of the program that made it
	Schema  int    `json:"schema"`            // the tree's layout
	// ZxidFirst and ZxidLast are the first and the last of ZooKeeper's
	// transactions (hexadecimal) at which the tree was as it is here, but for
	// what changes all the time: keepalives, measured values, the lease's count.
	ZxidFirst string `json:"zxid_first"`
	ZxidLast  string `json:"zxid_last"`
	// Epoch is the largest that any record of the tree had.
	Epoch   cluster.Epoch  `json:"epoch"`
	Records []BackupRecord `json:"records"`
	// SHA256 is of all the rest, as JSON without blanks.
	SHA256 string `json:"sha256"`
}

// BackupRecord is one znode. Its path is relative to zookeeper.root, so that a
// tree can be restored below another one.
type BackupRecord struct {
	Path  string `json:"path"`
	Text  string `json:"text,omitempty"`
	Bytes []byte `json:"bytes,omitempty"` // in place of Text where that is no UTF-8
}

func (r BackupRecord) data() []byte {
	if r.Bytes != nil {
		return r.Bytes
	}
	return []byte(r.Text)
}

func newBackupRecord(path string, data []byte) BackupRecord {
	if utf8.Valid(data) {
		return BackupRecord{Path: path, Text: string(data)}
	}
	return BackupRecord{Path: path, Bytes: data}
}

func (b Backup) sum() (string, error) {
	b.SHA256 = ""
	raw, err := json.Marshal(b)
	if err != nil {
		return "", fmt.Errorf("encode the backup: %w", err)
	}
	sum := sha256.Sum256(raw)
	return hex.EncodeToString(sum[:]), nil
}

// Encode returns the file's bytes, with their checksum.
func (b Backup) Encode() ([]byte, error) {
	b.Format, b.Version = backupFormat, backupVersion
	sum, err := b.sum()
	if err != nil {
		return nil, err
	}
	b.SHA256 = sum
	raw, err := json.MarshalIndent(b, "", " ")
	if err != nil {
		return nil, fmt.Errorf("encode the backup: %w", err)
	}
	return append(raw, '\n'), nil
}

// DecodeBackup reads what Encode has made. What is cut short, changed by as much
// as a letter, of a newer program, or no tree of ours, is refused.
func DecodeBackup(raw []byte) (Backup, error) {
	var b Backup
	if len(raw) > MaxBackup {
		return Backup{}, fmt.Errorf("it has more than %d MiB and is no backup", MaxBackup>>20)
	}
	var head struct {
		Format  string `json:"format"`
		Version int    `json:"v"`
	}
	if err := json.Unmarshal(raw, &head); err != nil {
		return Backup{}, fmt.Errorf("it is no backup, or was cut short: %w", err)
	}
	switch {
	case head.Format != backupFormat:
		return Backup{}, fmt.Errorf("it is no backup: its \"format\" is %q, not %q", head.Format, backupFormat)
	case head.Version != backupVersion:
		return Backup{}, fmt.Errorf("it is a backup of version %d and this program reads version %d: use the program that made it, or a newer one", head.Version, backupVersion)
	}
	d := json.NewDecoder(bytes.NewReader(raw))
	d.DisallowUnknownFields()
	if err := d.Decode(&b); err != nil {
		return Backup{}, fmt.Errorf("it is a damaged backup: %w", err)
	}
	sum, err := b.sum()
	switch {
	case err != nil:
		return Backup{}, err
	case sum != b.SHA256:
		return Backup{}, errors.New("it is a damaged backup: its checksum does not fit its contents; take another one")
	}
	return b, b.check()
}

// check refuses what could not have been a tree of ours.
func (b Backup) check() error {
	seen := map[string]bool{}
	for _, r := range b.Records {
		top, rest, _ := strings.Cut(strings.TrimPrefix(r.Path, "/"), "/")
		switch {
		case !strings.HasPrefix(r.Path, "/") || !slices.Contains(treeRoots, "/"+top):
			return fmt.Errorf("the backup holds %q, which is in no tree of ours", r.Path)
		case seen[r.Path]:
			return fmt.Errorf("the backup holds %s twice", r.Path)
		case len(r.data())+len(r.Path)+opOverhead > maxRequest/2:
			return fmt.Errorf("the backup holds %s of %d bytes, more than could be written", r.Path, len(r.data()))
		}
		if rest != "" {
			if err := checkSegments(rest); err != nil {
				return fmt.Errorf("the backup holds %q: %w", r.Path, err)
			}
		}
		seen[r.Path] = true
	}
	name, schema := strings.TrimSpace(b.text(configTop)), strings.TrimSpace(b.text(schemaRecord))
	version, err := strconv.Atoi(schema)
	switch {
	case name == "" || name != b.Cluster:
		return fmt.Errorf("the backup says that it is of cluster %q, and its tree is of %q", b.Cluster, name)
	case err != nil || version < 1:
		return fmt.Errorf("the backup's /agent/schema holds %q, not a version number", schema)
	case version != b.Schema:
		return fmt.Errorf("the backup says that its schema is %d, and its tree has %d", b.Schema, version)
	case b.Epoch > cluster.MaxEpoch:
		return fmt.Errorf("the backup's epoch %d is no epoch", uint64(b.Epoch))
	}
	return nil
}

func (b Backup) text(path string) string {
	for _, r := range b.Records {
		if r.Path == path {
			return string(r.data())
		}
	}
	return ""
}

// epochsIn is the largest epoch that a record tells of; 0 of what is no record
// of ours.
func epochsIn(data []byte) cluster.Epoch {
	var told struct {
		Epoch uint64 `json:"epoch"`
		Next  uint64 `json:"next_epoch"`
	}
	if json.Unmarshal(data, &told) != nil {
		return 0
	}
	largest := cluster.Epoch(0)
	for _, e := range []uint64{told.Epoch, told.Next} {
		if cluster.Epoch(e) <= cluster.MaxEpoch { // larger is rubbish: it must not make everybody stale
			largest = max(largest, cluster.Epoch(e))
		}
	}
	return largest
}
