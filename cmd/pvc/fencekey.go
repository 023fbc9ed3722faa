package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"pvc.internal/cluster"
	"pvc.internal/fencing"
)

// defaultFenceKey is where fencing.secrets.key_file mostly points.
const defaultFenceKey = "/etc/pvc/fence.key"

// The bounds of a password, in bytes: what any device takes, and what ipmi does.
const (
	longestPassword     = 255
	longestIPMIPassword = 20
)

func (t *terminal) fenceKeyCommand() *cli.Command {
	return &cli.Command{Name: "key", Usage: "make the key that opens sealed passwords, the same file for every coordinator", Action: t.fenceKey, Flags: []cli.Flag{
		&cli.StringFlag{Name: "out", Usage: "`FILE` to make, with mode 0600", Value: defaultFenceKey}}}
}

func (t *terminal) fenceSealCommand() *cli.Command {
	return &cli.Command{Name: "seal", Usage: "seal a password, read from the standard input or asked for, as text for password_sealed", Action: t.fenceSeal, Flags: sealingKey()}
}

// sealingKey are the flags that say for which key is sealed; recipient reads them.
func sealingKey() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "key", Usage: "key `FILE` that shall open it", Value: defaultFenceKey},
		&cli.StringFlag{Name: "to", Usage: "the key's public half, `age1…`, where the file itself is not at hand"}}
}

func recipient(c *cli.Context) (string, error) {
	to := c.String("to")
	if to != "" && c.IsSet("key") {
		return "", usagef("give --key or --to, not both")
	}
	if to != "" {
		return to, nil
	}
	return fencing.Recipient(c.String("key"))
}

// madeKey is what `pvc fence key` has made; it holds nothing secret.
type madeKey struct {
	File      string `json:"file"`
	Recipient string `json:"recipient"` // the public half: whoever has it can seal
}

// fenceKey never replaces a file: with the old key gone every password that
// was sealed for it is lost.
func (t *terminal) fenceKey(c *cli.Context) error {
	if _, err := names(c); err != nil {
		return err
	}
	if _, err := format(c); err != nil {
		return err // before anything is written
	}
	text, recipient, err := fencing.NewKey()
	if err != nil {
		return err
	}
	made := madeKey{c.String("out"), recipient}
	if err := writeKey(made.File, text); err != nil {
		return err
	}
	return t.show(c, made, func() {
		t.say("%s, mode 0600, public half %s", made.File, made.Recipient)
		t.say("Copy it to every coordinator with mode 0600, set fencing.secrets.key_file there, and keep a copy: without it what was sealed is lost.")
	})
}

func writeKey(file string, text fencing.Secret) error {
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%s is there already, and what was sealed for it could not be opened any more; nothing was changed. Choose another file with --out: %w", file, cluster.ErrRefused)
	}
	if err != nil {
		return fmt.Errorf("make the key file: %w", err)
	}
	_, err = io.WriteString(f, text.Reveal())
	err = errors.Join(err, f.Sync(), f.Close())
	if err != nil {
		_ = os.Remove(file) // half a key is none
		return fmt.Errorf("write the key file: %w", err)
	}
	return nil
}

// sealedText is the answer of `pvc fence seal`.
type sealedText struct {
	PasswordSealed string `json:"password_sealed"`
}

func (t *terminal) fenceSeal(c *cli.Context) error {
	if len(c.Args().Slice()) > 0 { // it might be the password: it is not repeated
		return usagef("`pvc fence seal` takes no words: the password is read from the standard input, so that it stands in no list of processes and no shell history. If it was on the command line, change it")
	}
	if _, err := format(c); err != nil {
		return err
	}
	recipient, err := recipient(c)
	if err != nil {
		return err
	}
	password, err := t.readPassword(c.Context)
	if err != nil {
		return err
	}
	sealed, err := fencing.Seal(recipient, password)
	if err != nil {
		return err
	}
	t.noteLong(password)
	return t.show(c, sealedText{sealed}, func() { t.say("%s", sealed) })
}

// noteLong says that the password is too long for some devices.
func (t *terminal) noteLong(password fencing.Secret) {
	if len(password.Reveal()) > longestIPMIPassword {
		fmt.Fprintf(t.err, "note: it has more than %d bytes, which a device of type ipmi does not take\n", longestIPMIPassword)
	}
}

// readPassword asks twice on a terminal, without showing what is written, and
// else takes the one line that the standard input holds.
func (t *terminal) readPassword(ctx context.Context) (fencing.Secret, error) {
	if f, ok := t.in.(*os.File); ok && terminalFile(f) {
		first, err := t.askHidden(ctx, f, "Password: ")
		if err != nil {
			return fencing.Secret{}, err
		}
		again, err := t.askHidden(ctx, f, "Again: ")
		if err != nil {
			return fencing.Secret{}, err
		}
		if first != again {
			return fencing.Secret{}, usagef("the two are not the same; nothing was sealed")
		}
		return checkedPassword(first)
	}
	raw, err := io.ReadAll(io.LimitReader(t.in, 4*longestPassword))
	if err != nil {
		return fencing.Secret{}, fmt.Errorf("read the password: %w", err)
	}
	return checkedPassword(strings.TrimSuffix(strings.TrimSuffix(string(raw), "\n"), "\r"))
}

// checkedPassword refuses what no device would take; it never repeats it.
func checkedPassword(text string) (fencing.Secret, error) {
	switch {
	case text == "":
		return fencing.Secret{}, usagef("there is no password on the standard input")
	case len(text) > longestPassword:
		return fencing.Secret{}, usagef("the password has more than %d bytes", longestPassword)
	case strings.ContainsAny(text, "\n\r\x00"):
		return fencing.Secret{}, usagef("the password must be one line without zero bytes")
	}
	return fencing.NewSecret(text), nil
}

func terminalFile(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// hiddenLook is how often the wait for a key press looks whether it was
// interrupted: the echo must come back in any case.
const hiddenLook = 100 // milliseconds

// askHidden reads a line from the terminal with its echo off.
func (t *terminal) askHidden(ctx context.Context, f *os.File, prompt string) (string, error) {
	fd := int(f.Fd())
	was, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return "", fmt.Errorf("read the terminal's settings: %w", err)
	}
	hidden := *was
	hidden.Lflag &^= unix.ECHO
	hidden.Lflag |= unix.ICANON | unix.ECHONL
	fmt.Fprint(t.err, prompt)
	if err := unix.IoctlSetTermios(fd, unix.TCSETS, &hidden); err != nil {
		return "", fmt.Errorf("switch the terminal's echo off: %w", err)
	}
	defer func() { _ = unix.IoctlSetTermios(fd, unix.TCSETS, was) }()
	var line []byte
	buffer := make([]byte, longestPassword)
	for len(line) <= 4*longestPassword {
		if err := ctx.Err(); err != nil {
			return "", err
		}
		ready, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, hiddenLook)
		if errors.Is(err, unix.EINTR) || err == nil && ready == 0 {
			continue
		}
		if err != nil {
			return "", fmt.Errorf("wait for the password: %w", err)
		}
		n, err := unix.Read(fd, buffer)
		if errors.Is(err, unix.EINTR) || errors.Is(err, unix.EAGAIN) {
			continue
		}
		if err != nil {
			return "", fmt.Errorf("read the password: %w", err)
		}
		line = append(line, buffer[:n]...)
		if n == 0 || line[len(line)-1] == '\n' {
			break
		}
	}
	return strings.TrimRight(string(line), "\r\n"), nil
}
