package api

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"slices"
	"time"

	"pvc.internal/cluster"
)

// SecretView is a sealed password of fence devices, without what is sealed.
type SecretView struct {
	Name    string `json:"name"`
	By      string `json:"by"`
	UnixMS  int64  `json:"unix_ms"`           // when it was set
	Trouble string `json:"trouble,omitempty"` // why no device could use it
}

// longestSealed is more than what any password becomes by sealing, in bytes.
const longestSealed = 8 << 10

var secretParams = []param{{name: "sealed", kind: argText, required: true, complain: "The sealed password must be given, as `pvc fence seal` prints it",
	about: "what `pvc fence seal` prints; a password itself is never sent"}}

func (s *Server) getSecrets(r *request) (answer, error) {
	texts, err := s.deps.Secrets.ReadSecrets(r.ctx)
	if err != nil {
		return answer{}, fmt.Errorf("list the secrets: %w", err)
	}
	views := make([]SecretView, 0, len(texts))
	for name, text := range texts {
		v := SecretView{Name: name}
		record, err := cluster.DecodeSecret(text)
		if v.By, v.UnixMS = record.By, record.UnixMS; err != nil {
			v.Trouble = err.Error()
		}
		views = append(views, v)
	}
	slices.SortFunc(views, func(a, b SecretView) int { return cmp.Compare(a.Name, b.Name) })
	return ok(views)
}

// postSecret stores a sealed password. Devices use it from their next attempt on.
func (s *Server) postSecret(r *request) (answer, error) {
	name, sealed := r.http.PathValue("name"), r.args.text("sealed")
	if err := cluster.CheckSecretName(name); err != nil {
		return answer{}, refuse(http.StatusBadRequest, fmt.Sprintf("The name %v; nothing was stored.", err))
	}
	if !cluster.LooksSealed(sealed) || len(sealed) > longestSealed {
		return answer{}, refuse(http.StatusBadRequest, "That is not a sealed password; nothing was stored. `pvc fence secret set` seals one and stores it. If it was the password itself, change it: it has been sent as it is.")
	}
	record := cluster.SealedSecret{Version: 1, Sealed: sealed, By: r.caller.name, UnixMS: time.Now().UnixMilli()}
	return s.changeSecret(r, name, "set", func(seen cluster.Versioned[string]) (cluster.Op, bool) {
		if old, err := cluster.DecodeSecret(seen.Value); seen.Present && err == nil && old.Sealed == sealed {
			return cluster.Op{}, false
		}
		return cluster.Put(secretKey(name), cluster.Versioned[cluster.SealedSecret]{Present: seen.Present, Version: seen.Version}, record), true
	})
}

func (s *Server) deleteSecret(r *request) (answer, error) {
	name := r.http.PathValue("name")
	if err := cluster.CheckSecretName(name); err != nil {
		return answer{}, refuse(http.StatusBadRequest, fmt.Sprintf("The name %v; nothing was removed.", err))
	}
	return s.changeSecret(r, name, "removed", func(seen cluster.Versioned[string]) (cluster.Op, bool) {
		return cluster.Delete(secretKey(name), seen.Version), seen.Present
	})
}

func secretKey(name string) cluster.Key { return cluster.Key{Kind: cluster.KeySecret, Name: name} }

// changeSecret carries out one change by compare-and-set; a lost reply is
// settled by looking whether there is still anything to change.
func (s *Server) changeSecret(r *request, name, done string, change func(seen cluster.Versioned[string]) (cluster.Op, bool)) (answer, error) {
	sent := false
	text := fmt.Sprintf("The secret %s was %s.", name, done)
	for range askAttempts {
		seen, err := s.readSecret(r.ctx, name, sent)
		if err != nil {
			return answer{}, err
		}
		op, needed := change(seen)
		switch {
		case !needed && (sent || seen.Present):
			return ok(Message{text})
		case !needed:
			return answer{}, refuse(http.StatusNotFound, fmt.Sprintf("There is no secret %s; nothing was changed. `pvc fence secret list` lists them.", name))
		}
		result := s.commit(r.ctx, "api.secret", s.event(r, "secret", text, map[string]string{"secret": name}), op)
		switch result.Outcome {
		case cluster.OutcomeOK:
			return answer{status: http.StatusOK, body: Message{text}, change: text}, nil
		case cluster.OutcomeConflict:
		case cluster.OutcomeUnknown:
			sent = true
		default:
			return answer{}, outcomeError(result)
		}
	}
	if sent {
		return answer{}, lostReply()
	}
	return answer{}, fmt.Errorf("change the secret %s: %w in each of %d attempts; nothing was changed, ask again", name, cluster.ErrConflict, askAttempts)
}

// readSecret reads the record once the store is up to date here.
func (s *Server) readSecret(ctx context.Context, name string, unsettled bool) (cluster.Versioned[string], error) {
	if _, err := s.fresh(ctx, unsettled); err != nil {
		return cluster.Versioned[string]{}, err
	}
	seen, err := s.deps.Texts.ReadText(ctx, secretKey(name))
	if err != nil {
		return seen, fmt.Errorf("read the secret %s: %w", name, err)
	}
	return seen, nil
}
